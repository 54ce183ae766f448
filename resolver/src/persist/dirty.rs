//! What of the cache the disk does not have yet, and who waits for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// How long an answer waits until a withdrawal is on the disk, so that an older answer does not come back after a crash. A
/// slower disk delays nobody further, and nobody at all until it has written something again.
pub const PERSIST_MAX: Duration = Duration::from_millis(400);

/// What the disk lacks, the more urgent the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dirty {
    /// Nothing.
    #[default]
    Clean,
    /// That something known was confirmed.
    Refreshed,
    /// Something new.
    Added,
    /// That something was withdrawn: the file says more than IAM does.
    Revoked,
}

/// The outcome of writing the cache.
#[derive(Clone, Debug, Default)]
pub struct WriteStatus {
    /// When the file was last written.
    pub written_at: Option<Instant>,
    /// The size of the file then, in bytes.
    pub bytes: u64,
    /// Why the last write failed. None if it did not.
    pub error: Option<String>,
}

/// What the writer takes to the disk in one write.
#[derive(Debug)]
pub struct Change {
    /// Whether something was withdrawn, so that the file on the disk says too much.
    pub is_revocation: bool,
    /// The number of withdrawals up to here.
    revocations: u64,
}

/// Tells the writer of the cache when there is something to write, and everybody else when it is written.
#[derive(Debug)]
pub struct DirtyState {
    dirty: Cell<Dirty>,
    marked: Notify,
    revocations: Cell<u64>,
    /// The number of withdrawals that are on the disk. Without a receiver nobody writes.
    persisted: watch::Sender<u64>,
    /// Whether a wait for the disk was in vain, and the disk has written nothing since.
    is_slow: Cell<bool>,
    /// Whether a file on the disk was not read.
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
    /// Notes what the disk lacks.
    pub fn mark(&self, dirty: Dirty) {
        if dirty == Dirty::Revoked {
            self.revocations.set(self.revocations.get() + 1);
        }
        self.dirty.set(self.dirty.get().max(dirty));
        self.marked.notify_one();
    }

    /// Waits until every withdrawal is on the disk, but at most [`PERSIST_MAX`]. Returns at once if nobody writes.
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

    /// Registers a writer. It writes as long as the returned value lives.
    pub fn register_writer(&self) -> watch::Receiver<u64> {
        self.persisted.subscribe()
    }

    /// Waits until there is something to write. What is new waits up to `added` for more, and what was merely confirmed up to
    /// `refreshed`, so that many changes are one write. A withdrawal does not wait.
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

    /// Returns what is to be written now.
    pub fn take_change(&self) -> Change {
        let is_revocation = self.dirty.replace(Dirty::Clean) == Dirty::Revoked;
        Change { is_revocation, revocations: self.revocations.get() }
    }

    /// Whether there is nothing to write.
    pub fn is_clean(&self) -> bool {
        self.dirty.get() == Dirty::Clean
    }

    /// Notes that a change is on the disk, or that no file contradicts it.
    pub fn set_persisted(&self, change: &Change) {
        self.is_slow.set(false);
        self.persisted.send_replace(change.revocations);
    }

    /// Notes that a change was not written. `is_contradicted` says whether a file on the disk grants what was withdrawn.
    pub fn set_unwritten(&self, is_contradicted: bool) {
        let dirty = if is_contradicted { Dirty::Revoked } else { Dirty::Added };
        self.dirty.set(self.dirty.get().max(dirty));
    }

    /// Notes whether a file on the disk was not read. Nobody knows what it says.
    pub fn set_unread_file(&self, is_unread: bool) {
        self.has_unread_file.set(is_unread);
    }

    /// Whether a file on the disk was not read.
    pub fn has_unread_file(&self) -> bool {
        self.has_unread_file.get()
    }

    /// Notes the outcome of a write: the number of bytes, or why it failed.
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
