//! `iam-importer`: makes the local accounts equal to the roster of allowed users, for hosts without `libnss_iam.so.2`.
//!
//! One run, started by a systemd timer or cron, asks the resolver for the roster, plans the changes ([`mod@plan`]), and replaces
//! the account files ([`database`]). The account of a user who has left is locked and, if the configuration says so, removed
//! with its home directory archived or deleted ([`leave`]). This never happens because of a list that is incomplete, cut off
//! or empty, and never to many accounts at once without `--force`. If a run is killed at any point, the next one finishes
//! its work.

mod cli;
mod database;
mod elsewhere;
mod leave;
mod lock;
mod plan;
mod report;
mod state;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, ConfigError};
use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::registry;
use pam_iam_core::resolver::{Queries, Resolver};
use pam_iam_core::wire::{Request, Roster};

use crate::cli::Arguments;
use crate::database::{Database, DatabaseError};
use crate::elsewhere::Directories;
use crate::lock::LockError;
use crate::plan::{HomeAction, Plan, PlanInput, Removal, managed_accounts, plan};
use crate::report::Report;
use crate::state::State;
use crate::table::{Tables, uid_of};

/// The file in which one run leaves its state for the next.
const STATE: &str = paths::IMPORTER_STATE;

/// Where archived home directories go.
const ARCHIVE: &str = "/var/lib/pam_iam/archive";

/// Where the account files are.
const ETC: &str = "/etc";

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// The exit status if some users or accounts were refused, or something failed.
const SOME_REFUSED: u8 = 1;

/// The exit status if nothing was done.
const NOTHING_DONE: u8 = 2;

fn main() -> ExitCode {
    if let Some(status) = pam_iam_sessions::killer::run_if_started_as_killer() {
        return status;
    }
    // On a wrong option clap exits with 2, which is `NOTHING_DONE`.
    let arguments = Arguments::parse();
    let mut report = Report::new(arguments.dry_run, arguments.quiet);
    match run(&arguments, &mut report) {
        Ok(ImportOutcome::Done) => ExitCode::SUCCESS,
        Ok(ImportOutcome::SomeRefused) => ExitCode::from(SOME_REFUSED),
        Err(why) => {
            report.nothing_done(why);
            ExitCode::from(NOTHING_DONE)
        }
    }
}

/// The outcome of a run that no error stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImportOutcome {
    /// Everything was done.
    Done,
    /// Everything was done except for some users or accounts.
    SomeRefused,
}

/// Why a run did nothing.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error("must be run as root")]
    NotRoot,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the list of users cannot be read: {0}")]
    Roster(ClientError),
    #[error("refusing to continue: IAM returned an empty list of users who may log in")]
    EmptyRoster,
    #[error("{STATE}: {0}")]
    State(io::Error),
    #[error("{0}")]
    AccountKind(io::Error),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Runs the import.
///
/// # Errors
/// Returns an error if nothing was done.
fn run(arguments: &Arguments, report: &mut Report) -> Result<ImportOutcome, ImportError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImportError::NotRoot);
    }
    let config = Config::load(&arguments.config)?;
    let _lock = if arguments.dry_run { None } else { Some(lock::only_one_run()?) };
    report.begin("reading the list of users from IAM");
    let asked = Instant::now();
    let roster = ask(&config, &arguments.config)?;
    let (took, began) = (asked.elapsed(), Instant::now());
    if roster.users.is_empty() && roster.adopted.is_empty() {
        return Err(ImportError::EmptyRoster);
    }
    for group in &roster.missing {
        report.trouble(format!(
            "the configuration allows the IAM group {group}, which does not exist; nobody is retired until that is mended"
        ));
    }
    let (state, warning) = State::load(Path::new(STATE), arguments.dry_run).map_err(ImportError::State)?;
    if let Some(warning) = warning {
        report.trouble(warning);
    }
    let others = Directories::ask(&roster);
    let accounts =
        Import { arguments, config: &config, roster: &roster, others: &others, report }.run(state)?;
    let is_complete = report.summary(accounts, took, began.elapsed());
    Ok(if is_complete { ImportOutcome::Done } else { ImportOutcome::SomeRefused })
}

fn ask(config: &Config, path: &Path) -> Result<Roster, ImportError> {
    let roster = Resolver::new(config.resolver.mode, path).report(&Request::Roster);
    roster.map_err(ImportError::Roster)
}

