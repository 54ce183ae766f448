//! The model of this host: what its files say and what its programs make of them. enable, disable, doctor and the sweep all use it, so that
//! none of them finds what another does not.

pub mod access;
pub mod command;
pub mod pam;
mod pam_control;
pub mod pam_stack;
pub mod sshd;
pub mod sudo;
pub mod units;

use std::io;
use std::path::{Path, PathBuf};

/// Returns where `path` lies under `root`.
pub fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A file of the host that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub struct FileError {
    /// The file.
    path: PathBuf,
    /// The error of the system.
    source: io::Error,
}

impl FileError {
    /// Returns a function that makes the error for `path`.
    pub fn of(path: impl AsRef<Path>) -> impl Fn(io::Error) -> Self {
        move |source| Self { path: path.as_ref().to_owned(), source }
    }
}

/// Returns a file as text, or None if it is not there.
///
/// # Errors
/// Returns an error if it cannot be read or is not UTF-8.
pub fn read(root: &Path, path: &str) -> Result<Option<String>, FileError> {
    match std::fs::read_to_string(at(root, path)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of(path)(error)),
    }
}
