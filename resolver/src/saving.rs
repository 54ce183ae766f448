//! Keeps the directory on the disk: read at the start, written when something was learned, at once when something was
//! taken away.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use tokio::task::spawn_blocking;

use crate::cache::{Clock, Store};
use crate::directory::{Change, Directory, Snapshot, setup};
use crate::iam::Iam;

/// How long something new waits for more before it is written.
const SAVE_DELAY: Duration = Duration::from_secs(5);

/// After a failed write, the pause before the next.
const SAVE_RETRY: Duration = Duration::from_secs(5);

/// Keeps a directory in a store.
pub struct Keeper<I> {
    directory: Rc<Directory<I>>,
    store: Store,
    log: Log,
    /// What was last complained about, so that it is said once.
    complaint: Option<String>,
}

impl<I: Iam> Keeper<I> {
    /// Keeps `directory` in the folder `dir`, and puts back what is there.
    pub fn new(directory: Rc<Directory<I>>, dir: &Path, log: Log) -> Self {
        let store = Store::new(dir, &setup(&directory.config));
        let mut keeper = Self { directory, store, log, complaint: None };
        keeper.restore();
        keeper
    }

    fn restore(&mut self) {
        let path = self.store.path();
        match self.store.load::<Snapshot>(&Clock::now()) {
            Ok(None) => {}
            Ok(Some((snapshot, ago))) => self.directory.restore(snapshot, ago),
            Err(error) => {
                let aside = match self.store.put_aside() {
                    Ok(()) => "put aside".to_owned(),
                    Err(why) => format!("not even to be put aside ({why})"),
                };
                let path = path.display();
                self.log.write(
                    Level::Warning,
                    format!("the cache {path} is not used and {aside}: {error}; IAM is asked anew"),
                );
            }
        }
    }

    /// Saves for ever.
    pub async fn keep(&mut self) {
        let _waited_for = self.directory.keeper();
        loop {
            let change = self.directory.change(SAVE_DELAY).await;
            if !self.save(change).await {
                tokio::time::sleep(SAVE_RETRY).await;
            }
        }
    }

    /// Saves what is not saved yet.
    pub async fn finish(&mut self) {
        let change = self.directory.pending_change();
        self.save(change).await;
    }

    /// False if it could not be saved.
    async fn save(&mut self, change: Change) -> bool {
        let (store, snapshot, urgent) = (self.store.clone(), self.directory.snapshot(), change.urgent);
        let saved = spawn_blocking(move || {
            let saved = store.save(&snapshot, &Clock::now()).map_err(|error| error.to_string());
            // A file that says more than IAM does is worse than none.
            let removed = if saved.is_err() && urgent { store.remove() } else { Ok(()) };
            (saved, removed.map_err(|error| error.to_string()))
        });
        let (saved, removed) = saved.await.unwrap_or_else(|error| (Err(error.to_string()), Ok(())));
        self.directory.was_saved(&saved);
        let complaint = match (saved, removed) {
            (Ok(_), _) => None,
            (Err(error), Err(why)) => Some(format!(
                "{error}; what is there is older than IAM's answers and cannot be removed: {why}"
            )),
            (Err(error), Ok(())) => Some(error),
        };
        let done = complaint.is_none();
        if done || urgent {
            self.directory.is_settled(&change);
        }
        if !done {
            self.directory.is_unsettled(&change);
        }
        if complaint != self.complaint {
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
        self.complaint = complaint;
        done
    }
}
