//! The owner of each Linux name: the user who last opened a session under it. A name may pass to another IAM user, by a deletion or by two
//! renames, and what the host keeps by name would pass with it.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::Uid;
use crate::paths;
use crate::replace::{is_private, put_private};
use crate::served::Served;

/// The owners of names. Only sessions record them: a sweep or a lookup sees a new user before it is checked what the host has left from
/// the one before.
#[derive(Clone, Debug)]
pub struct Owners {
    /// A file for each name, with the uid in it. An administrator may write one too.
    folder: PathBuf,
    served: Served,
}

impl Owners {
    /// Returns the owners that are kept in `folder`. `served` lists users who ran processes, also without a session.
    pub fn new(folder: &Path, served: &Path) -> Self {
        Self { folder: folder.to_owned(), served: Served::new(served) }
    }

    /// Returns the owners that this host keeps.
    pub fn of_host() -> Self {
        Self::new(Path::new(paths::OWNERS), Path::new(paths::SERVED))
    }

    /// Records that the user with `uid` has opened a session under `name`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn record(&self, name: &str, uid: Uid) -> io::Result<()> {
        if self.last(name) == Some(uid) {
            return Ok(());
        }
        // Two logins may come at once. No Linux name of an IAM user begins with a dot.
        let unfinished = format!(".{name}.{}", std::process::id());
        put_private(&self.folder, name, &unfinished, uid.to_string().as_bytes())
    }

    /// Returns the uid that last opened a session under `name`. None also if users other than this process's could have written the folder.
    pub fn last(&self, name: &str) -> Option<Uid> {
        if !is_private(&self.folder) {
            return None;
        }
        std::fs::read_to_string(self.folder.join(name)).ok()?.trim_end().parse().ok().map(Uid)
    }

    /// Returns the `count` names that last got an owner, the last first.
    pub fn latest_names(&self, count: usize) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
            Some((entry.metadata().ok()?.modified().ok()?, name))
        });
        let mut all: Vec<_> = named.collect();
        all.sort_by(|one, other| other.cmp(one));
        all.into_iter().map(|(_, name)| name).take(count).collect()
    }

    /// Returns the uid of another user than `uid` who had `name` before. None if `uid` had it last, or nobody did.
    pub fn former(&self, name: &str, uid: Uid) -> Option<Uid> {
        match self.last(name) {
            Some(last) => (last != uid).then_some(last),
            // The list is long, and is read only where no session tells.
            None => self.served.uids_of(name).into_iter().find(|other| *other != uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Uid = Uid(crate::id::FIRST);
    const SECOND: Uid = Uid(crate::id::FIRST + 1);

    fn owners() -> (tempfile::TempDir, Owners) {
        let dir = tempfile::tempdir().unwrap();
        let owners = Owners::new(&dir.path().join("owners"), &dir.path().join("served"));
        (dir, owners)
    }

    #[test]
    fn the_owner_of_a_name_is_the_user_of_its_last_session() {
        let (_dir, owners) = owners();
        assert_eq!(
            (owners.last("ann"), owners.former("ann", FIRST), owners.latest_names(5)),
            (None, None, Vec::new())
        );
        owners.record("ann", FIRST).unwrap();
        assert_eq!((owners.former("ann", FIRST), owners.former("ann", SECOND)), (None, Some(FIRST)));
        // Renamed in IAM: the old name keeps its owner until somebody else logs in under it.
        owners.record("anne", FIRST).unwrap();
        assert_eq!(owners.latest_names(1), ["anne"]);
        assert_eq!(owners.former("ann", SECOND), Some(FIRST));
        owners.record("ann", SECOND).unwrap();
        assert_eq!((owners.former("ann", SECOND), owners.former("ann", FIRST)), (None, Some(SECOND)));
    }

    #[test]
    fn a_sweep_that_sees_the_new_user_first_makes_the_new_user_no_owner() {
        let (dir, owners) = owners();
        let served = Served::new(&dir.path().join("served"));
        served.add(SECOND, "ann").unwrap();
        assert_eq!(owners.former("ann", SECOND), None);
        served.add(FIRST, "ann").unwrap();
        assert_eq!(owners.former("ann", SECOND), Some(FIRST), "no session, but processes");
        owners.record("ann", FIRST).unwrap();
        assert_eq!(owners.former("ann", SECOND), Some(FIRST));
    }

    #[test]
    fn a_folder_that_others_could_have_written_says_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, owners) = owners();
        owners.record("ann", FIRST).unwrap();
        let folder = dir.path().join("owners");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(owners.last("ann"), None);
    }
}
