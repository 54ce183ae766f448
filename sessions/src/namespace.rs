//! The owners of the user namespaces that a process is in (ioctl_ns(2)).

#![expect(unsafe_code, reason = "no safe crate has the ioctls of ioctl_ns(2)")]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use pam_iam_core::id::Uid;

/// `NS_GET_USERNS` of linux/nsfs.h.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// `NS_GET_PARENT` of linux/nsfs.h.
const NS_GET_PARENT: libc::c_ulong = 0xb702;

/// `NS_GET_OWNER_UID` of linux/nsfs.h.
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;

/// The most user namespaces from one up to the initial one: the kernel nests 32 levels (user_namespaces(7)).
const DEPTH_MAX: usize = 33;

/// The most user namespaces whose owners are cached. Each of these stays open.
const KEPT_MAX: usize = 256;

/// A cache of the owners of user namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    own: Option<u64>,
    /// The owners by the inode number of the namespace, which stays open so that the kernel does not reuse the number.
    owners: HashMap<u64, (File, Vec<Uid>)>,
}

impl Namespaces {
    /// Returns the owners of the user namespace of `pid` and of its ancestors below the namespace of this process. Empty if
    /// `pid` is in the namespace of this process, or its namespace cannot be read.
    pub fn owners(&mut self, pid: i32) -> Vec<Uid> {
        // Opened, not read as a link: the kernel does not reuse the inode number of an open namespace.
        let Ok(namespace) = File::open(format!("/proc/{pid}/ns/user")) else { return Vec::new() };
        let Some(inode) = inode_of(&namespace) else { return Vec::new() };
        let own = self.own();
        if own == Some(inode) {
            return Vec::new();
        }
        if let Some((_, owners)) = self.owners.get(&inode) {
            return owners.clone();
        }
        let owners = owners_up_to(&namespace, own);
        if self.owners.len() < KEPT_MAX {
            self.owners.insert(inode, (namespace, owners.clone()));
        }
        owners
    }

    /// Whether `pid` is in a pid namespace that root of the host has made, such as a Docker container's: it belongs to the
    /// user namespace of this process. A pid namespace made by an unprivileged user belongs to a user namespace of that
    /// user.
    pub fn is_in_a_container_of_root(&mut self, pid: i32) -> bool {
        let Ok(namespace) = File::open(format!("/proc/{pid}/ns/pid")) else { return false };
        let own = File::open("/proc/self/ns/pid").ok().and_then(|own| inode_of(&own));
        if inode_of(&namespace) == own {
            return false;
        }
        let user = related(namespace.as_fd(), NS_GET_USERNS).map(File::from);
        user.and_then(|user| inode_of(&user)).is_some_and(|inode| Some(inode) == self.own())
    }

    fn own(&mut self) -> Option<u64> {
        if self.own.is_none() {
            self.own = File::open("/proc/self/ns/user").ok().and_then(|own| inode_of(&own));
        }
        self.own
    }
}

fn inode_of(namespace: &File) -> Option<u64> {
    namespace.metadata().ok().map(|found| found.ino())
}

fn owners_up_to(namespace: &File, own: Option<u64>) -> Vec<Uid> {
    let mut owners: Vec<Uid> = owner(namespace.as_fd()).into_iter().collect();
    let mut above = related(namespace.as_fd(), NS_GET_PARENT).map(File::from);
    for _ in 1..DEPTH_MAX {
        let Some(namespace) = above.filter(|above| inode_of(above) != own) else { break };
        owners.extend(owner(namespace.as_fd()));
        above = related(namespace.as_fd(), NS_GET_PARENT).map(File::from);
    }
    owners
}

fn owner(namespace: BorrowedFd<'_>) -> Option<Uid> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the descriptor is open, and NS_GET_OWNER_UID writes one uid_t.
    let done = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID as _, &raw mut uid) };
    (done == 0).then_some(Uid(uid))
}

/// Returns the parent (`NS_GET_PARENT`) or the user namespace (`NS_GET_USERNS`) of a namespace. None if the kernel refuses,
/// as it does for a namespace above those of this process.
fn related(namespace: BorrowedFd<'_>, request: libc::c_ulong) -> Option<OwnedFd> {
    // SAFETY: the descriptor is open, and neither request takes an argument.
    let found = unsafe { libc::ioctl(namespace.as_raw_fd(), request as _) };
    // SAFETY: a result that is not negative is a new descriptor, which nothing else owns.
    (found >= 0).then(|| unsafe { OwnedFd::from_raw_fd(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_the_same_namespace_has_no_owners() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(Namespaces::default().owners(pid).is_empty());
        assert!(Namespaces::default().owners(i32::MAX - 1).is_empty());
        assert!(!Namespaces::default().is_in_a_container_of_root(pid));
    }
}
