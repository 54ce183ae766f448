//! Decides what a sweep ends: asks the resolver about open sessions, and about users who run processes without one.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::LinuxName;
use pam_iam_core::paths;
use pam_iam_core::process::Process;
use pam_iam_core::registry::{Session, SessionRegistry};
use pam_iam_core::served::Served;
use pam_iam_core::wire::Answer;
use pam_iam_sessions::owner::{Owned, Owner, SessionMarks};
use pam_iam_sessions::table::{Effort, Table};
use pam_iam_sessions::{logind, managed};

use super::withdrawal::{Cause, Withdrawal};
use crate::Context;
use crate::host::FileError;
use crate::privileged::Privileged;
use crate::privileged::PrivilegedError;

mod asked;
mod left;
mod verdict;

use asked::Owning;
use verdict::Verdict;

/// How long the resolver is asked about open sessions. A session without an answer goes on until the next sweep, which begins with those
/// confirmed longest ago.
const ASKING_MAX: Duration = Duration::from_secs(20);

/// How long the resolver is asked about users who run processes without a session.
const ASKING_SESSIONLESS_MAX: Duration = Duration::from_secs(10);

/// The least that `freshness.offline` counts for, so that one short failure ends nobody.
const OFFLINE_MIN: Duration = Duration::from_secs(120);

/// The decision about an open session. `is_confirmed` tells whether IAM lets its user in.
enum Fate {
    GoesOn { is_confirmed: bool },
    Ends { cause: Cause, whole_user: bool, is_confirmed: bool },
}

/// What the sweep learned of users with open sessions.
#[derive(Default)]
struct UsersWithSessions {
    /// All of them.
    seen: BTreeSet<Uid>,
    /// Those with a session that goes on.
    staying: BTreeSet<Uid>,
    /// Those whom IAM lets in.
    confirmed: BTreeSet<Uid>,
}

/// Asks the resolver about sessions and users, within a time limit.
pub struct Judge<'a> {
    context: &'a Context,
    config: &'a Config,
    served: Served,
    privileged: Option<Privileged>,
    asked_until: Instant,
    /// The answers in this sweep, by the request as it is on the wire.
    answers: RefCell<BTreeMap<String, Answer>>,
    /// The last user without a session whom this sweep or the one before asked about.
    pub last_asked: Option<Uid>,
    /// The users about whom there was no answer.
    pub unanswered: BTreeSet<Uid>,
    /// How many requests there was no time for.
    without_answer: Cell<usize>,
    /// How many processes there was no time to read in the last look. Any of them may be a withdrawn user's.
    pub unread: usize,
    /// For each login that is over: in how many sweeps in a row no process of it had been seen when this sweep began.
    first_unseen: BTreeMap<Process, u32>,
    /// Whether this is a dry run.
    is_dry: bool,
    /// Managed uids of which nothing tells whether they ever were an IAM user's.
    pub unknown: BTreeSet<Uid>,
}

