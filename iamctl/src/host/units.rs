//! Switches units of systemd on and off.

use std::path::Path;

use pam_iam_core::paths;
use serde::{Deserialize, Serialize};

use super::command::{Failure, run};

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    pub name: String,
    /// Whether each boot starts it.
    pub is_enabled: bool,
    /// Whether it runs now.
    pub is_active: bool,
}

impl UnitState {
    /// Whether the unit runs, or each boot starts it.
    pub fn is_in_use(&self) -> bool {
        self.is_enabled || self.is_active
    }

    /// Whether starting the unit would change nothing.
    pub fn is_on(&self) -> bool {
        self.is_enabled && (self.is_active || !is_booted())
    }
}

/// Returns the state of units.
pub fn states(units: &[&str]) -> Vec<UnitState> {
    let is = |word: &str, unit: &str| run("systemctl", &[word, "--quiet", unit]).is_ok();
    units
        .iter()
        .map(|unit| UnitState {
            name: (*unit).to_owned(),
            is_enabled: is("is-enabled", unit),
            is_active: is_booted() && is("is-active", unit),
        })
        .collect()
}

/// Restores the state of units: those that were neither enabled nor running are switched off again, and the others left alone.
///
/// # Errors
/// Returns an error if systemctl fails.
pub fn restore(before: &[UnitState]) -> Result<(), Failure> {
    for unit in before {
        if !unit.is_enabled && crate::is_installed(SYSTEMCTL) {
            run("systemctl", &["disable", "--quiet", &unit.name])?;
        }
        if !unit.is_active && is_booted() {
            run("systemctl", &["stop", &unit.name])?;
        }
    }
    Ok(())
}

/// The timer of the importer.
pub const IMPORTER_TIMER: &str = "iam-importer.timer";

const SYSTEMCTL: &str = "/usr/bin/systemctl";

/// Starts units and enables them. In an image that is being built, only enables them.
pub fn start(units: &[&str]) -> Result<(), Failure> {
    if is_booted() {
        run("systemctl", &["daemon-reload"])?;
    }
    switch("enable", units)
}

/// Stops units and disables them. In an image that is being built, only disables them.
pub fn stop(units: &[&str]) -> Result<(), Failure> {
    switch("disable", units)
}

fn switch(verb: &str, units: &[&str]) -> Result<(), Failure> {
    let words: &[&str] = match is_booted() {
        true => &[verb, "--now", "--quiet"],
        false if !crate::is_installed(SYSTEMCTL) => return Ok(()),
        false => &[verb, "--quiet"],
    };
    run("systemctl", &[words, units].concat()).map(drop)
}

/// Whether systemd is the init of this machine: not in a container without it, nor while an image is built.
pub fn is_booted() -> bool {
    Path::new(paths::BOOTED_BY_SYSTEMD).exists()
}