/// A run that has read the roster.
struct Import<'a> {
    arguments: &'a Arguments,
    config: &'a Config,
    roster: &'a Roster,
    others: &'a Directories,
    report: &'a mut Report,
}

impl Import<'_> {
    /// Plans and applies the changes. Returns the number of managed accounts afterwards.
    fn run(&mut self, mut state: State) -> Result<usize, ImportError> {
        let database = Database::lock(Path::new(ETC))?;
        let tables = database.read()?;
        let adopted = self.adopted(&tables)?;
        self.count_missing(&mut state, &tables, &adopted);
        let first = self.plan(&tables, &state, &adopted);
        if !self.arguments.dry_run {
            self.remember(&mut state, &first)?;
            match database.replace(&tables, &first.tables) {
                Err(error @ DatabaseError::Partly { .. }) => {
                    self.report.trouble(error);
                    return Ok(managed_accounts(&tables).len());
                }
                replaced => replaced?,
            }
        }
        // The lock is released, since it takes time to end sessions and other programs may need the account files.
        drop(database);
        self.report.changes(&first.changes);
        for (name, missing) in &first.waiting {
            let wanted = self.config.importer.confirm;
            self.report.remark(format!("{name} is missing for the {missing}. of {wanted} times"));
        }

        let gone = self.end_sessions_and_clear_homes(&first);
        let second = match gone.is_empty() {
            true => None,
            false => match self.remove(&gone, &first, &state, &adopted) {
                Ok(second) => Some(second),
                Err(error) => {
                    self.report.trouble(error);
                    None
                }
            },
        };
        if let Some(second) = &second {
            gone.iter().for_each(|removal| self.report.removed(removal));
            self.report.changes(&second.changes);
        }
        let last = second.as_ref().unwrap_or(&first);
        self.finish(&mut state, last);
        Ok(managed_accounts(&last.tables).len())
    }

    /// Removes the accounts `gone` and plans again, since a new user may get the name of a removed account.
    fn remove(
        &self,
        gone: &[&Removal],
        first: &Plan,
        state: &State,
        adopted: &[(String, Uid)],
    ) -> Result<Plan, DatabaseError> {
        if self.arguments.dry_run {
            return Ok(self.plan(&without(&first.tables, gone), state, adopted));
        }
        let database = Database::lock(Path::new(ETC))?;
        let tables = database.read()?;
        let plan = self.plan(&without(&tables, gone), state, adopted);
        database.replace(&tables, &plan.tables)?;
        Ok(plan)
    }

    fn plan(&self, tables: &Tables, state: &State, adopted: &[(String, Uid)]) -> Plan {
        let (roster, config, force) = (self.roster, self.config, self.arguments.force);
        let today = registry::now() / DAY;
        plan(&PlanInput { roster, config, state, adopted, force, today, others: self.others }, tables)
    }

    /// Returns the local accounts that are adopted.
    fn adopted(&self, tables: &Tables) -> Result<Vec<(String, Uid)>, ImportError> {
        let mut adopted = Vec::new();
        for row in tables.passwd.rows() {
            let (Some(name), Some(uid)) = (row.first(), uid_of(row).map(Uid)) else { continue };
            let account_kind =
                account_kind(name, uid, self.config, &Files::default()).map_err(ImportError::AccountKind)?;
            if account_kind == AccountKind::Adopted {
                adopted.push((name.clone(), uid));
            }
        }
        Ok(adopted)
    }

    /// Counts the users who are missing from the roster, if the roster is complete. A user who is refused an account counts
    /// as present.
    fn count_missing(&self, state: &mut State, tables: &Tables, adopted: &[(String, Uid)]) {
        if !self.roster.complete {
            return;
        }
        let refused = || self.roster.refused.iter();
        let mut present: BTreeSet<Uid> = self.roster.users.iter().map(|user| user.uid).collect();
        present.extend(refused().map(|refused| refused.uid));
        let names: BTreeSet<&str> = self
            .roster
            .adopted
            .iter()
            .chain(refused().filter_map(|refused| refused.name.as_ref()))
            .map(|name| name.as_str())
            .collect();
        present.extend(adopted.iter().filter(|(name, _)| names.contains(name.as_str())).map(|(_, uid)| *uid));
        let managed = managed_accounts(tables).into_keys().chain(adopted.iter().map(|(_, uid)| *uid));
        state.count(managed, |uid| present.contains(&uid));
    }

    /// Saves the state that the next run needs if this one is killed: the missing users, the expiry dates that locking will
    /// overwrite, and the memberships that are set.
    fn remember(&mut self, state: &mut State, plan: &Plan) -> Result<(), ImportError> {
        let mut next = state.clone();
        // Extended, not replaced: the entry of an account that the plan unlocks stays until the account files are replaced.
        next.locked.extend(plan.former_expiry.clone());
        next.joined.extend(plan.joined.clone());
        next.groups.extend(self.roster.groups.iter().map(|group| group.name.to_string()));
        next.save(Path::new(STATE)).map_err(ImportError::State)?;
        *state = next;
        Ok(())
    }

    /// Ends the sessions of locked users, and archives or removes their homes. Returns the accounts that can now be removed,
    /// at most as many as the plan allows.
    fn end_sessions_and_clear_homes<'p>(&mut self, plan: &'p Plan) -> Vec<&'p Removal> {
        if self.arguments.dry_run {
            let mut would = Vec::new();
            for removal in &plan.remove {
                match has_home_to_clear(removal) {
                    Ok(_) => would.push(removal),
                    Err(error) => self.report.trouble(format!("{}: {error}", removal.account.name)),
                }
            }
            would.truncate(plan.limit);
            return would;
        }
        self.report
            .begin_steps("ending sessions of users who have left", plan.locked.len() + plan.remove.len());
        let mut ended = BTreeSet::new();
        for account in &plan.locked {
            match leave::end_sessions(&account.name, account.uid, self.config.sessions.grace.0) {
                Ok(()) => {
                    ended.insert(account.uid);
                }
                Err(error) => self.report.trouble(format!("{}: {error}", account.name)),
            }
            self.report.step();
        }
        let mut gone = Vec::new();
        for removal in plan.remove.iter().filter(|removal| ended.contains(&removal.account.uid)) {
            if gone.len() >= plan.limit {
                break;
            }
            match clear(removal) {
                Ok(()) => gone.push(removal),
                Err(error) => self.report.trouble(format!("{}: {error}", removal.account.name)),
            }
            self.report.step();
        }
        gone
    }

    /// Reports the refusals, and saves the state for the next run.
    fn finish(&mut self, state: &mut State, plan: &Plan) {
        self.report.refused(&plan.refused, &state.refused);
        if self.arguments.dry_run {
            return;
        }
        state.refused = plan.refused.iter().map(ToString::to_string).collect();
        state.locked.clone_from(&plan.former_expiry);
        state.joined.clone_from(&plan.joined);
        if let Err(error) = state.save(Path::new(STATE)) {
            self.report.trouble(format!("{STATE}: {error}"));
        }
    }
}

