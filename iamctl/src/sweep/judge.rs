//! What a sweep ends, and why: asks the resolver about open sessions, and about users who run processes without one.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::LinuxName;
use pam_iam_core::nsswitch;
use pam_iam_core::process::Process;
use pam_iam_core::registry::{Origin, Session, SessionRegistry};
use pam_iam_core::resolver::Queries;
use pam_iam_core::served::Served;
use pam_iam_core::wire::{Answer, Holder, Policy, Reason, Request};
use pam_iam_core::{local, paths};
use pam_iam_sessions::owner::{Owned, Owner, SessionMarks};
use pam_iam_sessions::table::{Effort, Table};
use pam_iam_sessions::{logind, lookup, managed};

use super::{Cause, Withdrawal};
use crate::Context;
use crate::privileged::Privileged;

/// How long the resolver is asked about open sessions: each whose turn does not come goes on until the next sweep, where those
/// that were confirmed longest ago come first.
const ASKING_MAX: Duration = Duration::from_secs(20);

/// How long it is asked about users who run processes without a session.
const ASKING_SESSIONLESS_MAX: Duration = Duration::from_secs(10);

/// How long it is asked about what sessions that are over have left behind.
const ASKING_LEFT_MAX: Duration = Duration::from_secs(5);

/// In how many sweeps in a row nothing may be seen of what a login left behind before nothing is looked for any more.
const UNSEEN_MAX: u32 = 60;

/// In how many of these it is asked about a user of whom nothing is seen and the kernel counts no process. There may be one
/// under a subordinate uid, of which a later look sees more.
const ASKED_UNSEEN_MAX: u32 = 3;

/// How many logins of one user may be kept of which nothing was seen for a while.
const KEPT_UNSEEN_MAX: usize = 100;

/// How many logins further each sweep begins to ask about what they left.
const ROTATION: usize = 101;

/// However short `freshness.offline` is, one hiccup ends nobody.
const OFFLINE_MIN: Duration = Duration::from_secs(120);

