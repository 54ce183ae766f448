//! Who is this, and how fresh is what we know? One fetch for all who wait for the same user.
//!
//! The runtime has one thread, so the state is a `RefCell` that is never borrowed across an await.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Access, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{self, IamName, LinuxName};
use pam_iam_core::wire::{Policy, Source};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::ids;
use crate::limits::{Limits, Origin};
use crate::lookup::roster::Roster;
use crate::persist::file;
use crate::policy;
use crate::source::{Iam, IamError, IamGroup, IamId, IamUser};

mod fetch;
mod memory;
mod query;
mod read_roster;
pub mod roster;
mod tags;
#[cfg(test)]
mod tests;

/// Where the limit of revalidations is used up, up to which age an answer serves all the same: as long as by default it is not
/// even stale.
const LIMITED_MAX_AGE: Duration = Duration::from_secs(10);

/// How old the roster has to be to be read again out of turn, when a name that is not on it comes and the bucket of
/// look-ups is empty.
const ROSTER_URGENT: Duration = Duration::from_secs(30);

use fetch::Running;
pub use memory::{Change, Snapshot, setup};

/// What IAM says about the owner of a Linux name.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// There is no such user.
    NotFound,
    /// This user.
    User(UserEntry),
    /// More than one user: nobody gets the name.
    Ambiguous(Vec<IamName>),
    /// IAM denies this host to look.
    AccessDenied,
    /// The name is that of a local account that these users share. Their groups are those that let them.
    Members(Vec<UserEntry>),
}

impl Identity {
    fn has_uid(&self, uid: Uid) -> bool {
        matches!(self, Self::User(person) if person.uid == uid)
    }
}

/// An IAM user with all that a login needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedUserEntry")]
pub struct UserEntry {
    /// The user.
    pub user: IamUser,
    /// The uid, from the user's id, and so not saved.
    #[serde(skip_serializing)]
    pub uid: Uid,
    /// The groups.
    pub groups: Vec<IamGroup>,
    /// The active keys.
    pub keys: Keys,
    /// The ids of the others, as far as they were asked for.
    pub inactive: Vec<String>,
}

/// A [`UserEntry`] on the disk.
#[derive(Deserialize)]
struct SavedUserEntry {
    user: IamUser,
    groups: Vec<IamGroup>,
    keys: Keys,
    inactive: Vec<String>,
}

impl From<SavedUserEntry> for UserEntry {
    fn from(SavedUserEntry { user, groups, keys, inactive }: SavedUserEntry) -> Self {
        Self { uid: ids::uid_of(user.id.as_str()), user, groups, keys, inactive }
    }
}

/// Keys by their ids; none for a key that is not usable.
pub type Keys = Vec<(String, Option<PublicKey>)>;

/// What is known of a name, and since when.
#[derive(Debug)]
pub struct CacheEntry {
    /// What.
    pub identity: Identity,
    /// Since when. The moment before the first call, so that an age is never told too young.
    pub at: Instant,
    /// When something was last taken away from it.
    pub revoked_at: Instant,
}

impl CacheEntry {
    fn new(identity: Identity, at: Instant) -> Self {
        Self { identity, at, revoked_at: at }
    }

    fn older_by(&self, span: Duration) -> Option<Self> {
        let (at, revoked_at) = (self.at.checked_sub(span)?, self.revoked_at.checked_sub(span)?);
        Some(Self { identity: self.identity.clone(), at, revoked_at })
    }
}

/// A record with the way it came.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The record.
    pub entry: Rc<CacheEntry>,
    /// The way.
    pub source: Source,
}

/// What the resolver knows.
pub struct Directory<I> {
    iam: I,
    /// The configuration.
    pub config: Config,
    /// When this directory was opened.
    pub started: Instant,
    /// Who may do what, where the configuration says so itself.
    fixed_access: Rc<Access>,
    log: RefCell<Log>,
    state: RefCell<State>,
    /// What is to be saved.
    changes: memory::Changes,
    saved: RefCell<Saved>,
    /// How long the machine has slept since its boot, as far as it was noticed.
    slept: Cell<Duration>,
}

