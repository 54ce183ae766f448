//! Watches the files from which the host's own names come (inotify(7)), so that the map is brought up to date within milliseconds
//! of a change. A package that is just being installed looks its user up, and must not find an IAM user of that name.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, to wait until it can be read.
///
/// # Errors
/// Returns an error if epoll(7) does not take it.
#[expect(
    unsafe_code,
    reason = "tokio's own types register each connection with epoll, which most never need"
)]
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, so it stays open, and its number is not reused, while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// What may happen to a file in a folder or to the folder. (That a watch has ended is told in any case.)
const ANYTHING: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVE_SELF);

/// That something is new in a folder, or the folder has another name.
const ARRIVALS: WatchFlags = WatchFlags::CREATE.union(WatchFlags::MOVED_TO).union(WatchFlags::MOVE_SELF);

/// Watches those of `folders` that exist, and returns those that do not too.
///
/// # Errors
/// Returns an error if one of them exists and cannot be watched, or the user of this process has too many watches.
fn watch(folders: impl Iterator<Item = PathBuf>, events: WatchFlags) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let mut missing = Vec::new();
    for folder in folders {
        match inotify::add_watch(&watch, &folder, events | WatchFlags::ONLYDIR) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => missing.push(folder),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok((watch, missing))
}

/// Reads the events that there are, and returns whether there were any. The kernel queues an event before the system call that
/// caused it returns.
fn has_events(watch: &OwnedFd) -> bool {
    let mut any = false;
    while read_events(watch).is_ok_and(|length| length > 0) {
        any = true;
    }
    any
}

fn is_any_there(folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| folder.is_dir())
}

fn read_events(watch: &OwnedFd) -> io::Result<usize> {
    let mut events = [0; 4096];
    Ok(rustix::io::read(watch, &mut events)?)
}

/// A watch on some folders that is asked, with one system call, whether anything has changed in them since it was begun. It is not
/// told of a file system that is mounted over a folder.
#[derive(Debug)]
pub struct Folders {
    present: OwnedFd,
    /// On the folders in which one of `missing`, or a folder above it, would be made.
    above: OwnedFd,
    missing: Vec<PathBuf>,
    /// Whether one of `missing` is there by now.
    has_appeared: bool,
}

impl Folders {
    /// Watches `folders`, and for each that is missing the nearest folder above it.
    ///
    /// # Errors
    /// See [`watch`].
    pub fn on(folders: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        let (present, missing) = watch(folders, ANYTHING)?;
        let above = watch_above(&missing)?;
        let has_appeared = is_any_there(&missing);
        Ok(Self { present, above, missing, has_appeared })
    }

    /// Whether anything may have changed since the watch was begun or this was last called. Once a folder that was missing is there,
    /// the answer is yes until the watch is begun again.
    pub fn has_changed(&mut self) -> bool {
        if has_events(&self.above) {
            let Ok(above) = watch_above(&self.missing) else { return true };
            self.above = above;
            self.has_appeared = is_any_there(&self.missing);
        }
        has_events(&self.present) || self.has_appeared
    }
}

fn watch_above(missing: &[PathBuf]) -> io::Result<OwnedFd> {
    let nearest =
        |folder: &PathBuf| folder.ancestors().skip(1).find(|above| above.is_dir()).map(Path::to_owned);
    Ok(watch(missing.iter().filter_map(nearest), ARRIVALS)?.0)
}

/// A watch on some folders that wakes a task.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches those of `folders` that exist.
    ///
    /// # Errors
    /// See [`watch`].
    pub fn on(folders: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        Ok(Self(readable(watch(folders, ANYTHING)?.0)?))
    }

    /// Waits until something in a folder changes.
    pub async fn changed(&self) {
        let _ = self.0.async_io(Interest::READABLE, read_events).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once_also_in_a_folder_that_is_made_later() {
        let dir = tempfile::tempdir().unwrap();
        let (there, later) = (dir.path().join("there"), dir.path().join("a/b/later"));
        std::fs::create_dir(&there).unwrap();
        let begin = || Folders::on([there.clone(), later.clone()].into_iter()).unwrap();
        let mut folders = begin();
        assert!(!folders.has_changed());
        std::fs::write(there.join("unit"), "x").unwrap();
        assert!(folders.has_changed() && !folders.has_changed());
        std::fs::write(there.join("unit"), "in place").unwrap();
        assert!(folders.has_changed());
        std::fs::create_dir(dir.path().join("a")).unwrap();
        assert!(!folders.has_changed(), "another folder than the wanted one");
        std::fs::create_dir_all(&later).unwrap();
        assert!(folders.has_changed() && folders.has_changed(), "and so until the watch is begun again");
        let mut folders = begin();
        assert!(!folders.has_changed());
        std::fs::write(later.join("unit"), "x").unwrap();
        assert!(folders.has_changed());
        std::fs::rename(&there, dir.path().join("gone")).unwrap();
        assert!(folders.has_changed());
        std::fs::remove_dir_all(&later).unwrap();
        assert!(folders.has_changed());
    }

    #[tokio::test(flavor = "local")]
    async fn a_file_that_is_written_or_renamed_wakes_the_watch() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let watch = Watch::on([dir.path().to_owned(), missing].into_iter()).unwrap();
        std::fs::write(dir.path().join("new"), "x").unwrap();
        watch.changed().await;
        std::fs::rename(dir.path().join("new"), dir.path().join("passwd")).unwrap();
        watch.changed().await;
    }
}
