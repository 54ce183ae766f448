//! Finds and ends a user's processes, for `iamctl` and `iam-importer`.
//!
//! The module [`owner`] decides which processes belong to a user, and [`termination`] ends them. The user may resist by
//! every means that an unprivileged user has. So this crate starts no program under the user's uid, limits every wait for a
//! user's processes by a named constant, and trusts only the kernel about which processes have ended.

pub mod cgroup;
pub mod killer;
pub mod logind;
pub mod lookup;
pub mod managed;
mod namespace;
pub mod owner;
pub mod table;
pub mod termination;
pub mod unit;
