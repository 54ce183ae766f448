//! What a sweep ends, and why: asks the resolver about open sessions, and about users who run processes without one.

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

/// How long the resolver is asked about open sessions: each whose turn does not come goes on until the next sweep, where those
/// that were confirmed longest ago come first.
const ASKING_MAX: Duration = Duration::from_secs(20);

/// How long it is asked about users who run processes without a session.
const ASKING_SESSIONLESS_MAX: Duration = Duration::from_secs(10);

/// However short `freshness.offline` is, one hiccup ends nobody.
const OFFLINE_MIN: Duration = Duration::from_secs(120);

/// What becomes of an open session. `is_confirmed` says whether IAM lets its user in.
enum Fate {
    GoesOn { is_confirmed: bool },
    Ends { cause: Cause, whole_user: bool, is_confirmed: bool },
}

/// What was learned of the users who have open sessions.
#[derive(Default)]
struct UsersWithSessions {
    /// All of them.
    seen: BTreeSet<Uid>,
    /// Those of whom a session goes on.
    staying: BTreeSet<Uid>,
    /// Those whom IAM lets in.
    confirmed: BTreeSet<Uid>,
}

/// Asks the resolver about sessions, within a time.
pub struct Judge<'a> {
    context: &'a Context,
    config: &'a Config,
    served: Served,
    privileged: Option<Privileged>,
    asked_until: Instant,
    /// What was answered in this sweep, by the question as it is on the wire.
    answers: RefCell<BTreeMap<String, Answer>>,
    /// The last user without a session whom this sweep or the one before asked about.
    pub last_asked: Option<Uid>,
    /// The users of whom nobody could tell whether they may go on.
    pub unanswered: BTreeSet<Uid>,
    /// How many questions there was no time for.
    without_answer: Cell<usize>,
    /// How many processes there was no time to read in the last look: a withdrawn user may be in one of anybody's.
    pub unread: usize,
    /// In how many sweeps in a row nothing was seen of what logins left behind, when this sweep began.
    first_unseen: BTreeMap<Process, u32>,
    /// Whether this sweep changes anything, or only says what it would do.
    is_dry: bool,
    /// Uids of our range of which nothing tells whether they ever were ours.
    pub unknown: BTreeSet<Uid>,
}

impl<'a> Judge<'a> {
    /// Asks from now on; `last_asked` is where the last sweep came to.
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

    /// Finds out which groups are to be looked for. Kept for later sweeps if `remember` says so.
    ///
    /// # Errors
    /// Returns what to log if they cannot be kept.
    pub fn look_for_privileged_groups(&mut self, remember: bool) -> Result<(), PrivilegedError> {
        if self.config.sessions.sweep != Sweep::Key {
            return Ok(());
        }
        let (privileged, kept) = Privileged::load(self.config, self, remember);
        self.privileged = Some(privileged);
        kept
    }

    /// How many questions there was no time for.
    pub fn without_answer(&self) -> usize {
        self.without_answer.get()
    }

    /// Returns what is to end: of the open sessions, each with the time since it was confirmed, of what managed users run without
    /// one, and of what sessions that are over left behind.
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
            // While another session of the user goes on, what was left behind may be that one's.
            withdrawal.whole_user &= !users.staying.contains(&withdrawal.uid);
        }
        (withdrawals, users)
    }

    /// Returns what becomes of an open session that was last confirmed `unconfirmed` ago. One that goes on is noted in the registry.
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
            // What a local account runs beside its sessions is the host's, unless its user is withdrawn.
            Verdict::UserWithdrawn(reason) => Fate::Ends {
                cause: Cause::Refused(reason),
                whole_user: is_managed || matches!(account_kind, Ok(AccountKind::Adopted)),
                is_confirmed: false,
            },
            // The user may log in, and is asked about what runs beside the session. Its jobs are told from the user's others by the
            // kernel's marks of the login; without such marks nobody could tell, and they all end.
            Verdict::SessionWithdrawn(cause) => {
                Fate::Ends { cause, whole_user: is_managed && !has_marks(session, table), is_confirmed: true }
            }
            Verdict::Unknown if unconfirmed >= self.config.freshness.offline.0.max(OFFLINE_MIN) => {
                Fate::Ends { cause: Cause::Offline, whole_user: is_managed, is_confirmed: false }
            }
            Verdict::Unknown => Fate::GoesOn { is_confirmed: false },
        }
    }

    /// Adds what managed users run without a session and may not.
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
            // A user who alone takes all the time is not to be the first again.
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

    /// Returns what of `processes` is to end, which the user with `uid` runs.
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

    /// Processes of a managed user that hold a privileged group which IAM no longer gives: left by a session that had it, or of
    /// a service manager (`user@.service`) that such a session started.
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
        // A setgid program of the host's lends its group to anybody.
        if owned.holders(&owner, &groups).is_empty() {
            return None;
        }
        Some(Withdrawal { groups, ..Withdrawal::new(name.to_string(), uid, Cause::GroupWithdrawn) })
    }

    /// The privileged groups among `held` that the user no longer has.
    fn lost(&self, name: &LinuxName, held: &BTreeSet<Gid>) -> BTreeSet<Gid> {
        let Some(privileged) = &self.privileged else { return BTreeSet::new() };
        privileged.lost(name, held, self)
    }

    /// All processes of a managed user who has no session and may not log in.
    fn without_session(&self, name: &LinuxName, uid: Uid, cause: Cause) -> Withdrawal {
        // Who has the name now has what goes by the name: ranges of subuid(5), a `User=` of a unit.
        let user = if self.is_anothers(name, uid) { uid.to_string() } else { name.to_string() };
        Withdrawal { whole_user: true, ..Withdrawal::new(user, uid, cause) }
    }
}

/// Users in the order in which they are asked about: the one after the last sweep's last comes first, as there may not be time
/// for all.
fn in_turn<T>(users: BTreeMap<Uid, T>, last: Option<Uid>) -> Vec<(Uid, T)> {
    let (before, mut after): (Vec<_>, Vec<_>) =
        users.into_iter().partition(|(uid, _)| last.is_some_and(|last| *uid <= last));
    after.extend(before);
    after
}

/// Whether the kernel marks what was started in a session, also what has left it.
fn has_marks(session: &Session, table: &Table) -> bool {
    let scope = logind::session_of(session.pid).map(|(_, scope)| scope);
    !SessionMarks::of(session.process(), table, scope).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_goes_on_with_the_user_after_the_last_whom_the_one_before_asked_about() {
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