/// What came of saving.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// When it last worked.
    pub at: Option<Instant>,
    /// The size of the file then, in bytes.
    pub bytes: u64,
    /// Why it last did not, unless it has since.
    pub error: Option<String>,
}

struct State {
    /// What was learned of names.
    records: HashMap<LinuxName, Rc<CacheEntry>>,
    names: HashMap<Uid, LinuxName>,
    fetches: HashMap<LinuxName, Running<CacheEntry>>,
    /// The bodies of keys, by user and id; none for a key that is not usable. They never change.
    bodies: HashMap<(IamId, String), Option<PublicKey>>,
    /// Who may do what, where a tag of the instance says so.
    tags: tags::Tags,
    roster: Option<Rc<Roster>>,
    roster_fetch: Option<Running<Roster>>,
    roster_failed: Option<(Instant, IamError)>,
    limits: Limits,
    /// The users about whom IAM was silent when it was last asked: when that was, and why.
    failing: HashMap<LinuxName, (Instant, IamError)>,
    /// When IAM was last silent about anybody, unless it has answered since.
    silent: Option<Instant>,
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// Up to this age it is taken without asking.
    pub fresh: Duration,
    /// Up to this age it is taken while IAM cannot be reached.
    pub offline: Duration,
    /// Whose limit a call counts against.
    pub origin: Origin,
}

/// What is known of a name without asking IAM.
#[derive(Clone, Debug)]
pub enum Named {
    /// What was learned of it.
    Cached(Lookup),
    /// It is on the roster, and nothing newer is known.
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
    /// An empty directory.
    pub fn new(iam: I, config: Config, log: Log) -> Rc<Self> {
        let state = State {
            records: HashMap::new(),
            names: HashMap::new(),
            fetches: HashMap::new(),
            bodies: HashMap::new(),
            tags: tags::Tags::default(),
            roster: None,
            roster_fetch: None,
            roster_failed: None,
            limits: Limits::new(config.freshness.unknown_per_minute),
            failing: HashMap::new(),
            silent: None,
        };
        Rc::new(Self {
            iam,
            fixed_access: Rc::new(config.access.clone()),
            config,
            started: Instant::now(),
            log: RefCell::new(log),
            state: RefCell::new(state),
            changes: memory::Changes::default(),
            saved: RefCell::default(),
            slept: Cell::new(file::slept()),
        })
    }

    /// Who `name` is.
    ///
    /// # Errors
    /// [`IamError::Unreachable`] when there is no answer that is young enough.
    pub async fn find(self: &Rc<Self>, name: &LinuxName, age: Age) -> Result<Lookup, IamError> {
        let lookup = self.find_unsettled(name, age).await;
        self.settle().await;
        lookup
    }

    async fn find_unsettled(self: &Rc<Self>, name: &LinuxName, age: Age) -> Result<Lookup, IamError> {
        let known = self.record(name);
        if let Some(record) = known.clone().filter(|record| record.at.elapsed() < age.fresh) {
            return Ok(Lookup { entry: record, source: Source::Cache });
        }
        let somebody = self.config.shared.contains_key(name)
            || known
                .is_some_and(|record| matches!(record.identity, Identity::User(_) | Identity::Ambiguous(_)));
        // What costs no call of its own takes no part of a limit.
        let is_free = self.state.borrow().fetches.contains_key(name) || self.recent_failure(name).is_some();
        if !somebody && !is_free && !self.may_query_iam(name, age.origin).await? {
            let record = Rc::new(CacheEntry::new(Identity::NotFound, Instant::now()));
            return Ok(Lookup { entry: record, source: Source::Cache });
        }
        if somebody && !is_free && !self.may_revalidate(name, age.origin) {
            // With a `max_age` of 0, whoever uses sudo often is not to be refused for that.
            let recent = self.record(name).filter(|record| record.at.elapsed() < LIMITED_MAX_AGE);
            return recent
                .map(|record| Lookup { entry: record, source: Source::Cache })
                .ok_or(IamError::Limited);
        }
        match self.fetch_soon(name).await {
            Ok(record) => Ok(Lookup { entry: record, source: Source::Iam }),
            Err(IamError::Limited) => Err(IamError::Limited),
            Err(error) => {
                // Looked up anew: half an answer may have taken something away from it.
                let usable = self.record(name).filter(|record| record.at.elapsed() < age.offline);
                usable.map(|record| Lookup { entry: record, source: Source::Offline }).ok_or(error)
            }
        }
    }

