//! The end-to-end tests, by what they are about. Each has a box of its own, so they run side by side; `load.rs` and `attacks.rs`,
//! which keep the machine busy, are programs of their own and run after them, one by one.

mod accounts;
mod aws;
mod boot;
mod budget;
mod claims;
mod hands;
mod home;
mod hosts;
mod iamctl;
mod importer;
mod in_force;
mod live;
mod login;
mod modules;
mod names;
mod outage;
mod package;
mod selinux;
mod setup;
mod sudo_rs;
mod trouble;
mod vagrant;
mod ways;
mod withdrawal;
