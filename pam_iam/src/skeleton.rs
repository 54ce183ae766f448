//! Copies a skeleton into a new directory, and removes a tree, by file descriptors alone.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// The flags for opening a directory. They refuse a symbolic link.
pub const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The owner of a home directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: Uid,
    /// The user's primary group.
    pub gid: Gid,
}

/// The most levels of a skeleton, or of a tree to remove.
const DEPTH_MAX: usize = 32;

/// The most entries of a skeleton. A login waits while they are copied.
const ENTRIES_MAX: usize = 10_000;

/// Why a skeleton could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    /// The skeleton cannot be opened.
    #[error("{}: {errno}", .path.display())]
    Open {
        /// The skeleton.
        path: PathBuf,
        /// The error of the system.
        errno: Errno,
    },
    /// An entry could not be copied.
    #[error("{name}: {source}")]
    Entry {
        /// The entry.
        name: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The skeleton is too large.
    #[error("more than {ENTRIES_MAX} entries or {DEPTH_MAX} levels")]
    TooLarge,
}

/// Copies the entries of `skeleton` into the empty directory `target`, with `owner` as their owner. Links are copied as
/// links, set-id and sticky bits are dropped, and entries of other types than file, directory and link are left out.
pub fn copy(skeleton: &Path, target: &OwnedFd, owner: Owner) -> Result<(), SkeletonError> {
    // The skeleton itself may be a link: the operator named it.
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    let source = rustix::fs::open(skeleton, flags, Mode::empty());
    let source = source.map_err(|errno| SkeletonError::Open { path: skeleton.to_owned(), errno })?;
    Copy { owner, entries_left: ENTRIES_MAX }.directory(&source, target, DEPTH_MAX)
}

struct Copy {
    owner: Owner,
    entries_left: usize,
}

impl Copy {
    fn directory(&mut self, source: &OwnedFd, target: &OwnedFd, depth: usize) -> Result<(), SkeletonError> {
        let Some(depth) = depth.checked_sub(1) else { return Err(SkeletonError::TooLarge) };
        for name in names(source).map_err(|errno| entry_error(c".", errno.into()))? {
            self.entries_left = self.entries_left.checked_sub(1).ok_or(SkeletonError::TooLarge)?;
            self.entry(source, target, &name, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CString,
        depth: usize,
    ) -> Result<(), SkeletonError> {
        let fail = |errno: Errno| entry_error(name, errno.into());
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        // Only the permission bits: a set-id bit in the skeleton would be copied to every home directory.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(source, target, name, mode).map_err(|e| entry_error(name, e)),
            FileType::Symlink => self.link(source, target, name).map_err(fail),
            FileType::Directory => {
                let from = rustix::fs::openat(source, name, DIRECTORY, Mode::empty()).map_err(fail)?;
                rustix::fs::mkdirat(target, name, Mode::RWXU).map_err(fail)?;
                let to = rustix::fs::openat(target, name, DIRECTORY, Mode::empty()).map_err(fail)?;
                self.directory(&from, &to, depth)?;
                self.finish(&to, mode).map_err(fail)
            }
            _ => Ok(()),
        }
    }

    fn file(&self, source: &OwnedFd, target: &OwnedFd, name: &CString, mode: Mode) -> std::io::Result<()> {
        // NONBLOCK, in case the file was replaced by a fifo after its type was read.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut from = File::from(rustix::fs::openat(source, name, flags, Mode::empty())?);
        if !from.metadata()?.is_file() {
            return Err(Errno::INVAL.into());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut to = File::from(rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?);
        std::io::copy(&mut from, &mut to)?;
        self.finish(&to, mode)?;
        Ok(())
    }

    fn link(&self, source: &OwnedFd, target: &OwnedFd, name: &CString) -> Result<(), Errno> {
        let to = rustix::fs::readlinkat(source, name, Vec::new())?;
        rustix::fs::symlinkat(&to, target, name)?;
        let (uid, gid) = (Some(self.owner.uid), Some(self.owner.gid));
        rustix::fs::chownat(target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets the owner, then the mode, and writes the file to the disk: a crash must not leave a home directory with empty
    /// files.
    fn finish(&self, fd: impl AsFd, mode: Mode) -> Result<(), Errno> {
        rustix::fs::fchown(&fd, Some(self.owner.uid), Some(self.owner.gid))?;
        rustix::fs::fchmod(&fd, mode)?;
        rustix::fs::fsync(&fd)
    }
}

/// Removes the directory `name` in `parent` with all that is in it, following no link.
pub fn remove_tree(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    remove(parent, name, DEPTH_MAX)
}

fn remove(parent: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;

    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let fd = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    for entry in names(&fd)? {
        match rustix::fs::unlinkat(&fd, &entry, AtFlags::empty()) {
            // The entry is a directory. Linux returns EISDIR, and POSIX says EPERM.
            Err(Errno::ISDIR | Errno::PERM) => remove(&fd, OsStr::from_bytes(entry.as_bytes()), depth)?,
            removed => removed?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Returns the names in a directory. It is read to its end, so that the caller can change it afterwards.
fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if ![c".", c".."].contains(&name.as_c_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

fn entry_error(name: &std::ffi::CStr, source: std::io::Error) -> SkeletonError {
    SkeletonError::Entry { name: name.to_string_lossy().into_owned(), source }
}
