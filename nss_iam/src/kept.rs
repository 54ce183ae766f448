//! Small files that are read again when they have changed: the local accounts and groups, and what root has written about IAM's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pam_iam_core::file_version::FileVersion;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::{local, paths};

use crate::frequency::{is_frequent, try_lock};

/// The longest file of root that is read, in bytes.
const ROOTS_MAX: u64 = 64 * 1024;

/// The parsed content of a file, and the version of the file that was parsed.
struct Kept<T>(Mutex<Option<(FileVersion, Arc<T>)>>);

impl<T> Kept<T> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns the parsed content of `path`, from the last read if the file is still the same.
    fn get(&self, path: &Path, read: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<Arc<T>> {
        // The version before the read: a change during it makes the next call read again.
        let version = FileVersion::of(path)?;
        if let Some(kept) = try_lock(&self.0)
            && let Some((of, value)) = &*kept
            && *of == version
        {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(read(path)?);
        if let Some(mut kept) = try_lock(&self.0) {
            *kept = Some((version, Arc::clone(&value)));
        }
        Ok(value)
    }
}

/// Returns the uid of the local account `name`.
///
/// # Errors
/// Returns an error if passwd(5) cannot be read.
pub fn local_uid(name: &str) -> io::Result<Option<Uid>> {
    static KEPT: Kept<BTreeMap<String, Uid>> = Kept::new();
    let path = Path::new(paths::PASSWD);
    if !is_frequent() {
        return Ok(local::account_by_name(path, name)?.map(|account| account.uid));
    }
    let read =
        |path: &Path| Ok(first(local::accounts(path)?.into_iter().map(|found| (found.name, found.uid))));
    Ok(KEPT.get(path, read)?.get(name).copied())
}

/// Returns the gid of the local group `name`.
///
/// # Errors
/// Returns an error if group(5) cannot be read.
pub fn local_gid(name: &str) -> io::Result<Option<Gid>> {
    static KEPT: Kept<BTreeMap<String, Gid>> = Kept::new();
    let path = Path::new(paths::GROUP);
    if !is_frequent() {
        return Ok(local::group_by_name(path, name)?.map(|group| group.gid));
    }
    let read = |path: &Path| Ok(first(local::groups(path)?.into_iter().map(|found| (found.name, found.gid))));
    Ok(KEPT.get(path, read)?.get(name).copied())
}

/// Indexes entries by name. Of several lines with one name the first counts, as in the C library.
fn first<T>(entries: impl Iterator<Item = (String, T)>) -> BTreeMap<String, T> {
    let mut by_name = BTreeMap::new();
    for (name, id) in entries {
        by_name.entry(name).or_insert(id);
    }
    by_name
}

/// Returns the gids of mapped groups outside the managed range, from a file that root writes after checking the configuration.
/// Empty if the file is missing or could have been written by other users.
pub fn mapped_gids() -> Arc<Vec<Gid>> {
    static KEPT: Kept<Vec<Gid>> = Kept::new();
    let read = |path: &Path| {
        let text = text_of_root(path).unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.parse().ok()).map(Gid).collect())
    };
    KEPT.get(Path::new(paths::MAPPED_GIDS), read).unwrap_or_default()
}

/// Returns whether `shell` is the one that root has read in the configuration, or is listed in shells(5).
pub fn is_known_shell(shell: &str) -> bool {
    static CONFIGURED: Kept<String> = Kept::new();
    static LISTED: Kept<String> = Kept::new();
    let lists = |kept: &Kept<String>, path: &str| {
        let read = |path: &Path| Ok(text_of_root(path).unwrap_or_default());
        let text = kept.get(Path::new(path), read);
        text.is_ok_and(|text| text.lines().any(|line| line.trim_end() == shell))
    };
    lists(&CONFIGURED, paths::SHELL) || lists(&LISTED, paths::SHELLS)
}

/// Returns the text of a file. None if it is missing, or could have been written by a user other than root.
pub fn text_of_root(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    let is_roots = file.metadata().is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0);
    let mut text = String::new();
    (is_roots && file.take(ROOTS_MAX).read_to_string(&mut text).is_ok()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_parsed_again_when_it_has_changed() {
        static KEPT: Kept<String> = Kept::new();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let read = |path: &Path| std::fs::read_to_string(path);
        let never = |_: &Path| Err(io::Error::other("read again"));
        assert!(KEPT.get(&path, read).is_err());
        std::fs::write(&path, "one").unwrap();
        assert_eq!(*KEPT.get(&path, read).unwrap(), "one");
        assert_eq!(*KEPT.get(&path, never).unwrap(), "one");
        std::fs::write(&path, "other").unwrap();
        assert_eq!(*KEPT.get(&path, read).unwrap(), "other");
        std::fs::remove_file(&path).unwrap();
        assert!(KEPT.get(&path, read).is_err(), "an error, and not the last content");
    }

    #[test]
    fn a_file_that_other_users_may_write_says_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "27\n").unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(text_of_root(file.path()).is_some(), is_root);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(text_of_root(file.path()), None);
        assert_eq!(text_of_root(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_first_of_two_lines_with_one_name_counts() {
        let lines = [("ann", 1), ("ann", 2)].map(|(name, id)| (name.to_owned(), id));
        assert_eq!(first(lines.into_iter()).get("ann"), Some(&1));
    }
}
