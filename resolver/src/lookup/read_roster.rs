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

/// After a failed reading, how long lookups do not start another. The reading at intervals does.
const ROSTER_BACK_OFF: Duration = Duration::from_secs(20);

impl<I: Iam> Directory<I> {
    /// Returns the roster as it was last read, or reads it if it never was.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub async fn roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        match self.last_roster() {
            Some(roster) => Ok(roster),
            None => self.roster_now().await,
        }
    }

    /// Reads the roster for a lookup.
    ///
    /// # Errors
    /// Returns an error if it cannot be read, or could not a moment ago.
    pub(super) async fn roster_now(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        if let Some((failed_at, error)) = &self.fetches.borrow().roster_failure
            && failed_at.elapsed() < ROSTER_BACK_OFF
        {
            return Err(error.clone());
        }
        self.within_total_timeout(self.read_roster()).await
    }

    /// Returns the roster as it was last read, if ever.
    pub fn last_roster(&self) -> Option<Rc<Roster>> {
        self.cache.borrow().roster.clone()
    }

    /// Reads the roster, or awaits the reading that is under way.
    ///
    /// # Errors
    /// Returns an error if it cannot be read. The last one stays.
    pub async fn read_roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        let under_way = self.fetches.borrow().roster.as_ref().and_then(Fetch::under_way);
        let outcome = match under_way {
            Some(outcome) => outcome,
            None => {
                let this = Rc::clone(self);
                let fetch = Fetch::start(async move {
                    let reading = async {
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

    /// Stores a roster that was just read, or notes and logs why it was not.
    fn apply_roster(&self, result: &Result<Rc<Roster>, IamError>) {
        {
            let mut fetches = self.fetches.borrow_mut();
            fetches.roster = None;
            fetches.roster_failure = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        }
        match result {
            Ok(roster) => {
                let before = self.cache.borrow_mut().roster.replace(Rc::clone(roster));
                self.fetches.borrow_mut().note_answer();
                self.dirty.mark(if before.is_some() { Dirty::Refreshed } else { Dirty::Added });
                self.log_refused(before.as_deref(), roster);
            }
            Err(IamError::Denied(message)) => self.warn(format!(
                "the list of allowed users cannot be read, since IAM denies it; give this host iam:GetGroup and iam:ListUsers: {message}"
            )),
            Err(error) => self.warn(format!("the list of allowed users cannot be read: {error}")),
        }
    }

    /// Logs which users get no account and which groups do not exist, if that has changed.
    fn log_refused(&self, before: Option<&Roster>, now: &Roster) {
        let logged = before.map(|roster| (&roster.refused, &roster.missing));
        if logged == Some((&now.refused, &now.missing)) {
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