    /// Whether `origin` may have calls made about a name that is known.
    fn may_revalidate(&self, name: &LinuxName, origin: Origin) -> bool {
        let record = self.record(name);
        let mut state = self.state.borrow_mut();
        match record.as_deref().map(|record| &record.identity) {
            Some(Identity::Members(members)) => state.limits.take_shared_account(origin, members.len()),
            _ => state.limits.take_revalidation(origin),
        }
    }

    /// What is known of `name`, for showing it: names are not decisions. A user who may log in costs no call, however old that
    /// is. A user of whom the last answer was that he may not costs one for each `max_age`, from the limit of unknown names
    /// and on behalf of the host or of a client of sshd alone: so one who is added to a group gets in at the first attempt.
    /// Any other name costs one from that limit.
    ///
    /// # Errors
    /// [`IamError`] when nothing is known and IAM does not say.
    pub async fn find_name(self: &Rc<Self>, name: &LinuxName, origin: Origin) -> Result<Named, IamError> {
        let freshness = &self.config.freshness;
        let (max_age, offline) = (freshness.max_age.0, freshness.offline.0);
        let ask = |origin| self.find(name, Age { fresh: max_age, offline, origin });
        let lookup = match self.known_name(name) {
            None => return ask(origin).await.map(Named::Cached),
            Some(Named::Listed(roster)) => return Ok(Named::Listed(roster)),
            Some(Named::Cached(lookup)) => lookup,
        };
        let known = &lookup.entry.identity;
        let age = lookup.entry.at.elapsed();
        let is_listed =
            self.last_roster().is_some_and(|roster| roster.at.elapsed() < offline && roster.has(name));
        let is_recent = is_listed || age < freshness.roster.0.max(max_age);
        if age < max_age || is_recent && self.is_allowed(known).await {
            return Ok(Named::Cached(lookup));
        }
        if !matches!(known, Identity::User(_) | Identity::Ambiguous(_)) {
            return ask(origin).await.map(Named::Cached);
        }
        if matches!(origin, Origin::User(_)) || !self.may_query_iam(name, origin).await? {
            return Ok(Named::Cached(lookup));
        }
        // What it costs is taken.
        ask(Origin::Host).await.map(Named::Cached)
    }

    /// What is known of `name` now, as long as an answer may serve while IAM cannot be asked.
    pub fn known_name(&self, name: &LinuxName) -> Option<Named> {
        let offline = self.config.freshness.offline.0;
        let roster = self.last_roster().filter(|roster| roster.at.elapsed() < offline && roster.has(name));
        let record = self.record(name).filter(|record| record.at.elapsed() < offline);
        // What was learned since the roster was read is newer.
        let newer = record.filter(|record| roster.as_ref().is_none_or(|roster| record.at >= roster.ended));
        match newer {
            Some(record) => Some(Named::Cached(Lookup { entry: record, source: Source::Cache })),
            None => roster.map(Named::Listed),
        }
    }

    /// Whether what is known is a user who may log in.
    async fn is_allowed(self: &Rc<Self>, known: &Identity) -> bool {
        let Identity::User(person) = known else { return false };
        let groups: Vec<IamName> = person.groups.iter().map(|group| group.name.clone()).collect();
        let access = self.access().await;
        access.is_ok_and(|access| policy::decide(&access, Policy::Login, &groups).allow)
    }

