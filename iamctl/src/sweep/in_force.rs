//! Checks in each sweep whether pam_iam is still in the PAM stacks, and whether sshd still asks it. Another package's drop-in, a replaced
//! conffile or a hardening role may have changed that.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::config::Config;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::owners::Owners;
use pam_iam_core::paths;
use pam_iam_core::registry::SessionRegistry;
use pam_iam_sessions::lookup;

use crate::swept::Swept;
use crate::{doctor, enabled};

/// The files that are checked for changes. Files that these include are checked every [`ASK_AGAIN`].
const SSHD_FILES: [&str; 2] = ["/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d"];

/// Files of sshd's unit, or that it reads: sshd's command line wins over its files.
const SSHD_UNITS: [&str; 6] = [
    "/etc/default/ssh",
    "/etc/sysconfig/sshd",
    "/etc/systemd/system/ssh.service.d",
    "/etc/systemd/system/sshd.service.d",
    "/usr/lib/systemd/system/ssh.service.d",
    "/usr/lib/systemd/system/sshd.service.d",
];

/// How often sshd is asked for its settings if none of these files has changed.
const ASK_AGAIN: Duration = Duration::from_secs(3600);

/// Checks, and logs what is not in force: when that has changed, and once an hour.
pub fn look(config: &Config, log: &mut Log) {
    if enabled::is_off() {
        return;
    }
    let mut record = Swept::load();
    let files = state(&SSHD_FILES.into_iter().chain(SSHD_UNITS).collect::<Vec<_>>());
    let is_due = record.since_sshd_was_asked().is_none_or(|since| since >= ASK_AGAIN);
    // If sshd does not answer, the next sweep asks again, and its last answer stands.
    let ask = || {
        let user = managed_user();
        let found = doctor::sshd_not_in_force(config, user.as_ref().and_then(Option::as_deref))?;
        // Without a user sshd tells less: then a fault counts, but the lack of one does not.
        (user.is_some() || !found.is_empty()).then(|| (files.clone(), found))
    };
    let sshd = if is_due || files != record.sshd_files { ask() } else { None };
    let mut others = doctor::pam_not_in_force(config);
    others.extend(if enabled::has_accounts_by_nss() { doctor::nss_not_in_force() } else { None });
    if !record.note_not_in_force(sshd, others) {
        return;
    }
    for found in &record.not_in_force {
        log.write(Level::Error, format!("not in force on this host: {found}"));
    }
}

/// How many of the users who were here before are looked up.
const FORMER_MAX: usize = 5;

/// Returns a managed user who has an account here: one who is or was logged in, since reading the roster would cost calls to IAM. None if a
/// lookup was not answered in time: a slow directory is not waited for, and the last result stands.
fn managed_user() -> Option<Option<String>> {
    let open = SessionRegistry::open(Path::new(paths::SESSIONS)).and_then(|registry| registry.sessions());
    let open = open.unwrap_or_default().into_iter().map(|(session, _)| (session.user, session.uid));
    let owners = Owners::of_host();
    let former =
        owners.latest_names(FORMER_MAX).into_iter().filter_map(|name| Some((owners.last(&name)?, name)));
    let former = former.map(|(uid, name)| (name, uid));
    for (name, uid) in open.filter(|(_, uid)| uid.is_managed()).take(FORMER_MAX).chain(former) {
        if lookup::uid_of(&name)? == Some(uid) {
            return Some(Some(name));
        }
    }
    Some(None)
}

/// Returns a hash of the state of files and of the files in folders. It changes whenever one of them is written, renamed, created or
/// removed.
fn state(paths: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut all: Vec<_> = inside.chain([Path::new(path).to_owned()]).collect();
        all.sort();
        for path in all {
            let Ok(found) = std::fs::metadata(&path) else { continue };
            (path, found.ino(), found.size(), found.ctime(), found.ctime_nsec()).hash(&mut hasher);
        }
    }
    format!("{:x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_changes_if_a_file_is_created_written_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let file = folder.path().join("10.conf");
        let mut seen = vec![state(&[path])];
        for text in [Some("a"), Some("bb"), None] {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            seen.push(state(&[path]));
            assert_eq!(state(&[path]), state(&[path]));
        }
        seen.dedup();
        assert_eq!(seen.len(), 4);
    }
}
