//! `iamctl sweep`: ends the sessions that IAM has withdrawn. A timer runs it every minute.
//!
//! IAM is asked about open sessions, and about managed users who have processes without one: they logged out and left
//! something running, or came by a program that never asks PAM. That nobody can tell ends nothing before
//! `freshness.offline` is over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, PRIVILEGED_GROUPS, Sweep};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::LinuxName;
use pam_iam_core::process::Process;
use pam_iam_core::register::{Origin, Register, Session};
use pam_iam_core::served::Served;
use pam_iam_core::standing::{Files, Standing, standing};
use pam_iam_core::wire::{Answer, Policy, Reason, Request};
use pam_iam_core::{local, paths};
use pam_iam_sessions::logind;
use pam_iam_sessions::owner::{self, Owner, SessionMarks};
use pam_iam_sessions::table::Table;
use pam_iam_sessions::termination::{self, Outcome, Progress, Termination};
use serde_json::json;

use crate::Context;
use crate::swept::{self, Swept};

/// How long the resolver is asked: each session whose turn does not come goes on until the next sweep.
const ASKING_MAX: Duration = Duration::from_secs(20);

/// The longest `sessions.grace` that is waited for: a sweep is to be over before many more are due.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// However short `freshness.offline` is, one hiccup ends nobody.
const OFFLINE_MIN: Duration = Duration::from_secs(120);

/// What is to end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Withdrawal {
    /// The Linux name, or the uid where nobody knows the name any more.
    user: String,
    /// The uid.
    uid: Uid,
    /// As the log has it.
    reason: String,
    /// The sessions that end; none for what runs without one.
    sessions: Vec<Session>,
    /// Whether all that the user runs ends, or these sessions alone.
    whole_user: bool,
}

