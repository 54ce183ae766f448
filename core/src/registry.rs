//! The registry of sessions: a folder with one file for each session. PAM's session phase writes the files, and the sweep
//! reads them.
//!
//! The registry and its parent folder belong to root: a user who could rename the registry could hide a session from the
//! sweep. The registry is opened without following links, and used only if both folders belong to this process's user and no other
//! user can write them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, flock};
use rustix::io::Errno;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::id::{Gid, Uid};
use crate::process::{self, Process};

/// The longest entry that is read, in bytes.
const ENTRY_MAX: u64 = 64 * 1024;

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The pid of the process that opened the session.
    pub pid: i32,
    /// The start time of that process, in clock ticks since the boot (proc(5)).
    pub start: u64,
    /// The Linux name.
    pub user: String,
    /// The uid.
    pub uid: Uid,
    /// The PAM service.
    pub service: String,
    /// The address or host name of the client.
    pub rhost: String,
    /// The IAM user whose key opened the session.
    pub iam_name: String,
    /// The keys that opened the session.
    pub keys: Vec<SessionKey>,
    /// The origin of the keys.
    pub origin: Origin,
    /// The supplementary groups of the user when the session was opened.
    #[serde(default)]
    pub groups: Vec<Gid>,
    /// The time when the session was opened, in seconds since 1970.
    pub since: u64,
    /// The audit session that the login began (pam_loginuid(8)), if it began one. Processes that outlive the session
    /// keep it.
    #[serde(default)]
    pub audit: Option<String>,
    /// Whether the session is over. Its entry then stays because of processes that the session may have left behind.
    #[serde(default)]
    pub closed: bool,
    /// The number of sweeps in a row that saw no process left behind by the closed session.
    #[serde(default)]
    pub unseen: u32,
}

impl Session {
    /// Returns the keys that opened the session, with `separator` between them.
    pub fn keys_joined(&self, separator: &str) -> String {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        keys.join(separator)
    }
}

/// A key that opened a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum SessionKey {
    /// A key with this fingerprint.
    Known(Fingerprint),
    /// A key of a form that pam_iam cannot parse. IAM has no such key.
    Unreadable,
}

impl SessionKey {
    /// Returns the fingerprint. None if the key could not be parsed.
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        match self {
            Self::Known(fingerprint) => Some(fingerprint),
            Self::Unreadable => None,
        }
    }
}

impl From<String> for SessionKey {
    fn from(text: String) -> Self {
        Fingerprint::try_from(text).map_or(Self::Unreadable, Self::Known)
    }
}

impl From<SessionKey> for String {
    fn from(key: SessionKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fingerprint().map_or("unreadable", Fingerprint::as_str))
    }
}

/// The origin of the keys of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// No key: the session was opened without one.
    None,
    /// Only active keys of the user in IAM.
    Iam,
    /// At least one key that is not an active key of the user in IAM.
    Foreign,
    /// Not known: the resolver did not answer.
    Unknown,
}

/// An open registry.
pub struct SessionRegistry {
    dir: OwnedFd,
}

