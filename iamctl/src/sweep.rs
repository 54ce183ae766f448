//! `iamctl sweep`: ends the sessions that IAM has withdrawn. iam-sweep.service runs it every minute.
//!
//! IAM is asked about open sessions, and about managed users who have processes without one: they logged out and left
//! something running, or came by a program that never asks PAM. That nobody can tell ends nothing before
//! `freshness.offline` is over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind_or_meant};
use pam_iam_core::audit::Event;
use pam_iam_core::config::{self, Config, Sweep};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::paths;
use pam_iam_core::process::{self, Process};
use pam_iam_core::registry::{Session, SessionRegistry};
use pam_iam_core::resolver::Queries;
use pam_iam_core::served::Served;
use pam_iam_core::wire::{Policy, Reason};
use pam_iam_sessions::lookup;
use pam_iam_sessions::owner::{Owner, SessionMarks};
use pam_iam_sessions::table::Effort;
use pam_iam_sessions::termination::{self, Outcome, Progress, Termination};
use serde_json::json;

use crate::Context;
use crate::sessions::counted as processes;
use crate::swept::{self, Swept};

pub mod every;
mod in_force;
mod judge;

use judge::Judge;

/// The longest `sessions.grace` that is waited for: a sweep is to be over before many more are due.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// What is said when a sweep ends nobody.
const NOBODY: &str = "there is nobody to end";

/// What is to end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Withdrawal {
    /// The Linux name, or the uid where nobody knows the name any more.
    user: String,
    /// The uid.
    uid: Uid,
    /// Why.
    cause: Cause,
    /// The sessions that end; none for what runs without one.
    sessions: Vec<Session>,
    /// Logins that are over, of which what was left ends too.
    left: Vec<Session>,
    /// What else of the user's holds one of these groups ends too.
    groups: BTreeSet<Gid>,
    /// Whether all that the user runs ends, or these sessions alone.
    whole_user: bool,
}

/// Why something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The user may not log in.
    Refused(Reason),
    /// The key that opened a session no longer opens the account.
    KeyWithdrawn,
    /// The key that opened a session is not in IAM.
    ForeignKey,
    /// A session, or what runs without one, holds a privileged group which IAM no longer gives.
    GroupWithdrawn,
    /// IAM could not be asked for as long as `freshness.offline`.
    Offline,
    /// An operator said so.
    Operator,
}

impl Cause {
    /// Whether a key is withdrawn, and not the user.
    fn is_of_a_key(self) -> bool {
        matches!(self, Self::KeyWithdrawn | Self::ForeignKey)
    }

    /// As the log has it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.as_str(),
            Self::KeyWithdrawn => "key-withdrawn",
            Self::ForeignKey => "foreign-key",
            Self::GroupWithdrawn => "group-withdrawn",
            Self::Offline => "offline",
            Self::Operator => "operator",
        }
    }

    /// As the user is told it on the terminal.
    fn for_user(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.for_user(Policy::Login),
            Self::KeyWithdrawn => "the key of this session no longer opens this account",
            Self::ForeignKey => "the key of this session is none that IAM has of you",
            Self::GroupWithdrawn => {
                "this session has a Linux group that was taken from you; log in again to work without it"
            }
            Self::Offline => "IAM could not be asked for too long whether you may still log in",
            Self::Operator => "an administrator has ended all that you run on this host",
        }
    }
}

impl Withdrawal {
    /// One of which nothing is said yet but whose it is and why.
    fn new(user: String, uid: Uid, cause: Cause) -> Self {
        let (sessions, left, groups) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { user, uid, cause, sessions, left, groups, whole_user: false }
    }

    /// Whether there was anything to end: what the kernel counts may have ended already, and nobody has waited for it.
    fn had_something_to_end(&self, outcome: &Outcome) -> bool {
        !self.sessions.is_empty() || !outcome.is_complete() || outcome.ended > 0
    }
}

