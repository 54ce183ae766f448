//! The code that the parts of pam_iam share: names and ids, configuration, the wire, the blocking client.
//!
//! Every part links this crate, including the two modules that are loaded into foreign processes (sshd, sudo and every
//! program that looks up a user). So nothing here starts a thread, installs a signal handler, keeps a descriptor open
//! past a call, prints to standard output, blocks past its deadline or panics.

#![forbid(unsafe_code)]

#[cfg(feature = "config")]
pub mod account_kind;
pub mod audit;
pub mod child;
pub mod client;
#[cfg(feature = "config")]
pub mod config;
pub mod deadline;
pub mod escape;
pub mod file_version;
pub mod fingerprint;
pub mod frame;
pub mod id;
#[cfg(feature = "config")]
pub mod importer_record;
#[cfg(feature = "keys")]
pub mod key;
#[cfg(feature = "config")]
pub mod leftovers;
pub mod local;
#[cfg(feature = "log")]
pub mod log;
pub mod map;
pub mod name;
pub mod nsswitch;
pub mod once;
pub mod owners;
pub mod paths;
pub mod process;
pub mod registry;
pub mod replace;
pub mod resolver;
pub mod served;
pub mod unit;
pub mod wire;
