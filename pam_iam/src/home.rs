//! Makes a home directory so that no crash, race or planted link does harm.
//!
//! It is built by file descriptors alone, under a temporary name in the parent directory, and only root can enter it. Its
//! owner is set last, and a rename that replaces no home directory puts it in place. So a home directory exists completely
//! or not at all. A login locks the directory that it builds. A directory under construction without a lock was left by a
//! crash and is removed.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use pam_iam_core::config::{Home, OnMismatch};
use pam_iam_core::paths;
use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;

use crate::skeleton::{self, DIRECTORY, Owner};

#[cfg(test)]
mod tests;

/// The mode of a home directory where login.defs(5) says nothing: that of useradd(8).
const DEFAULT_MODE: u32 = 0o755;

/// How often a login tries to build a directory and to put it in place. A try fails only if another first login of the user
/// comes within microseconds.
const TRIES: usize = 50;

/// The outcome of [`ensure`].
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// There was a home directory already.
    WasThere,
    /// A home directory was made.
    New,
    /// Another user's home directory was renamed to this path, and a new one was made.
    Aside(PathBuf),
}

/// Why there is no home directory.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another user's directory is at the path.
    #[error("belongs to uid {}; see home.on_mismatch", .owner.as_raw())]
    Foreign {
        /// The owner.
        owner: Uid,
    },
    /// A file, or a link that root did not make, is at the path.
    #[error("is there and is no directory")]
    NotADirectory,
    /// The path is not absolute, or has no last part.
    #[error("is no absolute path with a last part")]
    Path,
    /// Users other than root may write to the parent directory.
    #[error("{} may be written by others than root", .0.display())]
    Exposed(PathBuf),
    /// The skeleton could not be copied.
    #[error("copying the skeleton: {0}")]
    Skeleton(#[from] skeleton::SkeletonError),
    /// A system call failed.
    #[error("{doing}: {errno}")]
    System {
        /// The action that failed.
        doing: &'static str,
        /// The error of the system.
        errno: Errno,
    },
}

/// Adds the action that failed to an error.
fn while_<T>(doing: &'static str, result: Result<T, Errno>) -> Result<T, HomeError> {
    result.map_err(|errno| HomeError::System { doing, errno })
}

/// Makes the home directory `path` of `owner`, unless it exists. A directory that root owns is accepted too: sshd requires
/// it for `ChrootDirectory %h`.
///
/// # Errors
/// Returns an error if there is no home directory afterwards. A partly made one is removed, or the next login removes it.
pub fn ensure(path: &Path, owner: Owner, settings: &Home) -> Result<Made, HomeError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(HomeError::Path) };
    let parent_fd = match open_parent(parent) {
        // Nothing is made where others may write, as on some network file systems. An existing directory of the owner is
        // used.
        Err(HomeError::Exposed(_)) if is_owners(path, owner) => return Ok(Made::WasThere),
        parent => parent?,
    };
    let mut aside = None;
    for _ in 0..TRIES {
        match look(&parent_fd, name, owner)? {
            Place::Taken => return Ok(aside.map_or(Made::WasThere, Made::Aside)),
            Place::Foreign(foreign) if settings.on_mismatch == OnMismatch::Aside && is_former(foreign) => {
                let old = move_aside(&parent_fd, name, foreign)?;
                aside = Some(parent.join(old));
            }
            Place::Foreign(owner) => return Err(HomeError::Foreign { owner }),
            Place::Free => {
                remove_leftovers(&parent_fd, name)?;
                if build(&parent_fd, name, owner, settings)? {
                    return Ok(aside.map_or(Made::New, Made::Aside));
                }
            }
        }
    }
    Err(HomeError::System { doing: "taking turns with another login", errno: Errno::BUSY })
}

/// Whether a directory's owner is an earlier IAM user. A directory of root, or of a local user, is never moved: an IAM user
/// with the name of a directory in /home or /srv must not get its path.
fn is_former(owner: Uid) -> bool {
    pam_iam_core::id::Uid(owner.as_raw()).is_managed()
}

/// Whether `path` leads to a directory that belongs to `owner`.
fn is_owners(path: &Path, owner: Owner) -> bool {
    is_directory_of(path, owner.uid)
}

/// Whether `path` leads to a directory that belongs to root.
pub fn is_roots(path: &Path) -> bool {
    is_directory_of(path, Uid::ROOT)
}

