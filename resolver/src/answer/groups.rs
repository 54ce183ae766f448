//! Groups, for NSS: iam-users, iam-sudo, the mapped groups, and each user's private one.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use pam_iam_core::config::{Access, Allowed};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use pam_iam_core::wire::{Answer, Group, Policy, User};

use super::eligibility::verdict_by;
use super::{AnswerError, Answerer, Asker};
use crate::ids;
use crate::limits::Origin;
use crate::lookup::Named;
use crate::lookup::cache::{Identity, UserEntry};
use crate::lookup::roster::Roster;
use crate::source::{Iam, IamGroup, IamId};

static IAM_USERS_NAME: LazyLock<LinuxName> = LazyLock::new(|| constant(IAM_USERS));
pub(super) static IAM_SUDO_NAME: LazyLock<LinuxName> = LazyLock::new(|| constant(IAM_SUDO));

#[expect(clippy::expect_used, reason = "a constant, parsed in every test run")]
fn constant(name: &str) -> LinuxName {
    LinuxName::new(name).expect("a valid name")
}

/// The condition for a user to be a member of a Linux group.
#[derive(Clone, Copy)]
enum MembershipRule<'a> {
    /// The user has a managed or an adopted account.
    Account,
    /// The user may use sudo.
    Sudo,
    /// The user is in one of the IAM groups that map to this Linux group.
    Mapped(&'a LinuxName),
}

impl<I: Iam> Answerer<I> {
    /// Returns a group, always without members. Users get their groups by initgroups(3), and newgrp(1) would admit an
    /// account of another NSS service that has the name of a member.
    pub(super) async fn group_by_name(
        &self,
        name: &LinuxName,
        origin: Origin,
    ) -> Result<Answer, AnswerError> {
        if self.locals.gid_of(name.as_str())?.is_some() {
            // The NSS service `files` has the group. A client that asks the resolver as well must not get two groups of
            // one name.
            return Ok(Answer::NotFound);
        }
        let group = |gid| Answer::Group(Group { name: name.clone(), gid, members: Vec::new() });
        if own_groups().iter().any(|(own, _)| own.as_str() == name.as_str()) {
            return Ok(group(ids::gid_of(name.as_str())));
        }
        if self.is_mapped(name) {
            let roster = self.directory.roster().await?;
            return Ok(self.mapped_gid(&roster, name)?.map_or(Answer::NotFound, group));
        }
        Ok(self.account(name, origin).await?.map_or(Answer::NotFound, private_group))
    }

    pub(super) async fn group_by_gid(&self, gid: Gid, origin: Origin) -> Result<Answer, AnswerError> {
        let mut name =
            own_groups().into_iter().find(|(own, _)| ids::gid_of(own.as_str()) == gid).map(|(own, _)| own);
        if name.is_none() && !self.config().groups.is_empty() {
            let roster = self.directory.roster().await?;
            name = self.mapped(&roster)?.into_iter().find(|(_, known)| *known == gid).map(|(name, _)| name);
        }
        match name {
            Some(name) => self.group_by_name(name, origin).await,
            None => {
                Ok(self.account_by_uid(Uid(gid.0), origin).await?.map_or(Answer::NotFound, private_group))
            }
        }
    }

