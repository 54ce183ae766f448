//! The list of allowed users, read now and again, or for the occasion.

use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::wire::ROSTER_LIMIT;
use tokio::time::Instant;

use super::Directory;
use super::fetch::{Running, bounded, shared};
use crate::lookup::roster::Roster;
use crate::source::{Iam, IamError};

/// After the roster could not be read, how long nobody tries again, but who keeps it.
pub(super) const ROSTER_BACK_OFF: Duration = Duration::from_secs(20);

impl<I: Iam> Directory<I> {
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
    pub(super) async fn roster_now(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        if let Some((at, error)) = &self.state.borrow().roster_failed
            && at.elapsed() < ROSTER_BACK_OFF
        {
            return Err(error.clone());
        }
        self.limited(self.read_roster()).await
    }

    /// The roster as it was last read, if ever.
    pub fn last_roster(&self) -> Option<Rc<Roster>> {
        self.state.borrow().roster.clone()
    }

    /// Reads the roster. Who comes while it is being read shares the reading.
    ///
    /// # Errors
    /// Why it could not be read. An earlier one stays.
    pub async fn read_roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        let running = self.state.borrow().roster_fetch.as_ref().and_then(Running::under_way);
        let fetch = running.unwrap_or_else(|| {
            let this = Rc::clone(self);
            let (running, fetch) = shared(async move {
                let reading = async {
                    let access = this.access_within(Duration::ZERO).await?;
                    Roster::read(&this.iam, &this.config, access).await
                };
                let result = this.awake(bounded(ROSTER_LIMIT, reading)).await.map(Rc::new);
                this.roster_read(&result);
                result
            });
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
}
