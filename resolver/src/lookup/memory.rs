//! What goes to the disk and comes back: the directory as it is, and when that is worth a write.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Allowed, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{IamName, LinuxName};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::{CacheEntry, Directory, Identity, UserEntry};
use crate::ids;
use crate::lookup::roster::{Roster, SavedRoster};
use crate::persist::file::milliseconds;
use crate::source::sshkey;
use crate::source::{Iam, IamId};

/// How long an answer waits until what was taken away is on the disk, so that after a crash no older answer comes back. A
/// disk that is slower keeps nobody waiting longer, and nobody at all before it has written something again.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(400);

/// The directory as it is saved. All ages are in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    names: Vec<SavedName>,
    roster: Option<SavedRoster>,
    tags: SavedTags,
}

/// Who stands behind a name. That nobody does is saved only of a name that the list still has: else who is not known is
/// refused as well.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedName {
    name: LinuxName,
    age: u64,
    /// How long ago something was last taken away.
    #[serde(alias = "reduced")]
    revoked_age: u64,
    known: SavedIdentity,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedIdentity {
    One(UserEntry),
    Team(Vec<UserEntry>),
    Absent,
}

/// The groups that tags named, with their ages.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct SavedTags {
    allow: Option<(Vec<IamName>, u64)>,
    sudo: Option<(Vec<IamName>, u64)>,
}

/// What changed since the last save.
#[derive(Debug)]
pub(super) struct Changes {
    need: Cell<Need>,
    told: Notify,
    /// How often something was taken away, and up to which of them the disk has it. Nobody keeps it on disk while there
    /// is no receiver.
    taken: Cell<u64>,
    settled: watch::Sender<u64>,
    /// Whether somebody has waited for the disk in vain since it last wrote something.
    slow: Cell<bool>,
    /// Whether there is a file that was not read.
    pub(super) unread: Cell<bool>,
}

/// What the disk lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// That something still holds.
    Age,
    /// Something new.
    News,
    /// That something holds no more.
    Urgent,
}

impl Default for Changes {
    fn default() -> Self {
        let settled = watch::Sender::new(0);
        Self {
            need: Cell::default(),
            told: Notify::new(),
            taken: Cell::default(),
            settled,
            slow: Cell::default(),
            unread: Cell::default(),
        }
    }
}

/// What a keeper of the cache is to save.
#[derive(Debug)]
pub struct Change {
    /// Whether something was taken away, so that an older file says too much.
    pub urgent: bool,
    number: u64,
}

/// The environment variables that say which account is asked. Keys and tokens change without it.
const ACCOUNT_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_IAM",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_SHARED_CREDENTIALS_FILE",
];

/// What says whom names stand for: a part of the configuration and of the environment, and
/// the host, since an image of it may be started elsewhere. Under another one, nothing of the cache holds.
pub fn setup(config: &Config) -> String {
    let Config { aws, accounts, shared, access, groups, .. } = config;
    let aws = (&aws.region, &aws.endpoint, &aws.profile, &aws.assume_role);
    let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let environment = ACCOUNT_VARIABLES.map(std::env::var_os);
    format!("{aws:?} {:?} {shared:?} {access:?} {groups:?} {host} {environment:?}", accounts.drop_suffix)
}

impl Snapshot {
    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.roster.is_none()
    }

    /// How many names there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.names.len()
    }
}

impl<I: Iam> Directory<I> {
    /// What is known was confirmed.
    pub(super) fn refreshed(&self) {
        self.needs(Need::Age);
    }

    /// Something new was learned.
    pub(super) fn changed(&self) {
        self.needs(Need::News);
    }

    /// Something that was known holds no more.
    pub(super) fn count_revocation(&self) {
        self.changes.taken.set(self.changes.taken.get() + 1);
        self.needs(Need::Urgent);
    }

    fn needs(&self, need: Need) {
        self.changes.need.set(self.changes.need.get().max(need));
        self.changes.told.notify_one();
    }