    /// Returns the supplementary groups of a user. A request of root starts the revalidation of a stale entry without
    /// waiting for it: sshd sends this request first, and the key command then waits for the same fetch. With `known`,
    /// IAM is not asked about the user.
    pub(super) async fn groups_of(
        &self,
        name: &LinuxName,
        known: bool,
        asker: Asker,
    ) -> Result<Answer, AnswerError> {
        if self.is_shared(name) {
            return Ok(Answer::NotFound);
        }
        let named = match self.directory.known_name(name) {
            Some(named) if known => named,
            None if known => return Ok(Answer::NotFound),
            _ => self.directory.lookup_name(name, asker.origin).await?,
        };
        let (uid, groups, may_log_in) = match &named {
            Named::Cached(lookup) => {
                let Some(user) = self.entitled_user(name, lookup)? else { return Ok(Answer::NotFound) };
                (user.uid, self.linux_groups(user).await?, self.may_log_in(user).await?)
            }
            Named::Listed(roster) => {
                let Some((uid, _)) = self.listed_user(name, roster)? else { return Ok(Answer::NotFound) };
                (uid, self.listed_groups(name, roster)?, true)
            }
        };
        // An account that the importer has put into /etc/passwd exists, whatever the rules of access say.
        let is_there = match self.locals.uid_of(name.as_str())? {
            Some(local) => local == uid,
            None => may_log_in,
        };
        if !is_there {
            return Ok(Answer::NotFound);
        }
        if asker.is_root && !known {
            self.directory.start_revalidation(name, asker.origin);
        }
        let mut gids: Vec<Gid> = groups.into_iter().map(|(_, gid)| gid).collect();
        gids.sort();
        gids.dedup();
        Ok(Answer::Groups { gids })
    }

    /// Starts the revalidation of a user who is about to log in.
    pub(super) fn revalidate(&self, name: &LinuxName, origin: Origin) -> Result<Answer, AnswerError> {
        if !self.is_local_or_shared(name)? {
            self.directory.start_revalidation(name, origin);
        }
        Ok(Answer::Done)
    }

    /// Returns whether a Linux group is a privileged one: iam-sudo, or one that the host knows as such.
    pub(super) fn is_privileged_group(&self, group: &LinuxName) -> Result<bool, AnswerError> {
        Ok(group.as_str() == IAM_SUDO || self.locals.is_privileged(group.as_str())?)
    }

    /// Returns the Linux groups of a user who is known from the roster alone.
    pub(super) fn listed_groups(
        &self,
        name: &LinuxName,
        roster: &Roster,
    ) -> Result<Vec<(&LinuxName, Gid)>, AnswerError> {
        let mut groups: Vec<(&LinuxName, Gid)> = vec![(&IAM_USERS_NAME, self.gid_of_own(IAM_USERS)?)];
        let is_in = |group: &IamName| roster.is_member(group, name);
        if roster.access.sudo == Allowed::All || roster.access.sudo.groups().iter().any(is_in) {
            groups.push((&IAM_SUDO_NAME, self.gid_of_own(IAM_SUDO)?));
        }
        for (_, target) in self.config().groups.iter().filter(|(iam, _)| is_in(iam)) {
            groups.extend(self.mapped_gid(roster, &target.group)?.map(|gid| (&target.group, gid)));
        }
        groups.retain(|(_, gid)| gid.0 != 0);
        Ok(groups)
    }

    /// Returns the names of the groups that IAM gives a user.
    pub(super) async fn groups_by_name(&self, name: &LinuxName) -> Result<Vec<LinuxName>, AnswerError> {
        let lookup = self.directory.lookup(name, self.directory.login_freshness(Origin::Host)).await?;
        let Some(user) = self.entitled_user(name, &lookup)? else { return Ok(Vec::new()) };
        if !self.may_log_in(user).await? && self.locals.uid_of(name.as_str())?.is_none() {
            return Ok(Vec::new());
        }
        let mut groups: Vec<LinuxName> =
            self.linux_groups(user).await?.into_iter().map(|(name, _)| name.clone()).collect();
        groups.sort();
        groups.dedup();
        Ok(groups)
    }

    /// Returns the Linux groups of a user, except for the private one. A user who may not log in is in iam-users only.
    /// sshd's rule about the keys of IAM users needs that group; the others are left out, since cron, for example, does
    /// not ask whether a user may log in.
    async fn linux_groups(&self, user: &UserEntry) -> Result<Vec<(&LinuxName, Gid)>, AnswerError> {
        let access = self.directory.access().await.ok();
        let mut targets = user.groups.iter().filter_map(|group| self.config().groups.get(&group.name));
        let roster = match targets.any(|target| !self.is_only_source(&target.group)) {
            true => self.directory.roster().await.ok(),
            false => None,
        };
        self.linux_groups_by(user, access.as_deref(), roster.as_deref())
    }

