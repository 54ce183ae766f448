//! Makes one fetch of a name for all lookups that wait for it. A lookup waits long while IAM answers, and briefly in an
//! outage.

use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::name::LinuxName;
use tokio::time::{Instant, timeout};

use super::cache::CacheEntry;
use super::roster::Roster;
use super::single_flight::{Fetch, FetchError, within};
use super::{Directory, tags};
use crate::source::{Cause, Iam, IamError};

/// How long after a failed fetch of a user lookups of that user get its error instead of a new fetch. This is kept by
/// user, since a failure for one user must not make a stale entry of another serve.
pub(super) const BACK_OFF: Duration = Duration::from_secs(2);

/// The back-off of a shared account, whose fetch costs a call for each member.
const BACK_OFF_SHARED_ACCOUNT: Duration = Duration::from_secs(10);

/// How long a lookup waits for a fetch in an outage, before a stale entry serves. The fetch goes on, so that the first
/// login after the outage gets a fresh entry. A new connection and its first answer fit into this time: they take four
/// round trips, each of up to a quarter of a second.
pub(super) const PATIENCE_IN_OUTAGE: Duration = Duration::from_secs(1);

/// How long after a failed fetch IAM counts as silent. After that, lookups wait as if no fetch had failed.
pub(super) const OUTAGE: Duration = Duration::from_secs(60);

/// The most names whose failed fetch is remembered. When there are as many, all are forgotten.
const FAILURES_MAX: usize = 10_000;

/// The fetches under way, and the failures of earlier ones.
#[derive(Default)]
pub(super) struct Fetches {
    users: HashMap<LinuxName, Fetch<CacheEntry>>,
    pub(super) roster: Option<Fetch<Roster>>,
    pub(super) roster_failure: Option<(Instant, IamError)>,
    pub(super) tags: tags::TagFetches,
    /// The names whose last fetch failed, each with the moment and the error.
    failures: HashMap<LinuxName, (Instant, IamError)>,
    /// The moment when a fetch of a user last failed. None if IAM has answered since.
    silent_since: Option<Instant>,
}

impl Fetches {
    /// Returns whether a fetch of `name` is under way.
    pub(super) fn has(&self, name: &LinuxName) -> bool {
        self.users.contains_key(name)
    }

    /// Returns whether the last fetch of `name` failed.
    pub(super) fn has_failed(&self, name: &LinuxName) -> bool {
        self.failures.contains_key(name)
    }

    /// Returns the number of names whose last fetch failed.
    pub(super) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Notes that IAM has answered, so that it no longer counts as silent.
    pub(super) fn note_answer(&mut self) {
        self.silent_since = None;
    }

    /// Cancels the fetch of `name` that is under way, and forgets the failure of an earlier one.
    pub(super) fn cancel(&mut self, name: &LinuxName) {
        self.users.remove(name);
        self.failures.remove(name);
    }

    fn note_failure(&mut self, name: &LinuxName, error: &IamError, is_shared: bool) {
        let now = Instant::now();
        if self.failures.len() >= FAILURES_MAX {
            self.failures.clear();
        }
        self.failures.insert(name.clone(), (now, error.clone()));
        // The fetch of a shared account can fail although IAM answers: too many members, or a group that this host may
        // not list.
        if !is_shared {
            self.silent_since = Some(now);
        }
    }
}

impl<I: Iam> Directory<I> {
    /// Fetches `name`. In an outage, waits at most [`PATIENCE_IN_OUTAGE`], so that the caller quickly falls back to the
    /// cached entry.
    pub(super) async fn fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<CacheEntry>, IamError> {
        if !self.is_silent_about(name) {
            return self.shared_fetch(name).await;
        }
        let late = |_| Err(Cause::Silent.into());
        timeout(PATIENCE_IN_OUTAGE, self.shared_fetch(name)).await.unwrap_or_else(late)
    }

    /// Returns whether IAM is silent: the last fetch of `name` or, if the name has no entry, a fetch of any user failed
    /// less than [`OUTAGE`] ago, without an answer since.
    pub(super) fn is_silent_about(&self, name: &LinuxName) -> bool {
        let is_unknown = self.entry(name).is_none();
        let fetches = self.fetches.borrow();
        let failed_at = fetches.failures.get(name).map(|(at, _)| *at);
        let any_failed_at = fetches.silent_since.filter(|_| is_unknown);
        [failed_at, any_failed_at].into_iter().flatten().any(|at| at.elapsed() < OUTAGE)
    }

    /// Awaits the fetch of `name` that is under way, or starts one, unless the last one failed a moment ago. Starts
    /// another fetch if a flush cancels the one that is awaited.
    async fn shared_fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<CacheEntry>, IamError> {
        loop {
            let under_way = self.fetches.borrow().users.get(name).and_then(Fetch::under_way);
            if let Some(outcome) = under_way {
                match outcome.await {
                    Err(FetchError::Flushed) => continue,
                    outcome => return outcome.map_err(IamError::from),
                }
            }
            if let Some(error) = self.recent_failure(name) {
                return Err(error);
            }
            let (this, fetched) = (Rc::clone(self), name.clone());
            let fetch = Fetch::start(async move {
                let query = this.within_total_timeout(this.query(&fetched));
                let result = this.unless_asleep(query).await.map(Rc::new);
                this.fetches.borrow_mut().users.remove(&fetched);
                match &result {
                    Ok(entry) => this.store(&fetched, entry),
                    Err(error) => {
                        let is_shared = this.config.shared.contains_key(&fetched);
                        this.fetches.borrow_mut().note_failure(&fetched, error, is_shared);
                        this.changes.mark(&fetched);
                        this.warn(format!("user {fetched}: {error}"));
                    }
                }
                result
            });
            self.fetches.borrow_mut().users.insert(name.clone(), fetch);
        }
    }

    /// Stores an entry that was just fetched, and forgets the failures before it.
    fn store(&self, name: &LinuxName, entry: &Rc<CacheEntry>) {
        let mut fetches = self.fetches.borrow_mut();
        fetches.failures.remove(name);
        fetches.note_answer();
        drop(fetches);
        self.insert(name, entry);
    }

    /// Returns the error of the last fetch of `name` if it failed within the back-off, so that IAM is not asked again
    /// yet.
    pub(super) fn recent_failure(&self, name: &LinuxName) -> Option<IamError> {
        let pause = if self.config.shared.contains_key(name) { BACK_OFF_SHARED_ACCOUNT } else { BACK_OFF };
        let fetches = self.fetches.borrow();
        let failure = fetches.failures.get(name).filter(|(at, _)| at.elapsed() < pause);
        failure.map(|(_, error)| error.clone())
    }

    /// Runs `work`. Returns an error if it takes longer than `aws.total_timeout`.
    pub(super) async fn within_total_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        within(self.config.aws.total_timeout.0, work).await
    }

    /// Runs `work`. Returns an error if the machine slept meanwhile: an answer from before the sleep would look younger
    /// than it is.
    pub(super) async fn unless_asleep<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        let slept = self.slept();
        let outcome = work.await;
        if self.slept() == slept { outcome } else { Err(Cause::Asleep.into()) }
    }
}
