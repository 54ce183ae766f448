//! `iamctl enable` and `iamctl disable`: switch logins with IAM users on, and take everything back byte for byte.
//!
//! What is to be changed is worked out first, checked, and written down; then each file is replaced by a rename. If anything
//! fails, what was done is taken back. sshd is reloaded, never restarted: no open session notices.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::replace::write_new;
use serde_json::json;

use crate::Context;

mod plan;
mod record;

use plan::{Plan, SUDOERS, made_by_hand, plan};
use record::{Change, apply, load, merged, remove, save, take_back};

use crate::host::access::cannot_read;
use crate::host::command::run;
use crate::host::sshd::{DROP_IN as SSHD_DROP_IN, reload};
use crate::host::units::{start, stop};
use crate::host::{read, sshd};

/// The units that are switched on with every way to have accounts.
const UNITS: &[&str] = &["iam-resolver.socket", "iam-resolver.service", "iam-sweep.timer"];

const IMPORTER_UNIT: &str = "iam-importer.timer";

/// Where accounts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Accounts {
    /// `libnss_iam.so.2`: they exist the moment IAM has them.
    Nss,
    /// `iam-importer`: they are put into /etc/passwd by a timer.
    Importer,
}

/// Switches everything on.
pub fn enable(context: &Context, accounts: Accounts, dry_run: bool) -> Result<bool, String> {
    let config = context.config()?;
    if let Some(why) = cannot_read(&config, &context.config_path) {
        return Err(why);
    }
    let before = load()?;
    let Plan { changes, kept } = plan(Path::new("/"), accounts, before.as_ref())?;
    for path in &kept {
        context.output.remark(&format!("{path} is not as we ship it: kept as it is"));
    }
    for finding in crate::doctor::unmanaged_sudo_members(&config) {
        context.output.remark(&finding);
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
        .and_then(|()| reload())
        .and_then(|()| sshd_asks_us(&config.keys.user));
    if let Err(why) = done {
        let back = take_back(&changes);
        let _ = reload();
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
        made_by_hand(Path::new("/"))?.into_iter().filter(|other| !is_known(other)).collect();
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
    // And what was there by hand before we were enabled.
    take_back(&made_by_hand(Path::new("/"))?)?;
    if let Err(why) = reload() {
        // Our lines are gone all the same; a package that is being removed goes on.
        context.output.remark(&format!("sshd is to be reloaded by hand: {why}"));
    }
    stop(&units)?;
    remove(Path::new(paths::ENABLED))?;
    show(context, "took back", &changes, &units);
    let left = imported(Path::new("/"));
    if !left.is_empty() {
        context.output.remark(&format!(
            "{} accounts of IAM users stay in /etc/passwd, and nobody asks IAM about them any more; keys in their homes may open \
             them: {}",
            left.len(),
            left.join(" ")
        ));
    }
    let open = crate::sessions::open().unwrap_or_default();
    let users: BTreeSet<&str> = open.iter().map(|session| session.user.as_str()).collect();
    if !users.is_empty() {
        context.output.remark(&format!(
            "these are still logged in, and no sweep ends them any more: {}; iamctl sessions end USER does",
            users.into_iter().collect::<Vec<_>>().join(" ")
        ));
    }
    Ok(true)
}

/// The first value counts in sshd's files, so another's may have won.
fn sshd_asks_us(key_user: &str) -> Result<(), String> {
    if let Some(command) = sshd::started_with() {
        return Err(format!("{command}, which wins over every file: see iamctl doctor"));
    }
    let settings = sshd::effective("root")?;
    // Without PAM nobody would be asked whether who has a key may log in.
    let name = if !settings.get("authorizedkeyscommand").starts_with(sshd::KEY_COMMAND) {
        "AuthorizedKeysCommand"
    } else if settings.get("authorizedkeyscommanduser") != key_user {
        "AuthorizedKeysCommandUser"
    } else if settings.get("usepam") != "yes" {
        "UsePAM"
    } else {
        return Ok(());
    };
    Err(format!(
        "sshd does not take {name} from {SSHD_DROP_IN}: its sshd_config includes that folder late or not at all, or an earlier file sets another"
    ))
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
    !Path::new(paths::ENABLED).exists() && made_by_hand(Path::new("/")).is_ok_and(|made| made.is_empty())
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
