//! `iamctl enable` and `iamctl disable`: switch logins with IAM users on, and take everything back byte for byte.
//!
//! What is to be changed is worked out first, checked, and written down; then each file is replaced by a rename. If anything
//! fails, what was done is taken back. sshd is reloaded, never restarted: no open session notices.

use std::io;
use std::path::{Path, PathBuf};

use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::replace::{write_like, write_new};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Context;

mod edits;
mod host;

use edits::Phase;
pub use host::started_with;
use host::{reload_sshd, run, sshd_asks_us, start, stop};

const SSHD_DROP_IN: &str = "/etc/ssh/sshd_config.d/10-pam_iam.conf";

const SUDOERS: &str = "/etc/sudoers.d/pam_iam";

/// What is put there, in our share.
const SHIPPED_SSHD: &str = "sshd/10-pam_iam.conf";

const SHIPPED_SUDOERS: &str = "sudoers/pam_iam";

const NSSWITCH: &str = "/etc/nsswitch.conf";

/// The units that are switched on with every way to have accounts.
const UNITS: &[&str] = &["iam-resolver.socket", "iam-resolver.service", "iam-sweep.timer"];

const IMPORTER_UNIT: &str = "iam-importer.timer";

/// What stands behind the names of unfinished files.
const UNFINISHED: &str = ".pam_iam-new";

/// Where accounts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Accounts {
    /// `libnss_iam.so.2`: they exist the moment IAM has them.
    Nss,
    /// `iam-importer`: they are put into /etc/passwd by a timer.
    Importer,
}

/// A file that is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    path: PathBuf,
    /// What was there; none if nothing was.
    before: Option<String>,
    after: String,
    /// The mode of a new file.
    mode: u32,
}

/// What was changed, as it is written down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    changes: Vec<Change>,
}

/// Switches everything on.
pub fn enable(context: &Context, accounts: Accounts, dry_run: bool) -> Result<bool, String> {
    context.config()?;
    let before = load()?;
    let Plan { changes, kept } = plan(Path::new("/"), accounts, before.as_ref())?;
    for path in &kept {
        context.output.error(&format!("{path} is not as we ship it: kept as it is"));
    }
    let mut units: Vec<&str> = UNITS.to_vec();
    units.extend((accounts == Accounts::Importer).then_some(IMPORTER_UNIT));
    if dry_run {
        show(context, "would change", &changes, &units);
        return Ok(true);
    }
    run("sshd", &["-t"]).map_err(|why| format!("sshd's configuration has an error already: {why}"))?;
    check_sudoers(&changes)?;
    save(Some(&merged(before.as_ref(), &changes)))?;
    let done = start(&units)
        .and_then(|()| apply(&changes))
        .and_then(|()| reload_sshd())
        .and_then(|()| sshd_asks_us());
    if let Err(why) = done {
        let back = take_back(&changes);
        let _ = reload_sshd();
        if before.is_none() {
            let _ = stop(&units);
        }
        let back = back.and_then(|()| save(before.as_ref()));
        return Err(match back {
            Ok(()) => format!("{why}; everything is as it was"),
            Err(other) => format!("{why}; and not everything could be taken back: {other}"),
        });
    }
    show(context, "changed", &changes, &units);
    Ok(true)
}

/// Takes everything back.
pub fn disable(context: &Context, dry_run: bool) -> Result<bool, String> {
    let record = load()?;
    let by_hand = record.is_none();
    let mut changes = record.unwrap_or_default().changes;
    // Lines that somebody put in by hand go too: without our module they would keep everybody out.
    let is_known = |other: &Change| changes.iter().any(|known| known.path == other.path);
    let others: Vec<Change> =
        made_by_hand(Path::new("/")).into_iter().filter(|other| !is_known(other)).collect();
    changes.extend(others);
    // Taken back from the end: sshd first, so that it asks for no command that is about to go.
    changes.sort_by_key(|change| change.path == Path::new(SSHD_DROP_IN));
    let mut units: Vec<&str> = UNITS.to_vec();
    units.push(IMPORTER_UNIT);
    if dry_run {
        show(context, "would take back", &changes, &units);
        return Ok(true);
    }
    if by_hand && changes.is_empty() {
        context
            .output
            .show(&json!({ "done": "took back", "files": [], "units": [] }), "nothing is switched on");
        return Ok(true);
    }
    take_back(&changes)?;
    if let Err(why) = reload_sshd() {
        // Our lines are gone all the same; a package that is being removed goes on.
        context.output.error(&format!("sshd is to be reloaded by hand: {why}"));
    }
    stop(&units)?;
    remove(Path::new(paths::ENABLED))?;
    show(context, "took back", &changes, &units);
    let left = imported(Path::new("/"));
    if !left.is_empty() {
        context.output.error(&format!(
            "{} accounts of IAM users stay in /etc/passwd, and nobody asks IAM about them any more; keys in their homes may open \
             them: {}",
            left.len(),
            left.join(" ")
        ));
    }
    Ok(true)
}

