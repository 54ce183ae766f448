//! Tracks which changes of the cache are not on the disk yet, and lets answers wait until withdrawals are.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// The longest time that an answer waits until a withdrawal is on the disk, so that an older answer does not come back
/// after a crash. After one such wait in vain, no answer waits until a write has succeeded again.
pub const PERSIST_MAX: Duration = Duration::from_millis(400);

/// The most urgent change that is not on the disk. A more urgent one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dirty {
    /// No change.
    #[default]
    Clean,
    /// An entry that was revalidated without a change.
    Refreshed,
    /// A new entry, roster or tag.
    Added,
    /// A withdrawal: the file may grant more than IAM does.
    Revoked,
}

/// The outcome of the writes of the cache.
#[derive(Clone, Debug, Default)]
pub struct WriteStatus {
    /// When the file was last written.
    pub written_at: Option<Instant>,
    /// The size in bytes of the file that was last written.
    pub bytes: u64,
    /// The error of the last write. None if it succeeded.
    pub error: Option<String>,
}

/// The changes that one write brings to the disk.
#[derive(Debug)]
pub struct Change {
    /// Whether there is a withdrawal among them, so that the old file grants too much.
    pub is_revocation: bool,
    /// The number of withdrawals since the start, including these.
    revocations: u64,
}

/// Wakes the writer of the cache when there is a change, and the answers that wait when it is on the disk.
#[derive(Debug)]
pub struct DirtyState {
    dirty: Cell<Dirty>,
    marked: Notify,
    revocations: Cell<u64>,
    /// The number of withdrawals that are on the disk. The writer holds a receiver, so without one there is no writer.
    persisted: watch::Sender<u64>,
    /// Whether an answer has waited in vain for the disk, and no write has succeeded since.
    is_slow: Cell<bool>,
    /// Whether there is a file on the disk that was not read.
    has_unread_file: Cell<bool>,
    status: RefCell<WriteStatus>,
}

impl Default for DirtyState {
    fn default() -> Self {
        Self {
            dirty: Cell::default(),
            marked: Notify::new(),
            revocations: Cell::default(),
            persisted: watch::Sender::new(0),
            is_slow: Cell::default(),
            has_unread_file: Cell::default(),
            status: RefCell::default(),
        }
    }
}

impl DirtyState {
    /// Notes a change that is not on the disk.
    pub fn mark(&self, dirty: Dirty) {
        if dirty == Dirty::Revoked {
            self.revocations.set(self.revocations.get() + 1);
        }
        self.dirty.set(self.dirty.get().max(dirty));
        self.marked.notify_one();
    }

    /// Waits until every withdrawal is on the disk, but at most [`PERSIST_MAX`]. Does not wait if there is no writer, or
    /// if the last wait was in vain.
    pub async fn wait_until_persisted(&self) {
        let revocations = self.revocations.get();
        let is_persisted = *self.persisted.borrow() >= revocations;
        if is_persisted || self.is_slow.get() || self.persisted.receiver_count() == 0 {
            return;
        }
        let mut receiver = self.persisted.subscribe();
        if timeout(PERSIST_MAX, receiver.wait_for(|number| *number >= revocations)).await.is_err() {
            self.is_slow.set(true);
        }
    }

    /// Registers a writer, until the returned value is dropped.
    pub fn register_writer(&self) -> watch::Receiver<u64> {
        self.persisted.subscribe()
    }

    /// Waits for a change, and takes it. After a new entry, waits up to `added` for more, and after an entry that was
    /// only revalidated up to `refreshed`, so that many changes go into one write. Does not wait after a withdrawal.
    pub async fn next_change(&self, added: Duration, refreshed: Duration) -> Change {
        self.wait_for(Dirty::Refreshed).await;
        if timeout(refreshed, self.wait_for(Dirty::Added)).await.is_ok() {
            let _ = timeout(added, self.wait_for(Dirty::Revoked)).await;
        }
        self.take_change()
    }

    async fn wait_for(&self, dirty: Dirty) {
        while self.dirty.get() < dirty {
            self.marked.notified().await;
        }
    }

    /// Waits for `pause`, or until something is withdrawn.
    pub async fn pause(&self, pause: Duration) {
        let _ = timeout(pause, self.wait_for(Dirty::Revoked)).await;
    }

    /// Returns the changes that are to be written now, and counts them as written.
    pub fn take_change(&self) -> Change {
        let is_revocation = self.dirty.replace(Dirty::Clean) == Dirty::Revoked;
        Change { is_revocation, revocations: self.revocations.get() }
    }

    /// Returns whether there is nothing to write.
    pub fn is_clean(&self) -> bool {
        self.dirty.get() == Dirty::Clean
    }

    /// Notes that a change is on the disk, or that the file was removed and so contradicts nothing.
    pub fn set_persisted(&self, change: &Change) {
        self.is_slow.set(false);
        self.persisted.send_replace(change.revocations);
    }

    /// Notes that a change was not written. `is_contradicted` is whether a file on the disk grants what was withdrawn.
    pub fn set_unwritten(&self, is_contradicted: bool) {
        let dirty = if is_contradicted { Dirty::Revoked } else { Dirty::Added };
        self.dirty.set(self.dirty.get().max(dirty));
    }

    /// Notes whether there is a file on the disk that was not read, so that it may grant anything.
    pub fn set_unread_file(&self, is_unread: bool) {
        self.has_unread_file.set(is_unread);
    }

    /// Returns whether there is a file on the disk that was not read.
    pub fn has_unread_file(&self) -> bool {
        self.has_unread_file.get()
    }

    /// Notes the outcome of a write: the number of bytes, or the error.
    pub fn set_status(&self, outcome: &io::Result<u64>) {
        let mut status = self.status.borrow_mut();
        match outcome {
            Ok(bytes) => {
                *status = WriteStatus { written_at: Some(Instant::now()), bytes: *bytes, error: None };
            }
            Err(error) => status.error = Some(error.to_string()),
        }
    }

    /// Returns the outcome of the last write.
    pub fn status(&self) -> WriteStatus {
        self.status.borrow().clone()
    }
}
