//! The cache: the answers of IAM about users, with their ages. This module makes no calls. It stores answers, and removes
//! from them what IAM withdraws.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::Allowed;
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::Source;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::roster::Roster;
use crate::ids;
use crate::source::{IamGroup, IamId, IamUser, KeyId};

/// The most key bodies that are kept: 5 for each of the 5,000 users of an AWS account, and as many replaced ones.
const KEY_BODIES_MAX: usize = 50_000;

/// The number of names at which those of no user are evicted, so that a client who guesses names cannot fill the memory.
const NAMES_MAX: usize = 10_000;

/// The answer of IAM about a Linux name.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// No IAM user has the name.
    NotFound,
    /// One IAM user has the name.
    User(UserEntry),
    /// The names of several IAM users map to the name, so none of them gets it.
    Ambiguous(Vec<IamName>),
    /// IAM denies this host the calls about the user.
    AccessDenied,
    /// The name is that of a shared account, which these IAM users may use. Their `groups` are the groups that let them.
    Members(Vec<UserEntry>),
}

impl Identity {
    /// Returns whether the answer was that this host may know no user of the name.
    fn is_nobody(&self) -> bool {
        matches!(self, Self::NotFound | Self::AccessDenied)
    }

    /// Returns whether this is a single IAM user, with the given uid.
    pub fn has_uid(&self, uid: Uid) -> bool {
        matches!(self, Self::User(user) if user.uid == uid)
    }
}

/// An IAM user with all that a login needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedUserEntry")]
pub struct UserEntry {
    /// The name, the id and the time of creation.
    pub user: IamUser,
    /// The uid on this host. It follows from the id and the configuration, so it is not saved.
    #[serde(skip_serializing)]
    pub uid: Uid,
    /// The IAM groups of the user.
    pub groups: Vec<IamGroup>,
    /// The active keys.
    pub keys: Keys,
    /// The ids of the keys that are not active.
    pub inactive: Vec<KeyId>,
}

/// A [`UserEntry`] on the disk.
#[derive(Deserialize)]
struct SavedUserEntry {
    user: IamUser,
    groups: Vec<IamGroup>,
    keys: Keys,
    inactive: Vec<KeyId>,
}

impl From<SavedUserEntry> for UserEntry {
    fn from(SavedUserEntry { user, groups, keys, inactive }: SavedUserEntry) -> Self {
        Self { uid: ids::uid_of(user.id.as_str()), user, groups, keys, inactive }
    }
}

/// Keys with their ids. None in the place of a key that sshd would not accept.
pub type Keys = Vec<(KeyId, Option<PublicKey>)>;

/// The last answer of IAM about a name.
#[derive(Debug)]
pub struct CacheEntry {
    /// The answer, without what later partial answers took away.
    pub identity: Identity,
    /// The moment before the first call of the fetch, so that an age is never too small.
    pub fetched_at: Instant,
    /// The moment when an answer last changed the identity: that of this answer, or of a later partial one.
    pub changed_at: Instant,
}

impl CacheEntry {
    /// Returns the entry of an answer that has just come. The fetch began at `fetched_at`.
    pub fn new(identity: Identity, fetched_at: Instant) -> Self {
        Self { identity, fetched_at, changed_at: Instant::now() }
    }

    /// Returns the time since the fetch began.
    pub fn age(&self) -> Duration {
        self.fetched_at.elapsed()
    }

    fn older_by(&self, span: Duration) -> Option<Self> {
        let (fetched_at, changed_at) =
            (self.fetched_at.checked_sub(span)?, self.changed_at.checked_sub(span)?);
        Some(Self { identity: self.identity.clone(), fetched_at, changed_at })
    }
}

/// The result of a lookup.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The entry.
    pub entry: Rc<CacheEntry>,
    /// The way in which the entry was found: a call, the cache, or the cache during an outage.
    pub source: Source,
}

impl Lookup {
    /// Returns an entry that was young enough to be used without asking IAM.
    pub fn cached(entry: Rc<CacheEntry>) -> Self {
        Self { entry, source: Source::Cache }
    }
}

/// The IAM groups that an instance tag named, and the moment before the tag was read. None if it has no value.
pub type TagValue = Option<(Allowed, Instant)>;

/// The entries, the roster, the tags and the bodies of keys.
#[derive(Default)]
pub struct Cache {
    entries: HashMap<LinuxName, Rc<CacheEntry>>,
    names_by_uid: HashMap<Uid, LinuxName>,
    /// Bodies of keys by user and key id. IAM never changes the body of a key id. None for a key that sshd would not
    /// accept.
    key_bodies: HashMap<(IamId, KeyId), Option<PublicKey>>,
    /// The list of users who may log in, as it was last read.
    pub roster: Option<Rc<Roster>>,
    /// The value of the tag of `access.allow`.
    pub allow_tag: TagValue,
    /// The value of the tag of `access.sudo`.
    pub sudo_tag: TagValue,
}

impl Cache {
    /// Returns the entry of a name.
    pub fn entry(&self, name: &LinuxName) -> Option<Rc<CacheEntry>> {
        self.entries.get(name).cloned()
    }

