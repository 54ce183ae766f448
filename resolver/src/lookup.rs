//! The directory of users: finds the IAM user who has a Linux name or a uid, in the cache or in IAM.
//!
//! [`Directory::lookup`] serves decisions; [`Directory::lookup_name`] and [`Directory::lookup_uid`] serve NSS, which only
//! shows names. The runtime has one thread, so the state is in `RefCell`s, none of which is borrowed across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Access, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{self, IamName, LinuxName};
use pam_iam_core::wire::Source;
use tokio::time::Instant;

use self::cache::{Cache, CacheEntry, Identity, Lookup};
use self::changes::Changes;
use self::fetch::Fetches;
pub use self::names::Named;
use self::roster::Roster;
use crate::limits::{Limits, Origin};
use crate::persist::dirty::{Dirty, DirtyState};
use crate::persist::file;
use crate::persist::snapshot::Snapshot;
use crate::source::{CallStats, Iam, IamError, IamUser};

pub mod cache;
pub mod changes;
mod fetch;
mod names;
mod query;
mod read_roster;
pub mod roster;
mod single_flight;
mod tags;
#[cfg(test)]
mod tests;

/// While the limit of revalidations is used up, an entry younger than this serves. With the default `max_age` such an
/// entry is fresh anyway; with a `max_age` of 0, this keeps frequent use of sudo from being refused.
const LIMITED_MAX_AGE: Duration = Duration::from_secs(10);

/// The age above which the roster is read again for a name that it does not list, when the limit of unknown names is used
/// up.
const ROSTER_URGENT: Duration = Duration::from_secs(30);

/// The ages up to which an entry may serve a request, and the origin of the request.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// The age below which an entry serves without a call to IAM.
    pub max_age: Duration,
    /// The age below which an entry serves while IAM does not answer.
    pub stale_if_error: Duration,
    /// The origin whose limits a call to IAM counts against.
    pub origin: Origin,
}

/// Whether IAM may be asked about a name.
enum Permission {
    Granted,
    /// The limit of unknown names is used up, and the roster does not list the name: it counts as that of no user.
    NotListed,
    /// The limit of revalidations is used up.
    OverLimit,
}

/// The cached users, and the calls to IAM that find others.
pub struct Directory<I> {
    iam: I,
    /// The configuration.
    pub config: Config,
    /// When this directory was made.
    pub started: Instant,
    /// The changes of the cache that are not on the disk yet.
    pub dirty: DirtyState,
    /// The names that NSS may show differently since the map was last brought up to date.
    pub changes: Changes,
    /// The rules of access of the configuration, which hold if no instance tag is involved.
    fixed_access: Rc<Access>,
    log: RefCell<Log>,
    cache: RefCell<Cache>,
    fetches: RefCell<Fetches>,
    limits: RefCell<Limits>,
    /// The time that the machine had slept since its boot, at the last check.
    slept: Cell<Duration>,
}

impl<I: Iam> Directory<I> {
    /// Returns an empty directory.
    pub fn new(iam: I, config: Config, log: Log) -> Rc<Self> {
        Rc::new(Self {
            iam,
            fixed_access: Rc::new(config.access.clone()),
            limits: RefCell::new(Limits::new(config.freshness.unknown_per_minute)),
            config,
            started: Instant::now(),
            dirty: DirtyState::default(),
            changes: Changes::default(),
            log: RefCell::new(log),
            cache: RefCell::default(),
            fetches: RefCell::default(),
            slept: Cell::new(file::slept()),
        })
    }