    /// Who has `uid`, for showing it. A uid says nothing about its user, so only those who were seen or are on the roster are
    /// found.
    ///
    /// # Errors
    /// [`IamError`] when nothing is known and the roster cannot be read.
    pub async fn find_uid(
        self: &Rc<Self>,
        uid: Uid,
        origin: Origin,
    ) -> Result<Option<(LinuxName, Named)>, IamError> {
        let seen_as = self.state.borrow().names.get(&uid).cloned();
        if let Some(name) = seen_as {
            let named = self.find_name(&name, origin).await?;
            if named.has_uid(&name, uid) {
                return Ok(Some((name, named)));
            }
            // Renamed, or gone.
            self.state.borrow_mut().names.remove(&uid);
        }
        let roster = self.roster().await?;
        let Some(name) = roster.name_of(uid).cloned() else {
            // One that was read before the start says who there is, not who there is not.
            let old = roster
                .restored
                .then(|| IamError::Unreachable("the list of users is from before the start".to_owned()));
            return old.map_or(Ok(None), Err);
        };
        let named = self.find_name(&name, origin).await?;
        Ok(named.has_uid(&name, uid).then_some((name, named)))
    }

    /// What was last learned of `name`, if it may still serve while IAM cannot be asked.
    pub fn remembered(&self, name: &LinuxName) -> Option<Lookup> {
        let record = self.record(name)?;
        let serves = record.at.elapsed() < self.config.freshness.offline.0;
        serves.then_some(Lookup { entry: record, source: Source::Offline })
    }

    /// Starts a revalidation of a user of whom something old is known, and does not wait for it.
    pub fn revalidate_soon(self: &Rc<Self>, name: &LinuxName, origin: Origin) {
        let max_age = self.config.freshness.max_age.0;
        let is_stale = self.record(name).is_none_or(|record| record.at.elapsed() >= max_age);
        let backs_off = self.state.borrow().failing.contains_key(name);
        if !is_stale || backs_off || self.state.borrow().fetches.contains_key(name) {
            return;
        }
        let (this, name) = (Rc::clone(self), name.clone());
        let age = Age { fresh: max_age, offline: self.config.freshness.offline.0, origin };
        // Whoever asks next shares it.
        tokio::task::spawn_local(async move { drop(this.find(&name, age).await) });
    }

    /// What was last learned of `name`.
    pub fn record(&self, name: &LinuxName) -> Option<Rc<CacheEntry>> {
        self.state.borrow().records.get(name).cloned()
    }

    /// Whether another user who came first has the uid of `person`, by the roster and by who was seen.
    pub fn uid_belongs_to_older_user(&self, person: &UserEntry) -> bool {
        let elder = |other: &IamUser| {
            other.id != person.user.id && (other.created, &other.id) < (person.user.created, &person.user.id)
        };
        let state = self.state.borrow();
        let lookup = state.names.get(&person.uid).and_then(|name| state.records.get(name));
        // One who was not heard of for so long may be gone; who is not is on the roster.
        let recent = lookup.filter(|record| record.at.elapsed() < self.config.freshness.roster.0);
        let lookup = recent.is_some_and(|record| match &record.identity {
            Identity::User(other) => other.uid == person.uid && elder(&other.user),
            _ => false,
        });
        lookup || state.roster.as_ref().is_some_and(|roster| roster.holder_of(person.uid).is_some_and(elder))
    }

    /// The IAM behind it.
    pub fn iam(&self) -> &I {
        &self.iam
    }

    /// What was learned of names since `at`, or taken away from what was known.
    pub fn learned_since(&self, at: Instant) -> Vec<(LinuxName, Rc<CacheEntry>)> {
        let state = self.state.borrow();
        let recent = state.records.iter().filter(|(_, record)| record.at.max(record.revoked_at) >= at);
        recent.map(|(name, record)| (name.clone(), Rc::clone(record))).collect()
    }

    /// How many names are remembered.
    pub fn known(&self) -> usize {
        self.state.borrow().records.len()
    }

