//! Asks IAM about a name once for all who wait. A client waits long while IAM answers, and briefly while it does not.

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

/// After a failed fetch of a user, how long nobody asks IAM about that user. It is kept by user, since a failure for one must
/// not serve a stale entry of another.
pub(super) const BACK_OFF: Duration = Duration::from_secs(2);

/// [`BACK_OFF`] of a shared account, whose fetch costs a call for each member.
const BACK_OFF_SHARED_ACCOUNT: Duration = Duration::from_secs(10);

/// During an outage, how long a client waits for a fetch before a stale entry serves. The fetch goes on, so that the first
/// login after the outage is fresh. A new connection and its first answer take four round trips, each of up to a quarter of a
/// second.
pub(super) const PATIENCE_IN_OUTAGE: Duration = Duration::from_secs(1);

/// How long after a failure IAM counts as silent. Later, clients wait as if it had never failed.
pub(super) const OUTAGE: Duration = Duration::from_secs(60);

/// Failed names that are remembered.
const FAILURES_MAX: usize = 10_000;

/// The fetches under way, and those that failed a moment ago.
#[derive(Default)]
pub(super) struct Fetches {
    users: HashMap<LinuxName, Fetch<CacheEntry>>,
    pub(super) roster: Option<Fetch<Roster>>,
    pub(super) roster_failure: Option<(Instant, IamError)>,
    pub(super) tags: tags::TagFetches,
    /// The users of whom the last fetch failed: when, and why.
    failures: HashMap<LinuxName, (Instant, IamError)>,
    /// When a fetch last failed, unless IAM has answered since.
    silent_since: Option<Instant>,
}

impl Fetches {
    /// Whether IAM is being asked about `name`.
    pub(super) fn has(&self, name: &LinuxName) -> bool {
        self.users.contains_key(name)
    }

    /// Whether the last fetch of `name` failed.
    pub(super) fn has_failed(&self, name: &LinuxName) -> bool {
        self.failures.contains_key(name)
    }

    /// How many users the last fetch failed for.
    pub(super) fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Notes that IAM has answered.
    pub(super) fn note_answer(&mut self) {
        self.silent_since = None;
    }

    /// Cancels the fetch of `name`, and forgets that it failed.
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
        // A shared account may fail alone, with too many members or a group that IAM does not show.
        if !is_shared {
            self.silent_since = Some(now);
        }
    }
}

impl<I: Iam> Directory<I> {
    /// Fetches `name`. During an outage waits at most [`PATIENCE_IN_OUTAGE`], so that callers fall back to the cached entry
    /// quickly.
    pub(super) async fn fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<CacheEntry>, IamError> {
        if !self.is_silent_about(name) {
            return self.shared_fetch(name).await;
        }
        let late = |_| Err(Cause::Silent.into());
        timeout(PATIENCE_IN_OUTAGE, self.shared_fetch(name)).await.unwrap_or_else(late)
    }

    /// Whether IAM is silent: about this user, or, if nothing is known of the user, about any.
    fn is_silent_about(&self, name: &LinuxName) -> bool {
        let is_unknown = self.entry(name).is_none();
        let fetches = self.fetches.borrow();
        let failed_at = fetches.failures.get(name).map(|(at, _)| *at);
        let any_failed_at = fetches.silent_since.filter(|_| is_unknown);
        [failed_at, any_failed_at].into_iter().flatten().any(|at| at.elapsed() < OUTAGE)
    }

    /// Awaits the fetch of `name` that is under way, or starts one. After a flush it starts another.
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
                        this.warn(format!("user {fetched}: {error}"));
                    }
                }
                result
            });
            self.fetches.borrow_mut().users.insert(name.clone(), fetch);
        }
    }

    /// Stores an entry that was just fetched.
    fn store(&self, name: &LinuxName, entry: &Rc<CacheEntry>) {
        let mut fetches = self.fetches.borrow_mut();
        fetches.failures.remove(name);
        fetches.note_answer();
        drop(fetches);
        self.insert(name, entry);
    }

    /// Returns why IAM did not answer about `name` a moment ago, if so: it is not asked again yet.
    pub(super) fn recent_failure(&self, name: &LinuxName) -> Option<IamError> {
        let pause = if self.config.shared.contains_key(name) { BACK_OFF_SHARED_ACCOUNT } else { BACK_OFF };
        let fetches = self.fetches.borrow();
        let failure = fetches.failures.get(name).filter(|(at, _)| at.elapsed() < pause);
        failure.map(|(_, error)| error.clone())
    }

    /// Bounds `work` by `aws.total_timeout`.
    pub(super) async fn within_total_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        within(self.config.aws.total_timeout.0, work).await
    }

    /// Does `work`. Returns an error if the machine slept meanwhile: what IAM said before the sleep would count as said after it.
    pub(super) async fn unless_asleep<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        let slept = self.slept();
        let outcome = work.await;
        if self.slept() == slept { outcome } else { Err(Cause::Asleep.into()) }
    }
}