    /// Returns the Linux groups of a user, except for the private one, by these rules of access and this roster.
    pub(super) fn linux_groups_by(
        &self,
        user: &UserEntry,
        access: Option<&Access>,
        roster: Option<&Roster>,
    ) -> Result<Vec<(&LinuxName, Gid)>, AnswerError> {
        let mut groups: Vec<(&LinuxName, Gid)> = vec![(&IAM_USERS_NAME, self.gid_of_own(IAM_USERS)?)];
        let may = |policy| access.is_some_and(|access| allowed(access, policy, user));
        if may(Policy::Sudo) {
            groups.push((&IAM_SUDO_NAME, self.gid_of_own(IAM_SUDO)?));
        }
        for IamGroup { name, id } in user.groups.iter().filter(|_| may(Policy::Login)) {
            if let Some(target) = self.config().groups.get(name) {
                groups.extend(self.gid_of_target(&target.group, id, roster)?.map(|gid| (&target.group, gid)));
            }
        }
        // No user gets gid 0, whatever the name of the local group is.
        groups.retain(|(_, gid)| gid.0 != 0);
        Ok(groups)
    }

    /// Returns the gid of the Linux group `group`, to which the IAM group with the id `iam` maps. If several IAM groups
    /// map to it and there is no local group, returns the gid of the first that exists, and None without a roster.
    fn gid_of_target(
        &self,
        group: &LinuxName,
        iam: &IamId,
        roster: Option<&Roster>,
    ) -> Result<Option<Gid>, AnswerError> {
        if let Some(local) = self.locals.gid_of(group.as_str())? {
            return Ok(self.may_be_mapped(group)?.then_some(local));
        }
        if self.is_only_source(group) {
            return Ok(Some(ids::gid_of(iam.as_str())));
        }
        roster.map_or(Ok(None), |roster| self.mapped_gid(roster, group))
    }

    /// Returns whether only one IAM group maps to the Linux group `group`.
    fn is_only_source(&self, group: &LinuxName) -> bool {
        self.config().groups.values().filter(|target| target.group == *group).count() == 1
    }

    /// Returns all groups that IAM gives, with their members, for the importer.
    pub(super) fn all_groups(&self, roster: &Roster) -> Result<Vec<Group>, AnswerError> {
        let mut groups = Vec::new();
        for (name, rule) in own_groups() {
            let gid = self.gid_of_own(name.as_str())?;
            groups.push(Group { name: name.clone(), gid, members: self.members(roster, rule) });
        }
        for (name, gid) in self.mapped(roster)? {
            let members = self.members(roster, MembershipRule::Mapped(name));
            groups.push(Group { name: name.clone(), gid, members });
        }
        groups.retain(|group| group.gid.0 != 0);
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(groups)
    }

    /// Returns the gid of iam-users or iam-sudo. A local group of the name has precedence over the computed gid.
    pub(super) fn gid_of_own(&self, name: &str) -> Result<Gid, AnswerError> {
        Ok(self.locals.gid_of(name)?.unwrap_or_else(|| ids::gid_of(name)))
    }

    /// Returns whether IAM groups map to the Linux group `name`.
    pub(super) fn is_mapped(&self, name: &LinuxName) -> bool {
        self.config().is_mapped(name.as_str())
    }

    /// Returns the Linux groups that IAM groups map to, each once, with their gids.
    pub(super) fn mapped(&self, roster: &Roster) -> Result<Vec<(&LinuxName, Gid)>, AnswerError> {
        let names: BTreeSet<&LinuxName> = self.config().mapped_groups().collect();
        let mut groups = Vec::new();
        for name in names {
            groups.extend(self.mapped_gid(roster, name)?.map(|gid| (name, gid)));
        }
        Ok(groups)
    }

