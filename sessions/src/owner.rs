//! Decides which processes belong to a user, by marks that the kernel sets.
//!
//! The loginuid (pam_loginuid(8)) is not such a mark. It survives sudo, so a database that an administrator starts with sudo
//! has the administrator's loginuid. And an unprivileged process may set an unset loginuid to any uid.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::local::Subordinate;
use pam_iam_core::process::{Process, is_at_work, own_audit_session};
use pam_iam_core::{local, paths};

use crate::namespace::Namespaces;
use crate::table::{Table, Task, loginuid};
use crate::unit;
use crate::{cgroup, lookup};

/// A user, and the uids that mark processes as the user's.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The user's own uid.
    pub uid: Uid,
    /// The Linux name, or empty if it is unknown.
    pub name: String,
    /// The subordinate uids (subuid(5)).
    subordinate: Vec<Range<u32>>,
    /// The subordinate uids of all other users. A uid that two users may use marks nothing.
    of_others: Vec<Range<u32>>,
}

/// How many subordinate uids of one user are looked up in the kernel's counts; each lookup takes less than 1 us.
pub(crate) const SUBORDINATES_MAX: usize = 200_000;

/// Why a process belongs to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// One of its uids (real, effective, saved, file system) is the user's, and not lent by root.
    Uid,
    /// One of its uids is a subordinate uid of the user.
    SubordinateUid,
    /// It is in a user namespace that the user owns, or in one below that.
    UserNamespace,
    /// It is in the user's slice, and none of its uids has an account.
    Slice,
}

impl Owner {
    /// Returns the user with `uid`. None for root and the reserved uid, whose processes are never ended.
    pub fn new(uid: Uid, name: &str) -> Option<Self> {
        Self::with_ranges(uid, name, &local::subordinate(Path::new(paths::SUBUID)))
    }

    /// Returns the user with `uid`, where `ranges` are the subordinate uids of this host. None for root and the reserved
    /// uid.
    pub(crate) fn with_ranges(uid: Uid, name: &str, ranges: &[Subordinate]) -> Option<Self> {
        if uid == Uid::ROOT || uid == Uid::RESERVED {
            return None;
        }
        let number = uid.to_string();
        let (own, others): (Vec<_>, Vec<_>) =
            ranges.iter().partition(|range| range.owner == name || range.owner == number);
        let uids = |ranges: Vec<&Subordinate>| ranges.into_iter().map(|range| range.uids.clone()).collect();
        Some(Self { uid, name: name.to_owned(), subordinate: uids(own), of_others: uids(others) })
    }

    /// Returns the subordinate uids under which the kernel counts processes. A process that forks and ends all the time can escape every
    /// look, but not that count.
    pub fn subordinates_at_work(&self) -> impl Iterator<Item = Uid> {
        let uids = self.subordinate.iter().cloned().flatten().take(SUBORDINATES_MAX).map(Uid);
        uids.filter(|uid| is_at_work(*uid) && self.is_subordinate(*uid))
    }

    /// Whether the kernel counts any process under the user's uid or a subordinate one.
    pub fn is_at_work(&self) -> bool {
        is_at_work(self.uid) || self.subordinates_at_work().next().is_some()
    }

    pub(crate) fn is_subordinate(&self, uid: Uid) -> bool {
        let is_in = |ranges: &[Range<u32>]| ranges.iter().any(|range| range.contains(&uid.0));
        // Root's uid is never a subordinate one, even if subuid(5) lists it.
        uid != Uid::ROOT && is_in(&self.subordinate) && !is_in(&self.of_others)
    }
}

/// A cache of the uids about which /etc/passwd or the services of nsswitch.conf have answered: true if the uid has an
/// account.
#[derive(Debug, Default)]
pub struct Accounts {
    known: BTreeMap<Uid, bool>,
}

/// A view of the processes of a table, with a cache of what was looked up about them.
pub struct Owned<'a> {
    table: &'a Table,
    pub(crate) namespaces: Namespaces,
    paths: BTreeMap<i32, Option<String>>,
    accounts: Accounts,
    /// Whether the services of nsswitch.conf may be asked.
    may_look_up: bool,
}

impl<'a> Owned<'a> {
    /// Creates a view of `table` that may ask the services of nsswitch.conf.
    pub fn new(table: &'a Table) -> Self {
        Self::knowing(table, Accounts::default(), true)
    }

