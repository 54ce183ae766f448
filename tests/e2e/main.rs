//! The end-to-end tests, by what they are about. Each has a box of its own, so they run side by side; `load.rs`, which keeps the
//! machine busy, is a program of its own and runs after them, one by one.

mod accounts;
mod aws;
mod boot;
mod budget;
mod home;
mod hosts;
mod iamctl;
mod importer;
mod live;
mod login;
mod modules;
mod names;
mod outage;
mod package;
mod selinux;
mod setup;
mod trouble;
mod vagrant;
mod withdrawal;
