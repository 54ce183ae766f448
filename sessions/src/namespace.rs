//! User namespaces: who owns the one that a process is in (ioctl_ns(2)).

#![expect(unsafe_code, reason = "no safe crate has the ioctls of ioctl_ns(2)")]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use pam_iam_core::id::Uid;

/// `NS_GET_PARENT` of linux/nsfs.h.
const NS_GET_PARENT: libc::c_ulong = 0xb702;

/// `NS_GET_OWNER_UID` of linux/nsfs.h.
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;

/// The kernel nests user namespaces this deep at most (user_namespaces(7)).
const DEPTH_MAX: usize = 33;

/// The owners of user namespaces, by inode number, as far as they were asked for.
#[derive(Debug, Default)]
pub struct Namespaces {
    own: Option<u64>,
    owners: HashMap<u64, Vec<Uid>>,
}

impl Namespaces {
    /// The owners of the user namespace that `pid` is in and of those above it, up to the one of this process. None for a
    /// process in the same namespace as this one.
    pub fn owners(&mut self, pid: i32) -> Vec<Uid> {
        // Opening the link, not reading it: what is opened cannot become another namespace.
        let Ok(namespace) = File::open(format!("/proc/{pid}/ns/user")) else { return Vec::new() };
        let Some(inode) = inode_of(&namespace) else { return Vec::new() };
        if self.own.is_none() {
            self.own = File::open("/proc/self/ns/user").ok().and_then(|own| inode_of(&own));
        }
        if self.own == Some(inode) {
            return Vec::new();
        }
        let own = self.own;
        self.owners.entry(inode).or_insert_with(|| owners_up_to(namespace.into(), own)).clone()
    }
}

fn inode_of(namespace: &File) -> Option<u64> {
    namespace.metadata().ok().map(|found| found.ino())
}

fn owners_up_to(mut namespace: OwnedFd, own: Option<u64>) -> Vec<Uid> {
    let mut owners = Vec::new();
    for _ in 0..DEPTH_MAX {
        owners.extend(owner(&namespace));
        let Some(parent) = parent(&namespace) else { break };
        let parent = File::from(parent);
        if inode_of(&parent) == own {
            break;
        }
        namespace = parent.into();
    }
    owners
}

fn owner(namespace: &OwnedFd) -> Option<Uid> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the descriptor is open, and NS_GET_OWNER_UID writes one uid_t.
    let done = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID as _, &raw mut uid) };
    (done == 0).then_some(Uid(uid))
}

/// None above the namespace of this process, which is as far as it may see.
fn parent(namespace: &OwnedFd) -> Option<OwnedFd> {
    // SAFETY: the descriptor is open, and NS_GET_PARENT takes no argument.
    let parent = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT as _) };
    // SAFETY: a descriptor that is not negative is a new one, and nobody else's.
    (parent >= 0).then(|| unsafe { OwnedFd::from_raw_fd(parent) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_our_own_namespace_is_in_nobodys() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(Namespaces::default().owners(pid).is_empty());
        assert!(Namespaces::default().owners(i32::MAX - 1).is_empty());
    }
}
