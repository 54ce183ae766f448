//! `iamctl sweep`: ends the sessions that IAM has withdrawn. A timer runs it every minute.
//!
//! IAM is asked about open sessions, and about managed users who have processes without one: they logged out and left
//! something running, or came by a program that never asks PAM. That nobody can tell ends nothing before
//! `freshness.offline` is over.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, Sweep};
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
use pam_iam_sessions::owner::{self, Owned, Owner, SessionMarks};
use pam_iam_sessions::table::Table;
use pam_iam_sessions::termination::{self, Outcome, Progress, Termination};
use serde_json::json;

use crate::Context;
use crate::privileged::Privileged;
use crate::swept::{self, Swept};

/// How long the resolver is asked about open sessions: each whose turn does not come goes on until the next sweep, where those
/// that were confirmed longest ago come first.
const ASKING_MAX: Duration = Duration::from_secs(20);

/// How long it is asked about users who run processes without a session.
const ASKING_SESSIONLESS_MAX: Duration = Duration::from_secs(10);

/// The reason of a session, or of processes without one, that hold a privileged group which IAM no longer gives.
const GROUP_WITHDRAWN: &str = "group-withdrawn";

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
    /// What else of the user's holds one of these groups ends too.
    groups: BTreeSet<Gid>,
    /// Whether all that the user runs ends, or these sessions alone.
    whole_user: bool,
}

/// Whose a uid of our range is.
enum Owning {
    /// A user of this Linux name.
    User(LinuxName),
    /// A user who is gone: the last Linux name, or the uid where it is not known or somebody else's now.
    Gone(String),
    /// Nothing tells whether it ever was a user's.
    Unknown,
    /// Nobody can tell now.
    Unanswered,
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
    let mut log = Log::to_syslog("iamctl");
    let mut judge = Judge::new(context, &config);
    if config.sessions.sweep == Sweep::Key {
        let (privileged, kept) = Privileged::load(&config, |request| judge.ask(request), !dry_run);
        if let Err(why) = kept {
            log.write(Level::Error, why);
        }
        judge.privileged = Some(privileged);
    }
    let judged = register.sessions().map_err(failed).and_then(|open| judge.judge(&register, open));
    let withdrawals = judged.inspect_err(|_| {
        if !dry_run {
            record.fail();
        }
    })?;
    let Judge { unknown, without_answer, .. } = judge;
    let without_answer = without_answer.get();
    if without_answer > 0 {
        log.write(
            Level::Warning,
            format!(
                "the resolver was too slow for {without_answer} questions about sessions, which go on; those that were confirmed \
                 longest ago come first in the next sweep"
            ),
        );
    }
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
        groups: BTreeSet::new(),
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
            groups: withdrawal.groups.clone(),
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
    privileged: Option<Privileged>,
    asked_until: Instant,
    /// How many questions there was no time for.
    without_answer: Cell<usize>,
    /// Uids of our range of which nothing tells whether they ever were ours.
    unknown: Vec<Uid>,
}

impl<'a> Judge<'a> {
    fn new(context: &'a Context, config: &'a Config) -> Self {
        let served = Served::new(Path::new(paths::SERVED));
        Self {
            context,
            config,
            served,
            privileged: None,
            asked_until: Instant::now() + ASKING_MAX,
            without_answer: Cell::new(0),
            unknown: Vec::new(),
        }
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
        open.sort_by_key(|(_, unconfirmed)| Reverse(*unconfirmed));
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
            let (sessions, groups) = (vec![session], BTreeSet::new());
            let withdrawal = Withdrawal { user, uid, reason, sessions, groups, whole_user };
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
        let table = Table::read().map_err(proc)?;
        self.asked_until = Instant::now() + ASKING_SESSIONLESS_MAX;
        for uid in owner::managed(&table, &self.served).into_keys() {
            let mut known = withdrawals.iter_mut().filter(|withdrawal| withdrawal.uid == uid);
            if known.any(|withdrawal| withdrawal.whole_user) {
                continue;
            }
            let withdrawal = match self.name_of(uid) {
                Owning::User(name) => {
                    let _ = self.served.add(uid, name.as_str());
                    let gone = (!seen.contains(&uid)).then(|| self.without_session(&name, uid)).flatten();
                    gone.or_else(|| self.with_a_lost_group(&name, uid, &table))
                }
                Owning::Gone(name) => {
                    let reason = Reason::NoSuchUser.as_str().to_owned();
                    let (sessions, groups) = (Vec::new(), BTreeSet::new());
                    Some(Withdrawal { user: name, uid, reason, sessions, groups, whole_user: true })
                }
                Owning::Unknown => {
                    self.unknown.push(uid);
                    None
                }
                Owning::Unanswered => None,
            };
            let Some(withdrawal) = withdrawal else { continue };
            let is_same = |known: &&mut Withdrawal| known.uid == uid && known.reason == withdrawal.reason;
            match withdrawals.iter_mut().find(is_same) {
                Some(known) => known.groups.extend(withdrawal.groups),
                None => withdrawals.push(withdrawal),
            }
        }
        Ok(withdrawals)
    }