    /// Waits until what was taken away is on the disk, where somebody keeps it there.
    pub async fn settle(&self) {
        let changes = &self.changes;
        let taken = changes.taken.get();
        let settled = *changes.settled.borrow() >= taken;
        if settled || changes.slow.get() || changes.settled.receiver_count() == 0 {
            return;
        }
        let mut receiver = changes.settled.subscribe();
        if timeout(SETTLE_MAX, receiver.wait_for(|number| *number >= taken)).await.is_err() {
            changes.slow.set(true);
        }
    }

    /// Says that somebody keeps the directory on the disk, as long as the value lives.
    pub fn keeper(&self) -> watch::Receiver<u64> {
        self.changes.settled.subscribe()
    }

    /// Waits until there is something to save. What can wait is put off, something new by `news` and what was confirmed by
    /// `age`, so that many changes are one write.
    pub async fn change(&self, news: Duration, age: Duration) -> Change {
        self.needed(Need::Age).await;
        if timeout(age, self.needed(Need::News)).await.is_ok() {
            let _ = timeout(news, self.needed(Need::Urgent)).await;
        }
        self.pending_change()
    }

    async fn needed(&self, need: Need) {
        while self.changes.need.get() < need {
            self.changes.told.notified().await;
        }
    }

    /// Waits for `pause`, or until something is taken away.
    pub async fn pause(&self, pause: Duration) {
        let _ = timeout(pause, self.needed(Need::Urgent)).await;
    }

    /// There is a file that was not read, or none any more.
    pub fn leaves_unread(&self, unread: bool) {
        self.changes.unread.set(unread);
    }

    /// Whether there is a file that was not read.
    pub fn has_unread(&self) -> bool {
        self.changes.unread.get()
    }

    /// Whether there is nothing to save.
    pub fn is_saved(&self) -> bool {
        self.changes.need.get() == Need::Nothing
    }

    /// What there is to save now.
    pub fn pending_change(&self) -> Change {
        let urgent = self.changes.need.replace(Need::Nothing) == Need::Urgent;
        Change { urgent, number: self.changes.taken.get() }
    }

    /// A change is on the disk, or no file says otherwise.
    pub fn is_settled(&self, change: &Change) {
        self.changes.slow.set(false);
        self.changes.settled.send_replace(change.number);
    }

    /// A change could not be saved: the next try is to save it too, and `urgent` says whether a file says otherwise.
    pub fn is_unsaved(&self, urgent: bool) {
        let need = if urgent { Need::Urgent } else { Need::News };
        self.changes.need.set(self.changes.need.get().max(need));
    }

    /// The directory as it is, without what no longer serves anybody.
    pub fn snapshot(&self) -> Snapshot {
        self.notice_sleep();
        let offline = self.config.freshness.offline.0;
        let state = self.state.borrow();
        let roster = state.roster.as_ref().filter(|roster| roster.at.elapsed() < offline);
        let listed = |name: &LinuxName| roster.is_some_and(|roster| roster.has(name));
        let mut names: Vec<SavedName> = state
            .records
            .iter()
            .filter(|(_, record)| record.at.elapsed() < offline)
            .filter_map(|(name, record)| {
                let known = match &record.identity {
                    Identity::User(person) => SavedIdentity::One(person.clone()),
                    Identity::Members(team) => SavedIdentity::Team(team.clone()),
                    Identity::NotFound | Identity::Ambiguous(_) | Identity::AccessDenied if listed(name) => {
                        SavedIdentity::Absent
                    }
                    Identity::NotFound | Identity::Ambiguous(_) | Identity::AccessDenied => return None,
                };
                let age = milliseconds(record.at.elapsed());
                Some(SavedName {
                    name: name.clone(),
                    age,
                    revoked_age: milliseconds(record.revoked_at.elapsed()),
                    known,
                })
            })
            .collect();
        names.sort_by(|one, other| one.name.cmp(&other.name));
        let tag = |held: &Option<(Allowed, Instant)>| match held {
            Some((Allowed::Groups(groups), at)) => Some((groups.clone(), milliseconds(at.elapsed()))),
            _ => None,
        };
        Snapshot {
            names,
            roster: roster.map(|roster| roster.saved()),
            tags: SavedTags { allow: tag(&state.tags.allow), sudo: tag(&state.tags.sudo) },
        }
    }

