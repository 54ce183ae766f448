//! `iamctl enable` and `iamctl disable`: switch logins with IAM users on, and undo that byte for byte.
//!
//! The changes are planned, checked and recorded first; then each file is replaced by a rename. If anything fails, the changes made so far
//! are undone. sshd is reloaded, never restarted, so that no open session is disturbed.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pam_iam_core::config::Config;
use pam_iam_core::id::Uid;
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::paths;
use pam_iam_core::replace::write_new;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::Context;
use crate::cli::Accounts;

mod plan;

use plan::{Plan, plan};

use crate::enabled::by_hand::{SUDOERS, made_by_hand};
use crate::enabled::error::EnableError;
use crate::enabled::is_off;
use crate::enabled::record::{
    Change, Record, apply, load, merged, remove, remove_unfinished, save, take_back,
};
use crate::enabled::trial::{self, Now, Trial};
use crate::error::{Error, Reply};
use crate::host::access::cannot_read;
use crate::host::command::run;
use crate::host::sshd::{DROP_IN as SSHD_DROP_IN, reload};
use crate::host::units::{IMPORTER_TIMER, UnitState, is_booted, restore, start, states, stop};
use crate::host::{FileError, read, sshd};

/// The units that are switched on wherever accounts come from.
const UNITS: &[&str] = &["iam-resolver.socket", "iam-resolver.service", "iam-sweep.service"];

/// The options of `iamctl enable`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub accounts: Accounts,
    pub dry_run: bool,
    /// Whether users who come by su or sudo get home directories too.
    pub with_su: bool,
    /// How long a trial lasts. Then everything is undone, unless the trial was confirmed.
    pub trial: Option<Duration>,
}

/// The file that the process which changes the host has locked.
const LOCK: &str = "/var/lib/pam_iam/enable.lock";

/// Returns a lock that the end of the process releases.
///
/// # Errors
/// Returns an error if another call of enable, disable or the trial's timer is changing the host.
fn lock() -> Result<File, EnableError> {
    let failed = FileError::of(LOCK);
    if let Some(folder) = Path::new(LOCK).parent() {
        std::fs::create_dir_all(folder).map_err(&failed)?;
    }
    let mut options = OpenOptions::new();
    let file = options.create(true).write(true).truncate(false).mode(0o600).open(LOCK).map_err(&failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(EnableError::Busy),
    }
}

/// Switches everything on.
pub fn enable(context: &Context, options: Options) -> Result<Reply, Error> {
    let config = context.config()?;
    if let Some(why) = cannot_read(&config, &context.config_path) {
        return Err(EnableError::from(why).into());
    }
    let _lock = lock()?;
    end_trial_if_over(context)?;
    if let Some(trial) = trial::load()? {
        return Err(EnableError::TrialGoesOn(trial.left(&Now::read())).into());
    }
    let before = load()?;
    if options.trial.is_some() {
        check_trial(before.as_ref())?;
    }
    let Plan { changes, kept } = plan(Path::new("/"), options, before.as_ref())?;
    remark_before(context, &config, &kept);
    let mut units: Vec<&str> = UNITS.to_vec();
    units.extend((options.accounts == Accounts::Importer).then_some(IMPORTER_TIMER));
    if options.dry_run {
        let now = states(&units);
        units.retain(|name| now.iter().any(|unit| unit.name == *name && !unit.is_on()));
        show(context, "would change", &changes, &units);
        return Ok(Reply::Yes);
    }
    sshd::check().map_err(EnableError::SshdBroken)?;
    check_use_pam()?;
    check_sudoers(&changes)?;
    units.extend(options.trial.is_some().then_some(trial::TIMER));
    let units_before = states(&units);
    switch_on(&config, options, before.as_ref(), &changes, &units_before)?;
    let units: Vec<&str> =
        units_before.iter().filter(|unit| !unit.is_on()).map(|unit| unit.name.as_str()).collect();
    show(context, "changed", &changes, &units);
    if let Some(lasts) = options.trial {
        context.output.remark(&format!(
            "everything is taken back in {} s, unless you log in as an IAM user and then run: iamctl enable --confirm",
            lasts.as_secs()
        ));
    }
    Ok(Reply::Yes)
}

/// Prints what an operator should know before anything is changed. `kept` are shipped files that somebody has edited.
fn remark_before(context: &Context, config: &Config, kept: &[&str]) {
    for path in kept {
        context.output.remark(&format!("{path} is not as we ship it: kept as it is"));
    }
    if !config.keys.also_run.is_empty() && !config.keys.others_open_managed_accounts() {
        context.output.remark(
            "keys.also_run serves this host's own accounts, and no IAM users: keys.also_run_for = \"all\" would change that",
        );
    }
    for finding in crate::doctor::unmanaged_sudo_members(config) {
        context.output.remark(&finding);
    }
}

