//! `iamctl sweep`: ends the sessions that IAM has withdrawn. iam-sweep.service runs it every minute.
//!
//! IAM is asked about open sessions, and about managed users who have processes without one: they logged out and left
//! something running, or came by a program that never asks PAM. That nobody can tell ends nothing before
//! `freshness.offline` is over.

use std::path::Path;
use std::time::Duration;

use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::log::{Level, Log};
use pam_iam_core::paths;
use pam_iam_core::registry::SessionRegistry;
use pam_iam_sessions::lookup;
use pam_iam_sessions::table::Effort;
use pam_iam_sessions::termination::{self, Outcome};
use serde_json::json;

use crate::Context;
use crate::error::{Error, Reply};
use crate::host::FileError;
use crate::swept::{self, Swept};

mod end;
pub mod every;
mod in_force;
mod judge;
mod report;
mod user;
mod withdrawal;

use end::end;
use judge::Judge;
use report::{report, tell_what_may_go_on, untold, without_answer};
pub use user::end_user;
use withdrawal::Withdrawal;

/// The longest `sessions.grace` that is waited for: a sweep is to be over before many more are due.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// What is said when a sweep ends nobody.
const NOBODY: &str = "there is nobody to end";

/// Sweeps, and looks whether our lines are still in force here. True if all that was to end did.
pub fn run(context: &Context, dry_run: bool) -> Result<Reply, Error> {
    if !dry_run {
        // What a program of ours that was killed left standing still.
        pam_iam_sessions::cgroup::let_go_on();
    }
    let config = context.config().map_err(Error::SweepWithoutConfig)?;
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

fn sweep(context: &Context, config: &Config, dry_run: bool) -> Result<Reply, Error> {
    if let Err(why) = crate::mapped::write(context) {
        Log::to_syslog("iamctl").write(Level::Error, why);
    }
    let registry = SessionRegistry::open(Path::new(paths::SESSIONS)).map_err(registry_failed)?;
    if config.sessions.sweep == Sweep::Off {
        return forget_logins(context, &registry, dry_run);
    }
    if !dry_run && !registry.lock().map_err(registry_failed)? {
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
    let ended =
        judge_and_end(context, config, &registry, &mut judge, dry_run, &mut log).inspect_err(|_| {
            if !dry_run {
                record.fail();
            }
        })?;
    record.last_asked = judge.last_asked;
    tell_what_may_go_on(&judge, &ended.withdrawals, dry_run, &mut log);
    let unanswered = without_answer(&judge);
    let nobody = unanswered.map_or_else(|| NOBODY.to_owned(), |why| format!("{NOBODY}; {why}"));
    let outcomes = (!dry_run).then_some(ended.outcomes.as_slice());
    report(context, &ended.withdrawals, outcomes, &nobody);
    if dry_run {
        return Ok(Reply::Yes);
    }
    Ok(finish(record, &mut judge, &ended, &mut log).into())
}

fn registry_failed(error: std::io::Error) -> FileError {
    FileError::of(paths::SESSIONS)(error)
}

/// What a sweep does where `sessions.sweep` is off: logins that are over are of no use then.
fn forget_logins(context: &Context, registry: &SessionRegistry, dry_run: bool) -> Result<Reply, Error> {
    if !dry_run {
        for session in registry.left().map_err(registry_failed)? {
            let _ = registry.remove(session.process());
        }
    }
    context.output.show(&json!({ "ended": [] }), "sessions.sweep is \"off\"");
    Ok(Reply::Yes)
}

/// Finds out what is to end, and ends it: quickly first, and thoroughly where processes could not be read in time.
fn judge_and_end(
    context: &Context,
    config: &Config,
    registry: &SessionRegistry,
    judge: &mut Judge<'_>,
    dry_run: bool,
    log: &mut Log,
) -> Result<Ended, FileError> {
    let grace = config.sessions.grace.0.min(GRACE_MAX);
    let efforts: &[Effort] = if dry_run { &[Effort::Thorough] } else { &[Effort::Quick, Effort::Thorough] };
    let mut ended = Ended::default();
    for effort in efforts {
        let open = registry.sessions().map_err(registry_failed)?;
        let found = judge.judge(registry, open, *effort)?;
        ended.forget_what_is_tried_again(&found);
        if !dry_run {
            ended.outcomes.extend(end(context, &found, registry, *effort, grace, log));
        }
        ended.withdrawals.extend(found);
        // Nobody else waits any more for those who make reading slow.
        if judge.unread == 0 {
            break;
        }
    }
    Ok(ended)
}

/// Writes down what a sweep did. Returns whether all that was to end has ended, and in time.
fn finish(mut record: Swept, judge: &mut Judge<'_>, ended: &Ended, log: &mut Log) -> bool {
    let Ended { withdrawals, outcomes } = ended;
    // What is not known to be a withdrawn user's may go on.
    let untold = untold(withdrawals);
    for why in &untold {
        log.write(Level::Error, why);
    }
    let is_unanswered =
        withdrawals.iter().any(|withdrawal| withdrawal.whole_user) && lookup::was_unanswered();
    let complete = untold.is_empty() && !is_unanswered && outcomes.iter().all(Outcome::is_complete);
    let pairs = withdrawals.iter().zip(outcomes);
    let took = record.finish(
        pairs.filter(|(withdrawal, outcome)| withdrawal.had_something_to_end(outcome)).count(),
        outcomes.iter().filter(|outcome| !outcome.is_complete()).count()
            + untold.len().max(is_unanswered.into()),
        std::mem::take(&mut judge.unknown).into_iter().collect(),
    );
    if took > swept::INTERVAL {
        let took = took.as_secs();
        log.write(Level::Error, format!("a sweep took {took} s, longer than the minute between two"));
        return false;
    }
    complete
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

/// What a sweep does that finds another at work. One that works for longer than a minute keeps withdrawn users in.
fn already_running(context: &Context) -> Result<Reply, Error> {
    let running = Swept::load().running_for();
    if let Some(running) = running.filter(|running| *running > swept::INTERVAL) {
        let mut record = Swept::load();
        record.count_overrun();
        let why = Error::SweepOverrun(running);
        Log::to_syslog("iamctl").write(Level::Error, &why);
        return Err(why);
    }
    context.output.show(&json!({ "ended": [] }), "another sweep is running");
    Ok(Reply::Yes)
}
