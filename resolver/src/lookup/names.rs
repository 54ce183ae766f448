//! Finds the users behind names and uids for NSS, which only shows them. Names are not decisions: a cached answer serves
//! without a call to IAM.

use std::collections::BTreeSet;
use std::rc::Rc;

use pam_iam_core::id::Uid;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::Policy;

use super::Directory;
use super::cache::{CacheEntry, Identity, Lookup};
use super::roster::Roster;
use crate::limits::Origin;
use crate::policy;
use crate::source::{Cause, Iam, IamError};

/// An answer about a name, for NSS.
#[derive(Clone, Debug)]
pub enum Named {
    /// The entry of the name.
    Cached(Lookup),
    /// The roster, which lists the name and is newer than its entry.
    Listed(Rc<Roster>),
}

impl Named {
    fn has_uid(&self, name: &LinuxName, uid: Uid) -> bool {
        match self {
            Self::Cached(lookup) => lookup.entry.identity.has_uid(uid),
            Self::Listed(roster) => roster.name_of(uid) == Some(name),
        }
    }
}

impl<I: Iam> Directory<I> {
    /// Returns the user behind `name`, for NSS. A user who may log in costs no call while the roster lists them or their
    /// entry is younger than `freshness.roster`. A user who may not log in costs one fetch per `max_age`, so that a user
    /// who is added to a group gets in at the first attempt; that fetch is within the limit of unknown names, and made
    /// for the host or a client of sshd only. Any other name costs one fetch within the same limit.
    ///
    /// # Errors
    /// Returns an error if nothing is known of the name, and IAM does not answer or was not asked because of a limit.
    pub async fn lookup_name(self: &Rc<Self>, name: &LinuxName, origin: Origin) -> Result<Named, IamError> {
        let max_age = self.config.freshness.max_age.0;
        let query = |origin| self.lookup(name, self.login_freshness(origin));
        let lookup = match self.known_name(name) {
            None => return query(origin).await.map(Named::Cached),
            Some(Named::Listed(roster)) => return Ok(Named::Listed(roster)),
            Some(Named::Cached(lookup)) => lookup,
        };
        let (identity, age) = (&lookup.entry.identity, lookup.entry.age());
        let is_listed = self.serving_roster().is_some_and(|roster| roster.has(name));
        let is_recent = is_listed || age < self.config.freshness.roster.0.max(max_age);
        if age < max_age || is_recent && self.is_allowed(identity).await {
            return Ok(Named::Cached(lookup));
        }
        if !matches!(identity, Identity::User(_) | Identity::Ambiguous(_)) {
            return query(origin).await.map(Named::Cached);
        }
        if matches!(origin, Origin::User(_)) || !self.may_query_iam(name, origin).await? {
            return Ok(Named::Cached(lookup));
        }
        // The fetch has been counted by `may_query_iam`. On behalf of the host, it is not counted a second time.
        query(Origin::Host).await.map(Named::Cached)
    }

    /// Returns the entry of `name`, or the roster if it lists the name and is newer. Makes no call. None if neither is
    /// younger than `freshness.offline`.
    pub fn known_name(&self, name: &LinuxName) -> Option<Named> {
        let roster = self.serving_roster().filter(|roster| roster.has(name));
        let entry = self.entry_up_to(name, self.config.freshness.offline.0);
        let (Some(entry), Some(roster)) = (&entry, &roster) else {
            return entry.map(|entry| Named::Cached(Lookup::cached(entry))).or(roster.map(Named::Listed));
        };
        if entry.fetched_at >= roster.ended_at {
            Some(Named::Cached(Lookup::cached(Rc::clone(entry))))
        } else if entry.changed_at >= roster.began_at
            && let Some(agreed) = self.agreed(name, entry, roster)
        {
            Some(Named::Cached(Lookup::cached(Rc::new(agreed))))
        } else {
            Some(Named::Listed(Rc::clone(roster)))
        }
    }

