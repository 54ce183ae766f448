//! Ends withdrawn sessions and processes, and logs that before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pam_iam_core::audit::Event;
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::LinuxName;
use pam_iam_core::process::{self, Process};
use pam_iam_core::registry::{Session, SessionRegistry};
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Policy, Reason};
use pam_iam_sessions::owner::{Owner, SessionMarks};
use pam_iam_sessions::table::Effort;
use pam_iam_sessions::termination::{self, Outcome, Progress, Termination};

use super::withdrawal::Withdrawal;
use crate::Context;

/// Ends `withdrawals` side by side and logs them. Returns the outcome of each, in the same order. Root has no owner and is never withdrawn,
/// so it has no outcome.
pub fn end(
    context: &Context,
    withdrawals: &[Withdrawal],
    registry: &SessionRegistry,
    effort: Effort,
    grace: Duration,
    log: &mut Log,
) -> Vec<Outcome> {
    let (withdrawals, terminations): (Vec<&Withdrawal>, Vec<Termination>) =
        withdrawals.iter().filter_map(|withdrawal| Some((withdrawal, termination_of(withdrawal)?))).unzip();
    let mut write = |level, event: Event| {
        log.event(level, &event);
        context.record(&event);
    };
    let mut anew = LoggedInAnew::new(context, registry, &withdrawals);
    let outcomes = termination::end(
        &terminations,
        effort,
        grace,
        |termination| !anew.keeps_the_rest(termination),
        |progress| {
            let (termination, result, processes) = match progress {
                Progress::Asked(termination, list) => (termination, "asked", list),
                Progress::Killed(termination, list) => (termination, "killed", list),
            };
            let at = terminations.iter().position(|other| std::ptr::eq(other, termination));
            if let Some(withdrawal) = at.and_then(|at| withdrawals.get(at)) {
                let event = event(withdrawal, withdrawal.sessions.first(), result);
                write(Level::Warning, event.with("processes", processes));
            }
        },
    );
    for (withdrawal, outcome) in withdrawals.iter().zip(&outcomes) {
        forget_if_gone(registry, withdrawal, outcome);
        if withdrawal.had_something_to_end(outcome) {
            log_outcome(withdrawal, outcome, &mut write);
        }
    }
    outcomes
}

fn termination_of(withdrawal: &Withdrawal) -> Option<Termination> {
    Some(Termination {
        owner: Owner::new(withdrawal.uid, &withdrawal.user)?,
        openers: withdrawal.sessions.iter().map(Session::process).collect(),
        left: withdrawal.left.iter().filter_map(marks_of).collect(),
        groups: withdrawal.groups.clone(),
        whole_user: withdrawal.whole_user,
        notice: withdrawal.cause.for_user().to_owned(),
    })
}

/// Returns the mark of the processes that a login which is over has left.
fn marks_of(session: &Session) -> Option<SessionMarks> {
    session.audit.clone().map(SessionMarks::of_audit_session)
}

/// Finds out which withdrawn users have logged in again meanwhile.
struct LoggedInAnew<'a> {
    context: &'a Context,
    registry: &'a SessionRegistry,
    /// The sessions that end.
    ending: BTreeSet<Process>,
    /// Whether IAM refuses a user now. Each is asked about once: a resolver that hangs must not hold up the end of others.
    refused: BTreeMap<Uid, bool>,
}

impl<'a> LoggedInAnew<'a> {
    fn new(context: &'a Context, registry: &'a SessionRegistry, withdrawals: &[&Withdrawal]) -> Self {
        let sessions = withdrawals.iter().flat_map(|withdrawal| &withdrawal.sessions);
        Self { context, registry, ending: sessions.map(Session::process).collect(), refused: BTreeMap::new() }
    }

    /// Whether the user keeps the processes outside the ending sessions: the user has logged in again, and IAM does not refuse that login.
    fn keeps_the_rest(&mut self, termination: &Termination) -> bool {
        let (uid, open) = (termination.owner.uid, self.registry.sessions().unwrap_or_default());
        let anew = open.iter().any(|(open, _)| open.uid == uid && !self.ending.contains(&open.process()));
        let is_refused = || is_refused(self.context, &termination.owner.name, uid);
        anew && !*self.refused.entry(uid).or_insert_with(is_refused)
    }
}

/// Whether IAM says that a user may not log in now. False if it does not answer.
fn is_refused(context: &Context, name: &str, uid: Uid) -> bool {
    let Ok(name) = LinuxName::new(name) else { return false };
    let decision = context.resolver.decide(&name, uid, Policy::Login);
    decision.is_ok_and(|decision| !decision.allow && decision.reason != Reason::Denied)
}

/// Removes logins that are over from the registry, if nothing is left of them, not even a process that forks faster than it is found.
fn forget_if_gone(registry: &SessionRegistry, withdrawal: &Withdrawal, outcome: &Outcome) {
    let is_gone = outcome.is_complete() && (outcome.was_frozen || !process::is_at_work(withdrawal.uid));
    for session in withdrawal.left.iter().filter(|_| is_gone) {
        let _ = registry.remove(session.process());
    }
}

/// Logs the outcome of a withdrawal, one line for each of its sessions.
fn log_outcome(withdrawal: &Withdrawal, outcome: &Outcome, write: &mut impl FnMut(Level, Event)) {
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

fn event(withdrawal: &Withdrawal, session: Option<&Session>, result: &str) -> Event {
    let of = |field: fn(&Session) -> String| session.map(field).unwrap_or_default();
    Event::new("sweep")
        .with("user", &withdrawal.user)
        .with("iam_name", of(|session| session.iam_name.clone()))
        .with("key", of(|session| session.keys_joined(",")))
        .with("pid", session.map_or(0, |session| session.pid))
        .with("service", of(|session| session.service.clone()))
        .with("rhost", of(|session| session.rhost.clone()))
        .with("result", result)
        .with("reason", withdrawal.cause.as_str())
}
