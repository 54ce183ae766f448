//! `iamctl sweep`: ends the sessions that IAM has withdrawn. iam-sweep.service runs it every minute.
//!
//! The sweep asks IAM about open sessions, and about managed users who have processes without one: they have logged out and left something
//! running, or came by a program that never asks PAM. A missing answer ends nothing before `freshness.offline` is over.

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
use report::{log_what_may_go_on, report, unattributed, undecided_users};
pub use user::end_user;
use withdrawal::Withdrawal;

/// The longest `sessions.grace` that is waited for: a sweep should be over before many more are due.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// Printed if a sweep ends nobody.
const NOBODY: &str = "there is nobody to end";

/// Sweeps, and checks whether this host's lines for pam_iam are still in force. Returns whether everything that was to end has ended.
pub fn run(context: &Context, dry_run: bool) -> Result<Reply, Error> {
    if !dry_run {
        // An earlier program may have been killed while it had control groups frozen.
        pam_iam_sessions::cgroup::thaw_abandoned();
    }
    let config = context.config().map_err(Error::SweepWithoutConfig)?;
    if !dry_run {
        // /etc/group may have changed since the resolver started. If the list cannot be written, NSS accepts fewer groups, and no withdrawn
        // user stays because of that.
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
    log_what_may_go_on(&judge, &ended.withdrawals, dry_run, &mut log);
    let unanswered = undecided_users(&judge);
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

/// Does a sweep where `sessions.sweep` is off: removes logins that are over from the registry, as nothing will need them.
fn forget_logins(context: &Context, registry: &SessionRegistry, dry_run: bool) -> Result<Reply, Error> {
    if !dry_run {
        for session in registry.left().map_err(registry_failed)? {
            let _ = registry.remove(session.process());
        }
    }
    context.output.show(&json!({ "ended": [] }), "sessions.sweep is \"off\"");
    Ok(Reply::Yes)
}

/// Finds out which sessions and processes are to end, and ends them: quickly first, and then thoroughly if some could not be read in time.
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
        ended.forget_retried(&found);
        if !dry_run {
            ended.outcomes.extend(end(context, &found, registry, *effort, grace, log));
        }
        ended.withdrawals.extend(found);
        // Only a user who makes reading slow has to wait for the thorough round.
        if judge.unread == 0 {
            break;
        }
    }
    Ok(ended)
}

/// Records what a sweep did. Returns whether everything that was to end has ended, and in time.
fn finish(mut record: Swept, judge: &mut Judge<'_>, ended: &Ended, log: &mut Log) -> bool {
    let Ended { withdrawals, outcomes } = ended;
    // A process that is not known to be a withdrawn user's may go on.
    let unattributed = unattributed(withdrawals);
    for why in &unattributed {
        log.write(Level::Error, why);
    }
    let is_unanswered =
        withdrawals.iter().any(|withdrawal| withdrawal.whole_user) && lookup::was_unanswered();
    let complete = unattributed.is_empty() && !is_unanswered && outcomes.iter().all(Outcome::is_complete);
    let pairs = withdrawals.iter().zip(outcomes);
    let took = record.finish(
        pairs.filter(|(withdrawal, outcome)| withdrawal.had_something_to_end(outcome)).count(),
        outcomes.iter().filter(|outcome| !outcome.is_complete()).count()
            + unattributed.len().max(is_unanswered.into()),
        std::mem::take(&mut judge.unknown).into_iter().collect(),
    );
    if took > swept::INTERVAL {
        let took = took.as_secs();
        log.write(Level::Error, format!("a sweep took {took} s, longer than the minute between two sweeps"));
        return false;
    }
    complete
}

/// The result of a sweep. A dry run has no outcomes.
#[derive(Default)]
struct Ended {
    withdrawals: Vec<Withdrawal>,
    /// The outcome of each withdrawal.
    outcomes: Vec<Outcome>,
}

impl Ended {
    /// Forgets withdrawals that were incomplete and are in `found` again, so that each is reported once.
    fn forget_retried(&mut self, found: &[Withdrawal]) {
        let ended = std::mem::take(self);
        let is_found = |known: &Withdrawal| {
            found.iter().any(|found| (found.uid, found.cause) == (known.uid, known.cause))
        };
        let pairs = ended.withdrawals.into_iter().zip(ended.outcomes);
        let told = pairs.filter(|(known, outcome)| outcome.is_complete() || !is_found(known));
        (self.withdrawals, self.outcomes) = told.unzip();
    }
}

/// Ends a sweep that finds another one under way. One that takes longer than a minute lets withdrawn users stay.
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
