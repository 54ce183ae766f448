//! `iamctl enable --try`: undone at a deadline, unless root confirms it after an IAM user has logged in. The deadline is a file that a
//! timer, each boot, and any later enable, disable or doctor read.

use std::path::Path;
use std::time::Duration;

use pam_iam_core::paths;
use pam_iam_core::registry::{self, Origin, Session, SessionRegistry};
use pam_iam_core::replace::replace;
use serde::{Deserialize, Serialize};

use crate::host::{FileError, read};

/// The timer that ends a trial: at boot, and every few seconds.
pub const TIMER: &str = "iam-trial.timer";

/// The id of this boot.
const BOOT: &str = "proc/sys/kernel/random/boot_id";

/// A trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// When it began, in seconds since 1970.
    started: u64,
    /// When it ends, in seconds since 1970.
    until: u64,
    /// The boot in which it began.
    boot: String,
    /// When it ends, in seconds since that boot. The clock may be set meanwhile.
    until_since_boot: u64,
}

/// The clocks of this host.
#[derive(Clone, Debug)]
pub struct Now {
    /// Seconds since 1970.
    clock: u64,
    boot: String,
    since_boot: u64,
}

impl Now {
    pub fn read() -> Self {
        let boot = read(Path::new("/"), BOOT).ok().flatten().unwrap_or_default();
        Self { clock: registry::now(), boot, since_boot: registry::since_boot() }
    }
}

impl Trial {
    /// Returns a trial that begins now.
    pub fn begin(now: &Now, lasts: Duration) -> Self {
        let seconds = lasts.as_secs();
        Self {
            started: now.clock,
            until: now.clock + seconds,
            boot: now.boot.clone(),
            until_since_boot: now.since_boot + seconds,
        }
    }

    /// Returns how long it still goes on, or zero if it is over. It is over if the clock was set back to before its start.
    pub fn left(&self, now: &Now) -> Duration {
        let by_clock = if now.clock < self.started { 0 } else { self.until.saturating_sub(now.clock) };
        let by_boot = match now.boot == self.boot {
            true => self.until_since_boot.saturating_sub(now.since_boot),
            false => by_clock,
        };
        Duration::from_secs(by_clock.min(by_boot))
    }

    /// Returns a session of an IAM user that began after the trial did, if there is one.
    pub fn proof(&self) -> Option<Session> {
        let registry = SessionRegistry::open(Path::new(paths::SESSIONS)).ok()?;
        let open = registry.sessions().unwrap_or_default().into_iter().map(|(session, _)| session);
        let over = registry.left().unwrap_or_default();
        open.chain(over).find(|session| session.since >= self.started && session.origin == Origin::Iam)
    }
}

/// Returns the trial that is going on, or has not been ended yet. None if there is none. A broken file counts as a trial that is over.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn load() -> Result<Option<Trial>, FileError> {
    let Some(text) = read(Path::new("/"), paths::TRIAL)? else { return Ok(None) };
    let over = Trial { started: 0, until: 0, boot: String::new(), until_since_boot: 0 };
    Ok(Some(serde_json::from_str(&text).unwrap_or(over)))
}

/// Saves the deadline. Called before anything is changed.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn save(trial: &Trial) -> Result<(), FileError> {
    let path = Path::new(paths::TRIAL);
    let failed = FileError::of(path);
    let text = serde_json::to_vec(trial).map_err(|error| failed(error.into()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(&failed)?;
    }
    replace(path, &text, 0o600).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_ends_by_the_clock_that_comes_first() {
        let now = |clock, boot: &str, since_boot| Now { clock, boot: boot.to_owned(), since_boot };
        let trial = Trial::begin(&now(1_000_000, "a", 50), Duration::from_secs(600));
        for (now, left) in [
            (now(1_000_000, "a", 50), 600),
            (now(1_000_100, "a", 150), 500),
            // The clock was set forward or back, and the time since the boot counts too.
            (now(2_000_000, "a", 60), 0),
            (now(1_000_001, "a", 700), 0),
            (now(900, "a", 60), 0),
            // After a boot only the clock counts.
            (now(1_000_200, "b", 3), 400),
            (now(1_000_600, "b", 3), 0),
            (now(0, "b", 3), 0),
        ] {
            assert_eq!(trial.left(&now).as_secs(), left, "{now:?}");
        }
    }
}
