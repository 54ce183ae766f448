//! `iamctl sweep --every 60s`: a sweep each minute, by a clock of its own.
//!
//! A timer of systemd's would do, were it not for the users who are to be ended: its first process also answers everybody's
//! questions about users, so that one who floods it keeps it from starting anything. This process asks it nothing. Each
//! sweep is a process of its own, since one leaves behind what does not answer.

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use pam_iam_core::registry::uptime;
use pam_iam_sessions::termination;

use crate::error::{Error, Reply};

/// How long a sweep may be at work: one that hangs would keep all others from beginning.
const SWEEP_MAX: Duration = Duration::from_secs(600);

/// The pause before a sweep that could not be started is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The pause between two looks whether a sweep has ended.
const PAUSE: Duration = Duration::from_millis(100);

/// Sweeps again and again; never returns but with an error.
///
/// # Errors
/// Returns an error if a sweep that was started cannot be waited for.
pub fn run(config: &Path, every: Duration) -> Result<Reply, Error> {
    termination::raise_priority();
    let mut log = Log::to_syslog("iamctl");
    loop {
        let began = uptime();
        // This program as it was started: a package may have replaced the file.
        let mut sweep = Command::new("/proc/self/exe");
        sweep.arg("--config").arg(config).arg("sweep").stdin(Stdio::null()).stdout(Stdio::null());
        // Who could start this process again may be kept busy.
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
            // What it could not do, it has said itself.
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
        // One that took longer is an error that it tells itself; the next begins at once.
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
