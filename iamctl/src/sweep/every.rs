//! `iamctl sweep --every 60s`: starts a sweep each minute, without a timer of systemd.
//!
//! systemd's first process also answers lookups of all users, so a user who floods it could keep a timer from starting anything. This
//! process needs nothing from it. Each sweep is a process of its own, since lookups that do not answer leave threads behind.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pam_iam_core::child::Running;
use pam_iam_core::deadline::Deadline;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::registry::uptime;
use pam_iam_sessions::termination;

use crate::error::{Error, Reply};

/// The most time for a sweep. One that hangs would keep the next from beginning.
const SWEEP_MAX: Duration = Duration::from_secs(600);

/// The pause before another try to start a sweep.
const RETRY: Duration = Duration::from_secs(1);

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
        // The programs that it runs are killed with it.
        sweep.process_group(0);
        // On failure this process tries again itself: systemd, which could restart it, may be kept busy.
        let sweep = match Running::start(&mut sweep) {
            Ok(sweep) => sweep,
            Err(error) => {
                log.write(Level::Error, format!("no sweep can be started: {error}; trying again"));
                std::thread::sleep(RETRY);
                continue;
            }
        };
        match sweep.wait(Deadline::after(SWEEP_MAX)) {
            Ok(done) if done.success() => {}
            // The sweep itself has logged what it could not do.
            Ok(done) => {
                log.write(
                    Level::Warning,
                    format!("a sweep was not complete: {done}; the next one tries again"),
                );
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let why = format!(
                    "a sweep that was at work for {} s was killed; the next one begins",
                    SWEEP_MAX.as_secs()
                );
                log.write(Level::Error, why);
            }
            Err(error) => return Err(Error::SweepLost(error)),
        }
        // A sweep that took longer logs that itself; the next one begins at once.
        std::thread::sleep((began + every).saturating_sub(uptime()));
    }
}
