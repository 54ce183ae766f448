//! Reading and replacing the account files as passwd(1) and its kin do: under the lock of lckpwdf(3), each file by a
//! rename, with its owner, mode and SELinux label kept and the last one left beside it (`passwd-`).
//!
//! There is no batch tool for it: systemd-sysusers(8) refuses every name with a dot or of 32 characters, and with it the
//! whole batch; newusers(8) sets passwords and makes home directories; useradd(8) rewrites all files for each user.

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

/// The lock of lckpwdf(3), which shadow-utils and systemd-sysusers take too.
const LOCK: &str = ".pwd.lock";

/// How long to wait for it, as lckpwdf(3) does.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// How often to try.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What stands behind the names of our unfinished files. The next run replaces one that was left.
const UNFINISHED: &str = ".pam_iam-new";

/// Why the account files could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Somebody else holds the lock.
    #[error("{} is held by another program for more than {} s", .0.display(), LOCK_PATIENCE.as_secs())]
    Locked(PathBuf),
    /// Some of the files are replaced, and this one is not.
    #[error("{} could not be replaced, and others were; the next run replaces the rest: {source}", .path.display())]
    Partly {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file cannot be read or written. None of the files is changed.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The account files, locked against change by others.
pub struct Database {
    etc: PathBuf,
    /// Closing it gives the lock back.
    _lock: File,
}

impl Database {
    /// Takes the lock of the files in `etc`.
    ///
    /// # Errors
    /// Returns an error if the files cannot be locked, read or written.
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
    /// [`DatabaseError::File`]; a shadow file that is not there is none.
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

    /// Replaces the files that differ. All are written before the first is put in place, so that a full disk changes
    /// nothing; an account's line in passwd(5) comes last, so that it never stands without its group and its shadow.
    ///
    /// # Errors
    /// [`DatabaseError::File`] and [`DatabaseError::Partly`].
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

/// Leaves the file as it was under the name that shadow-utils use for it.
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
    fn what_differs_is_replaced_and_the_last_is_kept() {
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
    fn if_one_cannot_be_written_none_is_replaced() {
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
