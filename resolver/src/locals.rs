//! The local accounts and groups as of now: read again when the files have changed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::local;
use pam_iam_core::standing::Files;

/// /etc/passwd and /etc/group.
#[derive(Debug)]
pub struct Locals {
    /// Where they are.
    pub files: Files,
    users: RefCell<Cached<Uid>>,
    groups: RefCell<Cached<Gid>>,
}

/// What tells one version of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

type Names<T> = Rc<HashMap<String, T>>;
type Cached<T> = Option<(Version, Names<T>)>;

impl Locals {
    /// The files at these places.
    pub fn new(files: Files) -> Self {
        Self { files, users: RefCell::default(), groups: RefCell::default() }
    }

    /// The uid of the local account `name`.
    ///
    /// # Errors
    /// Those of reading the file: nobody is taken for "not local" because of one.
    pub fn uid_of(&self, name: &str) -> io::Result<Option<Uid>> {
        let read = || Ok(local::accounts(&self.files.passwd)?.into_iter().map(|a| (a.name, a.uid)).collect());
        Ok(current(&self.users, &self.files.passwd, read)?.get(name).copied())
    }

    /// The gid of the local group `name`.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn gid_of(&self, name: &str) -> io::Result<Option<Gid>> {
        let read = || Ok(local::groups(&self.files.group)?.into_iter().map(|g| (g.name, g.gid)).collect());
        Ok(current(&self.groups, &self.files.group, read)?.get(name).copied())
    }
}

fn current<T>(
    cached: &RefCell<Cached<T>>,
    path: &Path,
    read: impl FnOnce() -> io::Result<HashMap<String, T>>,
) -> io::Result<Names<T>> {
    let metadata = std::fs::metadata(path)?;
    let version = Version {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    if let Some((known, names)) = &*cached.borrow()
        && *known == version
    {
        return Ok(Rc::clone(names));
    }
    let names = Rc::new(read()?);
    *cached.borrow_mut() = Some((version, Rc::clone(&names)));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(&passwd, "ann:x:1000:1000::/:/bin/sh\n").unwrap();
        std::fs::write(&group, "").unwrap();
        let locals = Locals::new(Files { passwd: passwd.clone(), group });
        assert_eq!(locals.uid_of("ann").unwrap(), Some(Uid(1000)));
        assert_eq!(locals.uid_of("bob").unwrap(), None);
        std::fs::write(&passwd, "ann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n").unwrap();
        assert_eq!(locals.uid_of("bob").unwrap(), Some(Uid(1001)));
        std::fs::remove_file(&passwd).unwrap();
        assert!(locals.uid_of("ann").is_err());
    }
}