    /// Returns the entry of `name`, from the cache or from IAM, for a decision.
    ///
    /// # Errors
    /// Returns an error if IAM does not answer, or was not asked because of a limit, and there is no entry that may serve.
    pub async fn lookup(self: &Rc<Self>, name: &LinuxName, freshness: Freshness) -> Result<Lookup, IamError> {
        let lookup = match self.entry_up_to(name, freshness.max_age) {
            Some(entry) => Ok(Lookup::cached(entry)),
            None => match self.permission(name, freshness.origin).await {
                Ok(Permission::Granted) => match self.fetch(name).await {
                    Ok(entry) => Ok(Lookup { entry, source: Source::Iam }),
                    // The cache is read again, since a partial answer may have taken rights away from the entry.
                    Err(error) => {
                        let stale = self.entry_up_to(name, freshness.stale_if_error);
                        stale.map(|entry| Lookup { entry, source: Source::Offline }).ok_or(error)
                    }
                },
                Ok(Permission::NotListed) => {
                    Ok(Lookup::cached(Rc::new(CacheEntry::new(Identity::NotFound, Instant::now()))))
                }
                Ok(Permission::OverLimit) => {
                    self.entry_up_to(name, LIMITED_MAX_AGE).map(Lookup::cached).ok_or(IamError::Limited)
                }
                Err(error) => Err(error),
            },
        };
        // A withdrawal must be on the disk before a client can see it.
        self.dirty.wait_until_persisted().await;
        lookup
    }

    /// Returns whether IAM may be asked about `name` on behalf of `origin`, and counts the calls against the limits.
    ///
    /// # Errors
    /// Returns an error if [`Self::may_query_iam`] does.
    async fn permission(self: &Rc<Self>, name: &LinuxName, origin: Origin) -> Result<Permission, IamError> {
        // A lookup that joins a fetch under way, or gets the error of a recent one, makes no call.
        if self.fetches.borrow().has(name) || self.recent_failure(name).is_some() {
            return Ok(Permission::Granted);
        }
        let entry = self.entry(name);
        let is_known = self.config.shared.contains_key(name)
            || entry
                .is_some_and(|entry| matches!(entry.identity, Identity::User(_) | Identity::Ambiguous(_)));
        Ok(match is_known {
            true if self.may_revalidate(name, origin) => Permission::Granted,
            true => Permission::OverLimit,
            false if self.may_query_iam(name, origin).await? => Permission::Granted,
            false => Permission::NotListed,
        })
    }

    /// Counts the revalidation of the known `name` against the limits. Returns whether `origin` may cause it.
    fn may_revalidate(&self, name: &LinuxName, origin: Origin) -> bool {
        let entry = self.entry(name);
        let mut limits = self.limits.borrow_mut();
        match entry.as_deref().map(|entry| &entry.identity) {
            Some(Identity::Members(members)) => limits.take_shared_account(origin, members.len()),
            _ => limits.take_revalidation(origin),
        }
    }

