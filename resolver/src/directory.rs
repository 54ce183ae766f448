//! Who is this, and how fresh is what we know? One fetch for all who wait for the same user.
//!
//! The runtime has one thread, so the state is a `RefCell` that is never borrowed across an await.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use pam_iam_core::config::{Access, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{self, IamName, LinuxName};
use pam_iam_core::wire::{ROSTER_LIMIT, Source};
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, timeout};

use crate::bucket::Bucket;
use crate::cache;
use crate::iam::{Iam, IamError, IamGroup, IamId, IamUser};
use crate::ids;
use crate::roster::Roster;

mod access;
mod lookup;
mod memory;
#[cfg(test)]
mod tests;

/// After IAM could not be reached for a user, how long nobody waits for that again. By user, since a failure for one
/// must not serve an old answer for another.
const BACK_OFF: Duration = Duration::from_secs(2);

/// The same for an account that many share, whose look-up costs a call for each.
const BACK_OFF_TEAM: Duration = Duration::from_secs(10);

/// While IAM is silent about a user, how long somebody waits for the next try before the last answer serves; the try goes
/// on, so that the first login after an outage is a fresh one. A new connection and its first answer take four round trips,
/// each of up to a quarter of a second.
const PATIENCE_IN_OUTAGE: Duration = Duration::from_secs(1);

/// For how long after a failure IAM is taken to be still silent. Later, whoever asks waits for IAM as ever.
const OUTAGE: Duration = Duration::from_secs(60);

/// How many names are remembered for which IAM was silent.
const FAILING_MAX: usize = 10_000;

/// After the roster could not be read, how long nobody tries again, but who keeps it.
const ROSTER_BACK_OFF: Duration = Duration::from_secs(20);

/// How old the roster has to be to be read again out of turn, when a name that is not on it comes and the bucket of
/// look-ups is empty.
const ROSTER_URGENT: Duration = Duration::from_secs(30);

/// How many names are remembered before those that stand for nobody are forgotten.
const ABSENT_MAX: usize = 10_000;

pub use memory::{Change, Snapshot, setup};

/// What IAM says about the owner of a Linux name.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// There is no such user.
    Absent,
    /// This user.
    One(Person),
    /// More than one user: nobody gets the name.
    Ambiguous(Vec<IamName>),
    /// IAM denies this host to look.
    Denied,
    /// The name is that of a local account that these users share. Their groups are those that let them.
    Team(Vec<Person>),
}

impl Known {
    fn has_uid(&self, uid: Uid) -> bool {
        matches!(self, Self::One(person) if person.uid == uid)
    }
}

/// An IAM user with all that a login needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "SavedPerson")]
pub struct Person {
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

/// A [`Person`] on the disk.
#[derive(Deserialize)]
struct SavedPerson {
    user: IamUser,
    groups: Vec<IamGroup>,
    keys: Keys,
    inactive: Vec<String>,
}

impl From<SavedPerson> for Person {
    fn from(SavedPerson { user, groups, keys, inactive }: SavedPerson) -> Self {
        Self { uid: ids::uid_of(user.id.as_str()), user, groups, keys, inactive }
    }
}

/// Keys by their ids; none for a key that is not usable.
pub type Keys = Vec<(String, Option<PublicKey>)>;

/// What is known of a name, and since when.
#[derive(Debug)]
pub struct Record {
    /// What.
    pub known: Known,
    /// Since when. The moment before the first call, so that an age is never told too young.
    pub at: Instant,
    /// When something was last taken away from it.
    pub reduced: Instant,
}

impl Record {
    fn new(known: Known, at: Instant) -> Self {
        Self { known, at, reduced: at }
    }

    fn older_by(&self, span: Duration) -> Option<Self> {
        let (at, reduced) = (self.at.checked_sub(span)?, self.reduced.checked_sub(span)?);
        Some(Self { known: self.known.clone(), at, reduced })
    }
}

/// A record with the way it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The record.
    pub record: Rc<Record>,
    /// The way.
    pub source: Source,
}

