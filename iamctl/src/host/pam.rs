//! The PAM services in which pam_iam takes part, their stacks, and whether the module is in force in each.
//!
//! /etc/pam.conf is not read: libpam reads it only if there is no folder of stacks, and every distribution has one.

use std::io;
use std::path::Path;

use super::pam_stack::{self, Phase, Verdict};
use super::{FileError, at, read};

/// Where the administrator's stacks are.
pub const FOLDER: &str = "/etc/pam.d";

/// Where distributions put unedited stacks. PAM reads one that is not in [`FOLDER`].
pub const VENDOR_FOLDER: &str = "/usr/lib/pam.d";

/// Where sudo is, if it is installed.
pub const SUDO: &str = "/usr/bin/sudo";

/// The argument with which the module decides about sudo instead of a login.
const FOR_SUDO: &str = "policy=sudo";

/// A service for which lines are shipped.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    /// The file with its lines, in a folder of `pam.d` in the share.
    pub lines: &'static str,
    pub phases: &'static [Phase],
    /// What it means for pam_iam.
    pub role: Role,
}

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Login,
    Sudo,
    /// It starts jobs of users again and again, each minute or at boot, even those of a withdrawn user.
    Jobs,
    /// It lets one user become another.
    Becoming,
}

/// All services for which lines are shipped. cron and crond use those of atd, which are shipped for both distributions.
pub const SERVICES: [Service; 7] = [
    Service { name: "sshd", lines: "sshd", phases: &[Phase::Account, Phase::Session], role: Role::Login },
    Service { name: "sudo", lines: "sudo", phases: &[Phase::Account], role: Role::Sudo },
    Service { name: "sudo-i", lines: "sudo", phases: &[Phase::Account], role: Role::Sudo },
    Service { name: "cron", lines: "atd", phases: &[Phase::Account], role: Role::Jobs },
    Service { name: "crond", lines: "atd", phases: &[Phase::Account], role: Role::Jobs },
    Service { name: "atd", lines: "atd", phases: &[Phase::Account], role: Role::Jobs },
    Service { name: "systemd-user", lines: "systemd-user", phases: &[Phase::Account], role: Role::Jobs },
];

/// The services by which one user becomes another. The session line there makes the other's home directory, if the operator wants that.
pub const BECOMING: [Service; 4] = [
    Service { name: "su", lines: "sshd", phases: &[Phase::Session], role: Role::Becoming },
    Service { name: "su-l", lines: "sshd", phases: &[Phase::Session], role: Role::Becoming },
    Service { name: "sudo", lines: "sshd", phases: &[Phase::Session], role: Role::Becoming },
    Service { name: "sudo-i", lines: "sshd", phases: &[Phase::Session], role: Role::Becoming },
];

impl Service {
    /// Whether an entry with these arguments decides what this service asks: about sudo, or about a login.
    pub fn has_policy(&self, arguments: &[String]) -> bool {
        (self.role == Role::Sudo) == arguments.iter().any(|argument| argument == FOR_SUDO)
    }

    /// Judges whether the module is in force in a phase of the stack `text`. Included files lie under `root`.
    pub fn judge(&self, root: &Path, text: &str, phase: Phase) -> Verdict {
        pam_stack::judge(text, phase, &|name| readable_stack(root, name), &|arguments| {
            self.has_policy(arguments)
        })
    }
}

/// Returns the stack of a service to be judged, or None if there is none. Like PAM, it accepts text that is not UTF-8.
fn readable_stack(root: &Path, service: &str) -> Option<String> {
    let paths = match service.starts_with('/') {
        true => vec![service.to_owned()],
        false => [FOLDER, VENDOR_FOLDER].map(|folder| format!("{folder}/{service}")).to_vec(),
    };
    let text = paths.iter().find_map(|path| std::fs::read(at(root, path)).ok())?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the stack of a service as PAM reads it, or None if there is none.
///
/// # Errors
/// Returns an error if the file cannot be read or is not UTF-8.
pub fn stack(root: &Path, service: &str) -> Result<Option<String>, FileError> {
    if service.starts_with('/') {
        return read(root, service);
    }
    match read(root, &format!("{FOLDER}/{service}"))? {
        None => read(root, &format!("{VENDOR_FOLDER}/{service}")),
        text => Ok(text),
    }
}

/// Takes all entries of the module out of the text of a stack. Included files lie under `root`.
pub fn without_lines(root: &Path, text: &str) -> String {
    pam_stack::without_lines(text, &|name| stack(root, name).ok().flatten())
}

/// Returns the paths of all stacks in [`FOLDER`], sorted.
///
/// # Errors
/// Returns an error if the folder cannot be read.
pub fn stacks(root: &Path) -> Result<Vec<String>, FileError> {
    let failed = FileError::of(FOLDER);
    let mut found = Vec::new();
    let folder = match std::fs::read_dir(at(root, FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        folder => folder.map_err(&failed)?,
    };
    for entry in folder {
        let path = entry.map_err(&failed)?.path();
        // A folder, or a link that leads to no file, is no stack.
        if path.is_file()
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            found.push(format!("{FOLDER}/{name}"));
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the kind of distribution that a stack comes from, which is the name of a folder of `pam.d` in the share.
pub fn distribution(text: &str) -> &'static str {
    if text.contains("@include") { "debian" } else { "redhat" }
}