    /// Puts back what was saved so long ago. What does not fit the configuration is left out, and what was learned since
    /// stays.
    pub fn restore(&self, snapshot: Snapshot, ago: Duration) {
        let Unpacked { records, bodies, names, roster, allow, sudo } = snapshot.unpack(&self.config, ago);
        let mut state = self.state.borrow_mut();
        for (name, record) in records {
            state.records.entry(name).or_insert(record);
        }
        for (place, body) in bodies {
            state.bodies.entry(place).or_insert(body);
        }
        for (uid, name) in names {
            state.names.entry(uid).or_insert(name);
        }
        state.roster = state.roster.take().or(roster);
        state.tags.allow = state.tags.allow.take().or(allow);
        state.tags.sudo = state.tags.sudo.take().or(sudo);
    }
}

/// What a snapshot holds, in the form of the state.
struct Unpacked {
    records: HashMap<LinuxName, Rc<CacheEntry>>,
    bodies: HashMap<(IamId, String), Option<PublicKey>>,
    names: HashMap<Uid, LinuxName>,
    roster: Option<Rc<Roster>>,
    allow: Option<(Allowed, Instant)>,
    sudo: Option<(Allowed, Instant)>,
}

impl Snapshot {
    fn unpack(self, config: &Config, ago: Duration) -> Unpacked {
        let now = Instant::now();
        let began = |age: u64| now.checked_sub(Duration::from_millis(age).saturating_add(ago));
        let (mut records, mut bodies, mut names) = (HashMap::new(), HashMap::new(), HashMap::new());
        for SavedName { name, age, revoked_age, known } in self.names {
            let Some((at, revoked_at)) = began(age).zip(began(revoked_age)) else { continue };
            let shared = config.shared.contains_key(&name);
            let mut known = match known {
                SavedIdentity::One(person) => Identity::User(person),
                SavedIdentity::Team(team) => Identity::Members(team),
                SavedIdentity::Absent => Identity::NotFound,
            };
            if let Identity::User(person) = &mut known {
                person.uid = ids::uid(&config.accounts, &person.user);
            }
            let people = match &mut known {
                Identity::NotFound => &mut [],
                Identity::User(person)
                    if !shared
                        && person.user.name.to_linux(&config.accounts.drop_suffix).as_ref() == Ok(&name) =>
                {
                    names.insert(person.uid, name.clone());
                    std::slice::from_mut(person)
                }
                Identity::Members(team) if shared => team.as_mut_slice(),
                _ => continue,
            };
            for person in people {
                for (id, key) in &mut person.keys {
                    // Judged anew: another release may think otherwise. What is not usable is asked for again.
                    *key = key.take().and_then(|key| sshkey::usable(&key.to_string()).ok());
                    if key.is_some() {
                        bodies.insert((person.user.id.clone(), id.clone()), key.clone());
                    }
                }
            }
            records.insert(name, Rc::new(CacheEntry { identity: known, at, revoked_at }));
        }
        let serves = |age: u64| Duration::from_millis(age).saturating_add(ago) < config.freshness.offline.0;
        let roster = self.roster.filter(|saved| serves(saved.age));
        let roster =
            roster.and_then(|saved| began(saved.age).map(|at| Rc::new(Roster::restored(saved, config, at))));
        let tag = |held: Option<(Vec<IamName>, u64)>| {
            let (groups, age) = held?;
            Some((Allowed::Groups(groups), began(age)?))
        };
        let (allow, sudo) = (tag(self.tags.allow), tag(self.tags.sudo));
        Unpacked { records, bodies, names, roster, allow, sudo }
    }

    /// What a fuzzer has of it.
    #[doc(hidden)]
    pub fn fuzz(self, config: &Config) -> usize {
        self.unpack(config, Duration::from_secs(1)).records.len()
    }
}