    /// Whose a uid of our range is.
    fn name_of(&self, uid: Uid) -> Owning {
        let Ok(local) = local::account_by_uid(Path::new(paths::PASSWD), uid) else {
            return Owning::Unanswered;
        };
        if let Some(account) = local {
            return LinuxName::new(&account.name).map_or(Owning::Unanswered, Owning::User);
        }
        match self.ask(&Request::UserByUid { uid }) {
            Some(Answer::User(user)) => Owning::User(user.name),
            // Another directory may have accounts with such uids, so it takes knowledge.
            Some(Answer::NotFound) if self.served.has(uid) => {
                let name = self.served.name_of(uid).map(|name| name.to_string());
                // Who has the name now has what goes by the name: ranges of subuid(5), a `User=` of a unit.
                let name = name.filter(|name| users::get_user_by_name(name).is_none());
                Owning::Gone(name.unwrap_or_else(|| uid.to_string()))
            }
            Some(Answer::NotFound) => Owning::Unknown,
            _ => Owning::Unanswered,
        }
    }

    /// Processes of a managed user who has no session, if the user may not log in.
    fn without_session(&self, name: &LinuxName, uid: Uid) -> Option<Withdrawal> {
        let Verdict::UserWithdrawn(reason) = self.login(name, uid) else { return None };
        let (sessions, groups) = (Vec::new(), BTreeSet::new());
        Some(Withdrawal { user: name.to_string(), uid, reason, sessions, groups, whole_user: true })
    }

    /// Processes of a managed user that hold a privileged group which IAM no longer gives: left by a session that had it, or of
    /// a service manager (`user@.service`) that such a session started.
    fn with_a_lost_group(&self, name: &LinuxName, uid: Uid, table: &Table) -> Option<Withdrawal> {
        let owner = Owner::new(uid, name.as_str())?;
        let mut owned = Owned::new(table);
        let found = owned.of(&owner);
        let tasks = found.iter().filter_map(|process| table.task(*process));
        let held = tasks.flat_map(|task| task.groups.union(&task.set_groups)).copied().collect();
        let groups = self.lost(name, Standing::Ours, &held);
        let (user, reason) = (name.to_string(), GROUP_WITHDRAWN.to_owned());
        let withdrawal = Withdrawal { user, uid, reason, sessions: Vec::new(), groups, whole_user: false };
        // A setgid program of the host's lends its group to anybody.
        (!owned.holders(&owner, &withdrawal.groups).is_empty()).then_some(withdrawal)
    }

    /// The privileged groups among `held` that the user no longer has.
    fn lost(&self, name: &LinuxName, standing: Standing, held: &BTreeSet<Gid>) -> BTreeSet<Gid> {
        let Some(privileged) = &self.privileged else { return BTreeSet::new() };
        privileged.lost(name, standing, held, |request| self.ask(request))
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
        if !self.lost(&name, standing, &session.groups.iter().copied().collect()).is_empty() {
            return Verdict::SessionWithdrawn(GROUP_WITHDRAWN);
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
            self.without_answer.set(self.without_answer.get() + 1);
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
