//! Keeps the directory on the disk: read at the start, written when something was learned, at once when something was
//! taken away.

use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use tokio::task::{JoinError, spawn_blocking};

use self::file::{CacheError, Clock, Store};
pub mod file;

use crate::lookup::{Change, Directory, Snapshot, setup};
use crate::source::Iam;

/// How long something new waits for more before it is written.
const NEWS_DELAY: Duration = Duration::from_secs(5);

/// How long it can wait that something was confirmed. A restart makes it look older by that, and no more.
const AGE_DELAY: Duration = Duration::from_secs(60);

/// How often a file is looked at again that was not read.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// After a failed write, the pause before the next; each is twice as long as the one before.
const RETRY_MIN: Duration = Duration::from_secs(5);

/// The longest of these.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Keeps a directory in a store.
pub struct Keeper<I> {
    directory: Rc<Directory<I>>,
    store: Store,
    log: Log,
    /// Why the file was not read, so that it is said once.
    unread: Option<String>,
    /// Why it could not be written, so that it is said once.
    unwritten: Option<String>,
}

impl<I: Iam> Keeper<I> {
    /// Keeps `directory` in the folder `dir`, and puts back what is there.
    pub fn new(directory: Rc<Directory<I>>, dir: &Path, log: Log) -> Self {
        let store = Store::new(dir, &setup(&directory.config));
        let mut keeper = Self { directory, store, log, unread: None, unwritten: None };
        keeper.restore();
        keeper
    }

    /// Reads what is there, if it can be believed.
    fn restore(&mut self) {
        let loaded = self.store.load::<Snapshot>(&Clock::now());
        // Another clock or another configuration may be right in a minute: such a file stays until somebody is known.
        self.directory.leaves_unread(matches!(loaded, Err(CacheError::Clock | CacheError::Setup)));
        let (what, error) = match loaded {
            Ok(None) => return,
            Ok(Some((snapshot, ago))) => return self.directory.restore(snapshot, ago),
            Err(error @ (CacheError::Clock | CacheError::Setup)) => ("not used".to_owned(), error),
            Err(error) => match self.store.put_aside() {
                Ok(()) => ("not used and put aside".to_owned(), error),
                Err(why) => (format!("not used, and cannot even be put aside ({why})"), error),
            },
        };
        let path = self.store.path();
        let message = format!("the cache {} is {what}: {error}; IAM is asked anew", path.display());
        if self.unread.as_ref() != Some(&message) {
            self.log.write(Level::Warning, &message);
            self.unread = Some(message);
        }
    }

    /// Saves until `stop` is over, and then once more.
    pub async fn keep(mut self, stop: impl Future<Output = ()>) {
        let _waited_for = self.directory.keeper();
        let directory = Rc::clone(&self.directory);
        let mut stop = pin!(stop);
        let mut retry = RETRY_MIN;
        loop {
            // A save is never broken off: two at once would be in each other's way.
            let change = tokio::select! {
                change = directory.change(NEWS_DELAY, AGE_DELAY) => change,
                () = tokio::time::sleep(READ_AGAIN), if directory.has_unread() => {
                    self.restore();
                    continue;
                }
                () = &mut stop => break,
            };
            if self.save(change).await {
                retry = RETRY_MIN;
                continue;
            }
            tokio::select! {
                () = directory.pause(retry) => {}
                () = &mut stop => break,
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
        if !directory.is_saved() {
            self.save(directory.pending_change()).await;
        }
    }

    /// False if it could not be saved.
    async fn save(&mut self, change: Change) -> bool {
        let (store, snapshot, urgent) = (self.store.clone(), self.directory.snapshot(), change.urgent);
        if self.directory.has_unread() && snapshot.is_empty() && !urgent {
            return true;
        }
        let saved = spawn_blocking(move || {
            let saved = store.save(&snapshot, &Clock::now()).map_err(|error| error.to_string());
            // A file that says more than IAM does is worse than none.
            let removed = if saved.is_err() && urgent { store.remove() } else { Ok(()) };
            (saved, removed.map_err(|error| error.to_string()))
        });
        let broken = |error: JoinError| (Err(error.to_string()), Err("the write broke off".to_owned()));
        let (saved, removed) = saved.await.unwrap_or_else(broken);
        self.directory.was_saved(&saved);
        let (done, harmless) = (saved.is_ok(), !urgent || removed.is_ok());
        if done || urgent && harmless {
            self.directory.is_settled(&change);
            self.directory.leaves_unread(false);
        }
        if !done {
            self.directory.is_unsaved(!harmless);
        }
        let complaint = match (saved, removed) {
            (Ok(_), _) => None,
            (Err(error), Err(why)) => Some(format!(
                "{error}; what is there is older than IAM's answers and cannot be removed: {why}"
            )),
            (Err(error), Ok(())) => Some(error),
        };
        if complaint != self.unwritten {
            let path = self.store.path();
            let path = path.display();
            match &complaint {
                Some(error) => self.log.write(
                    Level::Error,
                    format!("the cache {path} cannot be written, so answers are in memory alone: {error}"),
                ),
                None => self.log.write(Level::Info, format!("the cache {path} is written again")),
            }
        }
        self.unwritten = complaint;
        if !harmless {
            // Something urgent is still to be done, and is not to be tried in a loop.
            tokio::time::sleep(RETRY_MIN).await;
        }
        done
    }
}
