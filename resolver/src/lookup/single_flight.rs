//! One fetch for all tasks that wait for the same answer.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

use crate::source::{Cause, IamError};

/// Why a fetch has no result.
#[derive(Clone, Debug)]
pub(super) enum FetchError {
    /// A flush cancelled the fetch: an answer from before the flush does not count after it.
    Flushed,
    /// The fetch ended with this error.
    Iam(IamError),
}

impl From<IamError> for FetchError {
    fn from(error: IamError) -> Self {
        Self::Iam(error)
    }
}

impl From<FetchError> for IamError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Flushed => Cause::Flushed.into(),
            FetchError::Iam(error) => error,
        }
    }
}

/// The outcome of a fetch, which any number of tasks may await.
pub(super) type Outcome<T> = Shared<LocalBoxFuture<'static, Result<Rc<T>, FetchError>>>;

/// A fetch under way. Dropping it cancels the fetch.
pub(super) struct Fetch<T> {
    outcome: Outcome<T>,
    task: AbortHandle,
}

impl<T: 'static> Fetch<T> {
    /// Starts `work`, which goes on even if no task awaits it.
    pub(super) fn start(work: impl Future<Output = Result<Rc<T>, IamError>> + 'static) -> Self {
        let task = spawn_local(work);
        let abort = task.abort_handle();
        let outcome = async move {
            match task.await {
                Ok(result) => result.map_err(FetchError::Iam),
                Err(error) if error.is_cancelled() => Err(FetchError::Flushed),
                Err(error) => Err(FetchError::Iam(Cause::Panicked(error.to_string()).into())),
            }
        };
        Self { outcome: outcome.boxed_local().shared(), task: abort }
    }

    /// Returns the outcome to await.
    pub(super) fn outcome(&self) -> Outcome<T> {
        self.outcome.clone()
    }

    /// Returns the outcome to await, or None if the fetch is over. A fetch removes itself at its end, so one that is over
    /// and still here has panicked.
    pub(super) fn under_way(&self) -> Option<Outcome<T>> {
        self.outcome.peek().is_none().then(|| self.outcome.clone())
    }
}

impl<T> Drop for Fetch<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs `work`. Returns an error if it takes longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, IamError>>,
) -> Result<T, IamError> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(Cause::Timeout(limit).into()))
}