    /// Forgets what is remembered of one name, or everything but the bodies of keys, which never change. How many names
    /// that were. Whoever asks is told what IAM says then; the roster and the tags are read again.
    pub fn flush(&self, name: Option<&LinuxName>) -> usize {
        let mut state = self.state.borrow_mut();
        // What was asked before is not stored any more.
        if let Some(name) = name {
            state.fetches.remove(name);
            state.failing.remove(name);
            let known = state.records.remove(name).is_some();
            drop(state);
            self.count_revocation();
            return usize::from(known);
        }
        let count = state.records.len();
        state.fetches.clear();
        state.records.clear();
        state.names.clear();
        state.failing.clear();
        (state.roster, state.roster_fetch, state.roster_failed) = (None, None, None);
        state.silent = None;
        state.tags = tags::Tags::default();
        drop(state);
        self.count_revocation();
        count
    }

    /// Makes everything that is known older by the time that the machine slept, which the clock of this program leaves out.
    pub fn notice_sleep(&self) {
        self.wake(file::slept());
    }

    fn wake(&self, slept: Duration) {
        let before = self.slept.replace(slept);
        // The two clocks are not read at the same moment.
        let Some(since) = slept.checked_sub(before).filter(|since| *since > Duration::from_secs(1)) else {
            self.slept.set(before);
            return;
        };
        self.warn(format!("the machine slept for {} s; what is known is older by that", since.as_secs()));
        let mut state = self.state.borrow_mut();
        state
            .records
            .retain(|_, record| record.older_by(since).map(|older| *record = Rc::new(older)).is_some());
        state.roster = state.roster.take().and_then(|roster| Some(Rc::new(roster.older_by(since)?)));
        state.tags.age(since);
        drop(state);
        // The disk has them younger.
        self.count_revocation();
    }

    fn slept(&self) -> Duration {
        self.notice_sleep();
        self.slept.get()
    }

    /// How many look-ups of unknown names may be made now.
    pub fn unknown_left(&self) -> u32 {
        self.state.borrow_mut().limits.unknown_left()
    }

    /// About how many users IAM was silent when it was last asked.
    pub fn backing_off(&self) -> usize {
        self.state.borrow().failing.len()
    }

    /// What came of saving it: how many bytes there are on the disk, or why there are none.
    pub fn was_saved(&self, outcome: &Result<u64, String>) {
        let mut saved = self.saved.borrow_mut();
        match outcome {
            Ok(bytes) => *saved = Saved { at: Some(Instant::now()), bytes: *bytes, error: None },
            Err(error) => saved.error = Some(error.clone()),
        }
    }

    /// What last came of saving it.
    pub fn saved(&self) -> Saved {
        self.saved.borrow().clone()
    }

    /// The calls to IAM so far.
    pub fn stats(&self) -> crate::source::CallStats {
        self.iam.stats()
    }

    /// Whether an unknown name may cost calls: it is on the roster, or the bucket has a token for each user who could
    /// stand behind it, or a roster that is read for the occasion has it. So neither guessers of names cost much nor
    /// are new users kept out.
    ///
    /// # Errors
    /// The bucket is empty and nobody can tell.
    async fn may_query_iam(self: &Rc<Self>, name: &LinuxName, origin: Origin) -> Result<bool, IamError> {
        let roster = self.last_roster();
        if roster.as_ref().is_some_and(|roster| roster.has(name)) {
            return match self.state.borrow_mut().limits.take_revalidation(origin) {
                true => Ok(true),
                false => Err(IamError::Limited),
            };
        }
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix).len();
        if self.state.borrow_mut().limits.take_unknown(origin, candidates) {
            return Ok(true);
        }
        match roster {
            Some(roster) if roster.at.elapsed() <= ROSTER_URGENT => Ok(false),
            _ => Ok(self.roster_now().await?.has(name)),
        }
    }

    /// Logs a warning.
    pub fn warn(&self, message: impl std::fmt::Display) {
        self.log.borrow_mut().write(Level::Warning, message);
    }
}