    /// Creates a view of `table` with the accounts known from an earlier one. `may_look_up` must be false while a user's
    /// processes are frozen, since a service could wait for one of them.
    pub fn knowing(table: &'a Table, accounts: Accounts, may_look_up: bool) -> Self {
        Self { table, namespaces: Namespaces::default(), paths: BTreeMap::new(), accounts, may_look_up }
    }

    /// Returns the accounts that are known now, for the view of a later table.
    pub fn into_accounts(self) -> Accounts {
        self.accounts
    }

    /// Returns the table.
    pub fn table(&self) -> &'a Table {
        self.table
    }

    /// Returns the control group of a process.
    pub fn path_of(&mut self, pid: i32) -> Option<&str> {
        self.paths.entry(pid).or_insert_with(|| cgroup::of_process(pid)).as_deref()
    }

    /// Returns why a process belongs to `owner`. None if it does not.
    pub fn mark(&mut self, task: &Task, owner: &Owner) -> Option<Mark> {
        if task.own_uids().any(|uid| uid == owner.uid) {
            return Some(Mark::Uid);
        }
        let uids: BTreeSet<Uid> = task.all_uids().collect();
        let pid = task.process.pid;
        let owners = self.namespaces.owners(pid);
        let is_in_own = owners.iter().any(|uid| self.is_owners(*uid, owner));
        // In a user namespace of root, such as a container's, a uid in the user's range is not the user's.
        let is_elsewhere = !owners.is_empty() && !is_in_own && !self.was_started_by(pid, owner);
        if !is_elsewhere && uids.iter().any(|uid| self.is_subordinate(*uid, owner)) {
            return Some(Mark::SubordinateUid);
        }
        // If it is unknown whether a uid in the user's range has an account, a second sign is needed that the process is the
        // user's.
        let mut may_be = uids.iter().filter(|uid| owner.is_subordinate(**uid));
        if may_be.any(|uid| self.is_account(*uid).is_none()) && (is_in_own || self.was_started_by(pid, owner))
        {
            return Some(Mark::SubordinateUid);
        }
        if is_in_own {
            return Some(Mark::UserNamespace);
        }
        let is_in_slice = task.unread.is_none()
            && self.path_of(pid).is_some_and(|path| cgroup::is_in_slice(path, owner.uid));
        (is_in_slice && uids.iter().all(|uid| self.is_account(*uid) == Some(false))).then_some(Mark::Slice)
    }

    /// Whether a uid is the user's own or a subordinate one.
    pub fn is_owners(&mut self, uid: Uid, owner: &Owner) -> bool {
        uid == owner.uid || self.is_subordinate(uid, owner)
    }

    /// Whether a uid is a subordinate one of the user. A uid that has or may have an account is not, though the range
    /// includes it: ranges of subuid(5) and the uids of a directory may overlap.
    fn is_subordinate(&mut self, uid: Uid, owner: &Owner) -> bool {
        owner.is_subordinate(uid) && self.is_account(uid) == Some(false)
    }

    /// Whether a uid is root's, a managed one, or that of an account in /etc/passwd or any service of nsswitch.conf. None if
    /// that is unknown: then no process is ended because of that uid alone.
    pub(crate) fn is_account(&mut self, uid: Uid) -> Option<bool> {
        if uid == Uid::ROOT || uid.is_managed() {
            return Some(true);
        }
        if let Some(is_account) = self.accounts.known.get(&uid) {
            return Some(*is_account);
        }
        let is_account = match local::account_by_uid(Path::new(paths::PASSWD), uid) {
            Ok(None) if self.may_look_up => lookup::is_account(uid)?,
            Ok(Some(_)) => true,
            _ => return None,
        };
        self.accounts.known.insert(uid, is_account);
        Some(is_account)
    }

    /// Returns all processes of a user, except those that the host runs as this user, this process, and killers.
    pub fn of(&mut self, owner: &Owner) -> BTreeSet<Process> {
        let table = self.table;
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let mut found = BTreeSet::new();
        for task in table.0.values().filter(|task| task.process.pid != own && !is_killer(task)) {
            if self.mark(task, owner).is_some() && !self.is_host_process(task, owner) {
                found.insert(task.process);
            }
        }
        found
    }

    /// Returns the processes of a user that hold one of `groups`.
    pub fn holders(&mut self, owner: &Owner, groups: &BTreeSet<Gid>) -> BTreeSet<Process> {
        if groups.is_empty() {
            return BTreeSet::new();
        }
        let (table, mut found) = (self.table, self.of(owner));
        found.retain(|process| {
            table.task(*process).is_some_and(|task| groups.iter().any(|gid| task.holds(*gid)))
        });
        found
    }

    /// Returns the service of the host that a process belongs to, if its unit names the user. [`Self::of`] leaves such a
    /// process out.
    pub fn service_of(&mut self, task: &Task, owner: &Owner) -> Option<String> {
        let path = self.path_of(task.process.pid)?;
        unit::that_names(path, &owner.name, owner.uid)
    }

    /// Whether a process with a mark of the user is the host's: in a service whose unit names the user, or, for a local
    /// account, in a container made by root, where the uid may be another user's.
    fn is_host_process(&mut self, task: &Task, owner: &Owner) -> bool {
        self.service_of(task, owner).is_some()
            || !owner.uid.is_managed() && self.is_in_a_container(task, owner)
    }

    /// Whether a process is in a container made by root that the user did not start. A setuid program may have made the
    /// container for the user: then the loginuid, which cannot be removed, is the user's.
    fn is_in_a_container(&mut self, task: &Task, owner: &Owner) -> bool {
        let pid = task.process.pid;
        self.namespaces.is_in_a_container_of_root(pid) && !self.was_started_by(pid, owner)
    }

    /// Whether a process comes from a login of the user, or is in the user's slice.
    fn was_started_by(&mut self, pid: i32, owner: &Owner) -> bool {
        loginuid(pid) == Some(owner.uid)
            || self.path_of(pid).is_some_and(|path| cgroup::is_in_slice(path, owner.uid))
    }

    /// Whether a process with the user's uid is the host's.
    pub fn has_host_processes(&mut self, owner: &Owner) -> bool {
        let table = self.table;
        table
            .0
            .values()
            .any(|task| task.all_uids().any(|uid| uid == owner.uid) && self.is_host_process(task, owner))
    }

    /// Whether any process of `owner` is in the audit session `audit`.
    pub fn is_in_audit_session(&mut self, owner: &Owner, audit: &str) -> bool {
        let table = self.table;
        table
            .0
            .values()
            .filter(|task| task.audit.as_deref() == Some(audit))
            .any(|task| self.mark(task, owner).is_some())
    }

    /// Whether a process is in `scope`, the control group of a logind session, or below it.
    fn is_in_scope(&mut self, pid: i32, scope: &str) -> bool {
        let rest = self.path_of(pid).and_then(|path| path.strip_prefix(scope));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns the processes of sessions: those of `roots` that still run, the processes of `owner` with a mark of one of
    /// `logins`, the descendants of all these, and the processes in a session (setsid(2)) that one of these leads or led.
    pub fn session_processes(
        &mut self,
        roots: &BTreeSet<Process>,
        owner: &Owner,
        logins: &[SessionMarks],
    ) -> BTreeSet<Process> {
        let table = self.table;
        let all = &table.0;
        let mut pids: BTreeSet<i32> =
            roots.iter().filter(|root| table.task(**root).is_some()).map(|root| root.pid).collect();
        let audits: BTreeSet<&String> = logins.iter().filter_map(|marks| marks.audit.as_ref()).collect();
        let scopes: Vec<&String> = logins.iter().filter_map(|marks| marks.scope.as_ref()).collect();
        for task in all.values().filter(|_| !audits.is_empty() || !scopes.is_empty()) {
            let pid = task.process.pid;
            let is_marked = task.audit.as_ref().is_some_and(|audit| audits.contains(audit))
                || scopes.iter().any(|scope| self.is_in_scope(pid, scope));
            if is_marked && self.mark(task, owner).is_some() {
                pids.insert(pid);
            }
        }
        let (mut children, mut members): (BTreeMap<i32, Vec<i32>>, BTreeMap<i32, Vec<i32>>) =
            Default::default();
        for task in all.values() {
            children.entry(task.stat.parent).or_default().push(task.process.pid);
            members.entry(task.stat.session).or_default().push(task.process.pid);
        }
        let known: BTreeSet<i32> = roots.iter().map(|root| root.pid).collect();
        let mut unseen: Vec<i32> = pids.iter().copied().collect();
        while let Some(task) = unseen.pop().and_then(|pid| all.get(&pid)) {
            let (pid, session) = (task.process.pid, task.stat.session);
            // A session counts if its leader was found, or has ended and is in `roots`. Any other session may be that of the
            // process that started a root, and have unrelated processes.
            let counts = session == pid || !all.contains_key(&session) && known.contains(&session);
            let of_session = members.get(&session).filter(|_| counts);
            for found in children.get(&pid).into_iter().chain(of_session).flatten() {
                if pids.insert(*found) {
                    unseen.push(*found);
                }
            }
        }
        pids.iter().filter_map(|pid| all.get(pid)).map(|task| task.process).collect()
    }
}