/// The accounts in /etc/passwd that are ours.
fn imported(root: &Path) -> Vec<String> {
    let passwd = read(root, "/etc/passwd").ok().flatten().unwrap_or_default();
    let ours = |line: &str| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Uid(uid).is_ours().then(|| name.to_owned())
    };
    passwd.lines().filter_map(ours).collect()
}

/// Whether nothing of ours is switched on, neither by this program nor by hand.
pub fn is_off() -> bool {
    !Path::new(paths::ENABLED).exists() && made_by_hand(Path::new("/")).is_empty()
}

fn show(context: &Context, verb: &str, changes: &[Change], units: &[&str]) {
    let mut text = String::new();
    for change in changes {
        text.push_str(&format!("{verb} {}\n", change.path.display()));
        let before = change.before.as_deref().unwrap_or_default();
        for line in change.after.lines().filter(|line| !before.lines().any(|known| known == *line)) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text.push_str(&format!("{verb} units: {}\n", units.join(" ")));
    let paths: Vec<String> = changes.iter().map(|change| change.path.display().to_string()).collect();
    context.output.show(&json!({ "done": verb, "files": paths, "units": units }), &text);
}

/// What enabling is to do.
#[derive(Debug)]
struct Plan {
    changes: Vec<Change>,
    /// Files of ours that somebody has edited, which stay.
    kept: Vec<&'static str>,
}

/// What is to be changed under `root`, where it is not so already. `before` is what was changed earlier.
fn plan(root: &Path, accounts: Accounts, before: Option<&Record>) -> Result<Plan, String> {
    let mut changes = Vec::new();
    let mut kept = Vec::new();
    // An administrator's own rule, or an older one of ours?
    let is_edited = |path: &str, shipped: &str| -> Result<bool, String> {
        let Some(now) = read(root, path)? else { return Ok(false) };
        let known = before.is_some_and(|record| {
            record.changes.iter().any(|change| change.path == Path::new(path) && change.after == now)
        });
        Ok(now != shipped && !known)
    };
    let mut add = |path: &str, after: &dyn Fn(&str) -> Result<String, String>, new: Option<u32>| {
        let before = read(root, path)?;
        if before.is_none() && new.is_none() {
            return Err(format!("{path} is missing"));
        }
        let after = after(before.as_deref().unwrap_or_default())?;
        if before.as_deref() != Some(&after) {
            changes.push(Change { path: path.into(), before, after, mode: new.unwrap_or(0o644) });
        }
        Ok(())
    };
    let shipped = |name: &str| {
        let path = format!("{}/{name}", paths::SHARE);
        read(root, &path)?.ok_or_else(|| format!("{path} is missing: is the package installed?"))
    };
    if accounts == Accounts::Nss {
        add(NSSWITCH, &|text| Ok(edits::nsswitch(text)), None)?;
    }
    for (service, lines, phases) in [
        ("sshd", "sshd", [Phase::Account, Phase::Session].as_slice()),
        ("sudo", "sudo", &[Phase::Account]),
        ("sudo-i", "sudo", &[Phase::Account]),
    ] {
        let path = format!("/etc/pam.d/{service}");
        if read(root, &path)?.is_none() && service != "sshd" {
            continue;
        }
        add(
            &path,
            &|text| {
                let family = if text.contains("@include") { "debian" } else { "redhat" };
                let ours = shipped(&format!("pam.d/{family}/{lines}"))?;
                Ok(phases.iter().fold(text.to_owned(), |text, phase| {
                    edits::line_of(&ours, *phase).map_or(text.clone(), |line| edits::pam(&text, line, *phase))
                }))
            },
            None,
        )?;
    }
    // sshd's last, since from then on it asks.
    for (path, name, mode) in [(SUDOERS, SHIPPED_SUDOERS, 0o440), (SSHD_DROP_IN, SHIPPED_SSHD, 0o644)] {
        let text = shipped(name)?;
        if is_edited(path, &text)? {
            kept.push(path);
            continue;
        }
        add(path, &|_| Ok(text.clone()), Some(mode))?;
    }
    Ok(Plan { changes, kept })
}

/// What was changed by hand, as far as it can be told from what is there.
fn made_by_hand(root: &Path) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |path: &str, before: &dyn Fn(&str) -> Option<String>| {
        let Ok(Some(after)) = read(root, path) else { return };
        let before = before(&after);
        if before.as_ref() != Some(&after) {
            changes.push(Change { path: path.into(), before, after, mode: 0o644 });
        }
    };
    for service in ["sshd", "sudo", "sudo-i", "cron", "crond", "atd"] {
        add(&format!("/etc/pam.d/{service}"), &|text| Some(edits::without_pam(text)));
    }
    add(NSSWITCH, &|text| Some(edits::without_nsswitch(text)));
    for (path, name) in [(SUDOERS, SHIPPED_SUDOERS), (SSHD_DROP_IN, SHIPPED_SSHD)] {
        let Ok(Some(_)) = read(root, path) else { continue };
        // What is not as we ship it is kept aside when it is taken back.
        let after = read(root, &format!("{}/{name}", paths::SHARE)).ok().flatten().unwrap_or_default();
        changes.push(Change { path: path.into(), before: None, after, mode: 0o600 });
    }
    changes
}