    /// Returns what an entry that changed during the read of a roster, and that roster, agree on: neither is known to be the newer
    /// one, so the user has the rights that both give. A group of `access.deny` counts if the entry has it. None if the roster lists
    /// another user, who was created later.
    fn agreed(&self, name: &LinuxName, entry: &CacheEntry, roster: &Roster) -> Option<CacheEntry> {
        let mut identity = entry.identity.clone();
        if let Identity::User(user) = &mut identity {
            let listed = roster.user(name)?;
            if listed.id != user.user.id && listed.created > user.user.created {
                return None;
            }
            user.groups.retain(|group| self.is_agreed(name, &group.name, roster));
        }
        Some(CacheEntry { identity, ..*entry })
    }

    /// Returns whether `roster` too gives the user, whom it lists, each right that membership of `group` gives.
    fn is_agreed(&self, name: &LinuxName, group: &IamName, roster: &Roster) -> bool {
        let is_named = roster.gid_of(group).is_some() || roster.missing.contains(group);
        if !is_named || roster.access.deny.contains(group) || roster.is_member(group, name) {
            return true;
        }
        // Another group may give the same right.
        let sudo = roster.access.sudo.groups();
        let is_sudoer = !sudo.contains(group) || sudo.iter().any(|other| roster.is_member(other, name));
        let targets = &self.config.groups;
        let is_mapped = targets.get(group).is_none_or(|target| {
            targets.iter().any(|(other, its)| its.group == target.group && roster.is_member(other, name))
        });
        is_sudoer && is_mapped
    }

    /// Returns the name of the user with `uid`, for NSS. A uid cannot be turned into an id, so only users who were seen
    /// or are on the roster are found.
    ///
    /// # Errors
    /// Returns an error if the user was not seen and the roster cannot be read.
    pub async fn lookup_uid(
        self: &Rc<Self>,
        uid: Uid,
        origin: Origin,
    ) -> Result<Option<(LinuxName, Named)>, IamError> {
        let seen_as = self.cache.borrow().name_of(uid);
        if let Some(name) = seen_as {
            let named = self.lookup_name(&name, origin).await?;
            if named.has_uid(&name, uid) {
                return Ok(Some((name, named)));
            }
            // The user was renamed or deleted.
            self.cache.borrow_mut().forget_name_of(uid);
        }
        let roster = self.roster().await?;
        let Some(name) = roster.name_of(uid).cloned() else {
            // A restored roster proves that the users on it exist, but not that there are no others.
            return if roster.restored { Err(Cause::RosterBeforeStart.into()) } else { Ok(None) };
        };
        let named = self.lookup_name(&name, origin).await?;
        Ok(named.has_uid(&name, uid).then_some((name, named)))
    }

    /// Returns the names of all users whom the roster lists, or who have an entry.
    pub fn user_names(&self) -> BTreeSet<LinuxName> {
        let cache = self.cache.borrow();
        let of_users = cache.entries().filter(|(_, entry)| matches!(entry.identity, Identity::User(_)));
        let listed = cache.roster.iter().flat_map(|roster| roster.users());
        listed.map(|(name, _)| name).chain(of_users.map(|(name, _)| name)).cloned().collect()
    }

    /// Returns whether the last call to IAM about `name`, or about all users, got no answer.
    pub fn is_unreachable_about(&self, name: &LinuxName) -> bool {
        self.fetches.borrow().roster_failure.is_some() || self.is_silent_about(name)
    }

    /// Returns whether `identity` is a user who may log in.
    async fn is_allowed(self: &Rc<Self>, identity: &Identity) -> bool {
        let Identity::User(user) = identity else { return false };
        let groups: Vec<IamName> = user.groups.iter().map(|group| group.name.clone()).collect();
        let access = self.access().await;
        access.is_ok_and(|access| policy::decide(&access, Policy::Login, &groups).allow)
    }
}
