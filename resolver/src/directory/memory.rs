//! What goes to the disk and comes back: the directory as it is, and when that is worth a write.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Config, Who};
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{IamName, LinuxName};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::{Directory, Known, Person, Record};
use crate::cache::milliseconds;
use crate::iam::{Iam, IamId};
use crate::roster::{Roster, SavedRoster};

/// How long an answer that takes something away waits until it is on the disk, so that after a crash no older answer
/// comes back. A disk that is slower keeps nobody waiting longer.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(500);

/// The directory as it is saved. All ages are in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    names: Vec<SavedName>,
    roster: Option<SavedRoster>,
    tags: SavedTags,
}

/// Who stands behind a name. That nobody does is not saved: who is not known is refused as well.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedName {
    name: LinuxName,
    age: u64,
    known: SavedKnown,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedKnown {
    One(Person),
    Team(Vec<Person>),
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
    /// Something did.
    dirty: Cell<bool>,
    /// Something was taken away.
    urgent: Cell<bool>,
    told: Notify,
    /// How often something was taken away, and up to which of them the disk has it. Nobody keeps it on disk while there
    /// is no receiver.
    taken: Cell<u64>,
    settled: watch::Sender<u64>,
}

impl Default for Changes {
    fn default() -> Self {
        let settled = watch::Sender::new(0);
        Self {
            dirty: Cell::default(),
            urgent: Cell::default(),
            told: Notify::new(),
            taken: Cell::default(),
            settled,
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

/// The part of the configuration that says whom names stand for. Under another one, nothing of the cache holds.
pub fn setup(config: &Config) -> String {
    let Config { aws, accounts, shared, access, groups, .. } = config;
    let aws = (&aws.region, &aws.endpoint, &aws.profile, &aws.assume_role);
    format!("{aws:?} {:?} {shared:?} {access:?} {groups:?}", accounts.drop_suffix)
}

#[cfg(test)]
impl Snapshot {
    /// How many names there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }
}

impl<I: Iam> Directory<I> {
    /// Something new was learned.
    pub(super) fn changed(&self) {
        self.changes.dirty.set(true);
        self.changes.told.notify_one();
    }

    /// Something that was known holds no more.
    pub(super) fn reduced(&self) {
        self.changes.urgent.set(true);
        self.changes.taken.set(self.changes.taken.get() + 1);
        self.changed();
    }

    /// Waits until what was taken away is on the disk, where somebody keeps it there.
    pub(super) async fn settle(&self) {
        let taken = self.changes.taken.get();
        if self.changes.urgent.get() && self.changes.settled.receiver_count() > 0 {
            let mut settled = self.changes.settled.subscribe();
            let _ = timeout(SETTLE_MAX, settled.wait_for(|number| *number >= taken)).await;
        }
    }

    /// Says that somebody keeps the directory on the disk, as long as the value lives.
    pub fn keeper(&self) -> watch::Receiver<u64> {
        self.changes.settled.subscribe()
    }

    /// Waits until there is something to save. What can wait is put off by `delay`, so that many changes are one write.
    pub async fn change(&self, delay: Duration) -> Change {
        let wanted = async {
            while !self.changes.dirty.get() {
                self.changes.told.notified().await;
            }
        };
        wanted.await;
        let urgent = async {
            while !self.changes.urgent.get() {
                self.changes.told.notified().await;
            }
        };
        let _ = timeout(delay, urgent).await;
        self.pending_change()
    }

    /// What there is to save now.
    pub fn pending_change(&self) -> Change {
        self.changes.dirty.set(false);
        Change { urgent: self.changes.urgent.replace(false), number: self.changes.taken.get() }
    }

    /// A change is on the disk, or no file says otherwise.
    pub fn is_settled(&self, change: &Change) {
        self.changes.settled.send_replace(change.number);
    }

    /// A change could not be saved: the next try is to save it too.
    pub fn is_unsettled(&self, change: &Change) {
        self.changes.dirty.set(true);
        self.changes.urgent.set(self.changes.urgent.get() || change.urgent);
    }

    /// The directory as it is, without what no longer serves anybody.
    pub fn snapshot(&self) -> Snapshot {
        let offline = self.config.freshness.offline.0;
        let state = self.state.borrow();
        let mut names: Vec<SavedName> = state
            .records
            .iter()
            .filter(|(_, record)| record.at.elapsed() < offline)
            .filter_map(|(name, record)| {
                let known = match &record.known {
                    Known::One(person) => SavedKnown::One(person.clone()),
                    Known::Team(team) => SavedKnown::Team(team.clone()),
                    Known::Absent | Known::Ambiguous(_) | Known::Denied => return None,
                };
                Some(SavedName { name: name.clone(), age: milliseconds(record.at.elapsed()), known })
            })
            .collect();
        names.sort_by(|one, other| one.name.cmp(&other.name));
        let tag = |held: &Option<(Who, Instant)>| match held {
            Some((Who::Groups(groups), at)) => Some((groups.clone(), milliseconds(at.elapsed()))),
            _ => None,
        };
        Snapshot {
            names,
            roster: state.roster.as_ref().map(|roster| roster.saved()),
            tags: SavedTags { allow: tag(&state.tags.allow), sudo: tag(&state.tags.sudo) },
        }
    }

    /// Puts back what was saved so long ago. What does not fit the configuration is left out.
    pub fn restore(&self, snapshot: Snapshot, ago: Duration) {
        let Unpacked { records, bodies, names, roster, allow, sudo } = snapshot.unpack(&self.config, ago);
        let mut state = self.state.borrow_mut();
        (state.records, state.bodies, state.names) = (records, bodies, names);
        state.roster = roster;
        (state.tags.allow, state.tags.sudo) = (allow, sudo);
    }
}

/// What a snapshot holds, in the form of the state.
struct Unpacked {
    records: HashMap<LinuxName, Rc<Record>>,
    bodies: HashMap<(IamId, String), Option<PublicKey>>,
    names: HashMap<Uid, LinuxName>,
    roster: Option<Rc<Roster>>,
    allow: Option<(Who, Instant)>,
    sudo: Option<(Who, Instant)>,
}

impl Snapshot {
    fn unpack(self, config: &Config, ago: Duration) -> Unpacked {
        let now = Instant::now();
        let began = |age: u64| now.checked_sub(Duration::from_millis(age).saturating_add(ago));
        let (mut records, mut bodies, mut names) = (HashMap::new(), HashMap::new(), HashMap::new());
        for SavedName { name, age, known } in self.names {
            let Some(at) = began(age) else { continue };
            let shared = config.shared.contains_key(&name);
            let known = match known {
                SavedKnown::One(person) => Known::One(person),
                SavedKnown::Team(team) => Known::Team(team),
            };
            let people = match &known {
                Known::One(person)
                    if !shared
                        && person.user.name.to_linux(&config.accounts.drop_suffix).as_ref() == Ok(&name) =>
                {
                    names.insert(person.uid, name.clone());
                    std::slice::from_ref(person)
                }
                Known::Team(team) if shared => team,
                _ => continue,
            };
            for person in people {
                let keys = person.keys.iter();
                bodies.extend(keys.map(|(id, key)| ((person.user.id.clone(), id.clone()), key.clone())));
            }
            records.insert(name, Rc::new(Record::new(known, at)));
        }
        let roster = self
            .roster
            .and_then(|saved| began(saved.age).map(|at| Rc::new(Roster::restored(saved, config, at))));
        let tag = |held: Option<(Vec<IamName>, u64)>| {
            let (groups, age) = held?;
            Some((Who::Groups(groups), began(age)?))
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
