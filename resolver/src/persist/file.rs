//! The cache on the disk: the answers of IAM survive a restart and a reboot.
//!
//! The file is a header of one line, and then the content. A file that is broken, of another version or of another owner
//! is quarantined. A file for another configuration is not used, and a missing one is no error. The content has ages, not
//! times of day. The age of the file itself is measured within a boot by a clock that nobody can set, or by the wall
//! clock if that says more, and over a reboot by the wall clock; if the clock went back, the file is not used.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pam_iam_core::replace::replace;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of the file. A file of another version is quarantined.
const VERSION: u32 = 1;

/// The largest file that is read, in bytes. 5,000 users with five keys each take 15 MiB.
const LENGTH_MAX: u64 = 64 * 1024 * 1024;

/// The longest header, in bytes.
const HEADER_MAX: usize = 4096;

/// The name of the file.
const FILE: &str = "cache.json";

/// The name of a quarantined file, which is kept for an operator until another is quarantined.
const QUARANTINE: &str = "cache.json.rejected";

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another user could have written the file.
    #[error("{0}")]
    Untrusted(&'static str),
    /// The file is cut off, or was changed.
    #[error("it is broken: {0}")]
    Broken(String),
    /// An older or newer resolver wrote it.
    #[error("it has the version {0}, where this resolver has {VERSION}")]
    Version(u32),
    /// The file is about another AWS account or host, or names map to other users.
    #[error("it was written under another configuration")]
    Setup,
    /// A clock went back, so the age of the file is unknown.
    #[error("it was written in the future: the clock was set back")]
    Clock,
}

/// The first line of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    /// The SHA-256, in hexadecimal, of the settings under which the content holds.
    setup: String,
    written: Clock,
    /// The SHA-256 of the content, in hexadecimal.
    sha256: String,
}

/// The readings of the clocks at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The boot id of the kernel.
    boot: String,
    /// Milliseconds since the boot, including the time that the machine slept.
    since_boot: u64,
    /// Milliseconds since 1970.
    wall: u64,
}

impl Clock {
    /// Reads the clocks.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
        let wall = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { boot: boot.trim().to_owned(), since_boot: milliseconds(since_boot), wall: milliseconds(wall) }
    }

    /// Returns the time since `earlier`. None if it cannot be determined, since a clock went back.
    fn since(&self, earlier: &Self) -> Option<Duration> {
        let wall = self.wall.checked_sub(earlier.wall);
        let passed = if self.boot == earlier.boot && !self.boot.is_empty() {
            // The longer of the two: while a hypervisor has the machine stopped, the clock since the boot stands still.
            Some(self.since_boot.checked_sub(earlier.since_boot)?.max(wall.unwrap_or_default()))
        } else {
            wall
        };
        passed.map(Duration::from_millis)
    }
}

/// Returns how long the machine has slept since its boot, which the clock of `Instant` leaves out.
pub fn slept() -> Duration {
    let [awake, since_boot] = [ClockId::Monotonic, ClockId::Boottime]
        .map(|clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default());
    since_boot.saturating_sub(awake)
}

/// Returns `span` in whole milliseconds.
pub fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The file of the cache, in a folder of its own.
#[derive(Clone, Debug)]
pub struct CacheFile {
    dir: PathBuf,
    setup: String,
}