    /// Returns whether IAM may give a Linux group. A local group that has the gid of a privileged one needs
    /// `allow_privileged`.
    fn may_be_mapped(&self, group: &LinuxName) -> Result<bool, AnswerError> {
        let mut targets = self.config().groups.values().filter(|target| target.group == *group);
        Ok(targets.any(|target| target.allow_privileged) || !self.locals.is_privileged(group.as_str())?)
    }

    /// Returns the gid of a Linux group that IAM groups map to: that of the local group, or else that of the first of the
    /// IAM groups that exists.
    fn mapped_gid(&self, roster: &Roster, name: &LinuxName) -> Result<Option<Gid>, AnswerError> {
        if !self.may_be_mapped(name)? {
            return Ok(None);
        }
        let local = self.locals.gid_of(name.as_str())?;
        let mut iam = self.config().groups.iter().filter(|(_, target)| target.group == *name);
        Ok(local.or_else(|| iam.find_map(|(iam, _)| roster.gid_of(iam))))
    }

    /// Returns the users to whom a rule applies, by the roster and by newer entries.
    fn members(&self, roster: &Roster, rule: MembershipRule<'_>) -> Vec<LinuxName> {
        let access = &roster.access;
        let names_of = |groups: &[IamName]| -> Vec<LinuxName> {
            groups.iter().flat_map(|group| roster.members(group)).cloned().collect()
        };
        let listed = match (rule, &access.sudo) {
            (MembershipRule::Account, _) | (MembershipRule::Sudo, Allowed::All) => {
                roster.users().map(|(name, _)| name.clone()).collect()
            }
            (MembershipRule::Sudo, sudo) => names_of(sudo.groups()),
            (MembershipRule::Mapped(group), _) => {
                let iam = self.config().groups.iter().filter(|(_, target)| target.group == *group);
                names_of(&iam.map(|(iam, _)| iam.clone()).collect::<Vec<_>>())
            }
        };
        let mut members: BTreeSet<LinuxName> = listed.into_iter().collect();
        for (name, entry) in self.directory.changed_since(roster.began_at) {
            match &entry.identity {
                // An entry that was fetched during the read of the roster may be older than the roster.
                Identity::User(user) if self.holds(access, rule, &name, user) => {
                    entry.fetched_at >= roster.ended_at && members.insert(name)
                }
                _ => members.remove(&name),
            };
        }
        members.retain(|name| self.is_eligible(roster, name));
        members.into_iter().collect()
    }

    fn holds(&self, access: &Access, rule: MembershipRule<'_>, name: &LinuxName, user: &UserEntry) -> bool {
        let maps_to = |group: &LinuxName| {
            let mut groups = user.groups.iter().filter_map(|known| self.config().groups.get(&known.name));
            groups.any(|target| target.group == *group)
        };
        // If the files cannot be read, the user gets nothing.
        if self.is_uid_taken(name, user).unwrap_or(true) {
            return false;
        }
        match rule {
            MembershipRule::Account => allowed(access, Policy::Login, user),
            MembershipRule::Sudo => allowed(access, Policy::Sudo, user),
            MembershipRule::Mapped(group) => allowed(access, Policy::Login, user) && maps_to(group),
        }
    }
}

/// Returns iam-users and iam-sudo with their rules.
fn own_groups() -> [(&'static LinuxName, MembershipRule<'static>); 2] {
    [(&IAM_USERS_NAME, MembershipRule::Account), (&IAM_SUDO_NAME, MembershipRule::Sudo)]
}

fn allowed(access: &Access, policy: Policy, user: &UserEntry) -> bool {
    verdict_by(access, policy, user).allow
}

fn private_group(user: User) -> Answer {
    Answer::Group(Group { name: user.name, gid: user.gid, members: Vec::new() })
}
