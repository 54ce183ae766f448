//! Finds the managed users who have processes, for the sweep, which checks users without a session too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pam_iam_core::id::Uid;
use pam_iam_core::local::Subordinate;
use pam_iam_core::process::{Process, is_at_work};
use pam_iam_core::served::Served;
use pam_iam_core::{local, paths};

use crate::owner::{Owned, Owner, SUBORDINATES_MAX, is_killer};
use crate::table::{Effort, Table, Task};
use crate::{cgroup, lookup};

/// Returns the managed users who may have processes, each with the processes that have a mark of the user ([`Owned::mark`]).
/// The set is empty if only the kernel's count shows that the user has processes.
///
/// The owner of a range of subordinate uids is a uid or a name. The name is that of a local account, or one in `served`,
/// which has those of deleted users, or one that a service of nsswitch.conf knows.
pub fn users(table: &Table, served: &Served) -> BTreeMap<Uid, BTreeSet<Process>> {
    Finder::new(table, served, &local::subordinate(Path::new(paths::SUBUID))).find()
}

/// Returns the audit sessions of a user's processes, read while the slice of the user is frozen. None if there is no slice,
/// it cannot be frozen, or a process cannot be read.
pub fn audit_sessions_of(owner: &Owner) -> Option<BTreeSet<String>> {
    let slice = cgroup::existing_slice(owner.uid)?;
    let (frozen, frozen_paths) = cgroup::freeze(BTreeSet::from([slice.clone()]));
    let table = Table::read(Effort::Quick).ok()?;
    let is_sure = frozen_paths.contains(&slice) && cgroup::is_frozen_or_gone(&slice) && table.unread() == 0;
    drop(frozen);
    let mut owned = Owned::new(&table);
    let tasks = table.0.values().filter(|task| owned.mark(task, owner).is_some());
    let sessions = tasks.filter_map(|task| task.audit.clone()).collect();
    is_sure.then_some(sessions)
}

/// A search for the users who own the processes of a table.
struct Finder<'a> {
    table: &'a Table,
    owned: Owned<'a>,
    served: &'a Served,
    ranges: &'a [Subordinate],
    /// The uids of the owner of a range, by the owner's name or uid in the range.
    named: BTreeMap<&'a str, Vec<Uid>>,
}

/// A user who may own a process: the uid, and the owner's name in the subordinate range that led to the uid, or an empty
/// string.
type Candidate<'a> = (Uid, &'a str);

impl<'a> Finder<'a> {
    fn new(table: &'a Table, served: &'a Served, ranges: &'a [Subordinate]) -> Self {
        Self { table, owned: Owned::new(table), served, ranges, named: BTreeMap::new() }
    }

    fn find(mut self) -> BTreeMap<Uid, BTreeSet<Process>> {
        let mut users: BTreeMap<Uid, BTreeSet<Process>> = BTreeMap::new();
        let mut owners: BTreeMap<Candidate<'_>, Option<Owner>> = BTreeMap::new();
        for task in self.table.0.values().filter(|task| !is_killer(task)) {
            for (uid, name) in self.candidates(task) {
                let owner =
                    owners.entry((uid, name)).or_insert_with(|| Owner::with_ranges(uid, name, self.ranges));
                if owner.as_ref().is_some_and(|owner| self.owned.mark(task, owner).is_some()) {
                    users.entry(uid).or_default().insert(task.process);
                }
            }
        }
        // A process that forks and ends all the time can escape the table, but not the kernel's count.
        for uid in self.served.uids().filter(|uid| uid.is_managed() && is_at_work(*uid)) {
            users.entry(uid).or_default();
        }
        for uid in self.owners_at_work() {
            users.entry(uid).or_default();
        }
        users
    }

    /// Returns the managed users under one of whose subordinate uids the kernel counts a process, if the uid has neither an
    /// account nor a process in the table, or if it is unknown whether it has an account.
    fn owners_at_work(&mut self) -> Vec<Uid> {
        let listed: BTreeSet<Uid> = self.table.0.values().flat_map(Task::all_uids).collect();
        let ranges = self.ranges;
        let names: BTreeSet<&str> = ranges.iter().map(|range| range.owner.as_str()).collect();
        let mut owners = Vec::new();
        for name in names {
            for uid in self.uids_of_owner(name).to_vec() {
                let Some(owner) = Owner::with_ranges(uid, name, ranges).filter(|_| uid.is_managed()) else {
                    continue;
                };
                // If it is unknown whether the uid has an account, a process in the table may have ended before its mark was
                // read. To return the user is harmless: only a process with a mark is ended.
                let may_be = owner.subordinates_at_work().any(|of| match self.owned.is_account(of) {
                    Some(is_account) => !is_account && !listed.contains(&of),
                    None => true,
                });
                owners.extend(may_be.then_some(uid));
            }
        }
        owners
    }

