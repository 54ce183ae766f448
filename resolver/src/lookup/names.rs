//! Who has a name or a uid, for showing it. Names are not decisions: what is known serves without a call to IAM.

use std::rc::Rc;

use pam_iam_core::id::Uid;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::Policy;

use super::Directory;
use super::cache::{Identity, Lookup};
use super::roster::Roster;
use crate::limits::Origin;
use crate::policy;
use crate::source::{Cause, Iam, IamError};

/// What is known of a name without asking IAM.
#[derive(Clone, Debug)]
pub enum Named {
    /// The name has an entry.
    Cached(Lookup),
    /// The roster lists it, and there is no newer entry.
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
    /// Returns who has `name`, for showing it: names are not decisions. A user who may log in costs no call, however old the
    /// entry. A user who may not costs one fetch per `max_age`, within the limit of unknown names and on behalf of the host or a
    /// client of sshd alone: so a user who is added to a group gets in at the first attempt. Any other name costs one fetch
    /// within that limit.
    ///
    /// # Errors
    /// Returns an error if nothing is known and IAM does not answer.
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
        // The limit of unknown names was charged; that of revalidations must not be as well.
        query(Origin::Host).await.map(Named::Cached)
    }

    /// Returns what is known of `name` without asking IAM: the entry, or the roster if it is newer. None if neither is young
    /// enough to serve while IAM does not answer.
    pub fn known_name(&self, name: &LinuxName) -> Option<Named> {
        let roster = self.serving_roster().filter(|roster| roster.has(name));
        let entry = self.entry_up_to(name, self.config.freshness.offline.0);
        let newer =
            entry.filter(|entry| roster.as_ref().is_none_or(|roster| entry.fetched_at >= roster.ended_at));
        newer.map(|entry| Named::Cached(Lookup::cached(entry))).or(roster.map(Named::Listed))
    }

    /// Returns the name of the user with `uid`, for showing it. A uid does not tell whose it is, so only users who were seen or
    /// are on the roster are found.
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
            // A roster from before the start tells which users there are, not which there are not.
            return if roster.restored { Err(Cause::RosterBeforeStart.into()) } else { Ok(None) };
        };
        let named = self.lookup_name(&name, origin).await?;
        Ok(named.has_uid(&name, uid).then_some((name, named)))
    }

    /// Whether `identity` is a user who may log in.
    async fn is_allowed(self: &Rc<Self>, identity: &Identity) -> bool {
        let Identity::User(user) = identity else { return false };
        let groups: Vec<IamName> = user.groups.iter().map(|group| group.name.clone()).collect();
        let access = self.access().await;
        access.is_ok_and(|access| policy::decide(&access, Policy::Login, &groups).allow)
    }
}
