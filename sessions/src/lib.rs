//! Finds and ends a user's processes, for `iamctl` and `iam-importer`.
//!
//! One function says which processes belong to a user ([`owner`]), one ends them ([`termination`]). The user who is
//! being ended may defend himself by every means that an unprivileged user has, so: no program is started under his
//! uid, nothing here waits for one user longer than a named limit, and who has ended is told by the kernel.

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