impl<'a> Judge<'a> {
    /// Starts the time limit. `last_asked` is the user about whom the last sweep asked last.
    pub fn new(context: &'a Context, config: &'a Config, last_asked: Option<Uid>, is_dry: bool) -> Self {
        let served = Served::new(Path::new(paths::SERVED));
        Self {
            context,
            config,
            served,
            privileged: None,
            asked_until: Instant::now() + ASKING_MAX,
            answers: RefCell::default(),
            last_asked,
            unanswered: BTreeSet::new(),
            without_answer: Cell::new(0),
            unread: 0,
            is_dry,
            first_unseen: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// Finds out which groups are privileged, and keeps them for later sweeps if `remember`.
    ///
    /// # Errors
    /// Returns an error to log if they cannot be kept.
    pub fn look_for_privileged_groups(&mut self, remember: bool) -> Result<(), PrivilegedError> {
        if self.config.sessions.sweep != Sweep::Key {
            return Ok(());
        }
        let (privileged, kept) = Privileged::load(self.config, self, remember);
        self.privileged = Some(privileged);
        kept
    }

    /// Returns how many requests there was no time for.
    pub fn requests_out_of_time(&self) -> usize {
        self.without_answer.get()
    }

    /// Returns what is to end: open sessions, each given with the time since it was confirmed; processes that managed users run without a
    /// session; and processes that were left by sessions which are over.
    ///
    /// # Errors
    /// Returns an error if the processes or the registry cannot be read.
    pub fn judge(
        &mut self,
        registry: &SessionRegistry,
        open: Vec<(Session, Duration)>,
        effort: Effort,
    ) -> Result<Vec<Withdrawal>, FileError> {
        let table = Table::read(effort).map_err(FileError::of("/proc"))?;
        self.unread = table.unread();
        let (mut withdrawals, users) = self.judge_open_sessions(registry, open, &table);
        let mut owned = Owned::new(&table);
        self.judge_users_without_session(&mut withdrawals, &users, &table, &mut owned);
        let whole: BTreeSet<Uid> =
            withdrawals.iter().filter(|known| known.whole_user).map(|known| known.uid).collect();
        let left = self.left_behind(registry, &mut owned).map_err(FileError::of(paths::SESSIONS))?;
        withdrawals.extend(left.into_iter().filter(|left| !whole.contains(&left.uid)));
        Ok(withdrawals)
    }

    /// Returns which open sessions are to end, and what was learned of their users.
    fn judge_open_sessions(
        &mut self,
        registry: &SessionRegistry,
        mut open: Vec<(Session, Duration)>,
        table: &Table,
    ) -> (Vec<Withdrawal>, UsersWithSessions) {
        self.asked_until = Instant::now() + ASKING_MAX;
        let mut users = UsersWithSessions::default();
        let mut whole: BTreeMap<Uid, Withdrawal> = BTreeMap::new();
        let mut alone = Vec::new();
        // There may not be time for all.
        open.sort_by_key(|(_, unconfirmed)| Reverse(*unconfirmed));
        for (session, unconfirmed) in open {
            let uid = session.uid;
            users.seen.insert(uid);
            match self.fate(&session, unconfirmed, registry, table) {
                Fate::GoesOn { is_confirmed } => {
                    users.staying.insert(uid);
                    if is_confirmed {
                        users.confirmed.insert(uid);
                    } else {
                        self.unanswered.insert(uid);
                    }
                }
                Fate::Ends { cause, whole_user, is_confirmed } => {
                    if is_confirmed {
                        users.confirmed.insert(uid);
                    }
                    let new =
                        || Withdrawal { whole_user, ..Withdrawal::new(session.user.clone(), uid, cause) };
                    if whole_user {
                        whole.entry(uid).or_insert_with(new).sessions.push(session);
                    } else {
                        alone.push(Withdrawal { sessions: vec![session.clone()], ..new() });
                    }
                }
            }
        }
        let mut withdrawals: Vec<Withdrawal> = whole.into_values().chain(alone).collect();
        for withdrawal in &mut withdrawals {
            // While another session of the user goes on, processes that were left may be of that one.
            withdrawal.whole_user &= !users.staying.contains(&withdrawal.uid);
        }
        (withdrawals, users)
    }

    /// Decides about an open session that was confirmed `unconfirmed` ago. Notes in the registry if it is confirmed now.
    fn fate(
        &self,
        session: &Session,
        unconfirmed: Duration,
        registry: &SessionRegistry,
        table: &Table,
    ) -> Fate {
        let account_kind = account_kind(&session.user, session.uid, self.config, &Files::default());
        let verdict = match &account_kind {
            Ok(account_kind) => self.verdict(session, *account_kind, registry),
            Err(_) => Verdict::Unknown,
        };
        let is_managed = matches!(account_kind, Ok(AccountKind::Managed));
        match verdict {
            Verdict::GoesOn(age) => {
                let _ = registry.touch(session, age);
                Fate::GoesOn { is_confirmed: true }
            }
            // Other processes of a local account are the host's, unless the account's user is withdrawn.
            Verdict::UserWithdrawn(reason) => Fate::Ends {
                cause: Cause::Refused(reason),
                whole_user: is_managed || matches!(account_kind, Ok(AccountKind::Adopted)),
                is_confirmed: false,
            },
            // The user may still log in. The kernel's marks of the login tell its processes from the user's others; without such marks all
            // of them end.
            Verdict::SessionWithdrawn(cause) => {
                Fate::Ends { cause, whole_user: is_managed && !has_marks(session, table), is_confirmed: true }
            }
            Verdict::Unknown if unconfirmed >= self.config.freshness.offline.0.max(OFFLINE_MIN) => {
                Fate::Ends { cause: Cause::Offline, whole_user: is_managed, is_confirmed: false }
            }
            Verdict::Unknown => Fate::GoesOn { is_confirmed: false },
        }
    }

    /// Adds the processes that managed users run without a session and may not run.
    fn judge_users_without_session(
        &mut self,
        withdrawals: &mut Vec<Withdrawal>,
        users: &UsersWithSessions,
        table: &Table,
        owned: &mut Owned<'_>,
    ) {
        let running = managed::users(table, &self.served);
        self.asked_until = Instant::now() + ASKING_SESSIONLESS_MAX;
        for (at, (uid, processes)) in in_turn(running, self.last_asked).into_iter().enumerate() {
            if withdrawals.iter().any(|withdrawal| withdrawal.uid == uid && withdrawal.whole_user) {
                continue;
            }
            let without_answer = self.without_answer.get();
            let withdrawal = self.judge_user(uid, &processes, users, owned);
            // A user who takes all the time alone must not be the first again.
            if self.without_answer.get() == without_answer || at == 0 {
                self.last_asked = Some(uid);
            }
            let Some(withdrawal) = withdrawal else { continue };
            let is_same = |known: &&mut Withdrawal| known.uid == uid && known.cause == withdrawal.cause;
            match withdrawals.iter_mut().find(is_same) {
                Some(known) => known.groups.extend(withdrawal.groups),
                None => withdrawals.push(withdrawal),
            }
        }
    }

    /// Returns which of `processes`, which the user with `uid` runs, are to end.
    fn judge_user(
        &mut self,
        uid: Uid,
        processes: &BTreeSet<Process>,
        users: &UsersWithSessions,
        owned: &mut Owned<'_>,
    ) -> Option<Withdrawal> {
        let name = match self.name_of(uid) {
            Owning::User(name) => name,
            Owning::Unknown => {
                self.unknown.insert(uid);
                return None;
            }
            Owning::Unanswered => {
                self.unanswered.insert(uid);
                return None;
            }
        };
        if users.seen.contains(&uid) {
            let is_confirmed = users.confirmed.contains(&uid);
            return is_confirmed.then(|| self.with_a_lost_group(&name, uid, processes, owned)).flatten();
        }
        match self.login(&name, uid) {
            Verdict::UserWithdrawn(reason) => Some(self.without_session(&name, uid, Cause::Refused(reason))),
            Verdict::GoesOn(_) => self.with_a_lost_group(&name, uid, processes, owned),
            Verdict::Unknown => {
                self.unanswered.insert(uid);
                None
            }
            Verdict::SessionWithdrawn(_) => None,
        }
    }

    /// Returns the processes of a managed user that hold a privileged group which IAM no longer gives: left by a session that had it, or
    /// started by a service manager (`user@.service`) of such a session.
    fn with_a_lost_group(
        &self,
        name: &LinuxName,
        uid: Uid,
        processes: &BTreeSet<Process>,
        owned: &mut Owned<'_>,
    ) -> Option<Withdrawal> {
        let table = owned.table();
        let running = processes.iter().filter_map(|process| table.task(*process));
        let held = running.flat_map(|task| task.groups.union(&task.set_groups)).copied().collect();
        let groups = self.lost(name, &held);
        let owner = Owner::new(uid, name.as_str())?;
        // A setgid program of the host lends its group to anybody.
        if owned.holders(&owner, &groups).is_empty() {
            return None;
        }
        Some(Withdrawal { groups, ..Withdrawal::new(name.to_string(), uid, Cause::GroupWithdrawn) })
    }

    /// Returns the privileged groups among `held` that the user no longer has.
    fn lost(&self, name: &LinuxName, held: &BTreeSet<Gid>) -> BTreeSet<Gid> {
        let Some(privileged) = &self.privileged else { return BTreeSet::new() };
        privileged.lost(name, held, self)
    }

    /// Returns all processes of a managed user who has no session and may not log in.
    fn without_session(&self, name: &LinuxName, uid: Uid, cause: Cause) -> Withdrawal {
        // What the host has set up by name, such as ranges of subuid(5) or the `User=` of a unit, is for the user who has the name now.
        let user = if self.is_anothers(name, uid) { uid.to_string() } else { name.to_string() };
        Withdrawal { whole_user: true, ..Withdrawal::new(user, uid, cause) }
    }
}

/// Returns users in the order in which they are asked about. There may not be time for all, so the first is the one after `last`.
fn in_turn<T>(users: BTreeMap<Uid, T>, last: Option<Uid>) -> Vec<(Uid, T)> {
    let (before, mut after): (Vec<_>, Vec<_>) =
        users.into_iter().partition(|(uid, _)| last.is_some_and(|last| *uid <= last));
    after.extend(before);
    after
}

/// Whether the kernel marks all processes that were started in a session, even those that have left it.
fn has_marks(session: &Session, table: &Table) -> bool {
    let scope = logind::session_of(session.pid).map(|(_, scope)| scope);
    !SessionMarks::of(session.process(), table, scope).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_begins_with_the_user_after_the_last_one_asked_about() {
        let order = |last: Option<u32>| -> Vec<u32> {
            let users = [1, 2, 3].map(|uid| (Uid(uid), ()));
            in_turn(users.into(), last.map(Uid)).into_iter().map(|(uid, ())| uid.0).collect()
        };
        assert_eq!(order(None), [1, 2, 3]);
        assert_eq!(order(Some(1)), [2, 3, 1]);
        assert_eq!(order(Some(2)), [3, 1, 2]);
        assert_eq!(order(Some(9)), [1, 2, 3]);
    }
}