/// Returns the files without the accounts `gone`.
fn without(tables: &Tables, gone: &[&Removal]) -> Tables {
    let mut tables = tables.clone();
    for Removal { account, .. } in gone {
        // Another program may have changed the files since the plan was made.
        if tables.passwd.get(&account.name).and_then(uid_of) == Some(account.uid.0) {
            tables.remove_account(&account.name, account.uid.0);
        }
    }
    tables
}

/// Whether the account has a home directory that is to be archived or removed. Returns an error if that is not allowed.
fn has_home_to_clear(removal: &Removal) -> Result<bool, leave::LeaveError> {
    let path = Path::new(&removal.home);
    let goes = removal.home_action != HomeAction::Stays && leave::is_in_safe_place(path)?;
    Ok(goes && leave::is_there(path, removal.account.uid)?)
}

/// Archives or removes the home directory of an account that is to be removed, if necessary.
fn clear(removal: &Removal) -> Result<(), leave::LeaveError> {
    let Removal { account, home, home_action } = removal;
    let (name, uid, path) = (&account.name, account.uid, Path::new(home));
    if *home_action == HomeAction::Stays || !leave::is_in_safe_place(path)? {
        return Ok(());
    }
    leave::remove_hidden(path, name, uid)?;
    if !leave::is_there(path, uid)? {
        return Ok(());
    }
    if *home_action == HomeAction::Archive {
        // The time makes the name of each archive of a user unique.
        leave::archive(path, Path::new(ARCHIVE), name, uid, registry::now())?;
    }
    leave::remove(path, name, uid)
}