type Fetch<T> = Shared<LocalBoxFuture<'static, Result<Rc<T>, IamError>>>;

/// A fetch on its way. What drops it breaks it off: what was asked before a flush says nothing after it.
struct Running<T> {
    fetch: Fetch<T>,
    task: AbortHandle,
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
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
    records: HashMap<LinuxName, Rc<Record>>,
    names: HashMap<Uid, LinuxName>,
    fetches: HashMap<LinuxName, Running<Record>>,
    /// The bodies of keys, by user and id; none for a key that is not usable. They never change.
    bodies: HashMap<(IamId, String), Option<PublicKey>>,
    /// Who may do what, where a tag of the instance says so.
    tags: access::Tags,
    roster: Option<Rc<Roster>>,
    roster_fetch: Option<Running<Roster>>,
    roster_failed: Option<(Instant, IamError)>,
    bucket: Bucket,
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
}

impl<I: Iam> Directory<I> {
    /// An empty directory.
    pub fn new(iam: I, config: Config, log: Log) -> Rc<Self> {
        let state = State {
            records: HashMap::new(),
            names: HashMap::new(),
            fetches: HashMap::new(),
            bodies: HashMap::new(),
            tags: access::Tags::default(),
            roster: None,
            roster_fetch: None,
            roster_failed: None,
            bucket: Bucket::new(config.freshness.unknown_per_minute),
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
            slept: Cell::new(cache::slept()),
        })
    }

    /// Who `name` is.
    ///
    /// # Errors
    /// [`IamError::Unreachable`] when there is no answer that is young enough.
    pub async fn find(self: &Rc<Self>, name: &LinuxName, age: Age) -> Result<Seen, IamError> {
        let seen = self.find_unsettled(name, age).await;
        self.settle().await;
        seen
    }

    async fn find_unsettled(self: &Rc<Self>, name: &LinuxName, age: Age) -> Result<Seen, IamError> {
        let known = self.record(name);
        if let Some(record) = known.clone().filter(|record| record.at.elapsed() < age.fresh) {
            return Ok(Seen { record, source: Source::Cache });
        }
        let somebody = self.config.shared.contains_key(name)
            || known.is_some_and(|record| matches!(record.known, Known::One(_) | Known::Ambiguous(_)));
        let under_way = self.state.borrow().fetches.contains_key(name);
        if !somebody && !under_way && !self.worth_a_call(name).await? {
            let record = Rc::new(Record::new(Known::Absent, Instant::now()));
            return Ok(Seen { record, source: Source::Cache });
        }
        match self.fetch_soon(name).await {
            Ok(record) => Ok(Seen { record, source: Source::Iam }),
            Err(error) => {
                // Looked up anew: half an answer may have taken something away from it.
                let usable = self.record(name).filter(|record| record.at.elapsed() < age.offline);
                usable.map(|record| Seen { record, source: Source::Offline }).ok_or(error)
            }
        }
    }

    /// Who has `uid`. A uid says nothing about its user, so only those who were seen or are on the roster are found.
    /// The pair never changes but by a renaming, so an answer as old as the roster will do.
    ///
    /// # Errors
    /// [`IamError`] when nothing is known and the roster cannot be read.
    pub async fn find_uid(
        self: &Rc<Self>,
        uid: Uid,
        age: Age,
    ) -> Result<Option<(LinuxName, Seen)>, IamError> {
        let age = Age { fresh: age.fresh.max(self.config.freshness.roster.0), ..age };
        let seen_as = self.state.borrow().names.get(&uid).cloned();
        if let Some(name) = seen_as {
            let seen = self.find(&name, age).await?;
            if seen.record.known.has_uid(uid) {
                return Ok(Some((name, seen)));
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
        let seen = self.find(&name, age).await?;
        Ok(seen.record.known.has_uid(uid).then_some((name, seen)))
    }

    /// What was last learned of `name`.
    pub fn record(&self, name: &LinuxName) -> Option<Rc<Record>> {
        self.state.borrow().records.get(name).cloned()
    }

    /// The roster, read now if there is none yet.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        match self.last_roster() {
            Some(roster) => Ok(roster),
            None => self.roster_now().await,
        }
    }

    /// The roster, read now, unless it could not be read a moment ago.
    async fn roster_now(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        if let Some((at, error)) = &self.state.borrow().roster_failed
            && at.elapsed() < ROSTER_BACK_OFF
        {
            return Err(error.clone());
        }
        self.limited(self.read_roster()).await
    }

    /// Whether another user who came first has the uid of `person`, by the roster and by who was seen.
    pub fn has_elder(&self, person: &Person) -> bool {
        let elder = |other: &IamUser| {
            other.id != person.user.id && (other.created, &other.id) < (person.user.created, &person.user.id)
        };
        let state = self.state.borrow();
        let seen = state.names.get(&person.uid).and_then(|name| state.records.get(name));
        // One who was not heard of for so long may be gone; who is not is on the roster.
        let recent = seen.filter(|record| record.at.elapsed() < self.config.freshness.roster.0);
        let seen = recent.is_some_and(|record| match &record.known {
            Known::One(other) => other.uid == person.uid && elder(&other.user),
            _ => false,
        });
        seen || state.roster.as_ref().is_some_and(|roster| roster.holder_of(person.uid).is_some_and(elder))
    }

    /// The roster as it was last read, if ever.
    pub fn last_roster(&self) -> Option<Rc<Roster>> {
        self.state.borrow().roster.clone()
    }

    /// The IAM behind it.
    pub fn iam(&self) -> &I {
        &self.iam
    }

    /// What was learned of names since `at`, or taken away from what was known.
    pub fn learned_since(&self, at: Instant) -> Vec<(LinuxName, Rc<Record>)> {
        let state = self.state.borrow();
        let recent = state.records.iter().filter(|(_, record)| record.at.max(record.reduced) >= at);
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
            self.reduced();
            return usize::from(known);
        }
        let count = state.records.len();
        state.fetches.clear();
        state.records.clear();
        state.names.clear();
        state.failing.clear();
        (state.roster, state.roster_fetch, state.roster_failed) = (None, None, None);
        state.silent = None;
        state.tags = access::Tags::default();
        drop(state);
        self.reduced();
        count
    }

    /// Makes everything that is known older by the time that the machine slept, which the clock of this program leaves out.
    pub fn notice_sleep(&self) {
        self.wake(cache::slept());
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
        state.records = std::mem::take(&mut state.records)
            .into_iter()
            .filter_map(|(name, record)| Some((name, Rc::new(record.older_by(since)?))))
            .collect();
        state.roster = state.roster.take().and_then(|roster| Some(Rc::new(roster.older_by(since)?)));
        state.tags.age(since);
        drop(state);
        // The disk has them younger.
        self.reduced();
    }

    fn slept(&self) -> Duration {
        self.notice_sleep();
        self.slept.get()
    }

    /// How many look-ups of unknown names may be made now.
    pub fn unknown_left(&self) -> u32 {
        self.state.borrow_mut().bucket.level()
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
    pub fn tally(&self) -> crate::iam::Tally {
        self.iam.tally()
    }

    /// Reads the roster. Who comes while it is being read shares the reading.
    ///
    /// # Errors
    /// Why it could not be read. An earlier one stays.
    pub async fn read_roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        // One that is over and still here has panicked.
        let running = self.state.borrow().roster_fetch.as_ref().map(|running| running.fetch.clone());
        let fetch = running.filter(|fetch| fetch.peek().is_none()).unwrap_or_else(|| {
            let this = Rc::clone(self);
            let running = shared(async move {
                let slept = this.slept();
                let reading = async {
                    let access = this.access_within(Duration::ZERO).await?;
                    Roster::read(&this.iam, &this.config, access).await
                };
                let result = bounded(ROSTER_LIMIT, reading).await.map(Rc::new);
                let result = if this.slept() == slept { result } else { Err(asleep()) };
                this.roster_read(&result);
                result
            });
            let fetch = running.fetch.clone();
            self.state.borrow_mut().roster_fetch = Some(running);
            fetch
        });
        fetch.await
    }

    fn roster_read(&self, result: &Result<Rc<Roster>, IamError>) {
        let before = self.last_roster();
        let failed = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        {
            let mut state = self.state.borrow_mut();
            state.roster_fetch = None;
            state.roster_failed = failed;
        }
        match result {
            Ok(roster) => {
                let told = before.as_ref().map(|roster| (&roster.refused, &roster.missing));
                if told != Some((&roster.refused, &roster.missing)) {
                    for refused in &roster.refused {
                        self.warn(format!("refused IAM user {}: {}", refused.user.name, refused.why));
                    }
                    for group in &roster.missing {
                        self.warn(format!("the configuration names the IAM group {group}, which does not exist"));
                    }
                }
                let mut state = self.state.borrow_mut();
                (state.roster, state.silent) = (Some(Rc::clone(roster)), None);
                drop(state);
                if before.is_some() { self.refreshed() } else { self.changed() }
            }
            Err(IamError::Denied(message)) => self.warn(format!(
                "the list of allowed users cannot be read, since IAM denies it; give this host iam:GetGroup and iam:ListUsers: {message}"
            )),
            Err(error) => self.warn(format!("the list of allowed users cannot be read: {error}")),
        }
    }

    /// Whether an unknown name may cost calls: it is on the roster, or the bucket has a token for each user who could
    /// stand behind it, or a roster that is read for the occasion has it. So neither guessers of names cost much nor
    /// are new users kept out.
    ///
    /// # Errors
    /// The bucket is empty and nobody can tell.
    async fn worth_a_call(self: &Rc<Self>, name: &LinuxName) -> Result<bool, IamError> {
        let roster = self.last_roster();
        if roster.as_ref().is_some_and(|roster| roster.has(name)) {
            return Ok(true);
        }
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix).len();
        if self.state.borrow_mut().bucket.take(candidates) {
            return Ok(true);
        }
        match roster {
            Some(roster) if roster.at.elapsed() <= ROSTER_URGENT => Ok(false),
            _ => Ok(self.roster_now().await?.has(name)),
        }
    }

    async fn fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<Record>, IamError> {
        loop {
            // One that is over and still here has panicked.
            let running = self.state.borrow().fetches.get(name).map(|running| running.fetch.clone());
            if let Some(fetch) = running.filter(|fetch| fetch.peek().is_none()) {
                match fetch.await {
                    // By a flush.
                    Err(error) if error == broken_off() => continue,
                    outcome => return outcome,
                }
            }
            let pause = if self.config.shared.contains_key(name) { BACK_OFF_TEAM } else { BACK_OFF };
            if let Some((at, error)) = self.state.borrow().failing.get(name)
                && at.elapsed() < pause
            {
                return Err(error.clone());
            }
            let (this, asked) = (Rc::clone(self), name.clone());
            let running = shared(async move {
                let slept = this.slept();
                let result = this.limited(this.ask(&asked)).await.map(Rc::new);
                // What came before the sleep would pass for what came after it.
                let result = if this.slept() == slept { result } else { Err(asleep()) };
                this.fetched(&asked, &result);
                result
            });
            self.state.borrow_mut().fetches.insert(name.clone(), running);
        }
    }

    /// Fetches, and waits as long as there is a hope: while IAM is silent, whoever comes next gets what is known, and who
    /// is not known a quick no.
    async fn fetch_soon(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<Record>, IamError> {
        let silent = {
            let state = self.state.borrow();
            let failing = state.failing.get(name).map(|(at, _)| *at);
            let unknown = state.silent.filter(|_| !state.records.contains_key(name));
            [failing, unknown].into_iter().flatten().any(|at| at.elapsed() < OUTAGE)
        };
        if !silent {
            return self.fetch(name).await;
        }
        let late = |_| Err(IamError::Unreachable("it was silent, and no answer came at once".to_owned()));
        timeout(PATIENCE_IN_OUTAGE, self.fetch(name)).await.unwrap_or_else(late)
    }

    /// Bounds whatever is asked of IAM by `aws.total_timeout`.
    async fn limited<T>(&self, work: impl Future<Output = Result<T, IamError>>) -> Result<T, IamError> {
        bounded(self.config.aws.total_timeout.0, work).await
    }

    fn fetched(&self, name: &LinuxName, result: &Result<Rc<Record>, IamError>) {
        let mut state = self.state.borrow_mut();
        state.fetches.remove(name);
        let record = match result {
            Ok(record) => record,
            Err(error) => {
                let now = Instant::now();
                if state.failing.len() >= FAILING_MAX {
                    state.failing.clear();
                }
                state.failing.insert(name.clone(), (now, error.clone()));
                // A shared account may fail by itself, with too many members or a group that IAM does not show.
                if !self.config.shared.contains_key(name) {
                    state.silent = Some(now);
                }
                drop(state);
                self.warn(format!("user {name}: {error}"));
                return;
            }
        };
        state.failing.remove(name);
        state.silent = None;
        if let Known::Absent | Known::Denied = record.known {
            state.forget_some_absent();
        }
        let before = state.records.insert(name.clone(), Rc::clone(record));
        drop(state);
        if let Known::One(person) = &record.known
            && !self.has_elder(person)
        {
            self.state.borrow_mut().names.insert(person.uid, name.clone());
        }
        match before.as_deref().map(|before| &before.known) {
            Some(before) if *before != record.known => self.reduced(),
            Some(_) => self.refreshed(),
            // Nobody knows what a file says that was not read.
            None if self.changes.unread.get() => self.reduced(),
            None if matches!(record.known, Known::One(_) | Known::Team(_)) => self.changed(),
            None => {}
        }
        self.tell_news(name, before.as_deref(), record);
    }

    /// Logs what an operator should know, once for each time that it changes.
    fn tell_news(&self, name: &LinuxName, before: Option<&Record>, now: &Record) {
        match (&now.known, before.map(|record| &record.known)) {
            (Known::Ambiguous(_), Some(Known::Ambiguous(_))) | (Known::Denied, Some(Known::Denied)) => {}
            (Known::Ambiguous(users), _) => {
                let users: Vec<&str> = users.iter().map(IamName::as_str).collect();
                self.warn(format!("refused the name {name}: the IAM users {} claim it", users.join(" and ")));
            }
            (Known::Denied, _) => {
                self.warn(format!("user {name}: IAM denies this host to look, which means no"))
            }
            (Known::One(_) | Known::Absent | Known::Team(_), _) => {}
        }
    }

    fn warn(&self, message: impl std::fmt::Display) {
        self.log.borrow_mut().write(Level::Warning, message);
    }
}