    /// Returns all names with their entries, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (&LinuxName, &Rc<CacheEntry>)> {
        self.entries.iter()
    }

    /// Stores an entry. Returns the entry that it replaces.
    pub fn insert(&mut self, name: &LinuxName, entry: Rc<CacheEntry>) -> Option<Rc<CacheEntry>> {
        if entry.identity.is_nobody() && self.entries.len() >= NAMES_MAX {
            self.entries.retain(|_, entry| !entry.identity.is_nobody());
        }
        self.entries.insert(name.clone(), entry)
    }

    /// Stores an entry unless the name has one.
    pub fn insert_if_absent(&mut self, name: LinuxName, entry: Rc<CacheEntry>) {
        self.entries.entry(name).or_insert(entry);
    }

    /// Removes the entry of a name. Returns whether there was one.
    pub fn evict(&mut self, name: &LinuxName) -> bool {
        self.entries.remove(name).is_some()
    }

    /// Removes the entry of `name` if it is about the IAM user `user` and `holds` returns false for it. Returns whether
    /// an entry was removed.
    pub fn evict_unless(
        &mut self,
        name: &LinuxName,
        user: &IamName,
        holds: impl Fn(&UserEntry) -> bool,
    ) -> bool {
        let Some(entry) = self.entries.get(name) else { return false };
        let uid = match &entry.identity {
            Identity::User(known) if known.user.name == *user && !holds(known) => known.uid,
            _ => return false,
        };
        self.entries.remove(name);
        self.names_by_uid.remove(&uid);
        true
    }

    /// Replaces the identity of `name` by the one that `change` returns, if the two differ. The age of the entry stays.
    /// Returns whether the identity was replaced.
    pub fn revoke(&mut self, name: &LinuxName, change: impl FnOnce(&Identity) -> Option<Identity>) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let Some(identity) = change(&entry.identity).filter(|identity| *identity != entry.identity) else {
            return false;
        };
        let fetched_at = entry.fetched_at;
        *entry = Rc::new(CacheEntry { identity, fetched_at, changed_at: Instant::now() });
        true
    }

    /// Returns the entries that an answer changed at `since` or later.
    pub fn changed_since(&self, since: Instant) -> Vec<(LinuxName, Rc<CacheEntry>)> {
        let changed = |entry: &CacheEntry| entry.changed_at >= since;
        let entries = self.entries.iter().filter(|(_, entry)| changed(entry));
        entries.map(|(name, entry)| (name.clone(), Rc::clone(entry))).collect()
    }

    /// Returns the number of names that have an entry.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Removes everything but the bodies of keys, which never change.
    pub fn clear(&mut self) {
        *self = Self { key_bodies: std::mem::take(&mut self.key_bodies), ..Self::default() };
    }

    /// Makes everything older by `span`. Removes what would be older than an [`Instant`] can say.
    pub fn age_by(&mut self, span: Duration) {
        self.entries.retain(|_, entry| entry.older_by(span).map(|older| *entry = Rc::new(older)).is_some());
        self.roster = self.roster.take().and_then(|roster| Some(Rc::new(roster.older_by(span)?)));
        for tag in [&mut self.allow_tag, &mut self.sudo_tag] {
            *tag = tag.take().and_then(|(allowed, read_at)| Some((allowed, read_at.checked_sub(span)?)));
        }
    }

    /// Returns the name under which the user with `uid` was last seen.
    pub fn name_of(&self, uid: Uid) -> Option<LinuxName> {
        self.names_by_uid.get(&uid).cloned()
    }

    /// Records that the user with `uid` was seen under `name`.
    pub fn set_name_of(&mut self, uid: Uid, name: LinuxName) {
        self.names_by_uid.insert(uid, name);
    }

    /// Records that the user with `uid` was seen under `name`, unless a name is recorded already.
    pub fn set_name_if_absent(&mut self, uid: Uid, name: LinuxName) {
        self.names_by_uid.entry(uid).or_insert(name);
    }

    /// Forgets under which name the user with `uid` was seen.
    pub fn forget_name_of(&mut self, uid: Uid) {
        self.names_by_uid.remove(&uid);
    }

    /// Returns whether `uid` is that of a user of another name than `name`, by an entry or by the roster.
    pub fn is_uid_of_another(&self, uid: Uid, name: &LinuxName) -> bool {
        let listed = self.roster.as_ref().and_then(|roster| roster.name_of(uid));
        [self.names_by_uid.get(&uid), listed].into_iter().flatten().any(|other| other != name)
    }

    /// Returns whether an IAM user who was created before `user` has the same uid, by the roster or by an entry younger
    /// than `recent`. An older entry may describe a deleted user; if the user still exists, the roster has them.
    pub fn uid_belongs_to_older_user(&self, uid: Uid, user: &IamUser, recent: Duration) -> bool {
        let is_older =
            |other: &IamUser| other.id != user.id && (other.created, &other.id) < (user.created, &user.id);
        let entry = self.names_by_uid.get(&uid).and_then(|name| self.entries.get(name));
        let seen = entry.filter(|entry| entry.age() < recent).is_some_and(|entry| match &entry.identity {
            Identity::User(other) => other.uid == uid && is_older(&other.user),
            _ => false,
        });
        seen || self.roster.as_ref().and_then(|roster| roster.holder_of(uid)).is_some_and(is_older)
    }

    /// Returns the body of a key, if it was fetched before. The inner value is None for a key that sshd would not accept.
    pub fn key_body(&self, user: &IamId, key: &str) -> Option<Option<PublicKey>> {
        self.key_bodies.get(&(user.clone(), key.to_owned())).cloned()
    }

    /// Returns the bodies of the keys that sshd would accept, each with its user and its id, in no order.
    pub fn keys(&self) -> impl Iterator<Item = (&IamId, &KeyId, &PublicKey)> {
        self.key_bodies.iter().filter_map(|((user, id), key)| Some((user, id, key.as_ref()?)))
    }

    /// Stores the body of a key.
    pub fn set_key_body(&mut self, user: &IamId, key: &str, body: Option<PublicKey>) {
        if self.key_bodies.len() >= KEY_BODIES_MAX {
            self.key_bodies.clear();
        }
        self.key_bodies.insert((user.clone(), key.to_owned()), body);
    }
}
