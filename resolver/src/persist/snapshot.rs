//! The form of the cache on the disk.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Allowed, Config};
use pam_iam_core::name::{IamName, LinuxName};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::file::milliseconds;
use crate::ids;
use crate::lookup::cache::{Cache, CacheEntry, Identity, TagValue, UserEntry};
use crate::lookup::roster::{Roster, SavedRoster};
use crate::source::{IamId, KeyId, sshkey};

/// The cache as it is saved. All ages are in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    names: Vec<SavedName>,
    /// Keys of users whom the roster lists, though their entries are too old to be saved.
    #[serde(default)]
    keys: Vec<SavedKey>,
    roster: Option<SavedRoster>,
    tags: SavedTags,
}

/// The saved form of an entry. An entry without a user is saved only if the roster lists the name, since without the
/// entry the roster would show that user after a restart.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedName {
    name: LinuxName,
    age: u64,
    /// The time since an answer last changed the entry, in milliseconds.
    #[serde(rename = "revoked_age", alias = "reduced")]
    changed_age: u64,
    known: SavedIdentity,
}

/// The body of a key. It never changes under the key's id, so a login after a restart need not fetch it again.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct SavedKey {
    user: IamId,
    id: KeyId,
    key: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedIdentity {
    One(UserEntry),
    Team(Vec<UserEntry>),
    Absent,
}

/// The most bytes of old keys that are saved, so that they do not make the file too long to be read.
const OLD_KEYS_MAX: usize = 16 * 1024 * 1024;

/// The groups that tags named, with their ages.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct SavedTags {
    allow: Option<(Vec<IamName>, u64)>,
    sudo: Option<(Vec<IamName>, u64)>,
}

/// The environment variables that decide which AWS account is asked. Those with keys and tokens are left out, since they
/// change while the account stays the same.
const ACCOUNT_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_IAM",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_SHARED_CREDENTIALS_FILE",
];

/// Returns a text that changes whenever names may stand for other users: a part of the configuration and of the
/// environment, and the machine id, since an image of this host may be started as another host. A cache that was saved
/// under another text is not used.
pub fn setup(config: &Config) -> String {
    let Config { aws, accounts, shared, access, groups, .. } = config;
    let aws = (&aws.region, &aws.endpoint, &aws.profile, &aws.assume_role);
    let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let environment = ACCOUNT_VARIABLES.map(std::env::var_os);
    format!("{aws:?} {:?} {shared:?} {access:?} {groups:?} {host} {environment:?}", accounts.drop_suffix)
}

impl Snapshot {
    /// Returns the snapshot of `cache`, without entries and a roster that are older than `offline` and so serve no
    /// request.
    pub fn of(cache: &Cache, offline: Duration) -> Self {
        let roster = cache.roster.as_ref().filter(|roster| roster.age() < offline);
        let is_listed = |name: &LinuxName| roster.is_some_and(|roster| roster.has(name));
        // By one clock reading, so that the order of entries and roster is saved too.
        let now = Instant::now();
        let age_of = |moment: Instant| milliseconds(now.saturating_duration_since(moment));
        let young = cache.entries().filter(|(_, entry)| entry.age() < offline);
        let mut names: Vec<SavedName> = young
            .filter_map(|(name, entry)| {
                let known = match &entry.identity {
                    Identity::User(user) => SavedIdentity::One(user.clone()),
                    Identity::Members(members) => SavedIdentity::Team(members.clone()),
                    Identity::NotFound | Identity::Ambiguous(_) | Identity::AccessDenied => {
                        is_listed(name).then_some(SavedIdentity::Absent)?
                    }
                };
                let (age, changed_age) = (age_of(entry.fetched_at), age_of(entry.changed_at));
                Some(SavedName { name: name.clone(), age, changed_age, known })
            })
            .collect();
        names.sort_by(|one, other| one.name.cmp(&other.name));
        let tag = |value: &TagValue| match value {
            Some((Allowed::Groups(groups), read_at)) => {
                Some((groups.clone(), milliseconds(read_at.elapsed())))
            }
            _ => None,
        };
        Self {
            keys: old_keys(cache, roster, &names),
            names,
            roster: roster.map(|roster| roster.saved(now)),
            tags: SavedTags { allow: tag(&cache.allow_tag), sudo: tag(&cache.sudo_tag) },
        }
    }