/// A future that runs on its own, whoever still waits for it, and that many can wait for.
fn shared<T: 'static>(work: impl Future<Output = Result<Rc<T>, IamError>> + 'static) -> Running<T> {
    let task = spawn_local(work);
    let abort = task.abort_handle();
    let outcome = async move {
        task.await.unwrap_or_else(|error| {
            let why = if error.is_cancelled() {
                broken_off()
            } else {
                unreachable(&format!("the look-up failed: {error}"))
            };
            Err(why)
        })
    };
    Running { fetch: outcome.boxed_local().shared(), task: abort }
}

fn unreachable(why: &str) -> IamError {
    IamError::Unreachable(why.to_owned())
}

/// What whoever waits is told when a fetch is broken off.
fn broken_off() -> IamError {
    unreachable("the look-up was broken off by a flush")
}

/// What becomes of a fetch during which the machine slept.
fn asleep() -> IamError {
    unreachable("the machine was asleep")
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T, IamError>>) -> Result<T, IamError> {
    let late = |_| Err(IamError::Unreachable(format!("no answer within {} ms", limit.as_millis())));
    timeout(limit, work).await.unwrap_or_else(late)
}

impl State {
    /// Keeps guessers of names from filling the memory.
    fn forget_some_absent(&mut self) {
        if self.records.len() >= ABSENT_MAX {
            self.records.retain(|_, record| !matches!(record.known, Known::Absent | Known::Denied));
        }
    }
}