/// Makes the changes and starts the units, or leaves everything as it was. `before` has the earlier changes, `units` the present state of
/// the units.
fn switch_on(
    config: &Config,
    options: Options,
    before: Option<&Record>,
    changes: &[Change],
    units: &[UnitState],
) -> Result<(), EnableError> {
    let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    save(Some(&merged(before, changes)))?;
    let trial = options.trial.map(|lasts| Trial::begin(&Now::read(), lasts));
    let Err(why) = change_host(config, options.trial, trial.as_ref(), changes, &names) else { return Ok(()) };
    match change_back(changes, units, before, trial.is_some()) {
        Ok(()) => Err(EnableError::TakenBack(why.into())),
        Err(other) => Err(EnableError::NotTakenBack { why: why.into(), other: other.into() }),
    }
}

/// Makes the changes, sshd's last. `lasts` is how long a trial goes on.
fn change_host(
    config: &Config,
    lasts: Option<Duration>,
    trial: Option<&Trial>,
    changes: &[Change],
    units: &[&str],
) -> Result<(), EnableError> {
    trial.map_or(Ok(()), trial::save)?;
    start(units)?;
    apply(changes)?;
    reload()?;
    sshd_asks_us(config)?;
    // The time begins when users may log in.
    if let Some(lasts) = lasts {
        trial::save(&Trial::begin(&Now::read(), lasts))?;
    }
    Ok(())
}

/// Takes the changes back as far as that goes, and restores the units and the record. The first error is returned.
fn change_back(
    changes: &[Change],
    units: &[UnitState],
    before: Option<&Record>,
    is_trial: bool,
) -> Result<(), EnableError> {
    let taken_back = take_back(changes);
    let _ = reload();
    let restored = restore(units);
    taken_back?;
    restored?;
    save(before)?;
    if is_trial {
        remove(Path::new(paths::TRIAL))?;
    }
    Ok(())
}

/// Returns an error if nothing would end a trial, or if its end would undo more than it changed.
fn check_trial(before: Option<&Record>) -> Result<(), EnableError> {
    let is_in_use = |units: &[&str]| states(units).iter().any(UnitState::is_in_use);
    if before.is_some() || !is_off() || is_in_use(UNITS) || is_in_use(&[IMPORTER_TIMER]) {
        return Err(EnableError::EnabledAlready);
    }
    if !is_booted() {
        return Err(EnableError::NoSystemd);
    }
    Ok(())
}

/// Ends the trial and keeps its changes, if an IAM user has logged in since it began.
pub fn confirm(context: &Context) -> Result<Reply, Error> {
    let _lock = lock()?;
    end_trial_if_over(context)?;
    let Some(trial) = trial::load()? else {
        return Err(EnableError::NoTrial.into());
    };
    let Some(session) = trial.proof() else {
        return Err(EnableError::NobodyLoggedIn.into());
    };
    remove(Path::new(paths::TRIAL))?;
    stop(&[trial::TIMER])?;
    let said = format!("{} logged in by {}: what was changed stays", session.user, session.service);
    context.output.show(&json!({ "done": "confirmed", "user": session.user }), &said);
    Ok(Reply::Yes)
}

/// Undoes a trial whose time is over. A timer calls it, and every command that needs the host's files.
pub fn end_trial_that_is_over(context: &Context) -> Result<Reply, Error> {
    if trial::load()?.is_none() {
        return Ok(Reply::Yes);
    }
    // A process that is changing the host ends the trial itself; otherwise the timer comes again.
    let Ok(_lock) = lock() else { return Ok(Reply::Yes) };
    end_trial_if_over(context)
}

fn end_trial_if_over(context: &Context) -> Result<Reply, Error> {
    let Some(trial) = trial::load()? else { return Ok(Reply::Yes) };
    if !trial.left(&Now::read()).is_zero() {
        return Ok(Reply::Yes);
    }
    Log::to_syslog("iamctl").write(
        Level::Warning,
        "the trial of iamctl enable --try is over and was not confirmed: taking it back",
    );
    context.output.remark("the trial is over and was not confirmed: it is taken back");
    take_everything_back(context, false)
}

/// Returns an error if sshd has `UsePAM no`, which the drop-in changes to yes. PAM could then let users in whom sshd refuses now: by a
/// password that PAM asks for, or into a locked account.
fn check_use_pam() -> Result<(), EnableError> {
    let settings = sshd::effective("root")?;
    if settings.get("usepam") == "yes" {
        return Ok(());
    }
    Err(EnableError::UsePamNo)
}

/// Undoes everything.
pub fn disable(context: &Context, dry_run: bool) -> Result<Reply, Error> {
    let _lock = lock()?;
    take_everything_back(context, dry_run)
}

