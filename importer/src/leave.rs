//! Ends the processes of a user who has left, and archives or removes the home directory.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pam_iam_core::child::Running;
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::registry::SessionRegistry;
use pam_iam_sessions::owner::Owner;
use pam_iam_sessions::table::Effort;
use pam_iam_sessions::termination::{self, Outcome, Termination};

/// The most time to archive or to remove one home directory, so that it does not delay the others. A later run continues a
/// removal.
const HOME_MAX: Duration = Duration::from_secs(1800);

/// The mode bit of a directory in which users may remove only their own files (inode(7)).
const STICKY: u32 = 0o1000;

/// The mounted file systems, see proc(5).
const MOUNTS: &str = "/proc/self/mountinfo";

/// Why processes or the home directory of a departed user are still there.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// Processes cannot be listed, or did not end.
    #[error("processes of uid {0} are still there")]
    StillRunning(Uid),
    /// The home directory must not be touched.
    #[error("{} {problem}; it stays", .path.display())]
    NotOurs {
        /// The home directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The home directory cannot be archived.
    #[error("{} cannot be packed to {}: {why}", .path.display(), .archive.display())]
    Archive {
        /// The home directory.
        path: PathBuf,
        /// The archive.
        archive: PathBuf,
        /// Why it cannot be archived.
        why: String,
    },
    /// The home directory cannot be removed, or only a part of it. In the second case the rest has another name.
    #[error("{} cannot be removed: {source}", .path.display())]
    Remove {
        /// The directory that is left.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The problem of a home directory that cannot be read, for example because its file server is down.
const UNSEEN: &str = "cannot be looked at";

impl LeaveError {
    fn not_ours(path: &Path, problem: &'static str) -> Self {
        Self::NotOurs { path: path.to_owned(), problem }
    }
}

/// Ends every process of the user, except in services that the host runs as this user. Processes are first asked to end, and
/// killed after `grace`.
///
/// # Errors
/// Returns an error if processes remain.
pub fn end_sessions(name: &str, uid: Uid, grace: Duration) -> Result<(), LeaveError> {
    let Some(owner) = Owner::new(uid, name) else { return Err(LeaveError::StillRunning(uid)) };
    // The processes that opened the user's sessions end too, although sshd's are root's.
    let registry = SessionRegistry::open_if_made(Path::new(paths::SESSIONS)).ok().flatten();
    let sessions = registry.and_then(|registry| registry.sessions().ok()).unwrap_or_default();
    let openers =
        sessions.iter().filter(|(open, _)| open.uid == uid).map(|(open, _)| open.process()).collect();
    let notice = "your access to this host was withdrawn".to_owned();
    let ends =
        [Termination { owner, openers, left: Vec::new(), groups: BTreeSet::new(), whole_user: true, notice }];
    let outcomes = termination::end(&ends, Effort::Thorough, grace, |_| true, |_| {});
    if outcomes.iter().all(Outcome::is_complete) { Ok(()) } else { Err(LeaveError::StillRunning(uid)) }
}

/// Checks that only root and its user can replace a home directory. Returns false if a directory above it does not exist.
///
/// # Errors
/// Returns an error if others can replace it, or a directory above it cannot be read.
pub fn is_in_safe_place(path: &Path) -> Result<bool, LeaveError> {
    let (Some(parent), Some(_), true) = (path.parent(), path.file_name(), path.is_absolute()) else {
        return Err(LeaveError::not_ours(path, "is no home directory"));
    };
    for folder in parent.ancestors() {
        let Some(folder) = look_at(folder).map_err(|_| LeaveError::not_ours(path, UNSEEN))? else {
            return Ok(false);
        };
        let others_cannot = folder.mode() & 0o022 == 0 || folder.mode() & STICKY != 0;
        if !folder.is_dir() || folder.uid() != 0 || !others_cannot {
            return Err(LeaveError::not_ours(path, "lies in a directory that others than root can change"));
        }
    }
    Ok(true)
}

/// Whether there is a home directory that may be archived and removed: a directory that `uid` owns, without a mount point in
/// it.
///
/// # Errors
/// Returns an error if anything else is at `home`, or if that cannot be checked.
pub fn is_there(home: &Path, uid: Uid) -> Result<bool, LeaveError> {
    let not_ours = |problem| LeaveError::not_ours(home, problem);
    let Some(metadata) = look_at(home).map_err(|_| not_ours(UNSEEN))? else { return Ok(false) };
    if !metadata.is_dir() {
        return Err(not_ours("is no directory"));
    }
    if metadata.uid() != uid.0 {
        return Err(not_ours("belongs to somebody else"));
    }
    let mounts = std::fs::read(MOUNTS).map_err(|_| not_ours("cannot be told from a mount point"))?;
    if has_mount(&String::from_utf8_lossy(&mounts), home) {
        return Err(not_ours("is a mount point or has one in it"));
    }
    Ok(true)
}

/// Returns the metadata of a file. None only if the file certainly does not exist.
fn look_at(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_mount(mounts: &str, home: &Path) -> bool {
    let point = |line: &str| line.split(' ').nth(4).map(unescaped);
    mounts.lines().filter_map(point).any(|point| Path::new(&point).starts_with(home))
}

/// Replaces the octal numbers that proc(5) writes for blanks, tabs, line feeds and backslashes.
fn unescaped(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |point, (code, character)| point.replace(code, character))
}

/// Archives a home directory in `folder`, readable by root alone. `at` is the present time in seconds since 1970. The archive gets its
/// final name when it is complete and on the disk.
///
/// # Errors
/// Returns an error if the archive cannot be finished. Nothing is left of it then.
pub fn archive(home: &Path, folder: &Path, name: &str, uid: Uid, at: u64) -> Result<PathBuf, LeaveError> {
    let archive = folder.join(format!("{name}.{uid}.{at}.tar.gz"));
    let failed = |why: String| LeaveError::Archive { path: home.to_owned(), archive: archive.clone(), why };
    let io_failed = |error: io::Error| failed(error.to_string());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io_failed)?;
    let unfinished = folder.join(format!(".{name}.{uid}.unfinished"));
    // A new file is made, since the tar of a run that was killed may still be writing to the old one.
    let _ = std::fs::remove_file(&unfinished);
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(&unfinished).map_err(io_failed)?;
    let packed = pack(home, &file).and_then(|()| {
        file.sync_all()?;
        std::fs::rename(&unfinished, &archive)?;
        File::open(folder)?.sync_all()
    });
    packed.map_err(|error| {
        let _ = std::fs::remove_file(&unfinished);
        io_failed(error)
    })?;
    Ok(archive)
}

fn pack(home: &Path, to: &File) -> io::Result<()> {
    let parent = home.parent().unwrap_or(Path::new("/"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--sparse", "--numeric-owner", "--one-file-system", "--directory"])
        .arg(parent);
    tar.arg("--").arg(home.file_name().unwrap_or_default());
    tar.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(Stdio::piped());
    let done = Running::start(&mut tar)?.output(Deadline::after(HOME_MAX))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("tar: {}: {}", done.status, said.trim().replace('\n', "; "))))
}

/// Removes a home directory. It is renamed first, so that a partly removed directory is not a home directory.
///
/// # Errors
/// Returns an error if it cannot be removed completely.
pub fn remove(home: &Path, name: &str, uid: Uid) -> Result<(), LeaveError> {
    let hidden = hidden(home, name, uid);
    remove_hidden(home, name, uid)?;
    let failed = |path: &Path, source| LeaveError::Remove { path: path.to_owned(), source };
    std::fs::rename(home, &hidden).map_err(|source| failed(home, source))?;
    remove_hidden(home, name, uid)
}

/// Removes a home directory that [`remove`] has renamed, now or in a run that was killed.
///
/// # Errors
/// Returns an error if it cannot be removed completely.
pub fn remove_hidden(home: &Path, name: &str, uid: Uid) -> Result<(), LeaveError> {
    let path = hidden(home, name, uid);
    let mut rm = Command::new("rm");
    // rm(1) follows no link, and removes a tree of any depth.
    rm.args(["-rf", "--one-file-system", "--"]).arg(&path);
    rm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |source| LeaveError::Remove { path: path.clone(), source };
    let done = Running::start(&mut rm).and_then(|rm| rm.output(Deadline::after(HOME_MAX))).map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(failed(io::Error::other(said.lines().next().unwrap_or_default().to_owned())))
}

fn hidden(home: &Path, name: &str, uid: Uid) -> PathBuf {
    home.with_file_name(format!(".pam_iam-retired.{name}.{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_in_a_home_directory_is_found() {
        let mounts =
            "36 35 98:0 / / rw - ext4 /dev/sda1 rw\n37 36 0:5 / /home/ann\\040b/data rw - tmpfs tmpfs rw\n";
        assert!(
            has_mount(mounts, Path::new("/home/ann b")) && has_mount(mounts, Path::new("/home/ann b/data"))
        );
        assert!(!has_mount(mounts, Path::new("/home/ann")) && !has_mount(mounts, Path::new("/home/ann b/d")));
    }

    #[test]
    fn an_archive_is_complete_and_readable_by_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home/ann");
        std::fs::create_dir_all(home.join("deep")).unwrap();
        std::fs::write(home.join("deep/notes"), "private").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", home.join("link")).unwrap();
        let folder = dir.path().join("archive");
        let made = archive(&home, &folder, "ann", Uid(7), 1_800_000_000).unwrap();
        assert_eq!(made, folder.join("ann.7.1800000000.tar.gz"));
        assert_eq!(std::fs::metadata(&made).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let listed = Command::new("tar").arg("-tf").arg(&made).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut names: Vec<&str> = listed.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["ann/", "ann/deep/", "ann/deep/notes", "ann/link"]);
    }

    #[test]
    fn an_archive_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("archive");
        let error = archive(&dir.path().join("gone"), &folder, "ann", Uid(7), 0).unwrap_err();
        assert!(error.to_string().contains("tar: "), "{error}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_home_directory_is_removed_and_what_it_points_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (home, precious) = (dir.path().join("ann"), dir.path().join("precious"));
        std::fs::create_dir_all(home.join("deep")).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&precious, home.join("deep/link")).unwrap();
        // The rest of a home directory, from a run that was killed.
        std::fs::create_dir_all(dir.path().join(".pam_iam-retired.ann.7/half")).unwrap();
        remove(&home, "ann", Uid(7)).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["precious"]);
        assert!(precious.join("file").exists());
    }

    #[test]
    fn a_home_directory_that_others_can_replace_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let me = Uid(rustix::process::getuid().as_raw());
        let home = dir.path().join("ann");
        assert!(!is_there(&home, me).unwrap());
        std::fs::create_dir(&home).unwrap();
        assert!(is_there(&home, Uid(me.0 + 1)).unwrap_err().to_string().contains("somebody else"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        assert!(is_there(&link, me).is_err());
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(is_in_safe_place(&home).unwrap_err().to_string().contains("others than root can change"));
        assert!(
            is_in_safe_place(Path::new("home/ann")).is_err() && is_in_safe_place(Path::new("/")).is_err()
        );
        assert!(is_in_safe_place(Path::new("/root-has-made-this")).unwrap());
        assert!(!is_in_safe_place(Path::new("/nonexistent/ann")).unwrap());
    }
}
