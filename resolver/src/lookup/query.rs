//! The calls about one user, or about all members of a shared account. The answer of each call is applied at once, so
//! that a withdrawn right does not last until another call times out.

use futures_util::StreamExt;
use futures_util::future::{join_all, join3};
use futures_util::stream;
use pam_iam_core::config::Shared;
use pam_iam_core::escape::Value;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{self, IamName, LinuxName};
use tokio::time::Instant;

use super::Directory;
use super::cache::{CacheEntry, Identity, Keys, UserEntry};
use crate::ids;
use crate::persist::dirty::Dirty;
use crate::source::{Cause, Iam, IamError, IamGroup, IamId, IamUser, KeyId, KeyIds, sshkey};

/// The number of members of a shared account whose keys are asked for at once.
const MEMBERS_AT_ONCE: usize = 10;

/// The most IAM users who may share an account. Each costs a call whenever a stale entry is revalidated, which any client
/// of sshd that offers a key can cause.
const MEMBERS_MAX: usize = 100;

impl<I: Iam> Directory<I> {
    /// Asks IAM about every user whose name maps to `name`, or about all members if `name` is that of a shared account.
    ///
    /// # Errors
    /// Returns an error if IAM does not answer about one of these users.
    pub(super) async fn query(&self, name: &LinuxName) -> Result<CacheEntry, IamError> {
        if let Some(shared) = self.config.shared.get(name) {
            return self.query_shared_account(name, shared).await;
        }
        let began = Instant::now();
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix);
        let answers = join_all(candidates.iter().map(|candidate| self.query_user(name, candidate))).await;
        let (mut users, mut is_denied, mut failure) = (Vec::new(), false, None);
        for answer in answers {
            match answer {
                Ok(user) => users.push(user),
                Err(error @ IamError::Unavailable(_)) => failure = Some(error),
                Err(error) => is_denied |= matches!(error, IamError::Denied(_)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let identity = match <[UserEntry; 1]>::try_from(users) {
            Ok([user]) => Identity::User(user),
            Err(none) if none.is_empty() && is_denied => Identity::AccessDenied,
            Err(none) if none.is_empty() => Identity::NotFound,
            Err(users) => Identity::Ambiguous(users.into_iter().map(|user| user.user.name).collect()),
        };
        Ok(CacheEntry::new(identity, began))
    }

    /// Asks IAM about the user `candidate`, whose name maps to `name`: three calls side by side, and one for each key
    /// whose body is not cached.
    async fn query_user(&self, name: &LinuxName, candidate: &IamName) -> Result<UserEntry, IamError> {
        let user = async {
            let user = self.evict_if_gone(name, candidate, self.iam.user(candidate).await)?;
            self.evict_unless(name, candidate, |known| known.user.id == user.id && user.name == *candidate);
            Ok(user)
        };
        let groups = async {
            let groups = self.evict_if_gone(name, candidate, self.iam.groups_of(candidate).await)?;
            self.revoke_groups(name, candidate, &groups);
            Ok(groups)
        };
        let key_ids = async {
            let ids = self.evict_if_gone(name, candidate, self.iam.keys_of(candidate).await)?;
            self.revoke(name, candidate, |known| known.keys.retain(|(id, _)| ids.active.contains(id)));
            Ok(ids)
        };
        let (user, groups, key_ids) = join3(user, groups, key_ids).await;
        // A negative answer of one call counts, even if another call gets no answer.
        let errors = [user.as_ref().err(), groups.as_ref().err(), key_ids.as_ref().err()];
        if let Some(no) =
            errors.into_iter().flatten().find(|error| !matches!(error, IamError::Unavailable(_)))
        {
            return Err(IamError::clone(no));
        }
        if user.as_ref().is_ok_and(|user: &IamUser| user.name != *candidate) {
            // IAM ignores the case of names, and Linux does not: `Bob` is not `bob`.
            return Err(IamError::NoSuchEntity);
        }
        let (user, groups, KeyIds { active, inactive }) = (user?, groups?, key_ids?);
        let keys = self.keys(&user, &active).await?;
        Ok(UserEntry { uid: ids::uid(&self.config.accounts, &user), user, groups, keys, inactive })
    }

    /// Evicts the entry of `user` if `answer` says that there is no such user, or that IAM denies the call. Returns
    /// `answer`.
    fn evict_if_gone<T>(
        &self,
        name: &LinuxName,
        user: &IamName,
        answer: Result<T, IamError>,
    ) -> Result<T, IamError> {
        if let Err(IamError::NoSuchEntity | IamError::Denied(_)) = answer {
            self.evict_unless(name, user, |_| false);
        }
        answer
    }

    /// Evicts the entry of `user` under `name` if `holds` returns false for it.
    fn evict_unless(&self, name: &LinuxName, user: &IamName, holds: impl Fn(&UserEntry) -> bool) {
        if self.cache.borrow_mut().evict_unless(name, user, holds) {
            self.dirty.mark(Dirty::Revoked);
            self.changes.mark(name);
        }
    }

    /// Removes the groups that IAM no longer lists from the entry of `user`, and adds the listed groups of `access.deny`.
    fn revoke_groups(&self, name: &LinuxName, user: &IamName, groups: &[IamGroup]) {
        let is_denying = |group: &&IamGroup| self.config.access.deny.contains(&group.name);
        self.revoke(name, user, |known| {
            known.groups.retain(|group| groups.contains(group));
            for group in groups.iter().filter(is_denying) {
                if !known.groups.contains(group) {
                    known.groups.push(group.clone());
                }
            }
        });
    }

    /// Applies `change` to the entry of `user` under `name`, if there is one. The age of the entry stays.
    fn revoke(&self, name: &LinuxName, user: &IamName, change: impl Fn(&mut UserEntry)) {
        self.replace_identity(name, |identity| match identity {
            Identity::User(known) if known.user.name == *user => {
                let mut known = known.clone();
                change(&mut known);
                Some(Identity::User(known))
            }
            _ => None,
        });
    }

    /// Applies `change` to the cached members of the shared account `name`. The age of the entry stays.
    fn revoke_members(&self, name: &LinuxName, change: impl FnOnce(&mut Vec<UserEntry>)) {
        self.replace_identity(name, |identity| match identity {
            Identity::Members(members) => {
                let mut members = members.clone();
                change(&mut members);
                Some(Identity::Members(members))
            }
            _ => None,
        });
    }

    fn replace_identity(&self, name: &LinuxName, change: impl FnOnce(&Identity) -> Option<Identity>) {
        if self.cache.borrow_mut().revoke(name, change) {
            self.dirty.mark(Dirty::Revoked);
            self.changes.mark(name);
        }
    }

    /// Returns the keys of `user` with these ids, active or not. Fetches the bodies that are not cached. Leaves out a key
    /// that was deleted meanwhile.
    ///
    /// # Errors
    /// Returns an error if IAM does not answer about one of the keys.
    pub async fn keys(&self, user: &IamUser, ids: &[KeyId]) -> Result<Keys, IamError> {
        let keys = join_all(ids.iter().map(|id| self.key(user, id))).await;
        let keys = keys.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    }

    async fn key(&self, user: &IamUser, id: &KeyId) -> Result<Option<(KeyId, Option<PublicKey>)>, IamError> {
        if let Some(key) = self.cache.borrow().key_body(&user.id, id) {
            return Ok(Some((id.clone(), key)));
        }
        match self.iam.key_body(&user.name, id).await {
            Ok(body) => {
                let key = sshkey::usable(&body);
                let key = key.inspect_err(|why| {
                    self.warn(format!("key {} of IAM user {} {why}", Value(id), user.name));
                });
                let key = key.ok();
                self.cache.borrow_mut().set_key_body(&user.id, id, key.clone());
                Ok(Some((id.clone(), key)))
            }
            // The key was deleted after it was listed.
            Err(IamError::NoSuchEntity) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fetches the members of a shared account and their keys. The keys of cached members are listed at the same time as
    /// the groups: a deleted key must not stay usable because a group cannot be listed.
    async fn query_shared_account(&self, name: &LinuxName, shared: &Shared) -> Result<CacheEntry, IamError> {
        let began = Instant::now();
        let remembered = match self.entry(name).as_deref() {
            Some(CacheEntry { identity: Identity::Members(members), .. }) => members.clone(),
            _ => Vec::new(),
        };
        let groups = join_all(shared.groups.iter().map(|group| self.query_group(name, group)));
        let denied = self.query_denied_members(name);
        let keys = self.query_keys_of_members(name, remembered);
        let (denied, groups, keys) = join3(denied, groups, keys).await;
        let groups = groups.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut members = self.members_of(groups.into_iter().flatten(), &denied?)?;
        let mut keys = keys?;
        let is_new = |member: &&UserEntry| !keys.iter().any(|(id, _)| *id == member.user.id);
        let new: Vec<UserEntry> = members.iter().filter(is_new).cloned().collect();
        keys.append(&mut self.query_keys_of_members(name, new).await?);
        members.sort_by(|one, other| one.user.name.cmp(&other.user.name));
        for member in &mut members {
            let found = keys.iter_mut().find(|(id, _)| *id == member.user.id);
            member.keys = found.map(|(_, keys)| std::mem::take(keys)).unwrap_or_default();
        }
        Ok(CacheEntry::new(Identity::Members(members), began))
    }

    /// Returns the members of `groups` who are not `denied`, each once and without keys. Returns an error if there are
    /// more than [`MEMBERS_MAX`].
    fn members_of(
        &self,
        groups: impl Iterator<Item = (IamGroup, Vec<IamUser>)>,
        denied: &[IamId],
    ) -> Result<Vec<UserEntry>, IamError> {
        let mut members: Vec<UserEntry> = Vec::new();
        for (group, users) in groups {
            for user in users.into_iter().filter(|user| !denied.contains(&user.id)) {
                match members.iter_mut().find(|member| member.user.id == user.id) {
                    Some(member) => member.groups.push(group.clone()),
                    None => members.push(UserEntry {
                        uid: ids::uid(&self.config.accounts, &user),
                        user,
                        groups: vec![group.clone()],
                        keys: Vec::new(),
                        inactive: Vec::new(),
                    }),
                }
                if members.len() > MEMBERS_MAX {
                    return Err(Cause::TooManyMembers(MEMBERS_MAX).into());
                }
            }
        }
        Ok(members)
    }

    /// Returns the members of the groups of `access.deny`, and removes them from the cached members of the shared account
    /// `name`.
    async fn query_denied_members(&self, name: &LinuxName) -> Result<Vec<IamId>, IamError> {
        let members = self.config.access.deny.iter().map(async |group| match self.iam.group(group).await {
            Ok((_, users)) => {
                let denied: Vec<IamId> = users.into_iter().map(|user| user.id).collect();
                self.revoke_members(name, |members| members.retain(|known| !denied.contains(&known.user.id)));
                Ok(denied)
            }
            Err(IamError::NoSuchEntity) => Ok(Vec::new()),
            Err(error) => Err(about_a_group(group, error)),
        });
        let denied = join_all(members).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(denied.into_iter().flatten().collect())
    }

    /// Returns a group of the shared account `name` with its members, or None if IAM has no such group. Takes the group
    /// away from the cached members who are no longer in it.
    async fn query_group(
        &self,
        name: &LinuxName,
        group: &IamName,
    ) -> Result<Option<(IamGroup, Vec<IamUser>)>, IamError> {
        let answer = match self.iam.group(group).await {
            Ok(found) => Some(found),
            Err(IamError::NoSuchEntity) => {
                self.warn(format!("[shared.{name}] names the IAM group {group}, which does not exist"));
                None
            }
            Err(error) => return Err(about_a_group(group, error)),
        };
        let is_member =
            |id: &IamId| answer.as_ref().is_some_and(|(_, users)| users.iter().any(|user| user.id == *id));
        self.revoke_members(name, |members| {
            for member in members.iter_mut().filter(|member| !is_member(&member.user.id)) {
                member.groups.retain(|known| known.name != *group);
            }
            members.retain(|member| !member.groups.is_empty());
        });
        Ok(answer)
    }

    /// Returns the keys of members of a shared account, by user.
    async fn query_keys_of_members(
        &self,
        name: &LinuxName,
        members: Vec<UserEntry>,
    ) -> Result<Vec<(IamId, Keys)>, IamError> {
        let queries = stream::iter(members).map(|member| self.query_keys_of_member(name, member.user));
        let answers: Vec<Result<(IamId, Keys), IamError>> = queries.buffered(MEMBERS_AT_ONCE).collect().await;
        answers.into_iter().collect()
    }

    /// Returns the keys of one member. If IAM says that there is no such user, or denies the call, returns none and
    /// removes the cached member.
    async fn query_keys_of_member(&self, name: &LinuxName, user: IamUser) -> Result<(IamId, Keys), IamError> {
        let id = user.id.clone();
        let keys = async {
            let ids = self.iam.keys_of(&user.name).await?.active;
            self.revoke_members(name, |members| {
                for known in members.iter_mut().filter(|known| known.user.id == id) {
                    known.keys.retain(|(key, _)| ids.contains(key));
                }
            });
            self.keys(&user, &ids).await
        };
        match keys.await {
            Ok(keys) => Ok((id, keys)),
            Err(error @ IamError::Unavailable(_)) => Err(error),
            Err(no) => {
                self.warn(format!("{} does not get in to {name}: {no}", user.name));
                self.revoke_members(name, |members| members.retain(|known| known.user.id != id));
                Ok((id, Vec::new()))
            }
        }
    }
}

/// Turns the denial of a call about a group into [`IamError::Unavailable`], since it says nothing about any user.
fn about_a_group(group: &IamName, error: IamError) -> IamError {
    match error {
        IamError::Denied(why) => Cause::GroupDenied { group: group.clone(), why }.into(),
        error => error,
    }
}
