//! The record of sweeps, for `iamctl status` and for the next sweep.

use std::path::Path;
use std::time::Duration;

use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::registry::since_boot as now;
use pam_iam_core::replace::replace;
use serde::{Deserialize, Serialize};

/// The time between two sweeps, as iam-sweep.service has it. A sweep that takes longer is an error.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// The record of all sweeps since the boot. Times are in seconds since the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Swept {
    /// When the sweep that is under way began. None if none is.
    pub running_since: Option<u64>,
    /// When the last sweep ended.
    pub ended_at: Option<u64>,
    /// How long the last sweep took, in seconds.
    pub seconds: u64,
    /// How many withdrawals the last sweep ended, or tried to end.
    pub withdrawals: usize,
    /// How many of those left processes running.
    pub incomplete: usize,
    /// How many sweeps failed before they could check anything.
    pub failures: u64,
    /// How many sweeps took longer than [`INTERVAL`], or found another one that did.
    pub overruns: u64,
    /// Managed uids with processes of which nothing tells whether they ever were an IAM user's.
    pub unknown_uids: Vec<Uid>,
    /// The lines of PAM and settings of sshd that are not in force on this host, each with what to do.
    pub not_in_force: Vec<String>,
    /// How many sweeps found a line or setting not in force.
    pub not_in_force_total: u64,
    /// The state of sshd's configuration files when sshd was last asked, see `in_force`.
    pub sshd_files: String,
    /// When sshd was last asked.
    pub sshd_asked_at: Option<u64>,
    /// The settings of sshd that were not in force then.
    pub sshd_not_in_force: Vec<String>,
    /// The last user without a session about whom the last sweep asked.
    pub last_asked: Option<Uid>,
}

impl Swept {
    /// Reads the record. A missing or broken file counts as no record.
    pub fn load() -> Self {
        std::fs::read(paths::SWEPT)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Notes that a sweep begins.
    pub fn begin(&mut self) {
        self.running_since = Some(now());
        self.save();
    }

    /// Notes that the sweep ended. Returns how long it took.
    pub fn finish(&mut self, withdrawals: usize, incomplete: usize, unknown_uids: Vec<Uid>) -> Duration {
        let took = self.running_for().unwrap_or_default();
        self.overruns += u64::from(took > INTERVAL);
        self.running_since = None;
        self.ended_at = Some(now());
        self.seconds = took.as_secs();
        (self.withdrawals, self.incomplete, self.unknown_uids) = (withdrawals, incomplete, unknown_uids);
        self.save();
        took
    }

    /// Notes that the sweep failed before it could check anything.
    pub fn fail(&mut self) {
        self.running_since = None;
        self.failures += 1;
        self.save();
    }

    /// Notes that the sweep found another one that takes too long.
    pub fn count_overrun(&mut self) {
        self.overruns += 1;
        self.save();
    }

    /// Returns how long the sweep that is under way has been running. None if none is.
    pub fn running_for(&self) -> Option<Duration> {
        Some(Duration::from_secs(now().saturating_sub(self.running_since?)))
    }

    /// Returns how long ago sshd was asked for its settings.
    pub fn since_sshd_was_asked(&self) -> Option<Duration> {
        Some(Duration::from_secs(now().saturating_sub(self.sshd_asked_at?)))
    }

    /// Notes what is not in force: by `sshd` as its files' state and its faults if it was asked, and `others`. Returns whether that should
    /// be logged.
    pub fn note_not_in_force(&mut self, sshd: Option<(String, Vec<String>)>, others: Vec<String>) -> bool {
        let asked = sshd.is_some();
        if let Some((files, found)) = sshd {
            (self.sshd_files, self.sshd_asked_at, self.sshd_not_in_force) = (files, Some(now()), found);
        }
        let found: Vec<String> = others.into_iter().chain(self.sshd_not_in_force.iter().cloned()).collect();
        let is_new = found != self.not_in_force || asked;
        self.not_in_force_total += u64::from(!found.is_empty());
        self.not_in_force = found;
        self.save();
        is_new
    }

    /// Returns how long ago the last sweep ended, in seconds.
    pub fn age(&self) -> Option<u64> {
        Some(now().saturating_sub(self.ended_at?))
    }

    /// Saves the record. A failure is ignored: a sweep can do without.
    fn save(&self) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = replace(Path::new(paths::SWEPT), &text, 0o644);
        }
    }
}
