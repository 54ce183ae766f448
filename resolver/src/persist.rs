//! Keeps the cache on the disk. The file is read at the start. It is written some time after something was learned, and
//! at once after something was withdrawn.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use tokio::task::{JoinError, spawn_blocking};

use self::dirty::Change;
use self::file::{CacheError, CacheFile, Clock};
use self::snapshot::{Snapshot, setup};
use crate::lookup::Directory;
use crate::source::Iam;

pub mod dirty;
pub mod file;
pub mod snapshot;

/// The delay before a new entry is written, so that further changes go into the same write.
const ADDED_DELAY: Duration = Duration::from_secs(5);

/// The delay before an entry that was revalidated without a change is written. After a crash, the entry looks older by at
/// most this.
const REFRESHED_DELAY: Duration = Duration::from_secs(60);

/// How often a file that was not used, because of the clocks or the configuration, is read again.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// The pause after the first failed write. Each further failure doubles it.
const RETRY_MIN: Duration = Duration::from_secs(5);

/// The longest pause after a failed write.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Writes the cache of a directory to a file.
pub struct CacheWriter<I> {
    directory: Rc<Directory<I>>,
    file: CacheFile,
    log: Log,
    /// The last message about a file that was not used, so that it is logged once.
    unread_message: Option<String>,
    /// The last message about a failed write, so that it is logged once.
    unwritten_message: Option<String>,
}

impl<I: Iam> CacheWriter<I> {
    /// Reads the cache in `folder` into `directory`. Returns a writer that keeps `directory` in `folder`.
    pub fn new(directory: Rc<Directory<I>>, folder: &Path, log: Log) -> Self {
        let file = CacheFile::new(folder, &setup(&directory.config));
        let mut writer = Self { directory, file, log, unread_message: None, unwritten_message: None };
        writer.restore();
        writer
    }

    /// Reads the file into the directory. Quarantines a file that cannot be used, unless it may become usable.
    fn restore(&mut self) {
        let loaded = self.file.load::<Snapshot>(&Clock::now());
        // The clock may be corrected, or the configuration changed back, so such a file stays until there is an entry to
        // write.
        let may_fit_later = matches!(loaded, Err(CacheError::Clock | CacheError::Setup));
        self.directory.dirty.set_unread_file(may_fit_later);
        let (outcome, error) = match loaded {
            Ok(None) => return,
            Ok(Some((snapshot, ago))) => return self.directory.restore(snapshot, ago),
            Err(error) if may_fit_later => ("not used".to_owned(), error),
            Err(error) => match self.file.quarantine() {
                Ok(()) => ("not used, and quarantined as cache.json.rejected".to_owned(), error),
                Err(why) => (format!("not used, and cannot be quarantined ({why})"), error),
            },
        };
        let path = self.file.path();
        let message = format!("the cache {} is {outcome}: {error}; IAM is asked anew", path.display());
        if self.unread_message.as_ref() != Some(&message) {
            self.log.write(Level::Warning, &message);
            self.unread_message = Some(message);
        }
    }

    /// Writes changes until `stop` is ready, and then the changes that are left.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let directory = Rc::clone(&self.directory);
        let dirty = &directory.dirty;
        let _registered = dirty.register_writer();
        let mut stop = pin!(stop);
        let mut retry = RETRY_MIN;
        loop {
            // A write is never cancelled: two at once would use the same temporary file.
            let change = tokio::select! {
                change = dirty.next_change(ADDED_DELAY, REFRESHED_DELAY) => change,
                () = tokio::time::sleep(READ_AGAIN), if dirty.has_unread_file() => {
                    self.restore();
                    continue;
                }
                () = &mut stop => break,
            };
            if self.write(change).await {
                retry = RETRY_MIN;
                continue;
            }
            tokio::select! {
                () = dirty.pause(retry) => {}
                () = &mut stop => break,
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
        if !dirty.is_clean() {
            self.write(dirty.take_change()).await;
        }
    }

    /// Writes the cache. If that fails and `change` has a withdrawal, removes the file. Returns false if the write
    /// failed.
    async fn write(&mut self, change: Change) -> bool {
        let (file, snapshot, is_revocation) =
            (self.file.clone(), self.directory.snapshot(), change.is_revocation);
        let dirty = &self.directory.dirty;
        if dirty.has_unread_file() && snapshot.is_empty() && !is_revocation {
            return true;
        }
        let attempt = spawn_blocking(move || {
            let written = file.save(&snapshot, &Clock::now());
            // A file that grants what IAM has withdrawn is worse than no file.
            let removed = if written.is_err() && is_revocation { file.remove() } else { Ok(()) };
            (written, removed)
        });
        let panicked =
            |error: JoinError| (Err(io::Error::other(error)), Err(io::Error::other("the write broke off")));
        let (written, removed) = attempt.await.unwrap_or_else(panicked);
        dirty.set_status(&written);
        let is_written = written.is_ok();
        let is_contradicted = is_revocation && removed.is_err();
        if is_written || is_revocation && !is_contradicted {
            dirty.set_persisted(&change);
            dirty.set_unread_file(false);
        }
        if !is_written {
            dirty.set_unwritten(is_contradicted);
        }
        self.log_outcome(written.err(), removed.err());
        if is_contradicted {
            // The withdrawal still has to be written. `pause` does not wait in this case, so without this sleep the
            // retries would be a tight loop.
            tokio::time::sleep(RETRY_MIN).await;
        }
        is_written
    }

    /// Logs a failed write with a new message, and the first write that works after a failed one.
    fn log_outcome(&mut self, failure: Option<io::Error>, not_removed: Option<io::Error>) {
        let message = match (failure, not_removed) {
            (Some(error), Some(why)) => Some(format!(
                "{error}; what is there is older than IAM's answers and cannot be removed: {why}"
            )),
            (failure, _) => failure.map(|error| error.to_string()),
        };
        if message != self.unwritten_message {
            let path = self.file.path();
            let path = path.display();
            match &message {
                Some(error) => self.log.write(
                    Level::Error,
                    format!(
                        "the cache {path} cannot be written, so answers are kept in memory only: {error}"
                    ),
                ),
                None => self.log.write(Level::Info, format!("the cache {path} is written again")),
            }
        }
        self.unwritten_message = message;
    }
}
