//! Finds and ends a user's processes, for `iamctl` and `iam-importer`.
//!
//! One function tells which processes belong to a user ([`owner`]), one ends them ([`termination`]). The user may resist by every means
//! that an unprivileged user has. So no program is started under the user's uid, nothing here waits for one user longer than a named
//! limit, and the kernel alone tells which processes have ended.

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
