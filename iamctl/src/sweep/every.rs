//! `iamctl sweep --every 60s`: starts a sweep each minute, without a timer of systemd.
//!
//! systemd's first process also answers lookups of all users, so a user who floods it could keep a timer from starting anything. This
//! process needs nothing from it. Each sweep is a process of its own, since lookups that do not answer leave threads behind.

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use pam_iam_core::registry::uptime;
use pam_iam_sessions::termination;

use crate::error::{Error, Reply};

/// The most time for a sweep. One that hangs would keep the next from beginning.
const SWEEP_MAX: Duration = Duration::from_secs(600);

/// The pause before another try to start a sweep.
const RETRY: Duration = Duration::from_secs(1);

/// The pause between two checks whether a sweep has ended.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts sweeps again and again. Returns only with an error.
///
/// # Errors
/// Returns an error if a sweep that was started cannot be waited for.
pub fn run(config: &Path, every: Duration) -> Result<Reply, Error> {
    termination::raise_priority();
    let mut log = Log::to_syslog("iamctl");
    loop {
        let began = uptime();
        // The program as it was started: a package may have replaced the file.
        let mut sweep = Command::new("/proc/self/exe");
        sweep.arg("--config").arg(config).arg("sweep").stdin(Stdio::null()).stdout(Stdio::null());
        // On failure this process tries again itself: systemd, which could restart it, may be kept busy.
        let mut sweep = match sweep.spawn() {
            Ok(sweep) => sweep,
            Err(error) => {
                log.write(Level::Error, format!("no sweep can be started: {error}; trying again"));
                std::thread::sleep(RETRY);
                continue;
            }
        };
        match wait(&mut sweep, began).map_err(Error::SweepLost)? {
            Some(done) if done.success() => {}
            // The sweep itself has logged what it could not do.
            Some(done) => {
                log.write(
                    Level::Warning,
                    format!("a sweep was not complete: {done}; the next one tries again"),
                );
            }
            None => {
                let why = format!(
                    "a sweep that was at work for {} s was killed; the next one begins",
                    SWEEP_MAX.as_secs()
                );
                log.write(Level::Error, why);
            }
        }
        // A sweep that took longer logs that itself; the next one begins at once.
        std::thread::sleep((began + every).saturating_sub(uptime()));
    }
}

/// Waits for a sweep that began at `began`, and kills it after [`SWEEP_MAX`]. Returns None then.
fn wait(sweep: &mut Child, began: Duration) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = sweep.try_wait()? {
            return Ok(Some(status));
        }
        if uptime().saturating_sub(began) >= SWEEP_MAX {
            sweep.kill()?;
            sweep.wait()?;
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}