/// Sweeps, and looks whether our lines are still in force here. True if all that was to end did.
pub fn run(context: &Context, dry_run: bool) -> Result<bool, String> {
    if !dry_run {
        // What a program of ours that was killed left standing still.
        pam_iam_sessions::cgroup::let_go_on();
    }
    let config = context.config().map_err(|why| {
        format!("{why}; nobody is ended until that is mended, but by: iamctl sessions end USER")
    })?;
    if !dry_run {
        // /etc/group may have changed since the resolver started. Without the list NSS believes less, and nobody stays in.
        if let Err(why) = crate::mapped::write(context) {
            Log::to_syslog("iamctl").write(Level::Warning, why);
        }
    }
    let done = sweep(context, &config, dry_run);
    if !dry_run {
        in_force::look(&config, &mut Log::to_syslog("iamctl"));
    }
    done
}

fn sweep(context: &Context, config: &Config, dry_run: bool) -> Result<bool, String> {
    if let Err(why) = crate::mapped::write(context) {
        Log::to_syslog("iamctl").write(Level::Error, why);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", paths::SESSIONS);
    let registry = SessionRegistry::open(Path::new(paths::SESSIONS)).map_err(failed)?;
    if config.sessions.sweep == Sweep::Off {
        if !dry_run {
            for session in registry.left().map_err(failed)? {
                let _ = registry.remove(session.process());
            }
        }
        context.output.show(&json!({ "ended": [] }), "sessions.sweep is \"off\"");
        return Ok(true);
    }
    if !dry_run && !registry.lock().map_err(failed)? {
        return already_running(context);
    }
    let mut record = Swept::load();
    if !dry_run {
        record.begin();
    }
    let mut log = Log::to_syslog("iamctl");
    termination::raise_priority();
    let mut judge = Judge::new(context, config, record.last_asked, dry_run);
    if let Err(why) = judge.look_for_privileged_groups(!dry_run) {
        log.write(Level::Error, why);
    }
    let grace = config.sessions.grace.0.min(GRACE_MAX);
    let efforts: &[Effort] = if dry_run { &[Effort::Thorough] } else { &[Effort::Quick, Effort::Thorough] };
    let mut swept = Ended::default();
    for effort in efforts {
        let judged =
            registry.sessions().map_err(failed).and_then(|open| judge.judge(&registry, open, *effort));
        let found = judged.inspect_err(|_| {
            if !dry_run {
                record.fail();
            }
        })?;
        swept.forget_what_is_tried_again(&found);
        if !dry_run {
            swept.outcomes.extend(end(context, &found, &registry, *effort, grace, &mut log));
        }
        swept.withdrawals.extend(found);
        // Nobody else waits any more for those who make reading slow.
        if judge.unread == 0 {
            break;
        }
    }
    let Ended { withdrawals, outcomes } = swept;
    record.last_asked = judge.last_asked;
    tell_what_may_go_on(&judge, &withdrawals, dry_run, &mut log);
    let unknown = std::mem::take(&mut judge.unknown);
    let unanswered = without_answer(&judge);
    let nobody = unanswered.map_or_else(|| NOBODY.to_owned(), |why| format!("{NOBODY}; {why}"));
    if dry_run {
        report(context, &withdrawals, None, &nobody);
        return Ok(true);
    }
    report(context, &withdrawals, Some(&outcomes), &nobody);
    // What is not known to be a withdrawn user's may go on.
    let untold = untold(&withdrawals);
    for why in &untold {
        log.write(Level::Error, why);
    }
    let is_unanswered =
        withdrawals.iter().any(|withdrawal| withdrawal.whole_user) && lookup::was_unanswered();
    let complete = untold.is_empty() && !is_unanswered && outcomes.iter().all(Outcome::is_complete);
    let took = record.finish(
        withdrawals
            .iter()
            .zip(&outcomes)
            .filter(|(withdrawal, outcome)| withdrawal.had_something_to_end(outcome))
            .count(),
        outcomes.iter().filter(|outcome| !outcome.is_complete()).count()
            + untold.len().max(is_unanswered.into()),
        unknown.into_iter().collect(),
    );
    if took > swept::INTERVAL {
        let took = took.as_secs();
        log.write(Level::Error, format!("a sweep took {took} s, longer than the minute between two"));
        return Ok(false);
    }
    Ok(complete)
}

/// What a sweep has ended; while it only says what it would end, nothing has an outcome.
#[derive(Default)]
struct Ended {
    withdrawals: Vec<Withdrawal>,
    /// What became of each.
    outcomes: Vec<Outcome>,
}

impl Ended {
    /// Forgets what could not be ended and is found anew: it is tried once more, and told once.
    fn forget_what_is_tried_again(&mut self, found: &[Withdrawal]) {
        let ended = std::mem::take(self);
        let is_found = |known: &Withdrawal| {
            found.iter().any(|found| (found.uid, found.cause) == (known.uid, known.cause))
        };
        let pairs = ended.withdrawals.into_iter().zip(ended.outcomes);
        let told = pairs.filter(|(known, outcome)| outcome.is_complete() || !is_found(known));
        (self.withdrawals, self.outcomes) = told.unzip();
    }
}

/// That IAM gave no answer about users, if so.
fn without_answer(judge: &Judge<'_>) -> Option<String> {
    match judge.unanswered.len() {
        0 => None,
        1 => Some("IAM gave no answer about 1 user, who goes on".to_owned()),
        count => Some(format!("IAM gave no answer about {count} users, who go on")),
    }
}

/// What goes on under subordinate uids of wholly withdrawn users, and nobody tells whose it is: each with what to do.
fn untold(withdrawals: &[Withdrawal]) -> Vec<String> {
    let whole = withdrawals.iter().filter(|withdrawal| withdrawal.whole_user);
    let owners =
        whole.filter_map(|withdrawal| Some((withdrawal, Owner::new(withdrawal.uid, &withdrawal.user)?)));
    let told = |(withdrawal, owner): (&Withdrawal, Owner)| {
        let uid = owner.subordinates_at_work().find(|uid| lookup::is_account(*uid).is_none())?;
        Some(format!(
            "{}, who is withdrawn, has the subordinate uid {uid}, under which something goes on; a directory in nsswitch.conf does not \
             say whose it is, so what has no other mark of the user is left alone; look at it: ps -U {uid}",
            withdrawal.user
        ))
    };
    owners.filter_map(told).collect()
}

/// Logs what a sweep could not tell, so that something may go on that should not.
fn tell_what_may_go_on(judge: &Judge<'_>, withdrawals: &[Withdrawal], dry_run: bool, log: &mut Log) {
    let by_key = |withdrawal: &&Withdrawal| withdrawal.cause.is_of_a_key() && !withdrawal.whole_user;
    let users: BTreeSet<&str> = withdrawals.iter().filter(by_key).map(|known| known.user.as_str()).collect();
    for user in users.into_iter().filter(|_| !dry_run) {
        log.write(
            Level::Warning,
            format!(
                "a key of {user} was withdrawn: what it put into crontab(1), at(1) or systemd --user is not told from {user}'s \
                 other jobs, and goes on; to end that too: iamctl sessions end {user}"
            ),
        );
    }
    if judge.unread > 0 {
        let why = format!(
            "{} processes could not be read in time: one of a withdrawn user, or that holds a withdrawn group, may go on",
            judge.unread
        );
        log.write(Level::Error, why);
    }
    if judge.without_answer() > 0 {
        log.write(
            Level::Warning,
            format!(
                "the resolver was too slow for {} questions about sessions, which go on; those that were confirmed longest ago \
                 come first in the next sweep",
                judge.without_answer()
            ),
        );
    }
    for uid in &judge.unknown {
        log.write(
            Level::Warning,
            format!(
                "uid {uid} is in the range of IAM users, and nothing here tells whether it ever was one: its processes are \
                 left alone; iamctl status and iamctl doctor list such uids"
            ),
        );
    }
    if lookup::was_unanswered() {
        let why = "a service of nsswitch.conf did not say in time whose some uids are: processes under subordinate uids of a \
                   withdrawn user that nothing else marks as the user's may go on";
        log.write(Level::Error, why);
    }
    if let Some(why) = without_answer(judge).filter(|_| !dry_run) {
        log.write(Level::Warning, why);
    }
}

/// What a sweep does that finds another at work. One that works for longer than a minute keeps withdrawn users in.
fn already_running(context: &Context) -> Result<bool, String> {
    let running = Swept::load().running_for();
    if let Some(running) = running.filter(|running| *running > swept::INTERVAL) {
        let mut record = Swept::load();
        record.count_overrun();
        let why = format!(
            "another sweep has been at work for {} s, longer than the minute between two",
            running.as_secs()
        );
        Log::to_syslog("iamctl").write(Level::Error, &why);
        return Err(why);
    }
    context.output.show(&json!({ "ended": [] }), "another sweep is running");
    Ok(true)
}

/// Ends all processes of a user at once, and the sessions that the user has in shared accounts. True if nothing is left.
pub fn end_user(context: &Context, user: &str) -> Result<bool, String> {
    let loaded = Config::load(&context.config_path);
    // A mistake in the configuration keeps nobody in.
    let (suffixes, grace) = match &loaded {
        Ok(config) => (config.accounts.drop_suffix.clone(), config.sessions.grace.0),
        Err(_) => (Vec::new(), config::Sessions::default().grace.0),
    };
    let failed = |error: std::io::Error| format!("{}: {error}", paths::SESSIONS);
    let registry = SessionRegistry::open(Path::new(paths::SESSIONS)).map_err(failed)?;
    let open: Vec<Session> =
        registry.sessions().map_err(failed)?.into_iter().map(|(session, _)| session).collect();
    let left = registry.left().map_err(failed)?;
    // One who may no longer log in has no name here, and a name may have been another IAM user's before.
    let found = lookup::uid_of(user).flatten();
    let mut uids: BTreeSet<Uid> = found.into_iter().collect();
    uids.extend(open.iter().chain(&left).filter(|session| session.user == user).map(|session| session.uid));
    uids.extend(Served::new(Path::new(paths::SERVED)).uids_of(user));
    let account_kind =
        |uid: Uid| account_kind_or_meant(user, uid, &loaded, &context.config_path, &Files::default());
    let managed: BTreeSet<Uid> = uids
        .iter()
        .copied()
        .filter(|uid| matches!(account_kind(*uid), AccountKind::Managed | AccountKind::Adopted))
        .collect();
    let cause = Cause::Operator;
    let mut withdrawals: Vec<Withdrawal> = Vec::new();
    for session in open.iter().filter(|session| !managed.contains(&session.uid)) {
        if is_of(session, user, &suffixes) {
            let withdrawal = Withdrawal::new(session.user.clone(), session.uid, cause);
            withdrawals.push(Withdrawal { sessions: vec![session.clone()], ..withdrawal });
        }
    }
    for session in left.into_iter().filter(|session| !managed.contains(&session.uid)) {
        if session.audit.is_some() && is_of(&session, user, &suffixes) {
            let withdrawal = Withdrawal::new(session.user.clone(), session.uid, cause);
            withdrawals.push(Withdrawal { left: vec![session], ..withdrawal });
        }
    }
    for uid in managed {
        let sessions = open.iter().filter(|session| session.uid == uid).cloned().collect();
        // Who has the name now has what goes by the name.
        let is_anothers = found.is_some_and(|other| other != uid);
        let name = if is_anothers { uid.to_string() } else { user.to_owned() };
        let withdrawal = Withdrawal::new(name, uid, cause);
        withdrawals.push(Withdrawal { sessions, whole_user: true, ..withdrawal });
    }
    if withdrawals.is_empty() {
        return Err(match uids.first().map(|uid| account_kind(*uid)) {
            Some(AccountKind::Shared) => format!(
                "{user} is a shared account: its sessions end with those of the IAM users who opened them; iamctl sessions names them"
            ),
            Some(_) => format!("{user} is a local account: only the processes of IAM users are ended"),
            None => format!("there is no user {user:?} here"),
        });
    }
    let mut log = Log::to_syslog("iamctl");
    let grace = grace.min(GRACE_MAX);
    let outcomes = end(context, &withdrawals, &registry, Effort::Thorough, grace, &mut log);
    let nothing = format!("{user} runs nothing here");
    report(context, &withdrawals, Some(&outcomes), &nothing);
    Ok(outcomes.iter().all(Outcome::is_complete))
}

/// The mark of what a login that is over left behind.
fn marks_of(session: &Session) -> Option<SessionMarks> {
    session.audit.clone().map(SessionMarks::of_audit_session)
}

/// Whether the IAM user whose Linux name is `user` opened a session.
///
/// A key that several users have makes it several names.
fn is_of(session: &Session, user: &str, suffixes: &[String]) -> bool {
    std::iter::once(session.iam_name.as_str()).chain(session.iam_name.split(',')).any(|name| {
        let linux = IamName::user(name).and_then(|name| name.to_linux(suffixes));
        linux.is_ok_and(|linux| linux.as_str() == user)
    })
}

/// Shows what was ended, or would be; `nothing` if that is nothing.
fn report(context: &Context, withdrawals: &[Withdrawal], outcomes: Option<&[Outcome]>, nothing: &str) {
    let (mut text, mut json) = (String::new(), Vec::new());
    for (at, withdrawal) in withdrawals.iter().enumerate() {
        let Withdrawal { user, cause, sessions, .. } = withdrawal;
        let reason = cause.as_str();
        let outcome = outcomes.and_then(|outcomes| outcomes.get(at));
        let is_complete = outcome.is_none_or(Outcome::is_complete);
        let word = match outcome {
            None => "would end",
            Some(_) if is_complete => "ended",
            Some(_) => "could not end all of",
        };
        for Session { pid, iam_name, .. } in sessions {
            // The account may be shared, or called otherwise than the IAM user.
            let whose =
                if iam_name == user || iam_name.is_empty() { String::new() } else { format!("{iam_name}, ") };
            text.push_str(&format!("{word} the session of {user} ({whose}pid {pid}): {reason}\n"));
            json.push(
                json!({ "user": user, "iam_name": iam_name, "pid": pid, "reason": reason, "ended": is_complete }),
            );
        }
        if sessions.is_empty() && outcome.is_none_or(|outcome| withdrawal.had_something_to_end(outcome)) {
            let count = outcome.map(|outcome| format!(" ({})", processes(outcome.ended))).unwrap_or_default();
            text.push_str(&format!("{word} what {user} runs without a session{count}: {reason}\n"));
            json.push(json!({ "user": user, "pid": 0, "reason": reason, "ended": is_complete }));
        }
    }
    if json.is_empty() {
        nothing.clone_into(&mut text);
    }
    context.output.show(&json!({ "ended": json, "dry_run": outcomes.is_none() }), &text);
}

/// Ends what is withdrawn, each user by itself and all side by side, and logs it before and after.
fn end(
    context: &Context,
    withdrawals: &[Withdrawal],
    registry: &SessionRegistry,
    effort: Effort,
    grace: Duration,
    log: &mut Log,
) -> Vec<Outcome> {
    let mut write = |level, event: Event| {
        log.event(level, &event);
        context.record(&event);
    };
    let termination = |withdrawal: &Withdrawal| {
        Some(Termination {
            owner: Owner::new(withdrawal.uid, &withdrawal.user)?,
            openers: withdrawal.sessions.iter().map(Session::process).collect(),
            left: withdrawal.left.iter().filter_map(marks_of).collect(),
            groups: withdrawal.groups.clone(),
            whole_user: withdrawal.whole_user,
            notice: withdrawal.cause.for_user().to_owned(),
        })
    };
    // root has no owner, and is never withdrawn.
    let (withdrawals, terminations): (Vec<&Withdrawal>, Vec<Termination>) =
        withdrawals.iter().filter_map(|withdrawal| Some((withdrawal, termination(withdrawal)?))).unzip();
    let ending: BTreeSet<Process> =
        withdrawals.iter().flat_map(|withdrawal| &withdrawal.sessions).map(Session::process).collect();
    // A user who has logged in anew meanwhile keeps what is not in the sessions that end; not one whose login was decided
    // just before the withdrawal. Asked once for each, since a resolver that hangs must not hold up the others' end.
    let mut refused: BTreeMap<Uid, bool> = BTreeMap::new();
    let is_whole = |termination: &Termination| {
        let (uid, open) = (termination.owner.uid, registry.sessions().unwrap_or_default());
        let anew = open.iter().any(|(open, _)| open.uid == uid && !ending.contains(&open.process()));
        !anew || *refused.entry(uid).or_insert_with(|| is_refused(context, &termination.owner.name, uid))
    };
    let event = |withdrawal: &Withdrawal, session: Option<&Session>, result: &str| {
        let of = |field: fn(&Session) -> String| session.map(field).unwrap_or_default();
        Event::new("sweep")
            .with("user", &withdrawal.user)
            .with("iam_name", of(|session| session.iam_name.clone()))
            .with("key", of(|session| session.keys.join(",")))
            .with("pid", session.map_or(0, |session| session.pid))
            .with("service", of(|session| session.service.clone()))
            .with("rhost", of(|session| session.rhost.clone()))
            .with("result", result)
            .with("reason", withdrawal.cause.as_str())
    };
    let outcomes = termination::end(&terminations, effort, grace, is_whole, |progress| {
        let (termination, result, processes) = match progress {
            Progress::Asked(termination, list) => (termination, "asked", list),
            Progress::Killed(termination, list) => (termination, "killed", list),
        };
        let at = terminations.iter().position(|other| std::ptr::eq(other, termination));
        if let Some(withdrawal) = at.and_then(|at| withdrawals.get(at)) {
            let event = event(withdrawal, withdrawal.sessions.first(), result);
            write(Level::Warning, event.with("processes", processes));
        }
    });
    let ended = withdrawals.iter().zip(&outcomes);
    // Nothing is left of them now, also nothing that begins faster than it is found.
    let is_gone = |uid: Uid, outcome: &Outcome| {
        outcome.is_complete() && (outcome.was_still || !process::is_at_work(uid))
    };
    for (withdrawal, _) in ended.clone().filter(|(withdrawal, outcome)| is_gone(withdrawal.uid, outcome)) {
        for session in &withdrawal.left {
            let _ = registry.remove(session.process());
        }
    }
    for (withdrawal, outcome) in
        ended.filter(|(withdrawal, outcome)| withdrawal.had_something_to_end(outcome))
    {
        let (level, result) = match outcome.is_complete() {
            true => (Level::Warning, "ended"),
            false => (Level::Error, "fail"),
        };
        let sessions: Vec<Option<&Session>> = match withdrawal.sessions.is_empty() {
            true => vec![None],
            false => withdrawal.sessions.iter().map(Some).collect(),
        };
        for session in sessions {
            let event = event(withdrawal, session, result);
            write(level, event.with("processes", outcome.ended).with("remaining", &outcome.remaining));
        }
    }
    outcomes
}

/// Whether IAM says that a user may not log in now. What cannot be told ends nobody.
fn is_refused(context: &Context, name: &str, uid: Uid) -> bool {
    let Ok(name) = LinuxName::new(name) else { return false };
    let decision = context.resolver.decide(&name, uid, Policy::Login);
    decision.is_ok_and(|decision| !decision.allow && decision.reason != Reason::Denied)
}
