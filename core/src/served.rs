//! The uids that were ever an IAM user's on this host.
//!
//! A uid of our range whose user is gone says nothing about whose it was: another directory may use such uids too. A
//! sweep ends the processes of an unknown uid only if it is in this list, which root keeps.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::id::Uid;

/// The list.
#[derive(Clone, Debug)]
pub struct Served(PathBuf);

impl Served {
    /// The list in the folder `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Adds a uid.
    ///
    /// # Errors
    /// Returns an error if the list cannot be written.
    pub fn add(&self, uid: Uid) -> io::Result<()> {
        if self.has(uid) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(0o600).open(self.0.join(uid.to_string()))?;
        File::open(&self.0)?.sync_all()
    }

    /// Whether a uid is in the list. False if the list could have been written by others than whoever runs this.
    pub fn has(&self, uid: Uid) -> bool {
        let is_own = std::fs::symlink_metadata(&self.0).is_ok_and(|found| {
            found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
        });
        is_own && std::fs::symlink_metadata(self.0.join(uid.to_string())).is_ok_and(|found| found.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_stays_in_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(&dir.path().join("served"));
        assert!(!served.has(Uid(7)));
        served.add(Uid(7)).unwrap();
        served.add(Uid(7)).unwrap();
        assert!(served.has(Uid(7)) && !served.has(Uid(77)));
    }

    #[test]
    fn a_list_that_others_could_have_written_says_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        served.add(Uid(7)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!served.has(Uid(7)));
    }
}
