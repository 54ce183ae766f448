//! Reads the roster, at intervals and when a lookup needs it.

use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::wire::ROSTER_LIMIT;
use tokio::time::Instant;

use super::Directory;
use super::roster::Roster;
use super::single_flight::{Fetch, within};
use crate::persist::dirty::Dirty;
use crate::source::{Iam, IamError};

/// How long after a failed read a lookup gets the error of that read instead of a new one. The periodic read ignores it.
const ROSTER_BACK_OFF: Duration = Duration::from_secs(20);

impl<I: Iam> Directory<I> {
    /// Returns the cached roster, however old, or reads it if there is none.
    ///
    /// # Errors
    /// Returns an error if there is none and it cannot be read.
    pub async fn roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        match self.cached_roster() {
            Some(roster) => Ok(roster),
            None => self.read_roster_for_lookup().await,
        }
    }

    /// Reads the roster within `aws.total_timeout`.
    ///
    /// # Errors
    /// Returns the error of the read, or that of a read that failed less than [`ROSTER_BACK_OFF`] ago.
    pub(super) async fn read_roster_for_lookup(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        if let Some((failed_at, error)) = &self.fetches.borrow().roster_failure
            && failed_at.elapsed() < ROSTER_BACK_OFF
        {
            return Err(error.clone());
        }
        self.within_total_timeout(self.read_roster()).await
    }

    /// Returns the cached roster. None if none was read or restored.
    pub fn cached_roster(&self) -> Option<Rc<Roster>> {
        self.cache.borrow().roster.clone()
    }

    /// Starts a read of the roster, or joins the one that is under way, and waits for it. The read goes on if the caller stops waiting.
    ///
    /// # Errors
    /// Returns an error if the read fails, a flush cancels it, or the machine sleeps meanwhile. The cached roster then stays.
    pub async fn read_roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        let under_way = self.fetches.borrow().roster.as_ref().and_then(Fetch::under_way);
        let outcome = match under_way {
            Some(outcome) => outcome,
            None => {
                let this = Rc::clone(self);
                let fetch = Fetch::start(async move {
                    let reading = async {
                        // With the instance tags as they are now.
                        let access = this.access_within(Duration::ZERO).await?;
                        Roster::read(&this.iam, &this.config, access).await
                    };
                    let result = this.unless_asleep(within(ROSTER_LIMIT, reading)).await.map(Rc::new);
                    this.apply_roster(&result);
                    result
                });
                let outcome = fetch.outcome();
                self.fetches.borrow_mut().roster = Some(fetch);
                outcome
            }
        };
        outcome.await.map_err(IamError::from)
    }

    /// Stores the roster of a finished read, or records and logs the error.
    fn apply_roster(&self, result: &Result<Rc<Roster>, IamError>) {
        self.changes.mark_all();
        {
            let mut fetches = self.fetches.borrow_mut();
            // This drops the fetch that runs this function. Its task has nothing left to await.
            fetches.roster = None;
            fetches.roster_failure = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        }
        match result {
            Ok(roster) => {
                let before = self.cache.borrow_mut().roster.replace(Rc::clone(roster));
                self.fetches.borrow_mut().note_answer();
                self.dirty.mark(if before.is_some() { Dirty::Refreshed } else { Dirty::Added });
                self.log_refused_and_missing(before.as_deref(), roster);
            }
            Err(IamError::Denied(message)) => self.warn(format!(
                "the list of allowed users cannot be read, since IAM denies the call; allow this host iam:GetGroup, and iam:ListUsers if access.allow is \"all\": {message}"
            )),
            Err(error) => self.warn(format!("the list of allowed users cannot be read: {error}")),
        }
    }

    /// Logs all refused users and all missing groups, if either list has changed since the last read.
    fn log_refused_and_missing(&self, before: Option<&Roster>, now: &Roster) {
        let previous = before.map(|roster| (&roster.refused, &roster.missing));
        if previous == Some((&now.refused, &now.missing)) {
            return;
        }
        for refused in &now.refused {
            self.warn(format!("refused IAM user {}: {}", refused.user.name, refused.why));
        }
        for group in &now.missing {
            self.warn(format!("the configuration names the IAM group {group}, which does not exist"));
        }
    }
}