/// Whose a uid of our range is.
enum Owning {
    /// A user of this Linux name, or one who last had it here.
    User(LinuxName),
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
    UserWithdrawn(Reason),
    /// What it was opened with, or given, is withdrawn: its key, or a privileged group.
    SessionWithdrawn(Cause),
    /// Nobody can tell.
    Unknown,
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
    pub fn look_for_privileged_groups(&mut self, remember: bool) -> Result<(), String> {
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

    /// Says what of the open sessions, each with the time since it was confirmed, and of what runs without one is to end.
    ///
    /// # Errors
    /// Returns an error if the processes cannot be listed.
    pub fn judge(
        &mut self,
        registry: &SessionRegistry,
        mut open: Vec<(Session, Duration)>,
        effort: Effort,
    ) -> Result<Vec<Withdrawal>, String> {
        let proc = |error: std::io::Error| format!("/proc: {error}");
        let table = Table::read(effort).map_err(proc)?;
        self.unread = table.unread();
        self.asked_until = Instant::now() + ASKING_MAX;
        let mut users: BTreeMap<Uid, Withdrawal> = BTreeMap::new();
        let mut alone = Vec::new();
        let mut staying: BTreeSet<Uid> = BTreeSet::new();
        let mut seen: BTreeSet<Uid> = BTreeSet::new();
        let mut confirmed: BTreeSet<Uid> = BTreeSet::new();
        // There may not be time for all.
        open.sort_by_key(|(_, unconfirmed)| Reverse(*unconfirmed));
        for (session, unconfirmed) in open {
            seen.insert(session.uid);
            let account_kind = account_kind(&session.user, session.uid, self.config, &Files::default());
            let verdict = match &account_kind {
                Ok(account_kind) => self.verdict(&session, *account_kind, registry),
                Err(_) => Verdict::Unknown,
            };
            let managed = matches!(account_kind, Ok(AccountKind::Managed));
            let (cause, whole_user) = match verdict {
                // What a local account runs beside its sessions is the host's, unless its user is withdrawn.
                Verdict::UserWithdrawn(reason) => {
                    (Cause::Refused(reason), managed || matches!(account_kind, Ok(AccountKind::Adopted)))
                }
                // Its jobs are told from the user's others by the kernel's marks of the login; without such marks nobody
                // could tell, and they all end.
                Verdict::SessionWithdrawn(cause) => {
                    // The user may log in, and is asked about what runs beside the session.
                    confirmed.insert(session.uid);
                    (cause, managed && !has_marks(&session, &table))
                }
                Verdict::Unknown if unconfirmed >= self.config.freshness.offline.0.max(OFFLINE_MIN) => {
                    (Cause::Offline, managed)
                }
                Verdict::GoesOn(age) => {
                    let _ = registry.touch(&session, age);
                    staying.insert(session.uid);
                    confirmed.insert(session.uid);
                    continue;
                }
                Verdict::Unknown => {
                    self.unanswered.insert(session.uid);
                    staying.insert(session.uid);
                    continue;
                }
            };
            let uid = session.uid;
            let withdrawal = Withdrawal::new(session.user.clone(), uid, cause);
            let withdrawal = Withdrawal { sessions: vec![session], whole_user, ..withdrawal };
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
        let running = managed::users(&table, &self.served);
        self.asked_until = Instant::now() + ASKING_SESSIONLESS_MAX;
        let mut owned = Owned::new(&table);
        for (at, (uid, processes)) in in_turn(running, self.last_asked).into_iter().enumerate() {
            let mut known = withdrawals.iter_mut().filter(|withdrawal| withdrawal.uid == uid);
            if known.any(|withdrawal| withdrawal.whole_user) {
                continue;
            }
            let without_answer = self.without_answer.get();
            let withdrawal = match self.name_of(uid) {
                Owning::User(name) if seen.contains(&uid) => confirmed
                    .contains(&uid)
                    .then(|| self.with_a_lost_group(&name, uid, &processes, &mut owned))
                    .flatten(),
                Owning::User(name) => match self.login(&name, uid) {
                    Verdict::UserWithdrawn(reason) => {
                        Some(self.without_session(&name, uid, Cause::Refused(reason)))
                    }
                    Verdict::GoesOn(_) => self.with_a_lost_group(&name, uid, &processes, &mut owned),
                    Verdict::Unknown => {
                        self.unanswered.insert(uid);
                        None
                    }
                    Verdict::SessionWithdrawn(_) => None,
                },
                Owning::Unknown => {
                    self.unknown.insert(uid);
                    None
                }
                Owning::Unanswered => {
                    self.unanswered.insert(uid);
                    None
                }
            };
            // One who alone takes all the time is not to be the first again.
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
        let whole: BTreeSet<Uid> =
            withdrawals.iter().filter(|known| known.whole_user).map(|known| known.uid).collect();
        let left = self
            .left_behind(registry, &mut owned)
            .map_err(|error| format!("{}: {error}", paths::SESSIONS))?;
        withdrawals.extend(left.into_iter().filter(|left| !whole.contains(&left.uid)));
        Ok(withdrawals)
    }

    /// What sessions that are over left behind and were opened with what is withdrawn now. Those that have left nothing are taken
    /// out of the registry.
    fn left_behind(
        &mut self,
        registry: &SessionRegistry,
        owned: &mut Owned<'_>,
    ) -> std::io::Result<Vec<Withdrawal>> {
        self.asked_until = Instant::now() + ASKING_LEFT_MAX;
        let mut withdrawals: Vec<Withdrawal> = Vec::new();
        let mut sessions = registry.left()?;
        // There may not be time to ask about all.
        let sweeps = usize::try_from(pam_iam_core::registry::now() / 60).unwrap_or_default();
        let first = sweeps.wrapping_mul(ROTATION).checked_rem(sessions.len()).unwrap_or_default();
        sessions.rotate_left(first);
        let (mut at_work, mut still) = (BTreeMap::new(), BTreeMap::new());
        let mut counts: BTreeMap<Uid, usize> = BTreeMap::new();
        for session in &sessions {
            *counts.entry(session.uid).or_default() += 1;
        }
        for session in sessions {
            let audit = session.audit.as_deref();
            let Some((audit, owner)) = audit.zip(Owner::new(session.uid, &session.user)) else {
                self.forget(registry, &session);
                continue;
            };
            // What forks and ends all the time may be missed by any look.
            let before = *self.first_unseen.entry(session.process()).or_insert(session.unseen);
            let mut unseen = if owned.is_in_audit_session(&owner, audit) { 0 } else { before + 1 };
            let is_at_work = *at_work.entry(session.uid).or_insert_with(|| owner.is_at_work());
            let many = counts.get(&session.uid).is_some_and(|count| *count > KEPT_UNSEEN_MAX);
            if unseen > UNSEEN_MAX || many && unseen > ASKED_UNSEEN_MAX {
                let seen = still.entry(session.uid).or_insert_with(|| managed::audit_sessions_of(&owner));
                match seen {
                    Some(seen) if seen.contains(audit) => unseen = 0,
                    None if is_at_work && !many => {}
                    _ => {
                        self.forget(registry, &session);
                        continue;
                    }
                }
            }
            if !self.is_dry {
                let _ = registry.note_unseen(&session, unseen);
            }
            if unseen > ASKED_UNSEEN_MAX && !is_at_work {
                continue;
            }
            let Ok(account_kind) = account_kind(&session.user, session.uid, self.config, &Files::default())
            else {
                continue;
            };
            let cause = match self.verdict(&session, account_kind, registry) {
                Verdict::SessionWithdrawn(cause) => cause,
                // What the marks of a login are on is no service of the host's.
                Verdict::UserWithdrawn(reason)
                    if matches!(account_kind, AccountKind::Adopted | AccountKind::Shared) =>
                {
                    Cause::Refused(reason)
                }
                _ => continue,
            };
            let uid = session.uid;
            match withdrawals.iter_mut().find(|known| known.uid == uid && known.cause == cause) {
                Some(known) => known.left.push(session),
                None => {
                    let withdrawal = Withdrawal::new(session.user.clone(), uid, cause);
                    withdrawals.push(Withdrawal { left: vec![session], ..withdrawal });
                }
            }
        }
        Ok(withdrawals)
    }

    /// Takes what a login left behind out of the registry.
    fn forget(&self, registry: &SessionRegistry, session: &Session) {
        if !self.is_dry {
            let _ = registry.remove(session.process());
        }
    }

    /// Whose a uid of our range is.
    fn name_of(&self, uid: Uid) -> Owning {
        let Ok(local) = local::account_by_uid(Path::new(paths::PASSWD), uid) else {
            return Owning::Unanswered;
        };
        // One that neither this host nor IAM knows as a user of IAM's is the host's, whatever its number.
        let is_known = |account: &local::Account| {
            self.served.has(uid) || Path::new(paths::IMPORTER_STATE).exists() || {
                self.holder(uid).flatten().is_some_and(|name| name.as_str() == account.name)
            }
        };
        if let Some(account) = local {
            if !is_known(&account) {
                return Owning::Unknown;
            }
            let _ = self.served.add(uid, &account.name);
            return LinuxName::new(&account.name).map_or(Owning::Unanswered, Owning::User);
        }
        match self.holder(uid) {
            Some(Some(name)) => {
                let _ = self.served.add(uid, name.as_str());
                Owning::User(name)
            }
            // The user is gone, or may not be looked at, or never was: what is asked next tells which. Another directory may
            // have accounts with such uids, so nothing is asked about one that this host never served.
            holder => match (self.served.name_of(uid), holder) {
                (Some(name), _) => Owning::User(name),
                (None, Some(_)) => Owning::Unknown,
                (None, None) => Owning::Unanswered,
            },
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

    fn verdict(&self, session: &Session, account_kind: AccountKind, registry: &SessionRegistry) -> Verdict {
        let Ok(name) = LinuxName::new(&session.user) else { return Verdict::Unknown };
        // An account that is no longer adopted or shared is the host's own, and so are its other sessions.
        if account_kind == AccountKind::Local {
            return match session.origin {
                Origin::Iam => Verdict::SessionWithdrawn(Cause::KeyWithdrawn),
                _ => Verdict::GoesOn(Duration::ZERO),
            };
        }
        // Nobody could tell whose key it was. If it is not a member's now, it is taken for the host's own.
        if account_kind == AccountKind::Shared && session.origin != Origin::Iam {
            let members =
                |key: &String| self.keys(&name, session.uid, Some(key)).is_ok_and(|keys| !keys.is_empty());
            if session.keys.iter().any(members) {
                let _ = registry.insert(&Session { origin: Origin::Iam, ..session.clone() });
            }
            return Verdict::GoesOn(Duration::ZERO);
        }
        let age = match self.login(&name, session.uid) {
            Verdict::GoesOn(age) => age,
            verdict => return verdict,
        };
        // What a shared account or a local one has is the host's.
        let held = session.groups.iter().copied().collect();
        if account_kind == AccountKind::Managed && !self.lost(&name, &held).is_empty() {
            return Verdict::SessionWithdrawn(Cause::GroupWithdrawn);
        }
        // Keys that IAM does not know may be meant: of further key commands, or an adopted account's own.
        let elsewhere = session.origin != Origin::Iam
            && (self.config.keys.others_open_managed_accounts() || account_kind == AccountKind::Adopted);
        // Of a shared account nothing but the key tells whose session it is.
        let by_key = self.config.sessions.sweep == Sweep::Key || account_kind == AccountKind::Shared;
        if !by_key || elsewhere {
            return Verdict::GoesOn(age);
        }
        for key in &session.keys {
            match self.keys(&name, session.uid, Some(key)) {
                Ok(keys) if keys.is_empty() => {
                    let foreign = session.origin == Origin::Foreign;
                    return Verdict::SessionWithdrawn(if foreign {
                        Cause::ForeignKey
                    } else {
                        Cause::KeyWithdrawn
                    });
                }
                Ok(_) => {}
                Err(_) => return Verdict::Unknown,
            }
        }
        Verdict::GoesOn(age)
    }

    /// Whether a user may still log in.
    fn login(&self, name: &LinuxName, uid: Uid) -> Verdict {
        match self.decide(name, uid, Policy::Login) {
            Ok(decision) if decision.allow => Verdict::GoesOn(Duration::from_secs(decision.age)),
            // Whoever takes a permission from this host's role is not to end every session with it.
            Ok(decision) if decision.reason == Reason::Denied => Verdict::Unknown,
            Ok(decision) => Verdict::UserWithdrawn(decision.reason),
            Err(_) => Verdict::Unknown,
        }
    }

    /// All processes of a managed user who has no session and may not log in.
    fn without_session(&self, name: &LinuxName, uid: Uid, cause: Cause) -> Withdrawal {
        // Who has the name now has what goes by the name: ranges of subuid(5), a `User=` of a unit.
        let user = if self.is_anothers(name, uid) { uid.to_string() } else { name.to_string() };
        Withdrawal { whole_user: true, ..Withdrawal::new(user, uid, cause) }
    }

    /// Whether a name is now that of another account than `uid`: a local one, another IAM user's, or, where a directory is in
    /// use, one of that. A directory that does not answer makes it nobody else's: then units of that name are still spared, and
    /// a process under a subordinate uid still needs a further mark.
    fn is_anothers(&self, name: &LinuxName, uid: Uid) -> bool {
        match local::account_by_name(Path::new(paths::PASSWD), name.as_str()) {
            Ok(Some(account)) => return account.uid != uid,
            Ok(None) => {}
            // A file that cannot be read has every name.
            Err(_) => return true,
        }
        match self.user(name) {
            Ok(Some(user)) => user.uid != uid,
            _ => {
                let nsswitch = std::fs::read_to_string(nsswitch::NSSWITCH).unwrap_or_default();
                nsswitch::has_directory(&nsswitch)
                    && lookup::uid_of(name.as_str()).flatten().is_some_and(|other| other != uid)
            }
        }
    }

    /// Returns the name of the user with `uid`, if there is one; None if the resolver does not answer.
    fn holder(&self, uid: Uid) -> Option<Option<LinuxName>> {
        self.report::<Holder>(&Request::WhoIs { uid }).ok().map(|holder| holder.name)
    }
}

impl Queries for Judge<'_> {
    /// Sends a request once in a sweep, so that a user with many sessions is asked about once. When the time is up, nothing is
    /// sent any more.
    fn send(&self, request: &Request) -> Result<Answer, ClientError> {
        let question =
            serde_json::to_string(request).map_err(|error| ClientError::Malformed(error.to_string()))?;
        if let Some(answer) = self.answers.borrow().get(&question) {
            return Ok(answer.clone());
        }
        if Instant::now() >= self.asked_until {
            self.without_answer.set(self.without_answer.get() + 1);
            return Err(ClientError::TimedOut);
        }
        match self.context.resolver.send(request)? {
            Answer::Error { kind, message } => Err(ClientError::Failed { kind, message }),
            answer => {
                self.answers.borrow_mut().insert(question, answer.clone());
                Ok(answer)
            }
        }
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