    /// Returns whether `origin` may cause calls about an unknown name. It may if the roster lists the name, if the limit
    /// of unknown names has room for each IAM user who could have the name, or if the roster lists the name after a new
    /// read. So guessed names cause few calls, and no new user is kept out.
    ///
    /// # Errors
    /// Returns an error if the roster lists the name and the limit of revalidations is used up, or if the limit of
    /// unknown names is used up and the roster cannot be read.
    async fn may_query_iam(self: &Rc<Self>, name: &LinuxName, origin: Origin) -> Result<bool, IamError> {
        let roster = self.cached_roster();
        if roster.as_ref().is_some_and(|roster| roster.has(name)) {
            return match self.limits.borrow_mut().take_revalidation(origin) {
                true => Ok(true),
                false => Err(IamError::Limited),
            };
        }
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix).len();
        if self.limits.borrow_mut().take_unknown(origin, candidates) {
            return Ok(true);
        }
        match roster {
            Some(roster) if roster.age() <= ROSTER_URGENT => Ok(false),
            _ => Ok(self.read_roster_for_lookup().await?.has(name)),
        }
    }

    /// Returns the entry of `name` if it is younger than `freshness.offline`.
    pub fn stale(&self, name: &LinuxName) -> Option<Lookup> {
        let entry = self.entry_up_to(name, self.config.freshness.offline.0)?;
        Some(Lookup { entry, source: Source::Offline })
    }

    /// Starts the revalidation of `name` without waiting for it, if the entry is stale. The next lookup joins it. Does
    /// nothing if a fetch of the name is under way, or the last one failed.
    pub fn start_revalidation(self: &Rc<Self>, name: &LinuxName, origin: Origin) {
        let is_fresh = self.entry_up_to(name, self.config.freshness.max_age.0).is_some();
        let fetches = self.fetches.borrow();
        if is_fresh || fetches.has_failed(name) || fetches.has(name) {
            return;
        }
        let (this, name) = (Rc::clone(self), name.clone());
        tokio::task::spawn_local(async move {
            let _ = this.lookup(&name, this.login_freshness(origin)).await;
        });
    }

    /// Returns the freshness that a decision about a login needs.
    pub fn login_freshness(&self, origin: Origin) -> Freshness {
        let freshness = &self.config.freshness;
        Freshness { max_age: freshness.max_age.0, stale_if_error: freshness.offline.0, origin }
    }

    /// Returns the freshness that a decision about sudo needs.
    pub fn sudo_freshness(&self, origin: Origin) -> Freshness {
        let stale_if_error = self.config.freshness.offline_sudo.0;
        Freshness { stale_if_error, ..self.login_freshness(origin) }
    }

    /// Returns the entry of `name`, however old.
    pub fn entry(&self, name: &LinuxName) -> Option<Rc<CacheEntry>> {
        self.cache.borrow().entry(name)
    }

    /// Returns the entry of `name` if it is younger than `age`.
    fn entry_up_to(&self, name: &LinuxName, age: Duration) -> Option<Rc<CacheEntry>> {
        self.entry(name).filter(|entry| entry.age() < age)
    }

    /// Returns the cached roster if it is younger than `freshness.offline`.
    pub fn serving_roster(&self) -> Option<Rc<Roster>> {
        self.cached_roster().filter(|roster| roster.age() < self.config.freshness.offline.0)
    }

    /// Stores an entry that was just fetched, marks the change for the disk, and logs if the name goes to no user.
    fn insert(&self, name: &LinuxName, entry: &Rc<CacheEntry>) {
        let before = self.cache.borrow_mut().insert(name, Rc::clone(entry));
        self.changes.mark(name);
        // The entry may take the account of a user who has the same uid.
        if let Identity::User(user) = &entry.identity
            && self.cache.borrow().is_uid_of_another(user.uid, name)
        {
            self.changes.mark_all();
        }
        if let Identity::User(user) = &entry.identity
            && !self.uid_belongs_to_older_user(user.uid, &user.user)
        {
            self.cache.borrow_mut().set_name_of(user.uid, name.clone());
        }
        match before.as_deref().map(|before| &before.identity) {
            Some(before) if *before != entry.identity => self.dirty.mark(Dirty::Revoked),
            Some(_) => self.dirty.mark(Dirty::Refreshed),
            // A cache file that was not read may grant more than IAM does.
            None if self.dirty.has_unread_file() => self.dirty.mark(Dirty::Revoked),
            None if matches!(entry.identity, Identity::User(_) | Identity::Members(_)) => {
                self.dirty.mark(Dirty::Added);
            }
            None => {}
        }
        self.log_refusal(name, before.as_deref(), entry);
    }

    /// Logs that a name is ambiguous or that IAM denies the calls about it, unless the previous entry already said the
    /// same.
    fn log_refusal(&self, name: &LinuxName, before: Option<&CacheEntry>, now: &CacheEntry) {
        match (&now.identity, before.map(|entry| &entry.identity)) {
            (Identity::Ambiguous(_), Some(Identity::Ambiguous(_)))
            | (Identity::AccessDenied, Some(Identity::AccessDenied)) => {}
            (Identity::Ambiguous(users), _) => {
                let users: Vec<&str> = users.iter().map(IamName::as_str).collect();
                self.warn(format!("refused the name {name}: the IAM users {} claim it", users.join(" and ")));
            }
            (Identity::AccessDenied, _) => {
                self.warn(format!("user {name}: IAM denies this host to look, which means no"));
            }
            (Identity::User(_) | Identity::NotFound | Identity::Members(_), _) => {}
        }
    }

    /// Returns whether an IAM user who was created earlier than `user` has `uid` too, by the roster or by an entry younger
    /// than `freshness.roster`.
    pub fn uid_belongs_to_older_user(&self, uid: Uid, user: &IamUser) -> bool {
        self.cache.borrow().uid_belongs_to_older_user(uid, user, self.config.freshness.roster.0)
    }

    /// Returns the source of users.
    pub fn iam(&self) -> &I {
        &self.iam
    }

    /// Returns the entries that an answer changed at `since` or later.
    pub fn changed_since(&self, since: Instant) -> Vec<(LinuxName, Rc<CacheEntry>)> {
        self.cache.borrow().changed_since(since)
    }

    /// Returns the number of names that have an entry.
    pub fn cached_names(&self) -> usize {
        self.cache.borrow().len()
    }

    /// Removes the entry of `name` or, without a name, everything but the bodies of keys, which never change. Cancels the
    /// fetches of what it removes. Returns the number of removed entries.
    pub fn flush(&self, name: Option<&LinuxName>) -> usize {
        let forgotten = match name {
            Some(name) => {
                self.fetches.borrow_mut().cancel(name);
                usize::from(self.cache.borrow_mut().evict(name))
            }
            None => {
                *self.fetches.borrow_mut() = Fetches::default();
                let mut cache = self.cache.borrow_mut();
                let forgotten = cache.len();
                cache.clear();
                forgotten
            }
        };
        self.dirty.mark(Dirty::Revoked);
        self.changes.mark_all();
        forgotten
    }

    /// Returns the part of the cache that goes to the disk.
    pub fn snapshot(&self) -> Snapshot {
        self.notice_sleep();
        Snapshot::of(&self.cache.borrow(), self.config.freshness.offline.0)
    }

    /// Adds a snapshot that was saved `ago` to the cache.
    pub fn restore(&self, snapshot: Snapshot, ago: Duration) {
        snapshot.restore(&mut self.cache.borrow_mut(), &self.config, ago);
        self.changes.mark_all();
    }

    /// Adds the time that the machine has slept since the last check to all ages: the clock of [`Instant`] does not count
    /// it.
    pub fn notice_sleep(&self) {
        self.age_by_sleep(file::slept());
    }

    fn age_by_sleep(&self, slept: Duration) {
        let before = self.slept.replace(slept);
        // The two clocks behind `slept` are not read at the same moment, so a difference of up to a second is no sleep.
        let Some(span) = slept.checked_sub(before).filter(|span| *span > Duration::from_secs(1)) else {
            self.slept.set(before);
            return;
        };
        self.warn(format!("the machine slept for {} s; what is known is older by that", span.as_secs()));
        self.cache.borrow_mut().age_by(span);
        self.fetches.borrow_mut().tags.age_by(span);
        self.changes.mark_all();
        // A snapshot taken before the sleep and written after it has ages that are too small.
        self.dirty.mark(Dirty::Revoked);
    }

    fn slept(&self) -> Duration {
        self.notice_sleep();
        self.slept.get()
    }

    /// Returns the number of lookups of unknown names that may be made now.
    pub fn unknown_left(&self) -> u32 {
        self.limits.borrow_mut().unknown_left()
    }

    /// Returns the number of names whose last fetch failed.
    pub fn failed_fetches(&self) -> usize {
        self.fetches.borrow().failed()
    }

    /// Returns the counters of the calls to IAM.
    pub fn stats(&self) -> CallStats {
        self.iam.stats()
    }

    /// Logs a warning.
    pub fn warn(&self, message: impl std::fmt::Display) {
        self.log.borrow_mut().write(Level::Warning, message);
    }
}
