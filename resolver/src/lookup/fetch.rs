//! Asking IAM about a name once for all who wait, with patience while IAM answers and little while it does not.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use pam_iam_core::name::{IamName, LinuxName};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, timeout};

use super::{CacheEntry, Directory, Identity, State};
use crate::source::{Iam, IamError};

/// After IAM could not be reached for a user, how long nobody waits for that again. By user, since a failure for one
/// must not serve an old answer for another.
pub(super) const BACK_OFF: Duration = Duration::from_secs(2);

/// The same for an account that many share, whose look-up costs a call for each.
const BACK_OFF_TEAM: Duration = Duration::from_secs(10);

/// While IAM is silent about a user, how long somebody waits for the next try before the last answer serves; the try goes
/// on, so that the first login after an outage is a fresh one. A new connection and its first answer take four round trips,
/// each of up to a quarter of a second.
pub(super) const PATIENCE_IN_OUTAGE: Duration = Duration::from_secs(1);

/// For how long after a failure IAM is taken to be still silent. Later, whoever asks waits for IAM as ever.
pub(super) const OUTAGE: Duration = Duration::from_secs(60);

/// How many names are remembered for which IAM was silent.
const FAILING_MAX: usize = 10_000;

/// How many names are remembered before those that stand for nobody are forgotten.
const ABSENT_MAX: usize = 10_000;

pub(super) type Fetch<T> = Shared<LocalBoxFuture<'static, Result<Rc<T>, IamError>>>;

/// A fetch on its way. What drops it breaks it off: what was asked before a flush says nothing after it.
pub(super) struct Running<T> {
    fetch: Fetch<T>,
    task: AbortHandle,
}

impl<T> Running<T> {
    /// What to wait for; none if it is over. One that is over and still here has panicked.
    pub(super) fn under_way(&self) -> Option<Fetch<T>> {
        self.fetch.peek().is_none().then(|| self.fetch.clone())
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<I: Iam> Directory<I> {
    /// Fetches, and waits as long as there is a hope: while IAM is silent, whoever comes next gets what is known, and who
    /// is not known a quick no.
    pub(super) async fn fetch_soon(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<CacheEntry>, IamError> {
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

    async fn fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<CacheEntry>, IamError> {
        loop {
            let running = self.state.borrow().fetches.get(name).and_then(Running::under_way);
            if let Some(fetch) = running {
                match fetch.await {
                    // By a flush.
                    Err(error) if error == broken_off() => continue,
                    outcome => return outcome,
                }
            }
            if let Some(error) = self.recent_failure(name) {
                return Err(error);
            }
            let (this, asked) = (Rc::clone(self), name.clone());
            let (running, _) = shared(async move {
                let result = this.awake(this.limited(this.ask(&asked))).await.map(Rc::new);
                this.fetched(&asked, &result);
                result
            });
            self.state.borrow_mut().fetches.insert(name.clone(), running);
        }
    }

    /// Why IAM did not answer about `name` a moment ago, so that it is not asked again yet.
    pub(super) fn recent_failure(&self, name: &LinuxName) -> Option<IamError> {
        let pause = if self.config.shared.contains_key(name) { BACK_OFF_TEAM } else { BACK_OFF };
        let state = self.state.borrow();
        state.failing.get(name).filter(|(at, _)| at.elapsed() < pause).map(|(_, error)| error.clone())
    }

    /// Bounds whatever is asked of IAM by `aws.total_timeout`.
    pub(super) async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        bounded(self.config.aws.total_timeout.0, work).await
    }

    /// Does `work`, unless the machine sleeps meanwhile: what came before the sleep would pass for what came after it.
    pub(super) async fn awake<T>(
        &self,
        work: impl Future<Output = Result<T, IamError>>,
    ) -> Result<T, IamError> {
        let slept = self.slept();
        let outcome = work.await;
        if self.slept() == slept { outcome } else { Err(unreachable("the machine was asleep")) }
    }

    fn fetched(&self, name: &LinuxName, result: &Result<Rc<CacheEntry>, IamError>) {
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
        if let Identity::NotFound | Identity::AccessDenied = record.identity {
            state.forget_some_absent();
        }
        let before = state.records.insert(name.clone(), Rc::clone(record));
        drop(state);
        if let Identity::User(person) = &record.identity
            && !self.uid_belongs_to_older_user(person)
        {
            self.state.borrow_mut().names.insert(person.uid, name.clone());
        }
        match before.as_deref().map(|before| &before.identity) {
            Some(before) if *before != record.identity => self.count_revocation(),
            Some(_) => self.refreshed(),
            // Nobody knows what a file says that was not read.
            None if self.changes.unread.get() => self.count_revocation(),
            None if matches!(record.identity, Identity::User(_) | Identity::Members(_)) => self.changed(),
            None => {}
        }
        self.tell_news(name, before.as_deref(), record);
    }

    /// Logs what an operator should know, once for each time that it changes.
    fn tell_news(&self, name: &LinuxName, before: Option<&CacheEntry>, now: &CacheEntry) {
        match (&now.identity, before.map(|record| &record.identity)) {
            (Identity::Ambiguous(_), Some(Identity::Ambiguous(_)))
            | (Identity::AccessDenied, Some(Identity::AccessDenied)) => {}
            (Identity::Ambiguous(users), _) => {
                let users: Vec<&str> = users.iter().map(IamName::as_str).collect();
                self.warn(format!("refused the name {name}: the IAM users {} claim it", users.join(" and ")));
            }
            (Identity::AccessDenied, _) => {
                self.warn(format!("user {name}: IAM denies this host to look, which means no"))
            }
            (Identity::User(_) | Identity::NotFound | Identity::Members(_), _) => {}
        }
    }
}

impl State {
    /// Keeps guessers of names from filling the memory.
    fn forget_some_absent(&mut self) {
        if self.records.len() >= ABSENT_MAX {
            self.records
                .retain(|_, record| !matches!(record.identity, Identity::NotFound | Identity::AccessDenied));
        }
    }
}

/// A future that runs on its own, whoever still waits for it, and that many can wait for.
pub(super) fn shared<T: 'static>(
    work: impl Future<Output = Result<Rc<T>, IamError>> + 'static,
) -> (Running<T>, Fetch<T>) {
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
    let fetch = outcome.boxed_local().shared();
    (Running { fetch: fetch.clone(), task: abort }, fetch)
}

fn unreachable(why: &str) -> IamError {
    IamError::Unreachable(why.to_owned())
}

/// What whoever waits is told when a fetch is broken off.
fn broken_off() -> IamError {
    unreachable("the look-up was broken off by a flush")
}

pub(super) async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, IamError>>,
) -> Result<T, IamError> {
    let late = |_| Err(IamError::Unreachable(format!("no answer within {} ms", limit.as_millis())));
    timeout(limit, work).await.unwrap_or_else(late)
}