impl CacheFile {
    /// Returns the file in `dir`. `setup` is a text that changes when the content no longer holds.
    pub fn new(dir: &Path, setup: &str) -> Self {
        let setup = format!("{:x}", Sha256::digest(setup.as_bytes()));
        Self { dir: dir.to_owned(), setup }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Returns the content and its age. None if there is no file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be used.
    pub fn load<T: DeserializeOwned>(&self, now: &Clock) -> Result<Option<(T, Duration)>, CacheError> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(self.path());
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(CacheError::Untrusted("it is not a regular file"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(CacheError::Untrusted("its owner is another uid"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(CacheError::Untrusted("others may read or write it"));
        }
        let mut bytes = Vec::new();
        file.take(LENGTH_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LENGTH_MAX {
            return Err(CacheError::Broken(format!("longer than {LENGTH_MAX} bytes")));
        }
        parse(&bytes, &self.setup, now).map(Some)
    }

    /// Replaces the file. Returns its size in bytes.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written. The old file is then still there.
    pub fn save<T: Serialize>(&self, content: &T, now: &Clock) -> io::Result<u64> {
        let content = serde_json::to_vec(content)?;
        let header = Header {
            version: VERSION,
            setup: self.setup.clone(),
            written: now.clone(),
            sha256: format!("{:x}", Sha256::digest(&content)),
        };
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        bytes.extend(content);
        if !self.dir.exists() {
            DirBuilder::new().mode(0o700).create(&self.dir)?;
        }
        replace(&self.path(), &bytes, 0o600)?;
        Ok(bytes.len() as u64)
    }

    /// Renames a file that cannot be used to `cache.json.rejected`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be renamed.
    pub fn quarantine(&self) -> io::Result<()> {
        std::fs::rename(self.path(), self.dir.join(QUARANTINE))
    }

    /// Removes a file that grants what IAM has withdrawn.
    ///
    /// # Errors
    /// Returns an error if the file cannot be removed. A missing file is not an error.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.dir)?.sync_all(),
        }
    }
}

/// Returns the content of a file and its age.
fn parse<T: DeserializeOwned>(bytes: &[u8], setup: &str, now: &Clock) -> Result<(T, Duration), CacheError> {
    let end = bytes.iter().take(HEADER_MAX).position(|byte| *byte == b'\n');
    let (header, content) = end
        .and_then(|end| bytes.split_at_checked(end))
        .ok_or_else(|| CacheError::Broken("it has no header".to_owned()))?;
    let content = content.get(1..).unwrap_or_default();
    let broken = |error: serde_json::Error| CacheError::Broken(error.to_string());
    // In a header of another version, only this field is sure to be the same.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(header).map_err(broken)?;
    if version != VERSION {
        return Err(CacheError::Version(version));
    }
    let header: Header = serde_json::from_slice(header).map_err(broken)?;
    if header.setup != setup {
        return Err(CacheError::Setup);
    }
    if header.sha256 != format!("{:x}", Sha256::digest(content)) {
        return Err(CacheError::Broken("its checksum is wrong".to_owned()));
    }
    let age = now.since(&header.written).ok_or(CacheError::Clock)?;
    Ok((serde_json::from_slice(content).map_err(broken)?, age))
}

/// Parses a file that a fuzzer made, under an empty `setup`, and returns its content.
#[doc(hidden)]
pub fn fuzz<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let now = Clock { boot: String::new(), since_boot: 0, wall: u64::MAX };
    parse(bytes, "", &now).ok().map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn at(boot: &str, since_boot: u64, wall: u64) -> Clock {
        Clock { boot: boot.to_owned(), since_boot, wall }
    }

    fn store() -> (tempfile::TempDir, CacheFile) {
        let dir = tempfile::tempdir().unwrap();
        let store = CacheFile::new(&dir.path().join("cache"), "setup");
        (dir, store)
    }

    fn load(store: &CacheFile, now: &Clock) -> Result<Option<(String, Duration)>, CacheError> {
        store.load(now)
    }

    #[test]
    fn a_saved_cache_is_read_with_its_age_and_only_by_its_owner() {
        let (_dir, store) = store();
        assert!(load(&store, &at("a", 5, 1000)).unwrap().is_none());
        store.save(&"one", &at("a", 5, 1000)).unwrap();
        store.save(&"other", &at("a", 7, 1000)).unwrap();
        // Within a boot, a wall clock that went back makes nothing younger.
        let (content, age) = load(&store, &at("a", 9, 1)).unwrap().unwrap();
        assert_eq!((content.as_str(), age), ("other", Duration::from_millis(2)));
        assert_eq!(load(&store, &at("a", 9, 1700)).unwrap().unwrap().1, Duration::from_millis(700));
        assert_eq!(load(&store, &at("b", 1, 1500)).unwrap().unwrap().1, Duration::from_millis(500));
        assert_eq!(std::fs::metadata(store.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(store.path().parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(load(&store, &at("b", 1, 999)), Err(CacheError::Clock)));
        assert!(matches!(load(&store, &at("a", 6, 2000)), Err(CacheError::Clock)));
    }

    #[test]
    fn a_truncated_changed_outdated_or_foreign_cache_is_not_used() {
        let (_dir, store) = store();
        let now = at("a", 5, 1000);
        store.save(&"content", &now).unwrap();
        let whole = std::fs::read(store.path()).unwrap();
        for length in 0..whole.len() {
            std::fs::write(store.path(), &whole[..length]).unwrap();
            assert!(matches!(load(&store, &now), Err(CacheError::Broken(_))), "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(store.path(), &changed).unwrap();
            // The checksum does not cover the clocks in the header.
            let clocks = whole[..at].windows(8).any(|part| part == b"\"written")
                && !whole[..at].windows(7).any(|part| part == b"\"sha256");
            assert!(clocks || load(&store, &now).is_err(), "byte {at}");
        }
        std::fs::write(store.path(), b"{\"version\":0,\"what\":1}\n[]").unwrap();
        assert!(matches!(load(&store, &now), Err(CacheError::Version(0))));
        std::fs::write(store.path(), &whole).unwrap();
        let other = CacheFile::new(store.path().parent().unwrap(), "other");
        assert!(matches!(load(&other, &now), Err(CacheError::Setup)));
        assert!(load(&store, &now).unwrap().is_some());
    }

    #[test]
    fn a_cache_that_others_could_have_written_is_quarantined() {
        let (dir, store) = store();
        let now = at("a", 5, 1000);
        store.save(&"content", &now).unwrap();
        std::fs::set_permissions(store.path(), std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(matches!(load(&store, &now), Err(CacheError::Untrusted(_))));
        store.quarantine().unwrap();
        assert!(load(&store, &now).unwrap().is_none());
        std::fs::write(dir.path().join("elsewhere"), "").unwrap();
        symlink(dir.path().join("elsewhere"), store.path()).unwrap();
        assert!(load(&store, &now).is_err());
        // A symbolic link is replaced, and its target is not written to.
        store.save(&"new", &now).unwrap();
        assert_eq!(std::fs::read(dir.path().join("elsewhere")).unwrap(), b"");
        assert_eq!(load(&store, &now).unwrap().unwrap().0, "new");
        store.remove().unwrap();
        store.remove().unwrap();
        assert!(load(&store, &now).unwrap().is_none());
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let (_dir, store) = store();
        let now = at("a", 5, 1000);
        store.save(&"old", &now).unwrap();
        // A folder with content has the name of the temporary file, so that no file can replace it.
        let unfinished = store.path().with_file_name("cache.json.new");
        std::fs::create_dir_all(unfinished.join("x")).unwrap();
        assert!(store.save(&"new", &now).is_err());
        assert_eq!(load(&store, &now).unwrap().unwrap().0, "old");
    }
}
