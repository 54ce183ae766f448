//! Reads and replaces the account files as passwd(1) and the other shadow-utils do: under the lock of lckpwdf(3), each file by a rename
//! that keeps owner, mode and SELinux label, with the old file left beside it (`passwd-`).
//!
//! No tool can do this for many accounts: systemd-sysusers(8) refuses names with a dot or of 32 characters, and creates no
//! account if one name is refused; newusers(8) sets passwords and makes home directories; useradd(8) rewrites all files for
//! each user.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pam_iam_core::replace::write_like;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::table::{Table, Tables};

/// The lock file of lckpwdf(3), which shadow-utils and systemd-sysusers lock too.
const LOCK: &str = ".pwd.lock";

/// How long to wait for the lock, as lckpwdf(3) does.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// The pause between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The suffix of files that are not renamed yet. The next run replaces such a file if a run was killed.
const UNFINISHED: &str = ".pam_iam-new";

/// Why the account files could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Another program holds the lock.
    #[error("{} is held by another program for more than {} s", .0.display(), LOCK_PATIENCE.as_secs())]
    Locked(PathBuf),
    /// Some files were replaced, but this one could not be.
    #[error("{} could not be replaced, and others were; the next run replaces the rest: {source}", .path.display())]
    Partly {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file cannot be read or written. No file has been changed.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The account files, locked against changes by others.
pub struct Database {
    etc: PathBuf,
    /// The lock file. Closing it releases the lock.
    _lock: File,
}

impl Database {
    /// Locks the files in the directory `etc`.
    ///
    /// # Errors
    /// Returns an error if the lock is not released in time, or cannot be taken.
    pub fn lock(etc: &Path) -> Result<Self, DatabaseError> {
        let path = etc.join(LOCK);
        let failed = |source| DatabaseError::File { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let lock =
            options.create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let started = Instant::now();
        loop {
            match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { etc: etc.to_owned(), _lock: lock }),
                Err(Errno::AGAIN | Errno::ACCESS | Errno::INTR) if started.elapsed() < LOCK_PATIENCE => {
                    sleep(LOCK_PAUSE);
                }
                Err(Errno::AGAIN | Errno::ACCESS) => return Err(DatabaseError::Locked(path)),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read. A shadow file may be missing.
    pub fn read(&self) -> Result<Tables, DatabaseError> {
        Ok(Tables {
            passwd: self.table("passwd")?,
            shadow: self.optional("shadow")?,
            group: self.table("group")?,
            gshadow: self.optional("gshadow")?,
        })
    }

    fn table(&self, name: &str) -> Result<Table, DatabaseError> {
        let path = self.etc.join(name);
        let bytes = std::fs::read(&path).map_err(|source| DatabaseError::File { path, source })?;
        Ok(Table::parse(&bytes))
    }

    fn optional(&self, name: &str) -> Result<Option<Table>, DatabaseError> {
        match self.table(name) {
            Ok(table) => Ok(Some(table)),
            Err(DatabaseError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the files that differ. All are written before the first is renamed, so that a full disk changes nothing. passwd(5) is
    /// renamed last, so that an account never exists without its group and its shadow line.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written, which changes nothing, or cannot be renamed.
    pub fn replace(&self, old: &Tables, new: &Tables) -> Result<(), DatabaseError> {
        let files = [
            ("group", Some(&old.group), Some(&new.group)),
            ("gshadow", old.gshadow.as_ref(), new.gshadow.as_ref()),
            ("shadow", old.shadow.as_ref(), new.shadow.as_ref()),
            ("passwd", Some(&old.passwd), Some(&new.passwd)),
        ];
        let mut written = Vec::new();
        for (name, old, new) in files {
            let Some(new) = new.filter(|new| old != Some(*new)) else { continue };
            let path = self.etc.join(name);
            let unfinished = self.etc.join(format!("{name}{UNFINISHED}"));
            if let Err(source) = write_like(&path, &unfinished, &new.to_bytes()) {
                for (_, unfinished) in &written {
                    let _ = std::fs::remove_file(unfinished);
                }
                let _ = std::fs::remove_file(&unfinished);
                return Err(DatabaseError::File { path, source });
            }
            written.push((path, unfinished));
        }
        let partly = |path, source| DatabaseError::Partly { path, source };
        for (path, unfinished) in written {
            let put = keep_last(&path).and_then(|()| std::fs::rename(&unfinished, &path));
            put.map_err(|source| partly(path, source))?;
        }
        let folder = File::open(&self.etc).and_then(|folder| folder.sync_all());
        folder.map_err(|source| partly(self.etc.clone(), source))
    }
}

/// Keeps the present file under the name that shadow-utils give the previous version (`passwd-`).
fn keep_last(path: &Path) -> io::Result<()> {
    let mut last = path.as_os_str().to_owned();
    last.push("-");
    let last = PathBuf::from(last);
    match std::fs::remove_file(&last) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::hard_link(path, &last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in
            [("passwd", "root:x:0:0::/:/bin/sh\n"), ("group", "root:x:0:\n"), ("shadow", "root:*:1::::::\n")]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::set_permissions(dir.path().join("shadow"), std::fs::Permissions::from_mode(0o640)).unwrap();
        dir
    }

    #[test]
    fn a_file_that_differs_is_replaced_and_the_old_one_kept() {
        let dir = etc();
        let database = Database::lock(dir.path()).unwrap();
        let old = database.read().unwrap();
        assert!(old.gshadow.is_none());
        let mut new = old.clone();
        new.passwd.push(vec!["ann".into(), "x".into()]);
        new.shadow.as_mut().unwrap().push(vec!["ann".into(), "*".into()]);
        std::fs::write(dir.path().join("passwd.pam_iam-new"), "left by a run that was killed").unwrap();
        database.replace(&old, &new).unwrap();
        assert_eq!(database.read().unwrap(), new);
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("passwd"), "root:x:0:0::/:/bin/sh\nann:x\n");
        assert_eq!(read("passwd-"), "root:x:0:0::/:/bin/sh\n");
        assert_eq!(std::fs::metadata(dir.path().join("shadow")).unwrap().mode() & 0o7777, 0o640);
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".pwd.lock", "group", "passwd", "passwd-", "shadow", "shadow-"]);
    }

    #[test]
    fn no_file_is_replaced_if_one_cannot_be_written() {
        let dir = etc();
        let database = Database::lock(dir.path()).unwrap();
        let old = database.read().unwrap();
        let mut new = old.clone();
        for table in [&mut new.passwd, &mut new.group] {
            table.push(vec!["ann".into(), "x".into()]);
        }
        std::fs::create_dir(dir.path().join("passwd.pam_iam-new")).unwrap();
        assert!(database.replace(&old, &new).is_err());
        assert_eq!(database.read().unwrap(), old);
        assert!(!dir.path().join("group.pam_iam-new").exists());
    }
}
