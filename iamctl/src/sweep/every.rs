//! `iamctl sweep --every 60s`: a sweep each minute, by a clock of its own.
//!
//! A timer of systemd's would do, were it not for the users who are to be ended: its first process also answers everybody's
//! questions about users, so that one who floods it keeps it from starting anything. This process asks it nothing. Each
//! sweep is a process of its own, since one leaves behind what does not answer.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pam_iam_core::log::{Level, Log};
use pam_iam_sessions::termination;
use rustix::time::ClockId;

/// Sweeps again and again; never returns but with an error.
///
/// # Errors
/// Returns an error if no sweep can be started.
pub fn run(config: &Path, every: Duration) -> Result<bool, String> {
    termination::raise_priority();
    let mut log = Log::to_syslog("iamctl");
    loop {
        let began = since_boot();
        // This program as it was started: a package may have replaced the file.
        let mut sweep = Command::new("/proc/self/exe");
        sweep.arg("--config").arg(config).arg("sweep").stdin(Stdio::null()).stdout(Stdio::null());
        let done = sweep.status().map_err(|error| format!("no sweep can be started: {error}"))?;
        if !done.success() {
            // What it could not do, it has said itself.
            log.write(Level::Warning, format!("a sweep was not complete: {done}; the next one tries again"));
        }
        // One that took longer is an error that it tells itself; the next begins at once.
        std::thread::sleep((began + every).saturating_sub(since_boot()));
    }
}

/// The time since the boot, which nobody sets.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default())
}