    /// Returns whether there is neither an entry nor a roster.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.roster.is_none()
    }

    /// Returns the number of entries.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Returns the number of keys that no entry has.
    #[cfg(test)]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Adds the snapshot, which was saved `ago`, to `cache`. Leaves out what does not fit the configuration, and what
    /// `cache` has already, since that is newer.
    pub fn restore(self, cache: &mut Cache, config: &Config, ago: Duration) {
        let now = Instant::now();
        let moment = |age: u64| now.checked_sub(Duration::from_millis(age).saturating_add(ago));
        for SavedName { name, age, changed_age, known } in self.names {
            let Some((fetched_at, changed_at)) = moment(age).zip(moment(changed_age)) else { continue };
            let Some(mut identity) = known.identity(&name, config) else { continue };
            for user in users_of(&mut identity) {
                restore_keys(user, cache);
            }
            if let Identity::User(user) = &identity {
                cache.set_name_if_absent(user.uid, name.clone());
            }
            cache.insert_if_absent(name, Rc::new(CacheEntry { identity, fetched_at, changed_at }));
        }
        for SavedKey { user, id, key } in self.keys {
            if let (None, Ok(key)) = (cache.key_body(&user, &id), sshkey::usable(&key)) {
                cache.set_key_body(&user, &id, Some(key));
            }
        }
        let still_serves =
            |age: u64| Duration::from_millis(age).saturating_add(ago) < config.freshness.offline.0;
        let saved_roster = self.roster.filter(|saved| still_serves(saved.age));
        let roster = saved_roster
            .and_then(|saved| moment(saved.age).map(|at| Rc::new(Roster::restored(saved, config, at))));
        cache.roster = cache.roster.take().or(roster);
        let tag = |saved: Option<(Vec<IamName>, u64)>| {
            let (groups, age) = saved?;
            Some((Allowed::Groups(groups), moment(age)?))
        };
        cache.allow_tag = cache.allow_tag.take().or(tag(self.tags.allow));
        cache.sudo_tag = cache.sudo_tag.take().or(tag(self.tags.sudo));
    }

    /// Restores into an empty cache, for the fuzzer. Returns the number of entries.
    #[doc(hidden)]
    pub fn fuzz(self, config: &Config) -> usize {
        let mut cache = Cache::default();
        self.restore(&mut cache, config, Duration::from_secs(1));
        cache.len()
    }
}

impl SavedIdentity {
    /// Returns the identity of `name`. None if under the configuration the name is no longer that of this user or shared
    /// account.
    fn identity(self, name: &LinuxName, config: &Config) -> Option<Identity> {
        let is_shared = config.shared.contains_key(name);
        match self {
            Self::Absent => Some(Identity::NotFound),
            Self::Team(members) => is_shared.then_some(Identity::Members(members)),
            Self::One(mut user) => {
                user.uid = ids::uid(&config.accounts, &user.user);
                let has_name = user.user.name.to_linux(&config.accounts.drop_suffix).as_ref() == Ok(name);
                (!is_shared && has_name).then_some(Identity::User(user))
            }
        }
    }
}

/// Returns the keys of the users of `roster` that no entry in `names` has, in all at most [`OLD_KEYS_MAX`] bytes.
fn old_keys(cache: &Cache, roster: Option<&Rc<Roster>>, names: &[SavedName]) -> Vec<SavedKey> {
    let listed: HashSet<&IamId> =
        roster.iter().flat_map(|roster| roster.users()).map(|(_, user)| &user.id).collect();
    let saved: HashSet<&IamId> = names
        .iter()
        .filter_map(|name| match &name.known {
            SavedIdentity::One(user) => Some(&user.user.id),
            SavedIdentity::Team(_) | SavedIdentity::Absent => None,
        })
        .collect();
    let old = cache.keys().filter(|(user, ..)| listed.contains(user) && !saved.contains(user));
    let mut keys: Vec<SavedKey> = old
        .map(|(user, id, key)| SavedKey { user: user.clone(), id: id.clone(), key: key.to_string() })
        .collect();
    keys.sort();
    let mut length = 0;
    keys.retain(|key| {
        length += key.key.len();
        length <= OLD_KEYS_MAX
    });
    keys
}

fn users_of(identity: &mut Identity) -> &mut [UserEntry] {
    match identity {
        Identity::User(user) => std::slice::from_mut(user),
        Identity::Members(members) => members,
        Identity::NotFound | Identity::Ambiguous(_) | Identity::AccessDenied => &mut [],
    }
}

/// Checks the keys of a user again, since another release may have saved them under other rules. A refused key is fetched
/// again.
fn restore_keys(user: &mut UserEntry, cache: &mut Cache) {
    for (id, key) in &mut user.keys {
        *key = key.take().and_then(|key| sshkey::usable(&key.to_string()).ok());
        if key.is_some() && cache.key_body(&user.user.id, id).is_none() {
            cache.set_key_body(&user.user.id, id, key.clone());
        }
    }
}
