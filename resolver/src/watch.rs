//! Watches the files from which the host's own names come (inotify(7)), so that the map is brought up to date within milliseconds
//! of a change. A package that is just being installed looks its user up, and must not find an IAM user of that name.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// How often the paths of the folders are looked up again: a watch is on what a path led to, and is not told if the path leads
/// elsewhere, for example since a file system was mounted over it.
const LOOK_UP: Duration = Duration::from_secs(10);

/// How often a folder above a missing one may be made while the watch on it is begun, before the folders count as changed.
const ATTEMPTS: usize = 8;

fn new_watch() -> io::Result<OwnedFd> {
    Ok(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// Has `watch` watch those of `folders` that exist, besides what it watches already. Returns those that do not exist.
///
/// # Errors
/// Returns an error if one of them exists and cannot be watched, or the user of this process has too many watches.
fn add(
    watch: &OwnedFd,
    folders: impl Iterator<Item = PathBuf>,
    events: WatchFlags,
) -> io::Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for folder in folders {
        match inotify::add_watch(watch, &folder, events | WatchFlags::ONLYDIR) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => missing.push(folder),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(missing)
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

fn read_events(watch: &OwnedFd) -> io::Result<usize> {
    let mut events = [0; 4096];
    Ok(rustix::io::read(watch, &mut events)?)
}

/// A watch on some folders that is asked, with one or two system calls, whether anything has changed in them.
///
/// Its descriptors are kept as long as it is: closing one waits for the kernel, up to some 10 ms.
#[derive(Debug)]
pub struct Folders {
    folders: Vec<PathBuf>,
    present: OwnedFd,
    /// On the folders in which a missing one, or a folder above it, would be made.
    above: OwnedFd,
    missing: Vec<PathBuf>,
    /// What the paths led to, when they were last looked up.
    places: Vec<Option<(u64, u64)>>,
    looked_up: Instant,
    /// Whether the folders count as changed until the watch is begun again.
    has_changed: bool,
}

impl Folders {
    /// Watches `folders`, and for each that is missing the nearest folder above it.
    ///
    /// # Errors
    /// See [`add`].
    pub fn on(folders: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        let mut watch = Self {
            folders: folders.collect(),
            present: new_watch()?,
            above: new_watch()?,
            missing: Vec::new(),
            places: Vec::new(),
            looked_up: Instant::now(),
            has_changed: false,
        };
        watch.begin_again()?;
        Ok(watch)
    }

    /// Forgets all changes so far, and watches the folders that are there now.
    ///
    /// # Errors
    /// See [`add`].
    pub fn begin_again(&mut self) -> io::Result<()> {
        has_events(&self.present);
        self.places = self.places_now();
        self.missing = add(&self.present, self.folders.iter().cloned(), ANYTHING)?;
        self.looked_up = Instant::now();
        self.has_changed = false;
        self.watch_above()
    }

    /// Whether anything may have changed since the watch was begun or this was last called.
    pub fn have_changed(&mut self) -> bool {
        if has_events(&self.above) && self.watch_above().is_err() {
            self.has_changed = true;
        }
        if self.looked_up.elapsed() > LOOK_UP {
            self.looked_up = Instant::now();
            self.has_changed |= self.places != self.places_now();
        }
        has_events(&self.present) || self.has_changed
    }

    /// Watches the nearest folder above each missing one. Notes whether one of the missing is there by now.
    fn watch_above(&mut self) -> io::Result<()> {
        let nearest =
            |folder: &PathBuf| folder.ancestors().skip(1).find(|above| above.is_dir()).map(Path::to_owned);
        let above = |missing: &[PathBuf]| missing.iter().filter_map(nearest).collect::<Vec<_>>();
        let mut watched = above(&self.missing);
        for _ in 0..ATTEMPTS {
            add(&self.above, watched.iter().cloned(), ARRIVALS)?;
            self.has_changed |= self.missing.iter().any(|folder| folder.is_dir());
            let now = above(&self.missing);
            if now == watched {
                return Ok(());
            }
            watched = now;
        }
        self.has_changed = true;
        Ok(())
    }

    /// Returns the device and the inode of each folder.
    fn places_now(&self) -> Vec<Option<(u64, u64)>> {
        let place = |folder: &PathBuf| std::fs::metadata(folder).ok().map(|found| (found.dev(), found.ino()));
        self.folders.iter().map(place).collect()
    }
}

/// A watch on some folders that wakes a task.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches those of `folders` that exist.
    ///
    /// # Errors
    /// See [`add`].
    pub fn on(folders: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        let watch = new_watch()?;
        add(&watch, folders, ANYTHING)?;
        Ok(Self(readable(watch)?))
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
        let mut folders = Folders::on([there.clone(), later.clone()].into_iter()).unwrap();
        assert!(!folders.have_changed());
        std::fs::write(there.join("unit"), "x").unwrap();
        assert!(folders.have_changed() && !folders.have_changed());
        std::fs::write(there.join("unit"), "in place").unwrap();
        assert!(folders.have_changed());
        std::fs::create_dir(dir.path().join("a")).unwrap();
        assert!(!folders.have_changed(), "another folder than the wanted one");
        std::fs::create_dir_all(&later).unwrap();
        assert!(folders.have_changed() && folders.have_changed(), "and so until the watch is begun again");
        folders.begin_again().unwrap();
        assert!(!folders.have_changed());
        std::fs::write(later.join("unit"), "x").unwrap();
        assert!(folders.have_changed());
        std::fs::rename(&there, dir.path().join("gone")).unwrap();
        assert!(folders.have_changed());
        std::fs::remove_dir_all(&later).unwrap();
        assert!(folders.have_changed());
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_noticed_when_it_is_looked_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other, link) = (dir.path().join("one"), dir.path().join("other"), dir.path().join("link"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let mut folders = Folders::on([link.clone()].into_iter()).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(!folders.have_changed());
        folders.looked_up -= LOOK_UP * 2;
        assert!(folders.have_changed());
        folders.begin_again().unwrap();
        assert!(!folders.have_changed());
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
