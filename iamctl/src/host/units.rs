//! systemd's units: switching ours on and off.

use std::path::Path;

use pam_iam_core::paths;

use super::command::run;

/// Starts the units and has each boot start them; of an image that is being made, only the latter.
pub fn start(units: &[&str]) -> Result<(), String> {
    if is_booted() {
        run("systemctl", &["daemon-reload"])?;
    }
    switch("enable", units)
}

/// The reverse of [`start`].
pub fn stop(units: &[&str]) -> Result<(), String> {
    switch("disable", units)
}

fn switch(verb: &str, units: &[&str]) -> Result<(), String> {
    let words: &[&str] = match is_booted() {
        true => &[verb, "--now", "--quiet"],
        false if !crate::is_installed("/usr/bin/systemctl") => return Ok(()),
        false => &[verb, "--quiet"],
    };
    run("systemctl", &[words, units].concat()).map(drop)
}

/// Whether systemd is the init of this machine: not in a container without it, nor where an image is made.
pub fn is_booted() -> bool {
    Path::new(paths::BOOTED_BY_SYSTEMD).exists()
}
