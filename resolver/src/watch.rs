//! Watches the files from which the host's own names come (inotify(7)), so that the map is brought up to date within milliseconds
//! of a change. A package that is just being installed looks its user up, and must not find an IAM user of that name.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

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

/// A watch on some folders.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches those of `folders` that exist.
    ///
    /// # Errors
    /// Returns an error if one of them exists and cannot be watched, or the user of this process has too many watches.
    pub fn on(folders: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        for folder in folders {
            match inotify::add_watch(&watch, &folder, events) {
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Self(readable(watch)?))
    }

    /// Waits until something in a folder changes.
    pub async fn changed(&self) {
        let read = |descriptor: &OwnedFd| {
            let mut events = [0; 4096];
            Ok(rustix::io::read(descriptor, &mut events)?)
        };
        let _ = self.0.async_io(Interest::READABLE, read).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
