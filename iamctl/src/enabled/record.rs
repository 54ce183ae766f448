//! The record of the changes of `iamctl enable`, and the changes themselves: made by renames, and undone byte for byte.

use std::io;
use std::path::{Path, PathBuf};

use pam_iam_core::nsswitch::{self, NSSWITCH};
use pam_iam_core::paths;
use pam_iam_core::replace::{write_like, write_new};
use serde::{Deserialize, Serialize};

use super::error::EnableError;
use crate::host::{FileError, pam, read};

/// The end of the names of unfinished files.
const UNFINISHED: &str = ".pam_iam-new";

/// The change of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub path: PathBuf,
    /// The text before. None if there was no file.
    pub before: Option<String>,
    pub after: String,
    /// The mode of a new file.
    pub mode: u32,
}

/// The changes, as they are saved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    pub changes: Vec<Change>,
}

pub fn apply(changes: &[Change]) -> Result<(), FileError> {
    changes.iter().try_for_each(|change| put(&change.path, Some(&change.after), change.mode))
}

/// Undoes changes, the last one first. A file that somebody else has changed meanwhile loses only the lines of pam_iam.
pub fn take_back(changes: &[Change]) -> Result<(), FileError> {
    let root = Path::new("/");
    for change in changes.iter().rev() {
        let path = change.path.to_string_lossy();
        let Some(now) = read(root, &path)? else { continue };
        let then = if now == change.after {
            change.before.clone()
        } else if change.path == Path::new(NSSWITCH) {
            Some(nsswitch::without_us(&now))
        } else if change.path.starts_with(pam::FOLDER) {
            Some(pam::without_lines(root, &now))
        } else {
            // An edited drop-in is kept, under a name that nothing reads.
            let kept = format!("{path}.disabled");
            put(Path::new(&kept), Some(&now), 0o600)?;
            change.before.clone()
        };
        put(&change.path, then.as_deref(), change.mode)?;
    }
    Ok(())
}

/// Replaces a file, or removes it if there is no text.
fn put(path: &Path, text: Option<&str>, mode: u32) -> Result<(), FileError> {
    let Some(text) = text else { return remove(path) };
    // A link stays: the file to which it leads is replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let unfinished = unfinished(&target);
    let written = match target.symlink_metadata() {
        Ok(_) => write_like(&target, &unfinished, text.as_bytes()),
        Err(_) => write_new(&unfinished, text.as_bytes(), mode),
    };
    let put = written.and_then(|()| std::fs::rename(&unfinished, &target)).map_err(FileError::of(path));
    if put.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    put
}

/// Removes unfinished files that were left by a process which was killed.
pub fn remove_unfinished(changes: &[Change]) -> Result<(), FileError> {
    for change in changes {
        let target = std::fs::canonicalize(&change.path).unwrap_or_else(|_| change.path.clone());
        remove(&unfinished(&target))?;
    }
    remove(&unfinished(Path::new(paths::ENABLED)))
}

/// Returns where the new text of a file is written first. sshd reads only `*.conf`, and sudo no name with a dot.
fn unfinished(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(UNFINISHED);
    PathBuf::from(path)
}

pub fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::of(path)(error)),
        _ => Ok(()),
    }
}

pub fn load() -> Result<Option<Record>, EnableError> {
    let Some(text) = read(Path::new("/"), paths::ENABLED)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(EnableError::Record)
}

/// Merges earlier changes with new ones. A file that is changed twice is undone to what it was at first.
pub fn merged(before: Option<&Record>, changes: &[Change]) -> Record {
    let mut record = before.cloned().unwrap_or_default();
    for change in changes {
        match record.changes.iter_mut().find(|known| known.path == change.path) {
            Some(known) if change.before.as_ref() == Some(&known.after) => {
                known.after.clone_from(&change.after)
            }
            Some(known) => *known = change.clone(),
            None => record.changes.push(change.clone()),
        }
    }
    record
}

pub fn save(record: Option<&Record>) -> Result<(), EnableError> {
    let Some(record) = record else { return Ok(remove(Path::new(paths::ENABLED))?) };
    let text = serde_json::to_string_pretty(record).map_err(EnableError::Record)?;
    if let Some(folder) = Path::new(paths::ENABLED).parent() {
        std::fs::create_dir_all(folder).map_err(FileError::of(folder))?;
    }
    Ok(put(Path::new(paths::ENABLED), Some(&text), 0o600)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_changed_twice_is_undone_to_its_first_text() {
        let change = |before: Option<&str>, after: &str| Change {
            path: "/etc/x".into(),
            before: before.map(str::to_owned),
            after: after.to_owned(),
            mode: 0o644,
        };
        let first = merged(None, &[change(Some("a"), "b")]);
        let second = merged(Some(&first), &[change(Some("b"), "c")]);
        assert_eq!(second.changes, [change(Some("a"), "c")]);
        // Somebody else changed it meanwhile: their text is what comes back.
        let third = merged(Some(&second), &[change(Some("x"), "y")]);
        assert_eq!(third.changes, [change(Some("x"), "y")]);
    }
}
