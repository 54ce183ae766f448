//! Asking IAM about one user, or about those who share an account, so that what was heard counts at once.

use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::future::{join_all, join3};
use futures_util::stream;
use pam_iam_core::config::Shared;
use pam_iam_core::escape::Value;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{self, IamName, LinuxName};
use tokio::time::Instant;

use super::{CacheEntry, Directory, Identity, Keys, UserEntry};
use crate::ids;
use crate::source::sshkey;
use crate::source::{Iam, IamError, IamGroup, IamId, IamUser};

/// How many members of a shared account are asked about at once.
const MEMBERS_AT_ONCE: usize = 10;

/// The most IAM users who may share an account. Each costs a call when a look-up is no longer fresh, also for a key that a
/// bot offers.
const TEAM_MAX: usize = 100;

/// How many bodies of keys are remembered: 5 for each of the 5,000 users of an account, and those that were replaced.
const BODIES_MAX: usize = 50_000;

impl<I: Iam> Directory<I> {
    /// Asks IAM about every user who could stand behind `name`, or about all who share it.
    pub(super) async fn ask(&self, name: &LinuxName) -> Result<CacheEntry, IamError> {
        if let Some(shared) = self.config.shared.get(name) {
            return self.ask_team(name, shared).await;
        }
        let at = Instant::now();
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix);
        let answers = join_all(candidates.iter().map(|candidate| self.look_up(name, candidate))).await;
        let (mut found, mut denied, mut unreachable) = (Vec::new(), false, None);
        for answer in answers {
            match answer {
                Ok(person) => found.push(person),
                Err(IamError::Unreachable(why)) => unreachable = Some(IamError::Unreachable(why)),
                Err(error) => denied |= matches!(error, IamError::Denied(_)),
            }
        }
        if let Some(error) = unreachable {
            return Err(error);
        }
        let known = match (found.len(), found.pop()) {
            (1, Some(person)) => Identity::User(person),
            (_, Some(last)) => {
                found.push(last);
                Identity::Ambiguous(found.into_iter().map(|person| person.user.name).collect())
            }
            (_, None) if denied => Identity::AccessDenied,
            (_, None) => Identity::NotFound,
        };
        Ok(CacheEntry::new(known, at))
    }

    /// Asks IAM about one user. What each of the three calls says counts at once: another that is silent until the time
    /// is up must not leave the remembered in force.
    async fn look_up(&self, name: &LinuxName, candidate: &IamName) -> Result<UserEntry, IamError> {
        let user = async {
            let user = self.heard(name, candidate, self.iam.user(candidate).await)?;
            self.keep_if(name, candidate, |known| known.user.id == user.id && user.name == *candidate);
            Ok(user)
        };
        let groups = async {
            let groups = self.heard(name, candidate, self.iam.groups_of(candidate).await)?;
            let deny = &self.config.access.deny;
            self.take_away(name, candidate, |known| {
                known.groups.retain(|group| groups.contains(group));
                // To be in one of these takes away, too.
                let denied = groups.iter().filter(|group| deny.contains(&group.name));
                let new: Vec<IamGroup> =
                    denied.filter(|group| !known.groups.contains(group)).cloned().collect();
                known.groups.extend(new);
            });
            Ok(groups)
        };
        let key_ids = async {
            let ids = split(self.heard(name, candidate, self.iam.keys_of(candidate).await)?);
            self.take_away(name, candidate, |known| known.keys.retain(|(id, _)| ids.0.contains(id)));
            Ok(ids)
        };
        let (user, groups, key_ids) = join3(user, groups, key_ids).await;
        // An explicit no from any of the three wins over the silence of another.
        let noes = [user.as_ref().err(), groups.as_ref().err(), key_ids.as_ref().err()];
        let no = noes.into_iter().flatten().find(|error| !matches!(error, IamError::Unreachable(_)));
        if let Some(no) = no {
            return Err(IamError::clone(no));
        }
        if user.as_ref().is_ok_and(|user: &IamUser| user.name != *candidate) {
            // IAM's names are unique without regard to case, Linux names are not: `Bob` is not `bob`.
            return Err(IamError::NoSuchEntity);
        }
        let (user, groups, key_ids) = (user?, groups?, key_ids?);
        let (active, inactive) = key_ids;
        let keys = self.keys(&user, &active).await?;
        Ok(UserEntry { uid: ids::uid(&self.config.accounts, &user), user, groups, keys, inactive })
    }

    /// Passes an answer on, and forgets the user if it is a no.
    fn heard<T>(&self, name: &LinuxName, user: &IamName, answer: Result<T, IamError>) -> Result<T, IamError> {
        if let Err(IamError::NoSuchEntity | IamError::Denied(_)) = answer {
            self.keep_if(name, user, |_| false);
        }
        answer
    }

    /// Forgets what is remembered of `user` under `name`, unless `holds` says that it still holds.
    fn keep_if(&self, name: &LinuxName, user: &IamName, holds: impl Fn(&UserEntry) -> bool) {
        let Some(record) = self.record(name) else { return };
        if let Identity::User(person) = &record.identity
            && person.user.name == *user
            && !holds(person)
        {
            let mut state = self.state.borrow_mut();
            state.records.remove(name);
            state.names.remove(&person.uid);
            drop(state);
            self.count_revocation();
        }
    }

    /// Takes what IAM no longer lists away from what is remembered of `user`. Its age stays.
    fn take_away(&self, name: &LinuxName, user: &IamName, take: impl Fn(&mut UserEntry)) {
        self.edit(name, |known| match known {
            Identity::User(person) if person.user.name == *user => {
                let mut person = person.clone();
                take(&mut person);
                Some(Identity::User(person))
            }
            _ => None,
        });
    }

    /// Puts something else in the place of what is remembered, if `edit` has something. Its age stays.
    fn edit(&self, name: &LinuxName, edit: impl FnOnce(&Identity) -> Option<Identity>) {
        let Some(record) = self.record(name) else { return };
        if let Some(known) = edit(&record.identity).filter(|known| *known != record.identity) {
            let record = CacheEntry { identity: known, at: record.at, revoked_at: Instant::now() };
            self.state.borrow_mut().records.insert(name.clone(), Rc::new(record));
            self.count_revocation();
        }
    }

    /// Keys of a user by their ids, whether they are active or not.
    pub async fn keys(&self, user: &IamUser, ids: &[String]) -> Result<Keys, IamError> {
        let keys = join_all(ids.iter().map(|id| self.key(user, id))).await;
        let keys = keys.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    }

    /// A key by its id, under which its body never changes: what is known is not asked again.
    async fn key(&self, user: &IamUser, id: &str) -> Result<Option<(String, Option<PublicKey>)>, IamError> {
        let place = (user.id.clone(), id.to_owned());
        if let Some(key) = self.state.borrow().bodies.get(&place) {
            return Ok(Some((place.1, key.clone())));
        }
        match self.iam.key_body(&user.name, id).await {
            Ok(body) => {
                let key = sshkey::usable(&body);
                let key = key.inspect_err(|why| {
                    self.warn(format!("key {} of IAM user {} {why}", Value(id), user.name));
                });
                let key = key.ok();
                let mut state = self.state.borrow_mut();
                if state.bodies.len() >= BODIES_MAX {
                    state.bodies.clear();
                }
                state.bodies.insert(place.clone(), key.clone());
                Ok(Some((place.1, key)))
            }
            // Deleted since it was listed.
            Err(IamError::NoSuchEntity) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks IAM who the members of a shared account are, and for their keys. Those who are remembered are asked about
    /// at once: a key that was deleted must not go on because a group cannot be listed.
    async fn ask_team(&self, name: &LinuxName, shared: &Shared) -> Result<CacheEntry, IamError> {
        let at = Instant::now();
        let remembered = match self.record(name).as_deref() {
            Some(CacheEntry { identity: Identity::Members(team), .. }) => team.clone(),
            _ => Vec::new(),
        };
        let groups = join_all(shared.groups.iter().map(|group| self.team_group(name, group)));
        let denied = self.denied_of_team(name);
        let (denied, groups, known) = join3(denied, groups, self.members(name, remembered)).await;
        let denied = denied?;
        let mut team: Vec<UserEntry> = Vec::new();
        for (group, users) in groups.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
            for user in users.into_iter().filter(|user| !denied.contains(&user.id)) {
                match team.iter_mut().find(|person| person.user.id == user.id) {
                    Some(person) => person.groups.push(group.clone()),
                    None => team.push(UserEntry {
                        uid: ids::uid(&self.config.accounts, &user),
                        user,
                        groups: vec![group.clone()],
                        keys: Vec::new(),
                        inactive: Vec::new(),
                    }),
                }
                if team.len() > TEAM_MAX {
                    return Err(IamError::Unreachable(format!(
                        "more than {TEAM_MAX} IAM users share it, each of whom costs a call for a login"
                    )));
                }
            }
        }
        let mut known = known?;
        let (old, new): (Vec<UserEntry>, Vec<UserEntry>) =
            team.into_iter().partition(|person| known.iter().any(|(id, _)| *id == person.user.id));
        let mut keys = self.members(name, new.clone()).await?;
        keys.append(&mut known);
        let mut team: Vec<UserEntry> = old.into_iter().chain(new).collect();
        team.sort_by(|one, other| one.user.name.cmp(&other.user.name));
        for person in &mut team {
            let found = keys.iter_mut().find(|(id, _)| *id == person.user.id);
            person.keys = found.map(|(_, keys)| std::mem::take(keys)).unwrap_or_default();
        }
        Ok(CacheEntry::new(Identity::Members(team), at))
    }

    /// The members of the groups that may do nothing. They are taken out of what is remembered of a shared account at once.
    async fn denied_of_team(&self, name: &LinuxName) -> Result<Vec<IamId>, IamError> {
        // What each says counts at once: another that is silent must not leave the remembered in force.
        let members = self.config.access.deny.iter().map(async |group| match self.iam.group(group).await {
            Ok((_, users)) => {
                let denied: Vec<IamId> = users.into_iter().map(|user| user.id).collect();
                self.change_team(name, |team| team.retain(|person| !denied.contains(&person.user.id)));
                Ok(denied)
            }
            Err(IamError::NoSuchEntity) => Ok(Vec::new()),
            Err(error) => Err(IamError::Unreachable(error.to_string())),
        });
        let denied = join_all(members).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(denied.into_iter().flatten().collect())
    }

    /// A group of a shared account. Who is remembered as its member and is no longer one is so no longer, whatever
    /// becomes of the other calls.
    async fn team_group(
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
            // Not about a user, so no answer about one either.
            Err(IamError::Denied(why)) => {
                let why = format!("IAM denies this host to list the group {group}: {why}");
                return Err(IamError::Unreachable(why));
            }
            Err(error) => return Err(error),
        };
        let is_member =
            |id: &IamId| answer.as_ref().is_some_and(|(_, users)| users.iter().any(|user| user.id == *id));
        self.change_team(name, |team| {
            for person in team.iter_mut().filter(|person| !is_member(&person.user.id)) {
                person.groups.retain(|known| known.name != *group);
            }
            team.retain(|person| !person.groups.is_empty());
        });
        Ok(answer)
    }

    /// The keys of so many members of a shared account, by their ids.
    async fn members(
        &self,
        name: &LinuxName,
        people: Vec<UserEntry>,
    ) -> Result<Vec<(IamId, Keys)>, IamError> {
        let asked = stream::iter(people).map(|person| self.member(name, person.user));
        let members: Vec<Result<(IamId, Keys), IamError>> = asked.buffered(MEMBERS_AT_ONCE).collect().await;
        members.into_iter().collect()
    }

    /// The keys of a member of a shared account. A member about whom IAM says no has none.
    async fn member(&self, name: &LinuxName, user: IamUser) -> Result<(IamId, Keys), IamError> {
        let id = user.id.clone();
        let keys = async {
            let (ids, _) = split(self.iam.keys_of(&user.name).await?);
            self.change_team(name, |team| {
                for known in team.iter_mut().filter(|known| known.user.id == id) {
                    known.keys.retain(|(key, _)| ids.contains(key));
                }
            });
            self.keys(&user, &ids).await
        };
        match keys.await {
            Ok(keys) => Ok((id, keys)),
            Err(IamError::Unreachable(why)) => Err(IamError::Unreachable(why)),
            Err(no) => {
                self.warn(format!("{} does not get in to {name}: {no}", user.name));
                self.change_team(name, |team| team.retain(|known| known.user.id != id));
                Ok((id, Vec::new()))
            }
        }
    }

    /// Changes what is remembered of a shared account. Its age stays.
    fn change_team(&self, name: &LinuxName, change: impl FnOnce(&mut Vec<UserEntry>)) {
        self.edit(name, |known| match known {
            Identity::Members(team) => {
                let mut team = team.clone();
                change(&mut team);
                Some(Identity::Members(team))
            }
            _ => None,
        });
    }
}

/// The ids of the active keys and of the others.
fn split(keys: Vec<(String, bool)>) -> (Vec<String>, Vec<String>) {
    let (active, inactive): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(_, active)| *active);
    let ids = |keys: Vec<(String, bool)>| keys.into_iter().map(|(id, _)| id).collect();
    (ids(active), ids(inactive))
}
