//! The file of the map: who may have written it, and how it is replaced.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::MapError;
use super::format::{HEADER, MAP_MAX};
use super::reader::OpenFile;
use crate::file_version::FileVersion;
use crate::replace::replace;

/// The mode of the file: everybody may read it, as /etc/passwd.
const MODE: u32 = 0o644;

/// The write permissions of a group and of others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Opens the map `path`. Its folder belongs to the resolver's user, who alone may write it, since only root can make a folder
/// in the folder above. A file that was moved there from another user is not read.
///
/// # Errors
/// Returns an error if the file is missing, is not a regular file, is too long, has several names, or could have been written
/// by a user other than root and the owner of its folder.
pub fn open(path: &Path) -> Result<(OpenFile, FileVersion), MapError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let folder = std::fs::symlink_metadata(folder).map_err(MapError::Open)?;
    if !folder.is_dir() || folder.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(MapError::Untrusted("its folder is writable by other users"));
    }
    // Without NONBLOCK, opening a fifo waits for its writer.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(MapError::Open)?;
    let found = file.metadata().map_err(MapError::Open)?;
    if !found.is_file() {
        return Err(MapError::Untrusted("it is not a regular file"));
    }
    if found.uid() != 0 && found.uid() != folder.uid() {
        return Err(MapError::Untrusted("it belongs to another user"));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(MapError::Untrusted("it is writable by other users"));
    }
    // A file that is replaced at this moment has no name left.
    if found.nlink() > 1 {
        return Err(MapError::Untrusted("it has several names"));
    }
    if !(HEADER as u64..=MAP_MAX as u64).contains(&found.size()) {
        return Err(MapError::Broken("it is too short or too long"));
    }
    let version = FileVersion::from(&found);
    Ok((OpenFile { file, length: found.size() }, version))
}

/// Replaces the map `path`.
///
/// # Errors
/// Returns an error if the file or its folder cannot be written. The old map is still there.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, MODE)
}