fn is_directory_of(path: &Path, uid: Uid) -> bool {
    rustix::fs::stat(path).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::Directory && Uid::from_raw(found.st_uid) == uid
    })
}

/// The result of a look at the path of a home directory.
enum Place {
    Free,
    Taken,
    Foreign(Uid),
}

fn look(parent: &OwnedFd, name: &OsStr, owner: Owner) -> Result<Place, HomeError> {
    let mut stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Place::Free),
        stat => while_("looking for the directory", stat)?,
    };
    // A link is followed only if root made it.
    let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if link && trusted(Uid::from_raw(stat.st_uid)) {
        stat = while_("following the link", rustix::fs::statat(parent, name, AtFlags::empty()))?;
    }
    let holder = Uid::from_raw(stat.st_uid);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if holder == owner.uid || holder.is_root() && !link => Ok(Place::Taken),
        // A link is never moved aside: only the directory that it leads to belongs to another user.
        FileType::Directory if link => Err(HomeError::Foreign { owner: holder }),
        FileType::Directory => Ok(Place::Foreign(holder)),
        _ => Err(HomeError::NotADirectory),
    }
}

/// Renames another user's home directory to `NAME.UID`, or `NAME.UID.N` if that is taken.
fn move_aside(parent: &OwnedFd, name: &OsStr, holder: Uid) -> Result<OsString, HomeError> {
    for attempt in 0..1000 {
        let mut new = name.to_owned();
        new.push(format!(".{}", holder.as_raw()));
        if attempt > 0 {
            new.push(format!(".{attempt}"));
        }
        match rustix::fs::renameat_with(parent, name, parent, &new, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(new),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(HomeError::System { doing: "moving the old directory aside", errno }),
        }
    }
    Err(HomeError::System { doing: "moving the old directory aside", errno: Errno::EXIST })
}

/// Builds the directory and puts it in place. Returns false if another login was quicker.
fn build(parent: &OwnedFd, name: &OsStr, owner: Owner, settings: &Home) -> Result<bool, HomeError> {
    let Some(building) = Building::start(parent, name)? else { return Ok(false) };
    let made = building.fill(owner, settings).and_then(|()| building.put_in_place(name));
    if !matches!(made, Ok(true)) {
        // If the directory cannot be removed now, the next login removes it.
        let _ = skeleton::remove_tree(parent, &building.name);
    }
    made
}

/// A directory that is being built, locked as long as its descriptor is open.
struct Building<'a> {
    parent: &'a OwnedFd,
    name: OsString,
    fd: OwnedFd,
}

impl<'a> Building<'a> {
    /// Makes and locks the directory. None if another login removed it as a leftover before it was locked.
    fn start(parent: &'a OwnedFd, home: &OsStr) -> Result<Option<Self>, HomeError> {
        let mut random = [0; 8];
        while_(
            "drawing a name",
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()),
        )?;
        let mut name = prefix(home);
        name.push(format!("{:016x}", u64::from_ne_bytes(random)));
        while_("making a directory", rustix::fs::mkdirat(parent, &name, Mode::RWXU))?;
        let fd = match rustix::fs::openat(parent, &name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            fd => while_("opening the new directory", fd)?,
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(HomeError::System { doing: "locking the new directory", errno }),
        }
        // Another login may have locked, removed and unlocked the directory before this one got the lock.
        let stat = while_("looking at the new directory", rustix::fs::fstat(&fd))?;
        Ok((stat.st_nlink > 0).then_some(Self { parent, name, fd }))
    }

    fn fill(&self, owner: Owner, settings: &Home) -> Result<(), HomeError> {
        skeleton::copy(&settings.skel.0, &self.fd, owner)?;
        let mode = home_mode(Path::new(paths::LOGIN_DEFS));
        while_("setting the owner", rustix::fs::fchown(&self.fd, Some(owner.uid), Some(owner.gid)))?;
        while_("setting the mode", rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode)))?;
        while_("writing it to disk", rustix::fs::fsync(&self.fd))
    }

    fn put_in_place(&self, name: &OsStr) -> Result<bool, HomeError> {
        let (from, to) = (self.parent, self.parent);
        let renamed = match rustix::fs::renameat_with(from, &self.name, to, name, RenameFlags::NOREPLACE) {
            // Some file systems do not support NOREPLACE. A plain rename replaces only an empty directory.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(from, &self.name, to, name),
            renamed => renamed,
        };
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::NOENT) => Ok(false),
            Err(errno) => Err(HomeError::System { doing: "putting it in place", errno }),
        }
    }
}