/// What IAM says about a session.
enum Verdict {
    /// It may go on, said IAM so long ago.
    GoesOn(Duration),
    /// The user may no longer log in.
    UserWithdrawn(String),
    /// What it was opened with, or given, is withdrawn: its key, or a privileged group.
    SessionWithdrawn(&'static str),
    /// Nobody can tell.
    Unknown,
}

/// True if all that was to end did.
pub fn run(context: &Context, dry_run: bool) -> Result<bool, String> {
    let config = context.config()?;
    if let Err(why) = crate::mapped::write(context) {
        Log::to_syslog("iamctl").write(Level::Error, why);
    }
    if config.sessions.sweep == Sweep::Off {
        context.output.show(&json!({ "ended": [] }), "sessions.sweep is \"off\"");
        return Ok(true);
    }
    let failed = |error: std::io::Error| format!("{}: {error}", paths::SESSIONS);
    let register = Register::open(Path::new(paths::SESSIONS)).map_err(failed)?;
    if !dry_run && !register.lock().map_err(failed)? {
        return already_running(context);
    }
    let mut record = Swept::load();
    if !dry_run {
        record.begin();
    }
    let mut judge = Judge::new(context, &config);
    let judged = register.sessions().map_err(failed).and_then(|open| judge.judge(&register, open));
    let withdrawals = judged.inspect_err(|_| {
        if !dry_run {
            record.fail();
        }
    })?;
    let unknown = judge.unknown;
    let mut log = Log::to_syslog("iamctl");
    for uid in &unknown {
        log.write(
            Level::Warning,
            format!(
                "uid {uid} is in the range of IAM users, and nothing here tells whether it ever was one: its processes are \
                 left alone; iamctl status and iamctl doctor list such uids"
            ),
        );
    }
    if dry_run {
        report(context, &withdrawals, None);
        return Ok(true);
    }
    let grace = config.sessions.grace.0.min(GRACE_MAX);
    let outcomes = end(context, &withdrawals, &register, grace, &mut log);
    report(context, &withdrawals, Some(&outcomes));
    let complete = outcomes.iter().all(Outcome::is_complete);
    let took = record.finish(
        withdrawals.len(),
        outcomes.iter().filter(|outcome| !outcome.is_complete()).count(),
        unknown,
    );
    if took > swept::INTERVAL {
        let took = took.as_secs();
        log.write(Level::Error, format!("a sweep took {took} s, longer than the minute between two"));
        return Ok(false);
    }
    Ok(complete)
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

/// Ends all processes of a user at once. True if nothing is left.
pub fn end_user(context: &Context, user: &str) -> Result<bool, String> {
    let config = context.config()?;
    let found = users::get_user_by_name(user).map(|found| Uid(found.uid()));
    let failed = |error: std::io::Error| format!("{}: {error}", paths::SESSIONS);
    let register = Register::open(Path::new(paths::SESSIONS)).map_err(failed)?;
    let open: Vec<Session> =
        register.sessions().map_err(failed)?.into_iter().map(|(session, _)| session).collect();
    // A user whom NSS no longer shows may still have a session.
    let registered = open.iter().find(|session| session.user == user).map(|session| session.uid);
    let uid = found.or(registered).ok_or_else(|| format!("there is no user {user:?} here"))?;
    match standing(user, uid, &config, &Files::default()).map_err(|error| error.to_string())? {
        Standing::Ours | Standing::Adopted => {}
        Standing::Shared | Standing::Local => {
            return Err(format!("{user} is a local account: only the processes of IAM users are ended"));
        }
    }
    let withdrawals = [Withdrawal {
        user: user.to_owned(),
        uid,
        reason: "operator".to_owned(),
        sessions: open.into_iter().filter(|session| session.uid == uid).collect(),
        whole_user: true,
    }];
    let mut log = Log::to_syslog("iamctl");
    let grace = config.sessions.grace.0.min(GRACE_MAX);
    let outcomes = end(context, &withdrawals, &register, grace, &mut log);
    report(context, &withdrawals, Some(&outcomes));
    Ok(outcomes.iter().all(Outcome::is_complete))
}

/// Shows what was ended, or would be.
fn report(context: &Context, withdrawals: &[Withdrawal], outcomes: Option<&[Outcome]>) {
    let (mut text, mut json) = (String::new(), Vec::new());
    for (at, Withdrawal { user, reason, sessions, .. }) in withdrawals.iter().enumerate() {
        let outcome = outcomes.and_then(|outcomes| outcomes.get(at));
        let is_complete = outcome.is_none_or(Outcome::is_complete);
        let word = match outcome {
            None => "would end",
            Some(_) if is_complete => "ended",
            Some(_) => "could not end all of",
        };
        let pids: Vec<i32> = sessions.iter().map(|session| session.pid).collect();
        let lines = if pids.is_empty() {
            vec![("what is left", 0)]
        } else {
            pids.into_iter().map(|pid| ("the session", pid)).collect()
        };
        for (what, pid) in lines {
            text.push_str(&format!("{word} {what} of {user} (pid {pid}): {reason}\n"));
            json.push(json!({ "user": user, "pid": pid, "reason": reason, "ended": is_complete }));
        }
    }
    context.output.show(&json!({ "ended": json }), &text);
}

/// Ends what is withdrawn, each user by itself and all side by side, and logs it before and after.
fn end(
    context: &Context,
    withdrawals: &[Withdrawal],
    register: &Register,
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
            whole_user: withdrawal.whole_user,
            notice: format!("your access to this host was withdrawn ({})", withdrawal.reason),
        })
    };
    // root has no owner, and is never withdrawn.
    let (withdrawals, terminations): (Vec<&Withdrawal>, Vec<Termination>) =
        withdrawals.iter().filter_map(|withdrawal| Some((withdrawal, termination(withdrawal)?))).unzip();
    let ending: BTreeSet<Process> =
        withdrawals.iter().flat_map(|withdrawal| &withdrawal.sessions).map(Session::process).collect();
    // A user who has logged in anew meanwhile is let be, but for the sessions that end; not one whose login was decided
    // just before the withdrawal. Asked once for each, since a resolver that hangs must not hold up the others' end.
    let mut refused: BTreeMap<Uid, bool> = BTreeMap::new();
    let is_whole = |termination: &Termination| {
        let (uid, open) = (termination.owner.uid, register.sessions().unwrap_or_default());
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
            .with("reason", &withdrawal.reason)
    };
    let outcomes = termination::end(&terminations, grace, is_whole, |progress| {
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
    for (withdrawal, outcome) in withdrawals.iter().zip(&outcomes) {
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
    let answer = context.ask(&Request::Decide { name, uid, policy: Policy::Login });
    matches!(answer, Ok(Answer::Decision(decision)) if !decision.allow && decision.reason != Reason::Denied)
}

/// Asks the resolver about sessions, within a time.
struct Judge<'a> {
    context: &'a Context,
    config: &'a Config,
    served: Served,
    asked_until: Instant,
    /// Uids of our range of which nothing tells whether they ever were ours.
    unknown: Vec<Uid>,
}

impl<'a> Judge<'a> {
    fn new(context: &'a Context, config: &'a Config) -> Self {
        let served = Served::new(Path::new(paths::SERVED));
        Self { context, config, served, asked_until: Instant::now() + ASKING_MAX, unknown: Vec::new() }
    }

    fn judge(
        &mut self,
        register: &Register,
        mut open: Vec<(Session, Duration)>,
    ) -> Result<Vec<Withdrawal>, String> {
        let proc = |error: std::io::Error| format!("/proc: {error}");
        let table = Table::read().map_err(proc)?;
        let mut users: BTreeMap<Uid, Withdrawal> = BTreeMap::new();
        let mut alone = Vec::new();
        let mut staying: BTreeSet<Uid> = BTreeSet::new();
        let mut seen: BTreeSet<Uid> = BTreeSet::new();
        // There may not be time for all.
        open.sort_by_key(|(session, _)| session.origin == Origin::Iam);
        for (session, unconfirmed) in open {
            seen.insert(session.uid);
            let standing = standing(&session.user, session.uid, self.config, &Files::default());
            let verdict = match &standing {
                Ok(standing) => self.verdict(&session, *standing, register),
                Err(_) => Verdict::Unknown,
            };
            let managed = matches!(standing, Ok(Standing::Ours));
            let (reason, whole_user) = match verdict {
                // What a local account runs beside its sessions is the host's, unless its user is withdrawn.
                Verdict::UserWithdrawn(reason) => {
                    (reason, managed || matches!(standing, Ok(Standing::Adopted)))
                }
                // Its jobs are told from the user's others by the kernel's marks of the login; without such marks nobody
                // could tell, and they all end.
                Verdict::SessionWithdrawn(reason) => {
                    (reason.to_owned(), managed && !has_marks(&session, &table))
                }
                Verdict::Unknown if unconfirmed >= self.config.freshness.offline.0.max(OFFLINE_MIN) => {
                    ("offline".to_owned(), managed)
                }
                Verdict::GoesOn(age) => {
                    let _ = register.confirm(&session, age);
                    staying.insert(session.uid);
                    continue;
                }
                Verdict::Unknown => {
                    staying.insert(session.uid);
                    continue;
                }
            };
            let (user, uid) = (session.user.clone(), session.uid);
            let withdrawal = Withdrawal { user, uid, reason, sessions: vec![session], whole_user };
            match users.get_mut(&uid).filter(|_| whole_user) {
                Some(known) => known.sessions.extend(withdrawal.sessions),
                None if whole_user => drop(users.insert(uid, withdrawal)),
                None => alone.push(withdrawal),
            }
        }
        let mut withdrawals: Vec<Withdrawal> = users.into_values().chain(alone).collect();
        for withdrawal in &mut withdrawals {
            // While another session of the user goes on, what was left behind may be that one's.
            withdrawal.whole_user &= !staying.contains(&withdrawal.uid);
        }
        let running: BTreeSet<Uid> = owner::managed_uids().map_err(proc)?.into_keys().collect();
        for uid in running.difference(&seen) {
            withdrawals.extend(self.without_session(*uid));
        }
        Ok(withdrawals)
    }

    /// Processes of a managed user who has no session, if the user may not log in.
    fn without_session(&mut self, uid: Uid) -> Option<Withdrawal> {
        let withdrawal = |user: String, reason: String| {
            Some(Withdrawal { user, uid, reason, sessions: Vec::new(), whole_user: true })
        };
        let local = local::account_by_uid(Path::new(paths::PASSWD), uid).ok()?;
        let name = match local.map(|account| account.name) {
            Some(name) => LinuxName::new(&name).ok()?,
            None => match self.ask(&Request::UserByUid { uid })? {
                Answer::User(user) => user.name,
                // The user is gone. Another directory may have accounts with such uids, so it takes knowledge.
                Answer::NotFound if self.served.has(uid) => {
                    return withdrawal(uid.to_string(), Reason::NoSuchUser.as_str().to_owned());
                }
                Answer::NotFound => {
                    self.unknown.push(uid);
                    return None;
                }
                _ => return None,
            },
        };
        let _ = self.served.add(uid);
        match self.login(&name, uid) {
            Verdict::UserWithdrawn(reason) => withdrawal(name.to_string(), reason),
            _ => None,
        }
    }

    fn verdict(&self, session: &Session, standing: Standing, register: &Register) -> Verdict {
        let Ok(name) = LinuxName::new(&session.user) else { return Verdict::Unknown };
        if standing == Standing::Local {
            return Verdict::GoesOn(Duration::ZERO);
        }
        // Nobody could tell whose key it was. If it is not a member's now, it is taken for the host's own.
        if standing == Standing::Shared && session.origin != Origin::Iam {
            let members = |key: &String| {
                let (name, fingerprint) = (name.clone(), Some(key.clone()));
                let answer = self.ask(&Request::Keys { name, uid: session.uid, fingerprint });
                matches!(answer, Some(Answer::Keys { keys }) if !keys.is_empty())
            };
            if session.keys.iter().any(members) {
                let _ = register.enter(&Session { origin: Origin::Iam, ..session.clone() });
            }
            return Verdict::GoesOn(Duration::ZERO);
        }
        let age = match self.login(&name, session.uid) {
            Verdict::GoesOn(age) => age,
            verdict => return verdict,
        };
        if self.config.sessions.sweep == Sweep::Key && self.lost_a_privileged_group(&name, session, standing)
        {
            return Verdict::SessionWithdrawn("group-withdrawn");
        }
        // Keys that IAM does not know may be meant: of further key commands, or an adopted account's own.
        let elsewhere = session.origin != Origin::Iam
            && (!self.config.keys.also_run.is_empty() || standing == Standing::Adopted);
        // Of a shared account nothing but the key tells whose session it is.
        let by_key = self.config.sessions.sweep == Sweep::Key || standing == Standing::Shared;
        if !by_key || elsewhere {
            return Verdict::GoesOn(age);
        }
        for key in &session.keys {
            let request =
                Request::Keys { name: name.clone(), uid: session.uid, fingerprint: Some(key.clone()) };
            match self.ask(&request) {
                Some(Answer::Keys { keys }) if keys.is_empty() => {
                    let foreign = session.origin == Origin::Foreign;
                    return Verdict::SessionWithdrawn(if foreign { "foreign-key" } else { "key-withdrawn" });
                }
                Some(Answer::Keys { .. }) => {}
                _ => return Verdict::Unknown,
            }
        }
        Verdict::GoesOn(age)
    }

    /// Whether a session has a mapped group that is as good as root, and that IAM no longer gives. The kernel takes no group
    /// away from a process that has it.
    fn lost_a_privileged_group(&self, name: &LinuxName, session: &Session, standing: Standing) -> bool {
        if standing == Standing::Shared {
            return false;
        }
        let targets = self.config.groups.values().map(|target| target.group.as_str());
        let privileged: BTreeSet<&str> = targets.filter(|group| PRIVILEGED_GROUPS.contains(group)).collect();
        if privileged.is_empty() {
            return false;
        }
        let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
        let held: Vec<Gid> = privileged
            .into_iter()
            .filter_map(|name| match local.iter().find(|group| group.name == name) {
                Some(group) => {
                    let by_the_host = standing == Standing::Adopted && group.members.contains(&session.user);
                    (!by_the_host).then_some(group.gid)
                }
                // One of ours, with a gid of its own.
                None => match self.ask(&Request::GroupByName { name: LinuxName::new(name).ok()? }) {
                    Some(Answer::Group(group)) => Some(group.gid),
                    _ => None,
                },
            })
            .filter(|gid| session.groups.contains(gid))
            .collect();
        if held.is_empty() {
            return false;
        }
        match self.ask(&Request::GroupsOf { name: name.clone() }) {
            Some(Answer::Groups { gids }) => held.iter().any(|gid| !gids.contains(gid)),
            _ => false,
        }
    }

    /// Whether a user may still log in.
    fn login(&self, name: &LinuxName, uid: Uid) -> Verdict {
        match self.ask(&Request::Decide { name: name.clone(), uid, policy: Policy::Login }) {
            Some(Answer::Decision(decision)) if decision.allow => {
                Verdict::GoesOn(Duration::from_secs(decision.age))
            }
            // Whoever takes a permission from this host's role is not to end every session with it.
            Some(Answer::Decision(decision)) if decision.reason == Reason::Denied => Verdict::Unknown,
            Some(Answer::Decision(decision)) => Verdict::UserWithdrawn(decision.reason.as_str().to_owned()),
            _ => Verdict::Unknown,
        }
    }

    fn ask(&self, request: &Request) -> Option<Answer> {
        if Instant::now() >= self.asked_until {
            return None;
        }
        self.context.ask(request).ok()
    }
}

/// Whether the kernel marks what was started in a session, also what has left it.
fn has_marks(session: &Session, table: &Table) -> bool {
    let scope = logind::session_of(session.pid).map(|(_, scope)| scope);
    !SessionMarks::of(session.process(), table, scope).is_empty()
}
