//! Which managed users have processes: a sweep asks about those who have no session, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pam_iam_core::id::Uid;
use pam_iam_core::process::Process;
use pam_iam_core::served::Served;
use pam_iam_core::{local, paths};

use crate::cgroup;
use crate::owner::{Owned, is_killer};
use crate::table::{Table, loginuid};

/// Finds the managed users that have processes, by every mark but descent.
///
/// A subordinate uid leads to the owner of its range: by number, by the account of that name, or, for a user who is gone, by
/// the last name that `served` knows.
pub fn users(table: &Table, served: &Served) -> BTreeMap<Uid, BTreeSet<Process>> {
    Finder::new(table, served, &local::subordinate(Path::new(paths::SUBUID))).find()
}

/// Whether any process has the uid as its real one, one that has ended and was not waited for among them.
fn is_at_work(uid: Uid) -> bool {
    rustix::process::getpriority_user(rustix::process::Uid::from_raw(uid.0)).is_ok()
}

/// Finds the users behind processes.
struct Finder<'a> {
    table: &'a Table,
    owned: Owned<'a>,
    served: &'a Served,
    subordinate: &'a [local::Subordinate],
    /// Whose the ranges of a name are.
    named: BTreeMap<&'a str, Vec<Uid>>,
}

impl<'a> Finder<'a> {
    fn new(table: &'a Table, served: &'a Served, subordinate: &'a [local::Subordinate]) -> Self {
        Self { table, owned: Owned::new(table), served, subordinate, named: BTreeMap::new() }
    }

    fn find(mut self) -> BTreeMap<Uid, BTreeSet<Process>> {
        let mut users: BTreeMap<Uid, BTreeSet<Process>> = BTreeMap::new();
        for task in self.table.0.values().filter(|task| !is_killer(task)) {
            let pid = task.process.pid;
            let namespaces = self.owned.namespaces.owners(pid);
            // A subordinate number in a user namespace of root's, as of a container, is nobody's who did not log in.
            let may_be_subordinate = namespaces.is_empty() || loginuid(pid).is_some_and(Uid::is_ours);
            let mut uids: BTreeSet<Uid> =
                task.own_uids().filter(|uid| uid.is_ours() || may_be_subordinate).collect();
            uids.extend(namespaces);
            let mut owners: BTreeSet<Uid> = BTreeSet::new();
            for uid in &uids {
                match uid.is_ours() {
                    true => drop(owners.insert(*uid)),
                    false => owners.extend(self.owners_of_subordinate(*uid)),
                }
            }
            if owners.is_empty() && uids.iter().all(|uid| !self.owned.is_account(*uid)) {
                owners.extend(self.owned.path_of(pid).and_then(cgroup::user_of_slice));
            }
            for uid in owners.into_iter().filter(|uid| uid.is_ours() && *uid != Uid::RESERVED) {
                users.entry(uid).or_default().insert(task.process);
            }
        }
        // The kernel misses none that is just being forked.
        for uid in self.served.uids().filter(|uid| uid.is_ours() && is_at_work(*uid)) {
            users.entry(uid).or_default();
        }
        users
    }

    /// The users who own a range with `uid` in it, if it is no account's.
    fn owners_of_subordinate(&mut self, uid: Uid) -> Vec<Uid> {
        let ranges = self.subordinate;
        let with_uid: Vec<&str> = ranges
            .iter()
            .filter(|range| range.uids.contains(&uid.0))
            .map(|range| range.owner.as_str())
            .collect();
        if with_uid.is_empty() || self.owned.is_account(uid) {
            return Vec::new();
        }
        let owners: BTreeSet<Vec<Uid>> =
            with_uid.into_iter().map(|owner| self.uids_of_owner(owner)).collect();
        // Where two owners have the same, the uid says nothing.
        if owners.len() == 1 { owners.into_iter().flatten().collect() } else { Vec::new() }
    }

    /// Who the owner of a range is, by number or by name.
    fn uids_of_owner(&mut self, owner: &'a str) -> Vec<Uid> {
        let served = self.served;
        let find = || match (owner.parse(), users::get_user_by_name(owner)) {
            (Ok(uid), _) => vec![Uid(uid)],
            (_, Some(account)) => vec![Uid(account.uid())],
            (_, None) => served.uids_of(owner),
        };
        self.named.entry(owner).or_insert_with(find).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Task, Uids};
    use pam_iam_core::id::FIRST;
    use pam_iam_core::process::Stat;

    /// Numbers that no process has, so that nothing is read of a real one.
    const P: i32 = 0x4000_0000;

    fn task(pid: i32, uid: u32) -> (i32, Task) {
        let uid = Uid(uid);
        let task = Task {
            process: Process { pid, start: 1 },
            stat: Stat { zombie: false, parent: 1, session: pid, terminal: 0, threads: 1, start: 1 },
            uids: vec![Uids { real: uid, effective: uid, saved: uid, fs: uid }],
            groups: BTreeSet::new(),
            set_groups: BTreeSet::new(),
            unread: None,
            is_guessed: false,
            command: String::new(),
        };
        (pid, task)
    }

    #[test]
    fn a_managed_user_is_found_by_a_subordinate_uid_whether_the_range_has_a_number_a_name_or_the_name_of_one_who_is_gone()
     {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        let (gone, listed) = (Uid(FIRST + 1), Uid(FIRST + 2));
        served.add(gone, "nobody-has-this-name").unwrap();
        let range =
            |owner: &str, start: u32| local::Subordinate { owner: owner.into(), uids: start..start + 10 };
        let (by_name, by_number, of_local) = (3_900_000_000, 3_900_000_100, 3_900_000_200);
        let ranges = [
            range("nobody-has-this-name", by_name),
            range(&listed.to_string(), by_number),
            range("daemon", of_local),
        ];
        let tasks = [(P, by_name), (P + 1, by_number), (P + 2, of_local), (P + 3, 1)]
            .map(|(pid, uid)| task(pid, uid));
        let table = Table(tasks.into_iter().collect());
        let users = Finder::new(&table, &served, &ranges).find();
        let found: Vec<(Uid, Vec<i32>)> = users
            .into_iter()
            .map(|(uid, processes)| (uid, processes.iter().map(|process| process.pid).collect()))
            .collect();
        assert_eq!(found, [(gone, vec![P]), (listed, vec![P + 1])]);
    }
}