/// Returns the prefix of the names of directories under construction for `home`.
fn prefix(home: &OsStr) -> OsString {
    let mut prefix = OsString::from(".pam_iam-");
    prefix.push(home);
    prefix.push("-");
    prefix
}

/// Removes the directories under construction that crashed logins left: those without a lock.
fn remove_leftovers(parent: &OwnedFd, home: &OsStr) -> Result<(), HomeError> {
    let prefix = prefix(home);
    let entries = while_("listing the directory", Dir::read_from(parent))?;
    for entry in entries {
        let entry = while_("listing the directory", entry)?;
        let name = entry.file_name().to_bytes();
        // The form must match exactly, since `.pam_iam-bob-` is also the prefix of a user called `bob-x`.
        let random = name.strip_prefix(prefix.as_bytes()).unwrap_or_default();
        if random.len() != 16 || !random.iter().all(u8::is_ascii_hexdigit) {
            continue;
        }
        let Ok(fd) = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) else { continue };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let name = OsString::from_vec(name.to_vec());
            match skeleton::remove_tree(parent, &name) {
                // The login that built the directory has put it in place in between.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(HomeError::System { doing: "removing what an earlier login left", errno });
                }
            }
        }
    }
    Ok(())
}

/// Opens the parent directory of a home directory, and makes the directories of its path that are missing. Links in the path
/// are followed if root made them. A directory that others may write to is an error.
fn open_parent(path: &Path) -> Result<OwnedFd, HomeError> {
    let mut at = PathBuf::from("/");
    let mut fd = while_("opening /", rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty()))?;
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return Err(HomeError::Path);
    }
    for part in parts {
        let Component::Normal(part) = part else { return Err(HomeError::Path) };
        at.push(part);
        fd = match rustix::fs::openat(&fd, part, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => make_and_open(&fd, part)?,
            Err(Errno::LOOP | Errno::NOTDIR) => follow(&fd, part)?,
            Err(errno) => return Err(HomeError::System { doing: "opening the parent directory", errno }),
        };
        let stat = while_("looking at the parent directory", rustix::fs::fstat(&fd))?;
        if !is_safe(&stat) {
            return Err(HomeError::Exposed(at));
        }
    }
    Ok(fd)
}

fn make_and_open(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, HomeError> {
    let mode = Mode::from_raw_mode(0o755);
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(HomeError::System { doing: "making the parent directory", errno }),
    }
    let fd =
        while_("opening the parent directory", rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()))?;
    // mkdirat has applied the umask of sshd.
    while_("setting the parent's mode", rustix::fs::fchmod(&fd, mode))?;
    Ok(fd)
}

/// Opens the target of a link that root made. The link lies in a directory that only root writes to, so no user can change it.
fn follow(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, HomeError> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let stat = while_("looking at the parent directory", stat)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink || !trusted(Uid::from_raw(stat.st_uid)) {
        return Err(HomeError::NotADirectory);
    }
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    while_("opening the parent directory", rustix::fs::openat(parent, name, flags, Mode::empty()))
}

/// Whether a uid is root's or, in tests, that of the user who runs them.
fn trusted(uid: Uid) -> bool {
    uid.is_root() || uid == rustix::process::geteuid()
}

/// Whether only root can rename the entries of a directory.
fn is_safe(stat: &Stat) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    trusted(Uid::from_raw(stat.st_uid))
        && (!mode.intersects(Mode::WGRP | Mode::WOTH) || mode.contains(Mode::SVTX))
}

/// Returns the mode of a new home directory: `HOME_MODE` of login.defs(5), else 0777 without its `UMASK`.
fn home_mode(login_defs: &Path) -> u32 {
    let text = std::fs::read(login_defs).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let value = |key: &str| {
        let mut words = text.lines().map(str::split_whitespace);
        let value =
            words.find_map(|mut words| (words.next() == Some(key)).then(|| words.next()).flatten())?;
        u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777)
    };
    value("HOME_MODE").or_else(|| value("UMASK").map(|umask| 0o777 & !umask)).unwrap_or(DEFAULT_MODE)
}