impl SessionRegistry {
    /// Opens the registry in `path`. None if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the registry cannot be opened, or if another user owns it or its parent or can write one of
    /// them.
    pub fn open_if_made(path: &Path) -> io::Result<Option<Self>> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::open(path).map(Some),
        }
    }

    /// Opens the registry in `path`, and creates it if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the registry cannot be created or opened, or if another user owns it or its parent or can
    /// write one of them.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::open(path, flags, Mode::empty());
        let dir = match open() {
            Err(Errno::NOENT) => {
                // Without a daemon, nothing else has created the parent.
                for (path, mode) in [(path.parent(), 0o755), (Some(path), 0o700)] {
                    match path.map(|path| rustix::fs::mkdir(path, Mode::from_raw_mode(mode))) {
                        None | Some(Ok(()) | Err(Errno::EXIST)) => {}
                        Some(Err(errno)) => return Err(errno.into()),
                    }
                }
                open()?
            }
            dir => dir?,
        };
        let untrusted = |message: String| io::Error::new(io::ErrorKind::PermissionDenied, message);
        let is_managed = |found: rustix::fs::Stat| {
            found.st_uid == rustix::process::geteuid().as_raw() && found.st_mode & 0o022 == 0
        };
        if !is_managed(rustix::fs::fstat(&dir)?) {
            return Err(untrusted(format!("{} belongs to somebody else", path.display())));
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        if !is_managed(rustix::fs::stat(parent)?) {
            let parent = parent.display();
            return Err(untrusted(format!(
                "{parent} can be changed by others than root: chown root:root {parent} && chmod 755 {parent}"
            )));
        }
        Ok(Self { dir })
    }

    /// Writes the entry of a session, as one that IAM has let go on just now. An entry of the same process is replaced.
    ///
    /// # Errors
    /// Returns an error if the entry cannot be written.
    pub fn insert(&self, session: &Session) -> io::Result<()> {
        self.write(session)?;
        self.touch(session, Duration::ZERO)
    }

    fn write(&self, session: &Session) -> io::Result<()> {
        let name = name_of(session.process());
        // Two processes may write at the same time.
        let unfinished = format!(".{name}.{}", std::process::id());
        match rustix::fs::unlinkat(&self.dir, &*unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &*unfinished, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(&serde_json::to_vec(session)?)?;
        Ok(rustix::fs::renameat(&self.dir, &*unfinished, &self.dir, name)?)
    }

    /// Notes that the session of a process is over. The entry is removed, unless the session has an audit session, by
    /// which the sweep finds processes that were left behind. Such an entry stays until the sweep removes it: processes
    /// that fork and end all the time may be missed by a single look.
    ///
    /// # Errors
    /// Returns an error if the entry cannot be read, written or removed.
    pub fn close(&self, process: Process) -> io::Result<()> {
        match self.read(&name_of(process))? {
            Some((session, _)) if session.audit.is_some() => self.write(&Session { closed: true, ..session }),
            _ => self.remove(process),
        }
    }

    /// Notes the number of sweeps in a row that saw no process left behind by a closed session.
    ///
    /// # Errors
    /// Returns an error if the entry cannot be written.
    pub fn note_unseen(&self, session: &Session, unseen: u32) -> io::Result<()> {
        if session.unseen == unseen {
            return Ok(());
        }
        self.write(&Session { unseen, ..session.clone() })
    }

    /// Removes the entry of a process.
    ///
    /// # Errors
    /// Returns an error if the entry exists and cannot be removed. A missing entry is not an error.
    pub fn remove(&self, process: Process) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name_of(process), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Locks the registry against a second sweep, until `self` is dropped. Returns false if another sweep holds the
    /// lock.
    ///
    /// # Errors
    /// Returns an error if flock(2) fails.
    pub fn lock(&self) -> io::Result<bool> {
        match flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the open sessions, each with the age of the answer by which IAM last let it go on. Removes malformed
    /// entries, and the entries of sessions that are over and have no audit session.
    ///
    /// # Errors
    /// Returns an error if the directory or an entry cannot be read.
    pub fn sessions(&self) -> io::Result<Vec<(Session, Duration)>> {
        let mut sessions = self.entries()?;
        sessions.retain(|(session, _)| session.is_open());
        Ok(sessions)
    }

    /// Returns the sessions that are over and may have left processes behind.
    ///
    /// # Errors
    /// Returns an error if the directory or an entry cannot be read.
    pub fn left(&self) -> io::Result<Vec<Session>> {
        let entries = self.entries()?.into_iter().map(|(session, _)| session);
        Ok(entries.filter(|session| !session.is_open()).collect())
    }

    fn entries(&self) -> io::Result<Vec<(Session, Duration)>> {
        let mut sessions = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The process of an unfinished entry is still writing it, or died while it did.
            if name.starts_with('.') {
                let writer = name.rsplit('.').next().and_then(|pid| pid.parse().ok());
                if writer.is_some_and(process::has_ended) {
                    let _ = rustix::fs::unlinkat(&self.dir, &*name, AtFlags::empty());
                }
                continue;
            }
            match self.read(&name)? {
                Some((session, age)) if session.audit.is_some() || session.is_open() => {
                    sessions.push((session, age));
                }
                _ => {
                    let _ = rustix::fs::unlinkat(&self.dir, &*name, AtFlags::empty());
                }
            }
        }
        sessions.sort_by_key(|(session, _)| (session.since, session.pid));
        Ok(sessions)
    }

    /// Returns the session of an entry and the age of the answer by which IAM last let it go on. None if the entry is
    /// gone or malformed. An entry that cannot be read for another reason is an error.
    fn read(&self, name: &str) -> io::Result<Option<(Session, Duration)>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            // A link is not an entry.
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            file => File::from(file?),
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(None);
        }
        let mut text = Vec::new();
        file.take(ENTRY_MAX).read_to_end(&mut text)?;
        let Ok(session) = serde_json::from_slice::<Session>(&text) else { return Ok(None) };
        let age = since_boot().saturating_sub(u64::try_from(found.mtime()).unwrap_or_default());
        Ok((name_of(session.process()) == name).then_some((session, Duration::from_secs(age))))
    }

    /// Notes that IAM let the session go on in an answer of this `age`. The modification time of the entry holds the
    /// time of the answer in seconds since the boot, because the wall clock of a host may jump.
    ///
    /// # Errors
    /// Returns an error if the entry cannot be changed.
    pub fn touch(&self, session: &Session, age: Duration) -> io::Result<()> {
        let at = i64::try_from(since_boot().saturating_sub(age.as_secs())).unwrap_or_default();
        let at = Timespec { tv_sec: at, tv_nsec: 0 };
        let times = Timestamps { last_access: at, last_modification: at };
        Ok(rustix::fs::utimensat(&self.dir, name_of(session.process()), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

impl Session {
    /// Whether the session is not over and its process runs.
    pub fn is_open(&self) -> bool {
        !self.closed && self.process().is_running()
    }

    /// Returns the process that opened the session.
    pub fn process(&self) -> Process {
        Process { pid: self.pid, start: self.start }
    }
}

/// Returns the time since the boot, including the time that the host was suspended. Nobody can set this clock.
pub fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default())
}

/// Returns the seconds since the boot, including those that the host was suspended.
pub fn since_boot() -> u64 {
    uptime().as_secs()
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Returns the name of the entry of a process: its pid and start time. The kernel reuses pids, and the removal of an old
/// entry must not remove that of a later process.
fn name_of(process: Process) -> String {
    format!("{}-{}", process.pid, process.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";

    fn session() -> Session {
        let Process { pid, start } = Process::this().unwrap();
        Session {
            pid,
            start,
            user: "alice".into(),
            uid: Uid(7),
            service: "sshd".into(),
            rhost: "192.0.2.1".into(),
            iam_name: "alice".into(),
            keys: vec![FINGERPRINT.to_owned().into(), SessionKey::Unreadable],
            origin: Origin::Iam,
            groups: vec![Gid(5)],
            since: 1,
            audit: None,
            closed: false,
            unseen: 0,
        }
    }

    #[test]
    fn a_session_is_inserted_touched_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pam_iam/sessions");
        assert!(SessionRegistry::open_if_made(&path).unwrap().is_none() && !path.exists());
        let registry = SessionRegistry::open(&path).unwrap();
        let mine = session();
        registry.insert(&mine).unwrap();
        registry.insert(&mine).unwrap();
        let (found, age) = registry.sessions().unwrap().remove(0);
        assert_eq!(found, mine);
        assert!(age < Duration::from_secs(60));
        registry.touch(&mine, Duration::from_secs(3600)).unwrap();
        // The age cannot be more than the time since this host's boot.
        let (_, age) = registry.sessions().unwrap().remove(0);
        assert!(age >= Duration::from_secs(60));
        assert!(registry.lock().unwrap() && !SessionRegistry::open(&path).unwrap().lock().unwrap());
        registry.remove(mine.process()).unwrap();
        registry.remove(mine.process()).unwrap();
        assert!(registry.sessions().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_session_stays_registered_for_processes_that_it_may_have_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let registry = SessionRegistry::open(&dir.path().join("sessions")).unwrap();
        let mine = Session { audit: Some("7".into()), ..session() };
        registry.insert(&mine).unwrap();
        assert!(registry.left().unwrap().is_empty());
        registry.close(mine.process()).unwrap();
        assert!(registry.sessions().unwrap().is_empty());
        let over = Session { closed: true, ..mine.clone() };
        assert_eq!(registry.left().unwrap(), std::slice::from_ref(&over));
        registry.note_unseen(&over, 2).unwrap();
        assert_eq!(registry.left().unwrap(), [Session { unseen: 2, ..over }]);
        // The process of a session was killed and could not mark its entry as closed.
        let killed = Session { start: mine.start + 1, ..mine.clone() };
        registry.insert(&killed).unwrap();
        assert_eq!(registry.left().unwrap().len(), 2);
        registry.remove(killed.process()).unwrap();
        registry.remove(mine.process()).unwrap();
        registry.insert(&session()).unwrap();
        registry.close(mine.process()).unwrap();
        assert!(registry.left().unwrap().is_empty(), "nothing could tell what it has left");
        registry.close(mine.process()).unwrap();
    }

    #[test]
    fn entries_of_processes_that_are_gone_and_of_nonsense_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("sessions");
        let registry = SessionRegistry::open(&path).unwrap();
        let mine = session();
        registry.insert(&Session { start: mine.start + 1, ..mine.clone() }).unwrap();
        registry.insert(&Session { pid: i32::MAX - 1, ..mine.clone() }).unwrap();
        std::fs::write(path.join("77"), "{").unwrap();
        std::fs::write(path.join("78"), serde_json::to_vec(&mine).unwrap()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join("79")).unwrap();
        assert!(registry.sessions().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    }

    #[test]
    fn the_entry_of_a_process_that_is_gone_is_not_that_of_the_next_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let registry = SessionRegistry::open(&dir.path().join("sessions")).unwrap();
        let mine = session();
        let gone = Session { start: mine.start - 1, ..mine.clone() };
        registry.insert(&gone).unwrap();
        registry.insert(&mine).unwrap();
        // A sweep does this if it read the first entry before the second one was written.
        registry.remove(gone.process()).unwrap();
        let found: Vec<Session> =
            registry.sessions().unwrap().into_iter().map(|(session, _)| session).collect();
        assert_eq!(found, [mine]);
    }

    #[test]
    fn a_register_that_others_can_write_or_exchange_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(SessionRegistry::open(&link).is_err());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(SessionRegistry::open(dir.path()).is_err());
        let why = SessionRegistry::open(&dir.path().join("sessions")).err().unwrap().to_string();
        assert!(why.contains("chown root:root"), "in a directory where others may rename it: {why}");
    }
}
