//! The list of uids of the managed range that IAM users have had on this host, each with the user's last Linux name.
//!
//! If IAM knows no user with a uid, the uid alone does not tell whether it ever was an IAM user's: another directory may
//! use such uids too. The sweep ends the processes of such a uid only if the list, which belongs to root, has it. The
//! name tells which ranges of subuid(5) belonged to the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::Uid;
use crate::name::LinuxName;
use crate::replace::{is_private, put_private};

/// The number of folder entries that [`Served::uids`] reads at most.
const LISTED_MAX: usize = 20_000;

/// The list: a folder with a file for each uid, which holds the name.
#[derive(Clone, Debug)]
pub struct Served(PathBuf);

impl Served {
    /// Returns the list in the folder `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Adds a uid with the current Linux name of its user. A name that the list already has for the uid is replaced.
    ///
    /// # Errors
    /// Returns an error if the list cannot be written.
    pub fn add(&self, uid: Uid, name: &str) -> io::Result<()> {
        if self.name_of(uid).is_some_and(|known| known.as_str() == name) {
            return Ok(());
        }
        // Two logins may add a uid at the same time.
        let unfinished = format!("{uid}.{}", std::process::id());
        put_private(&self.0, &uid.to_string(), &unfinished, name.as_bytes())
    }

    /// Returns the last Linux name of a uid's user. None if the list does not have the uid, has no name for it, or could
    /// have been written by users other than this process's.
    pub fn name_of(&self, uid: Uid) -> Option<LinuxName> {
        if self.is_own() { self.kept_name(uid) } else { None }
    }

    /// Returns the uids whose users last had the Linux name `name`. There may be several: a user who is deleted and
    /// created again gets another uid.
    pub fn uids_of(&self, name: &str) -> Vec<Uid> {
        let is_called = |uid: &Uid| self.kept_name(*uid).is_some_and(|known| known.as_str() == name);
        self.uids().filter(is_called).collect()
    }

    /// Returns all uids of the list. Empty if users other than this process's could have written it.
    pub fn uids(&self) -> impl Iterator<Item = Uid> {
        let entries = if self.is_own() { std::fs::read_dir(&self.0).ok() } else { None };
        let names = entries.into_iter().flatten().take(LISTED_MAX);
        let uids = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Uid));
        uids.filter(|uid| self.is_listed(*uid))
    }

    /// Whether a uid is in the list. False if users other than this process's could have written the list.
    pub fn has(&self, uid: Uid) -> bool {
        self.is_own() && self.is_listed(uid)
    }

    fn file_of(&self, uid: Uid) -> PathBuf {
        self.0.join(uid.to_string())
    }

    fn is_own(&self) -> bool {
        is_private(&self.0)
    }

    fn is_listed(&self, uid: Uid) -> bool {
        std::fs::symlink_metadata(self.file_of(uid)).is_ok_and(|found| found.is_file())
    }

    fn kept_name(&self, uid: Uid) -> Option<LinuxName> {
        if !self.is_listed(uid) {
            return None;
        }
        LinuxName::new(&std::fs::read_to_string(self.file_of(uid)).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_stays_in_the_list_with_its_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(&dir.path().join("served"));
        assert!(!served.has(Uid(7)));
        served.add(Uid(7), "ann").unwrap();
        served.add(Uid(7), "anne").unwrap();
        assert!(served.has(Uid(7)) && !served.has(Uid(77)));
        assert_eq!(served.name_of(Uid(7)).unwrap().as_str(), "anne");
        assert_eq!((served.uids_of("anne"), served.uids_of("ann")), (vec![Uid(7)], Vec::new()));
    }

    #[test]
    fn a_uid_without_a_name_is_in_the_list_and_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        std::fs::write(dir.path().join("7"), "").unwrap();
        assert!(served.has(Uid(7)) && served.name_of(Uid(7)).is_none());
        served.add(Uid(7), "ann").unwrap();
        assert_eq!(served.name_of(Uid(7)).unwrap().as_str(), "ann");
    }

    #[test]
    fn a_list_that_others_could_have_written_says_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        served.add(Uid(7), "ann").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!served.has(Uid(7)) && served.name_of(Uid(7)).is_none() && served.uids_of("ann").is_empty());
    }
}
