//! The file of the map: when it is written, and what is done if it cannot be.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pam_iam_core::file_version::FileVersion;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::map::reader::Map;
use pam_iam_core::map::{About, AccountRecord, BootedAt, Record, file, writer};
use pam_iam_core::name::LinuxName;
use pam_iam_core::nsswitch::{self, NSSWITCH};
use tokio::time::Instant;

/// The least time between two writes that only make answers younger.
const PAUSE: Duration = Duration::from_secs(1);

/// A write that takes no longer than this may follow each login: one of a hundred users or so.
const CHEAP: Duration = Duration::from_micros(300);

/// The least time between two such writes, as a multiple of the time that the last one took: with 50,000 users, a write takes a tenth
/// of a second.
const PAUSE_FACTOR: u32 = 50;

/// The name of the file in the folder of the map.
const FILE: &str = "nss.map";

/// Writes the map.
pub struct Publisher {
    path: PathBuf,
    log: RefCell<Log>,
    /// The map that was last written. None if there is none on the disk.
    published: RefCell<Option<Map<Vec<u8>>>>,
    /// The version of the file that was last written.
    version: Cell<Option<FileVersion>>,
    written_at: Cell<Instant>,
    cost: Cell<Duration>,
    /// Whether an answer has become younger since the last write, or the file is not the one that was written.
    has_other_ages: Cell<bool>,
    /// Whether nsswitch.conf(5) lists `files` before our module, and the version of the file that says so.
    order: RefCell<(Option<FileVersion>, bool)>,
    /// The last message about a failed write, so that it is logged once.
    failure: RefCell<Option<String>>,
}

impl Publisher {
    /// Returns a publisher of the map in the folder `map` beside the socket. The resolver's unit makes that folder.
    pub fn beside(socket: &Path, log: Log) -> Self {
        let publisher = Self {
            path: socket.with_file_name("map").join(FILE),
            log: RefCell::new(log),
            published: RefCell::default(),
            version: Cell::default(),
            written_at: Cell::new(Instant::now()),
            cost: Cell::default(),
            has_other_ages: Cell::default(),
            order: RefCell::default(),
            failure: RefCell::default(),
        };
        publisher.refresh();
        publisher
    }

    /// Reads nsswitch.conf(5) again if it has changed. Returns whether it has.
    pub fn refresh(&self) -> bool {
        let version = FileVersion::of(Path::new(NSSWITCH)).ok();
        if version == self.order.borrow().0 {
            return false;
        }
        let text = std::fs::read_to_string(NSSWITCH).unwrap_or_default();
        *self.order.borrow_mut() = (version, nsswitch::asks_files_first(&text));
        true
    }

    /// Returns what the map says about the account `name`. The outer value is None if there is no map.
    pub fn published(&self, name: &LinuxName) -> Option<Option<AccountRecord>> {
        let published = self.published.borrow();
        Some(match published.as_ref()?.by_name(name).ok()? {
            Some(Record::Account(account)) => Some(account),
            Some(Record::Group(_)) | None => None,
        })
    }

    /// Notes that an answer has become younger than the map says. Returns whether the map is so short that it can be written at once.
    pub fn note_other_ages(&self) -> bool {
        self.has_other_ages.set(true);
        self.cost.get() <= CHEAP
    }