/// Whether a process is a killer ([`crate::killer`]): only a killer has the reserved uid as its real and saved uid, and
/// another one as its effective uid.
pub(crate) fn is_killer(task: &Task) -> bool {
    task.unread.is_none()
        && task.uids.iter().all(|uids| {
            uids.real == Uid::RESERVED && uids.saved == Uid::RESERVED && uids.effective != Uid::RESERVED
        })
}

/// The marks of the processes of one login. They count only for processes that also have a [`Mark`] of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionMarks {
    /// The audit session (pam_loginuid(8)), if the login began one.
    audit: Option<String>,
    /// The control group of logind's session.
    scope: Option<String>,
}

impl SessionMarks {
    /// Returns the marks of the login that `opener` opened. Its logind session has the control group `scope`.
    pub fn of(opener: Process, table: &Table, scope: Option<String>) -> Self {
        let audit = table.task(opener).and_then(|_| own_audit_session(opener.pid));
        Self { audit, scope }
    }

    /// Returns the marks of a login that is over, which had this audit session.
    pub fn of_audit_session(audit: String) -> Self {
        Self { audit: Some(audit), scope: None }
    }

    /// Whether there is no mark, so that processes of the login are found only by descent.
    pub fn is_empty(&self) -> bool {
        self.audit.is_none() && self.scope.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::fixture::{P, table, task};

    fn range(owner: &str, uids: Range<u32>) -> Subordinate {
        Subordinate { owner: owner.into(), uids }
    }

    fn alice() -> Owner {
        let ranges =
            [range("alice", 100_000..100_010), range("1002", 0..1000), range("other", 200_000..200_010)];
        Owner::with_ranges(Uid(1002), "alice", &ranges).unwrap()
    }

    #[test]
    fn a_process_belongs_to_a_user_by_any_of_its_uids() {
        for (uids, belongs) in [
            ([1002, 1002, 1002], true),
            // A setuid program of root, started by the user.
            ([1002, 0, 0], true),
            // A setuid program of the user, started by somebody else, or by itself.
            ([1003, 1002, 1003], true),
            ([100_005, 100_005, 100_005], true),
            ([1003, 1003, 100_005], true),
            // sshd, while it reads the user's files.
            ([0, 1002, 0], false),
            ([1003, 1003, 1003], false),
            ([200_005, 200_005, 200_005], false),
            ([0, 0, 0], false),
        ] {
            let table = table(&[task(P, 1, P, uids)]);
            let found = Owned::new(&table).of(&alice());
            assert_eq!(!found.is_empty(), belongs, "{uids:?}");
        }
    }

    #[test]
    fn a_uid_with_an_account_is_not_subordinate_though_a_range_includes_it() {
        let table = table(&[task(P, 1, P, [100_005; 3])]);
        let mut owned = Owned::new(&table);
        // As if a directory had this account.
        owned.accounts.known.insert(Uid(100_005), true);
        assert!(owned.of(&alice()).is_empty());
    }

    #[test]
    fn a_subordinate_uid_that_may_have_an_account_counts_only_in_the_users_slice() {
        let table = table(&[task(P, 1, P, [100_005; 3])]);
        let look = || Owned::knowing(&table, Accounts::default(), false);
        let mut owned = look();
        assert!(owned.of(&alice()).is_empty());
        assert!(owned.into_accounts().known.is_empty(), "a missing answer is not remembered");
        let mut owned = look();
        owned.paths.insert(P, Some("/user.slice/user-1002.slice/session-1.scope".into()));
        assert_eq!(owned.of(&alice()).len(), 1);
    }

    #[test]
    fn a_process_belongs_to_a_user_by_the_uids_of_any_thread() {
        let mut other = task(P, 1, P, [1003; 3]);
        other.uids.extend(task(P, 1, P, [1002; 3]).uids);
        let table = table(&[other]);
        assert_eq!(Owned::new(&table).of(&alice()).len(), 1);
    }

    #[test]
    fn a_uid_in_the_ranges_of_two_owners_marks_nothing() {
        let ranges = [range("alice", 0..110_000), range("bob", 100_000..100_010)];
        let alice = Owner::with_ranges(Uid(1002), "alice", &ranges).unwrap();
        let has = |uid| alice.is_subordinate(Uid(uid));
        assert!(has(99_999) && has(100_010) && !has(100_000) && !has(0));
    }

    #[test]
    fn the_session_in_which_the_opener_was_started_does_not_count() {
        // Root's shell started runuser and ended. The other processes that it left do not count.
        let (runuser, sleep, shell) = (P + 1, P + 2, P);
        let table = table(&[
            task(runuser, 1, shell, [0; 3]),
            task(sleep, runuser, shell, [1002; 3]),
            task(P + 3, 1, shell, [0; 3]),
            task(P + 4, 1, shell, [65_534; 3]),
        ]);
        let roots = BTreeSet::from([Process { pid: runuser, start: 1 }]);
        let found = Owned::new(&table).session_processes(&roots, &alice(), &[]);
        let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [runuser, sleep]);
        // A session whose leader was found counts also when the leader has ended.
        let roots = BTreeSet::from([Process { pid: runuser, start: 1 }, Process { pid: shell, start: 1 }]);
        assert_eq!(Owned::new(&table).session_processes(&roots, &alice(), &[]).len(), 4);
    }