fn take_everything_back(context: &Context, dry_run: bool) -> Result<Reply, Error> {
    let record = load()?;
    let by_hand = record.is_none();
    let mut changes = record.unwrap_or_default().changes;
    // Lines that were added by hand go too: without pam_iam.so they would keep everybody out.
    let is_known = |other: &Change| changes.iter().any(|known| known.path == other.path);
    let others: Vec<Change> =
        made_by_hand(Path::new("/"))?.into_iter().filter(|other| !is_known(other)).collect();
    changes.extend(others);
    // Undone from the end: sshd first, so that it runs no command that is about to go.
    changes.sort_by_key(|change| change.path == Path::new(SSHD_DROP_IN));
    let units: Vec<&str> = UNITS.iter().copied().chain([IMPORTER_TIMER, trial::TIMER]).collect();
    let before = states(&units);
    let on: Vec<&str> =
        before.iter().filter(|unit| unit.is_in_use()).map(|unit| unit.name.as_str()).collect();
    if dry_run {
        show(context, "would take back", &changes, &on);
        return Ok(Reply::Yes);
    }
    if by_hand && changes.is_empty() {
        remove_unfinished(&[])?;
        remove(Path::new(paths::TRIAL))?;
        context
            .output
            .show(&json!({ "done": "took back", "files": [], "units": [] }), "nothing is switched on");
        return Ok(Reply::Yes);
    }
    take_back(&changes)?;
    // Then lines that were there by hand before `enable`.
    take_back(&made_by_hand(Path::new("/"))?)?;
    if let Err(why) = reload() {
        // The lines are gone already, and the removal of a package must not stop here.
        context.output.remark(&format!("sshd is to be reloaded by hand: {why}"));
    }
    remove_unfinished(&changes)?;
    remove(Path::new(paths::ENABLED))?;
    remove(Path::new(paths::TRIAL))?;
    // Last, since the unit that ends a trial is one of them.
    stop(&units)?;
    show(context, "took back", &changes, &on);
    remark_what_stays(context);
    Ok(Reply::Yes)
}

/// Prints what stays on the host once nothing is switched on.
fn remark_what_stays(context: &Context) {
    for kept in [SUDOERS, SSHD_DROP_IN].map(|path| format!("{path}.disabled")) {
        if Path::new(&kept).exists() {
            context.output.remark(&format!("what you had changed is in {kept}, which nothing reads"));
        }
    }
    let left = imported(Path::new("/"));
    if !left.is_empty() {
        context.output.remark(&format!(
            "{} accounts of IAM users stay in /etc/passwd, and nobody asks IAM about them any more; keys in their homes may open \
             them: {}",
            left.len(),
            left.join(" ")
        ));
    }
    for (group, name) in ImporterRecord::load(Path::new("/")).members(Path::new("/")) {
        context.output.remark(&format!(
            "{name} stays in the group {group}, where the importer put it, whatever IAM says from now on: gpasswd -d {name} {group}"
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
}

/// Returns an error if sshd does not ask pam_iam. sshd takes the first value of a setting, which may be in another file.
fn sshd_asks_us(config: &Config) -> Result<(), EnableError> {
    match crate::doctor::sshd_not_in_force(config, None) {
        None => Err(EnableError::SshdSilent),
        Some(found) => found.into_iter().next().map_or(Ok(()), |why| Err(EnableError::NotInForce(why))),
    }
}

/// Returns the names of the managed accounts in /etc/passwd.
fn imported(root: &Path) -> Vec<String> {
    let passwd = read(root, "/etc/passwd").ok().flatten().unwrap_or_default();
    let managed = |line: &str| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Uid(uid).is_managed().then(|| name.to_owned())
    };
    passwd.lines().filter_map(managed).collect()
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
    if !units.is_empty() {
        text.push_str(&format!("{verb} units: {}\n", units.join(" ")));
    }
    if changes.is_empty() && units.is_empty() {
        text.push_str("nothing is to be changed\n");
    }
    let paths: Vec<String> = changes.iter().map(|change| change.path.display().to_string()).collect();
    context.output.show(&json!({ "done": verb, "files": paths, "units": units }), &text);
}

/// Checks that sudo accepts the rule, before the file is in a place where a mistake breaks sudo for all.
fn check_sudoers(changes: &[Change]) -> Result<(), EnableError> {
    let Some(change) = changes.iter().find(|change| change.path == Path::new(SUDOERS)) else { return Ok(()) };
    if !crate::is_installed("/usr/sbin/visudo") {
        return Ok(());
    }
    // Not in sudoers.d, where sudo would read it.
    let draft = PathBuf::from(format!("{}.sudoers", paths::ENABLED));
    write_new(&draft, change.after.as_bytes(), 0o440).map_err(FileError::of(&draft))?;
    let checked = run("visudo", &["-c", "-q", "-f", &draft.to_string_lossy()]);
    let _ = std::fs::remove_file(&draft);
    Ok(checked.map(drop)?)
}