/// A file as text; none if it is not there.
fn read(root: &Path, path: &str) -> Result<Option<String>, String> {
    let at = root.join(path.trim_start_matches('/'));
    match std::fs::read_to_string(&at) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Our rule is one that sudo takes, before it is where a mistake would break sudo for all.
fn check_sudoers(changes: &[Change]) -> Result<(), String> {
    let Some(change) = changes.iter().find(|change| change.path == Path::new(SUDOERS)) else { return Ok(()) };
    if !crate::is_installed("/usr/sbin/visudo") {
        return Ok(());
    }
    // Not in sudoers.d, where sudo would read it.
    let draft = PathBuf::from(format!("{}.sudoers", paths::ENABLED));
    write_new(&draft, change.after.as_bytes(), 0o440)
        .map_err(|error| format!("{}: {error}", draft.display()))?;
    let checked = run("visudo", &["-c", "-q", "-f", &draft.to_string_lossy()]);
    let _ = std::fs::remove_file(&draft);
    checked.map(drop)
}

fn apply(changes: &[Change]) -> Result<(), String> {
    changes.iter().try_for_each(|change| put(&change.path, Some(&change.after), change.mode))
}

/// Puts back what was there before, the last change first. A file that somebody else changed meanwhile loses our lines only.
fn take_back(changes: &[Change]) -> Result<(), String> {
    let root = Path::new("/");
    for change in changes.iter().rev() {
        let path = change.path.to_string_lossy();
        let Some(now) = read(root, &path)? else { continue };
        let then = if now == change.after {
            change.before.clone()
        } else if change.path == Path::new(NSSWITCH) {
            Some(edits::without_nsswitch(&now))
        } else if change.path.starts_with("/etc/pam.d") {
            Some(edits::without_pam(&now))
        } else {
            // A drop-in of ours that somebody edited: kept, under a name that is not read.
            let kept = format!("{path}.disabled");
            put(Path::new(&kept), Some(&now), 0o600)?;
            change.before.clone()
        };
        put(&change.path, then.as_deref(), change.mode)?;
    }
    Ok(())
}

/// Replaces a file; without a text, removes it.
fn put(path: &Path, text: Option<&str>, mode: u32) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let Some(text) = text else { return remove(path) };
    // What is a link stays one: the file behind it is replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut unfinished = target.as_os_str().to_owned();
    // sshd reads *.conf, sudo no name with a dot.
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let written = match target.symlink_metadata() {
        Ok(_) => write_like(&target, &unfinished, text.as_bytes()),
        Err(_) => write_new(&unfinished, text.as_bytes(), mode),
    };
    let put = written.and_then(|()| std::fs::rename(&unfinished, &target)).map_err(failed);
    if put.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    put
}

