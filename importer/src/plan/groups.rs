//! Plans the members of the groups.

use std::collections::{BTreeMap, BTreeSet};

use pam_iam_core::id::Uid;
use pam_iam_core::name::{IAM_USERS, LinuxName};

use super::{Change, PlanInput, Planner, Refusal, managed_accounts};
use crate::table::{gid_of, members_of, uid_of};

impl Planner<'_> {
    /// Puts users into the groups that IAM gives them, and takes them out of all others that the importer manages.
    pub(super) fn regroup(&mut self) {
        let PlanInput { roster, state, adopted, .. } = *self.input;
        let existing = managed_accounts(&self.plan.tables);
        let mut managed: BTreeMap<String, Uid> =
            existing.iter().map(|(uid, name)| (name.clone(), *uid)).collect();
        // An account that is no longer adopted loses the groups that it got from the importer.
        for name in &state.joined {
            let local = self.plan.tables.passwd.get(name).and_then(uid_of).map(Uid);
            managed.extend(local.map(|uid| (name.clone(), uid)));
        }
        managed.extend(adopted.iter().cloned());
        let entitled: BTreeMap<&str, Uid> =
            self.users.iter().map(|(uid, user)| (user.name.as_str(), *uid)).collect();
        let adopted: BTreeSet<&str> = adopted.iter().map(|(name, _)| name.as_str()).collect();
        let is_entitled = |name: &str| {
            adopted.contains(name) || managed.get(name).is_some_and(|uid| entitled.get(name) == Some(uid))
        };
        for group in &roster.groups {
            self.ensure_group(group.name.as_str(), group.gid.0);
        }
        let set_now = roster.groups.iter().map(|group| group.name.as_str());
        let groups: BTreeSet<&str> = set_now.chain(state.groups.iter().map(String::as_str)).collect();
        let locked: Vec<String> = self.plan.locked.iter().map(|account| account.name.clone()).collect();
        for group in groups {
            // An earlier configuration may have mapped an IAM group to `adopt_group`. Now an administrator decides who is in
            // it.
            if self.input.config.accounts.adopt_group == group {
                continue;
            }
            let listed = roster.groups.iter().find(|known| known.name.as_str() == group);
            let members = listed.map(|group| &*group.members).unwrap_or_default();
            let mut wanted: BTreeSet<&str> = members.iter().map(LinuxName::as_str).collect();
            wanted.retain(|name| is_entitled(name));
            if group == IAM_USERS {
                // Locked accounts are members too, since sshd's rule that accepts only keys of IAM applies to this group.
                wanted.extend(existing.values().chain(&locked).map(String::as_str));
            }
            self.plan
                .joined
                .extend(wanted.iter().filter(|name| adopted.contains(**name)).map(|&name| name.to_owned()));
            self.set_members(group, &wanted, &managed);
        }
    }

    fn ensure_group(&mut self, name: &str, gid: u32) {
        let tables = &mut self.plan.tables;
        if tables.group.get(name).is_some() {
            return;
        }
        if let Some(holder) =
            tables.group.rows().find(|row| gid_of(row) == Some(gid)).and_then(|row| row.first())
        {
            let why = format!("its gid {gid} is that of the group {holder}");
            self.plan.refused.push(Refusal { who: format!("group {name}"), why });
            return;
        }
        tables.push_group(name, gid);
        self.plan.changes.push(Change::Group { name: name.to_owned(), gid });
    }

    fn set_members(&mut self, group: &str, wanted: &BTreeSet<&str>, managed: &BTreeMap<String, Uid>) {
        let Some(row) = self.plan.tables.group.get(group) else { return };
        let present: BTreeSet<String> = members_of(row).map(str::to_owned).collect();
        let locked: BTreeSet<Uid> = self.plan.locked.iter().map(|account| account.uid).collect();
        let leaves = |name: &str| {
            let Some(uid) = managed.get(name).filter(|_| !wanted.contains(name)) else { return false };
            // A user who is not on the roster may be missing by mistake, and keeps the group until the account is locked.
            let listed = self.users.contains_key(uid) || !self.is_managed_now(name, *uid);
            listed
                || locked.contains(uid)
                || self.input.roster.adopted.iter().any(|known| known.as_str() == name)
        };
        let leaving: BTreeSet<String> = managed.keys().filter(|name| leaves(name)).cloned().collect();
        self.plan.tables.change_group(group, |members| {
            members.retain(|member| !leaving.contains(member));
            let known: BTreeSet<String> = members.iter().cloned().collect();
            members.extend(wanted.iter().filter(|name| !known.contains(**name)).map(|&name| name.to_owned()));
        });
        let group = || group.to_owned();
        for name in present.intersection(&leaving) {
            self.plan.changes.push(Change::Leave { name: name.clone(), group: group() });
        }
        for &name in wanted.iter().filter(|name| !present.contains(**name)) {
            self.plan.changes.push(Change::Join { name: name.to_owned(), group: group() });
        }
    }

    /// Whether the account is managed, or is still adopted.
    fn is_managed_now(&self, name: &str, uid: Uid) -> bool {
        uid.is_managed() || self.input.adopted.iter().any(|(known, _)| known == name)
    }
}
