//! The lock by which only one run of the importer at a time changes the host.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The file that a run keeps locked until it ends.
const LOCK: &str = "/var/lib/pam_iam/importer.lock";

/// How long to wait for another run to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);

/// The pause between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Why a run does not have the lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be made or locked.
    #[error("{LOCK}: {0}")]
    Io(io::Error),
    /// Another run holds the lock.
    #[error("another import is running for more than {} s", LOCK_PATIENCE.as_secs())]
    Busy,
}

/// Waits until no other run holds the lock, and takes it. The lock is released when the returned file is closed.
///
/// # Errors
/// Returns an error if the file cannot be locked, or another run holds the lock for longer than [`LOCK_PATIENCE`].
pub fn only_one_run() -> Result<File, LockError> {
    let failed = LockError::Io;
    let folder = Path::new(LOCK).parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut options = OpenOptions::new();
    let file = options.create(true).write(true).truncate(false).mode(0o600).open(LOCK).map_err(failed)?;
    let started = Instant::now();
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if started.elapsed() < LOCK_PATIENCE => {
                if !told {
                    let _ = writeln!(
                        io::stderr(),
                        "iam-importer: another import is running; waiting for it to end"
                    );
                    told = true;
                }
                sleep(LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Busy);
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}