    #[test]
    fn a_long_chain_of_descendants_is_found_in_one_pass() {
        // With one pass over all processes for each generation, this would take a minute.
        const LONG: i32 = 20_000;
        let tasks: Vec<Task> = (0..LONG).map(|at| task(P + at, P + at - 1, P + at, [1002; 3])).collect();
        let roots = BTreeSet::from([Process { pid: P, start: 1 }]);
        let table = table(&tasks);
        let found = Owned::new(&table).session_processes(&roots, &alice(), &[]);
        assert_eq!(found.len(), usize::try_from(LONG).unwrap());
    }

    #[test]
    fn root_has_no_owner_and_is_nobodys_subordinate() {
        assert!(Owner::new(Uid::ROOT, "root").is_none() && Owner::new(Uid::RESERVED, "x").is_none());
        assert!(!Owned::new(&Table::default()).is_owners(Uid::ROOT, &alice()));
    }

    #[test]
    fn descendants_and_their_sessions_are_found_and_a_daemon_that_left_both_is_not() {
        let (sshd, shell, job, daemon, root) = (P, P + 1, P + 2, P + 3, P + 4);
        let table = table(&[
            task(sshd, 1, sshd, [0, 0, 0]),
            task(shell, sshd, shell, [1002; 3]),
            // In the shell's session; its parent has ended.
            task(job, 1, shell, [1003; 3]),
            task(daemon, 1, daemon, [1003; 3]),
            task(root, shell, shell, [0, 0, 0]),
        ]);
        let roots = BTreeSet::from([Process { pid: sshd, start: 1 }]);
        let found = Owned::new(&table).session_processes(&roots, &alice(), &[]);
        let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [sshd, shell, job, root]);
        let another = BTreeSet::from([Process { pid: sshd, start: 2 }]);
        assert!(Owned::new(&table).session_processes(&another, &alice(), &[]).is_empty());
    }

    #[test]
    fn a_scope_includes_what_is_below_it_and_not_a_longer_name() {
        let scope = "/user.slice/user-7.slice/session-1.scope";
        let table = Table::default();
        for (path, is_in) in
            [(scope.to_owned(), true), (format!("{scope}/x"), true), (format!("{scope}s"), false)]
        {
            let mut owned = Owned::new(&table);
            owned.paths.insert(P, Some(path.clone()));
            assert_eq!(owned.is_in_scope(P, scope), is_in, "{path}");
        }
        assert!(!Owned::new(&table).is_in_scope(P, scope));
    }

    #[test]
    fn in_the_slice_a_uid_without_account_is_the_users_and_root_is_not() {
        let table = table(&[task(P, 1, P, [3_999_999_999; 3]), task(P + 1, 1, P + 1, [0; 3])]);
        let mut owned = Owned::new(&table);
        for pid in [P, P + 1] {
            owned.paths.insert(pid, Some("/user.slice/user-1002.slice/session-1.scope".into()));
        }
        assert_eq!(owned.mark(&table.0[&P], &alice()), Some(Mark::Slice));
        assert_eq!(owned.mark(&table.0[&(P + 1)], &alice()), None, "a process of root in the slice");
    }
}