    /// Returns the folder of the map.
    pub fn folder(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// Returns the time after which the map has to be written because of younger answers. None if there are none.
    pub fn pause(&self) -> Option<Duration> {
        let left = self.least_pause().saturating_sub(self.written_at.get().elapsed());
        self.has_other_ages.get().then_some(left)
    }

    fn least_pause(&self) -> Duration {
        PAUSE.max(self.cost.get() * PAUSE_FACTOR)
    }

    /// Returns whether the map has to be written although NSS would show the same names: answers have become younger, the file is
    /// not the one that was written, or the wall clock was set, so that the map seems to be of another boot.
    pub fn is_due(&self) -> bool {
        let was_set = |map: &Map<Vec<u8>>| !map.about.boot.is_same_as(BootedAt::now());
        let is_other_file = self.version.get() != FileVersion::of(&self.path).ok();
        if is_other_file || self.published.borrow().as_ref().is_some_and(was_set) {
            self.has_other_ages.set(true);
        }
        self.has_other_ages.get() && self.written_at.get().elapsed() >= self.least_pause()
    }

    /// Writes the map, or logs why it cannot be written. What was withdrawn must not stay in an old map, so that is then removed.
    ///
    /// `began` is when the records were begun, so that the next write waits longer after an expensive one.
    pub fn write(&self, records: &[Record], about: About, began: Instant) {
        let outcome = self.replace(records, about);
        self.has_other_ages.set(false);
        self.written_at.set(Instant::now());
        self.cost.set(began.elapsed());
        let message = outcome.err().map(|error| match std::fs::remove_file(&self.path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                format!("{error}; an older one cannot be removed: {why}")
            }
            _ => format!("{error}; names are looked up on the socket"),
        });
        self.log_failure(message);
    }

    fn replace(&self, records: &[Record], about: About) -> io::Result<()> {
        self.published.replace(None);
        self.version.set(None);
        let boot = BootedAt::now();
        let files_first = self.order.borrow().1;
        let bytes = writer::encode(records.iter(), &About { boot, files_first, ..about });
        file::write(&self.path, &bytes)?;
        self.version.set(FileVersion::of(&self.path).ok());
        let map = Map::new(bytes, boot).map_err(io::Error::other)?;
        self.published.replace(Some(map));
        Ok(())
    }

    /// Logs a failure with a new message, and the first write that works after a failed one.
    fn log_failure(&self, message: Option<String>) {
        let before = self.failure.replace(message.clone());
        if before == message {
            return;
        }
        let path = self.path.display();
        match message {
            Some(error) => self
                .log
                .borrow_mut()
                .write(Level::Error, format!("the map {path} cannot be written: {error}")),
            None => self.log.borrow_mut().write(Level::Info, format!("the map {path} is written again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_map_that_another_program_has_changed_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("map")).unwrap();
        let publisher = Publisher::beside(&dir.path().join("resolver.sock"), Log::silent());
        let path = dir.path().join("map").join(FILE);
        publisher.write(&[], About::default(), Instant::now());
        tokio::time::advance(PAUSE).await;
        assert!(path.exists() && !publisher.is_due());
        std::fs::write(&path, "another").unwrap();
        assert!(publisher.is_due());
        publisher.write(&[], About::default(), Instant::now());
        tokio::time::advance(PAUSE).await;
        assert!(!publisher.is_due());
        std::fs::remove_file(&path).unwrap();
        assert!(publisher.is_due());
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn ages_alone_are_written_once_a_second() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("map")).unwrap();
        let publisher = Publisher::beside(&dir.path().join("resolver.sock"), Log::silent());
        publisher.write(&[], About::default(), Instant::now());
        publisher.note_other_ages();
        assert!(!publisher.is_due());
        tokio::time::advance(PAUSE).await;
        assert!(publisher.is_due());
    }

    #[test]
    fn a_map_that_cannot_be_replaced_is_removed() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("map")).unwrap();
            let publisher = Publisher::beside(&dir.path().join("resolver.sock"), Log::silent());
            let path = dir.path().join("map").join(FILE);
            publisher.write(&[], About::default(), Instant::now());
            // A folder of this name stands in the way of the unfinished file.
            std::fs::create_dir(path.with_file_name("nss.map.new")).unwrap();
            publisher.write(&[], About::default(), Instant::now());
            assert!(!path.exists());
            assert!(publisher.failure.borrow().is_some());
            std::fs::remove_dir(path.with_file_name("nss.map.new")).unwrap();
            publisher.write(&[], About::default(), Instant::now());
            assert!(path.exists() && publisher.failure.borrow().is_none());
        });
    }
}