fn remove(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

fn load() -> Result<Option<Record>, String> {
    let Some(text) = read(Path::new("/"), paths::ENABLED)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        format!("{}: {error}; remove it, and disable takes out our lines wherever they are", paths::ENABLED)
    })
}

/// What was changed before, and now. Of a file that is changed once more, what was there first is what comes back.
fn merged(before: Option<&Record>, changes: &[Change]) -> Record {
    let mut record = before.cloned().unwrap_or_default();
    for change in changes {
        match record.changes.iter_mut().find(|known| known.path == change.path) {
            Some(known) if change.before.as_ref() == Some(&known.after) => {
                known.after.clone_from(&change.after)
            }
            Some(known) => *known = change.clone(),
            None => record.changes.push(change.clone()),
        }
    }
    record
}

fn save(record: Option<&Record>) -> Result<(), String> {
    let Some(record) = record else { return remove(Path::new(paths::ENABLED)) };
    let text = serde_json::to_string_pretty(record).map_err(|error| error.to_string())?;
    if let Some(folder) = Path::new(paths::ENABLED).parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    put(Path::new(paths::ENABLED), Some(&text), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_twice_comes_back_as_it_was_first() {
        let change = |before: Option<&str>, after: &str| Change {
            path: "/etc/x".into(),
            before: before.map(str::to_owned),
            after: after.to_owned(),
            mode: 0o644,
        };
        let first = merged(None, &[change(Some("a"), "b")]);
        let second = merged(Some(&first), &[change(Some("b"), "c")]);
        assert_eq!(second.changes, [change(Some("a"), "c")]);
        // Somebody else changed it meanwhile: that is what comes back.
        let third = merged(Some(&second), &[change(Some("x"), "y")]);
        assert_eq!(third.changes, [change(Some("x"), "y")]);
    }

    #[test]
    fn what_is_so_already_is_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let planned = |accounts| plan(root.path(), accounts, None);
        assert!(planned(Accounts::Nss).unwrap_err().contains("nsswitch.conf is missing"));
        write("etc/nsswitch.conf", "passwd: files\ngroup: files\n");
        write("etc/pam.d/sshd", "@include common-account\n@include common-session\n");
        assert!(planned(Accounts::Nss).unwrap_err().contains("is the package installed?"));
        for (name, text) in [
            ("pam.d/debian/sshd", include_str!("../../pam.d/debian/sshd")),
            ("pam.d/debian/sudo", include_str!("../../pam.d/debian/sudo")),
            ("sshd/10-pam_iam.conf", include_str!("../../packaging/sshd/10-pam_iam.conf")),
            ("sudoers/pam_iam", include_str!("../../packaging/sudoers/pam_iam")),
        ] {
            write(&format!("usr/share/pam_iam/{name}"), text);
        }
        let all = planned(Accounts::Nss).unwrap().changes;
        let paths: Vec<&str> = all.iter().filter_map(|change| change.path.to_str()).collect();
        assert_eq!(paths, [NSSWITCH, "/etc/pam.d/sshd", SUDOERS, SSHD_DROP_IN]);
        assert_eq!(planned(Accounts::Importer).unwrap().changes.len(), 3);
        for change in &all {
            write(change.path.to_str().unwrap().trim_start_matches('/'), &change.after);
        }
        assert!(planned(Accounts::Nss).unwrap().changes.is_empty());
        let back = made_by_hand(root.path());
        assert_eq!(back.len(), 4);
        assert!(
            back.iter().all(|change| all
                .iter()
                .any(|made| made.path == change.path && made.before == change.before))
        );
        // A rule of the administrator's own stays, and so does one that an older package of ours put there if it is known.
        write("etc/sudoers.d/pam_iam", "%ssh-ops ALL=(root) /usr/bin/systemctl restart app");
        let edited = planned(Accounts::Nss).unwrap();
        assert!(edited.changes.is_empty() && edited.kept == [SUDOERS], "{edited:?}");
        let ours = Record {
            changes: vec![Change {
                path: SUDOERS.into(),
                before: None,
                after: "%ssh-ops ALL=(root) /usr/bin/systemctl restart app".into(),
                mode: 0o440,
            }],
        };
        let upgrade = plan(root.path(), Accounts::Nss, Some(&ours)).unwrap();
        assert!(upgrade.kept.is_empty() && upgrade.changes.len() == 1, "{upgrade:?}");
    }
}