    /// Returns the managed users who may own a process: by a uid, a user namespace, a subordinate range, or the slice.
    fn candidates(&mut self, task: &Task) -> BTreeSet<Candidate<'a>> {
        let pid = task.process.pid;
        let mut uids: BTreeSet<Uid> = task.own_uids().collect();
        uids.extend(self.owned.namespaces.owners(pid));
        let mut candidates: BTreeSet<Candidate<'a>> = BTreeSet::new();
        for uid in &uids {
            candidates.insert((*uid, ""));
            let ranges = self.ranges;
            for range in ranges.iter().filter(|range| range.uids.contains(&uid.0)) {
                let name = range.owner.as_str();
                candidates.extend(self.uids_of_owner(name).iter().map(|uid| (*uid, name)));
            }
        }
        let is_managed = |(uid, _): &Candidate<'_>| uid.is_managed();
        candidates.retain(is_managed);
        if candidates.is_empty() && uids.iter().all(|uid| self.owned.is_account(*uid) == Some(false)) {
            let of_slice = self.owned.path_of(pid).and_then(cgroup::user_of_slice);
            candidates.extend(of_slice.map(|uid| (uid, "")).filter(is_managed));
        }
        candidates
    }

    /// Returns the uids of the owner of a range, which names a uid or a name. A name has the uid of the local account, else
    /// the uids that this host has served under the name, else the uid that nsswitch.conf leads to. That comes last, since
    /// nss_iam would ask IAM about each deleted user.
    fn uids_of_owner(&mut self, owner: &'a str) -> &[Uid] {
        let (served, ranges) = (self.served, self.ranges);
        let find = || match owner.parse() {
            Ok(uid) => vec![Uid(uid)],
            Err(_) => match local::account_by_name(Path::new(paths::PASSWD), owner) {
                Ok(Some(account)) => vec![account.uid],
                Ok(None) => match served.uids_of(owner) {
                    // The services of nsswitch.conf are not asked about a range without processes.
                    none if none.is_empty() && is_any_at_work(owner, ranges) => {
                        lookup::uid_of(owner).flatten().into_iter().collect()
                    }
                    served => served,
                },
                Err(_) => Vec::new(),
            },
        };
        self.named.entry(owner).or_insert_with(find)
    }
}

/// Whether the kernel counts any process under the subordinate uids of a name.
fn is_any_at_work(name: &str, ranges: &[Subordinate]) -> bool {
    let uids = ranges.iter().filter(|range| range.owner == name).flat_map(|range| range.uids.clone());
    uids.take(SUBORDINATES_MAX).any(|uid| is_at_work(Uid(uid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::fixture::{P, table, task};
    use pam_iam_core::id::FIRST;

    #[test]
    fn the_managed_owner_of_a_range_is_found_by_number_and_by_a_name_served_before() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        let (deleted, listed) = (Uid(FIRST + 1), Uid(FIRST + 2));
        served.add(deleted, "nobody-has-this-name").unwrap();
        let range = |owner: &str, start: u32| Subordinate { owner: owner.into(), uids: start..start + 10 };
        let (by_name, by_number, of_local) = (3_900_000_000, 3_900_000_100, 3_900_000_200);
        let ranges = [
            range("nobody-has-this-name", by_name),
            range(&listed.to_string(), by_number),
            range("daemon", of_local),
        ];
        let tasks = [(P, by_name), (P + 1, by_number), (P + 2, of_local), (P + 3, 1)]
            .map(|(pid, uid)| task(pid, 1, pid, [uid; 3]));
        let table = table(&tasks);
        let users = Finder::new(&table, &served, &ranges).find();
        let found: Vec<(Uid, Vec<i32>)> = users
            .into_iter()
            .map(|(uid, processes)| (uid, processes.iter().map(|process| process.pid).collect()))
            .collect();
        assert_eq!(found, [(deleted, vec![P]), (listed, vec![P + 1])]);
    }
}
