//! Answers requests. The modules `keys` and `decision` answer sshd and PAM, `names` and `groups` answer NSS, `listing`
//! answers the importer, and `report` answers iamctl. All of them ask `eligibility` which IAM user has a right to a name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::account_kind::Files;
use pam_iam_core::config::Config;
use pam_iam_core::id::Uid;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::{Answer, Failure, Flushed, LINT_LIMIT, ROSTER_LIMIT, Reason, Request, Status};

use crate::claims::Claims;
use crate::limits::Origin;
use crate::locals::Locals;
use crate::lookup::Directory;
use crate::publish::Publisher;
use crate::source::{Iam, IamError};
use crate::trail::Trail;

mod decision;
mod eligibility;
mod groups;
mod keys;
mod listing;
mod map;
mod names;
mod report;
#[cfg(test)]
mod tests;

/// The time that an answer may take beyond the limit of its calls, such as `aws.total_timeout`.
const GRACE: Duration = Duration::from_secs(1);

/// The state that answers requests: the users, the host's own names, and counters for `iamctl status`.
pub struct Answerer<I> {
    directory: Rc<Directory<I>>,
    locals: Locals,
    claims: Claims,
    /// The map. None if none is kept, as in `iam-resolver --once`.
    map: Option<Publisher>,
    /// The users on the roster who have no account on this host, each with the reason. All of them were logged.
    logged_ineligible: RefCell<Vec<(IamName, &'static str)>>,
    /// For each name, the last reason that was logged why its IAM user has no account or no keys on this host.
    logged_not_shown: RefCell<BTreeMap<LinuxName, Reason>>,
    /// The number of requests of each kind.
    requests: RefCell<BTreeMap<&'static str, u64>>,
    /// The number of decisions by policy and reason.
    decisions: RefCell<BTreeMap<String, u64>>,
    trail: Trail,
}

/// The sender of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Whether the connected process runs as root.
    pub is_root: bool,
    /// The origin whose limits the request counts against.
    pub origin: Origin,
}

impl From<Uid> for Asker {
    /// Returns the asker for a process that sends a request for itself.
    fn from(peer: Uid) -> Self {
        let is_root = peer == Uid::ROOT;
        Self { is_root, origin: if is_root { Origin::Host } else { Origin::User(peer) } }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(transparent)]
    Iam(#[from] IamError),
    #[error("the local accounts cannot be read: {0}")]
    Local(#[from] std::io::Error),
}

impl From<AnswerError> for Answer {
    fn from(error: AnswerError) -> Self {
        let (kind, message) = match error {
            AnswerError::Iam(IamError::Denied(message)) => {
                (Failure::Configuration, format!("IAM denies it: {message}"))
            }
            AnswerError::Iam(IamError::Configuration(message)) => (Failure::Configuration, message),
            error => (Failure::Unavailable, error.to_string()),
        };
        Self::Error { kind, message }
    }
}

impl<I: Iam> Answerer<I> {
    /// Returns an answerer for this host.
    pub fn new(directory: Rc<Directory<I>>) -> Self {
        Self::with_locals(directory, Locals::new(Files::default()), Claims::new(Path::new("/")))
    }

    /// Returns an answerer for a host with these local accounts and claims.
    pub fn with_locals(directory: Rc<Directory<I>>, locals: Locals, claims: Claims) -> Self {
        Self {
            directory,
            locals,
            claims,
            map: None,
            logged_ineligible: RefCell::default(),
            logged_not_shown: RefCell::default(),
            requests: RefCell::default(),
            decisions: RefCell::default(),
            trail: Trail::default(),
        }
    }

    /// Returns the answerer, which from now on keeps a map up to date.
    pub fn with_map(self, map: Publisher) -> Self {
        Self { map: Some(map), ..self }
    }

    /// Returns whether `uid` is that of `keys.user`, which runs the key command.
    pub fn is_key_user(&self, uid: Uid) -> bool {
        self.refresh_locals();
        self.locals.uid_of(&self.config().keys.user).is_ok_and(|known| known == Some(uid))
    }

    /// Answers a request within the time that clients wait.
    pub async fn answer(&self, request: &Request, asker: impl Into<Asker>) -> Answer {
        let asker = asker.into();
        let limit = match request {
            Request::Roster | Request::SelfTest => ROSTER_LIMIT + GRACE,
            Request::Lint => LINT_LIMIT + GRACE,
            _ => self.config().aws.total_timeout.0 + GRACE,
        };
        let late = |_| Answer::Error { kind: Failure::Unavailable, message: "no answer in time".to_owned() };
        let answer = tokio::time::timeout(limit, self.dispatch(request, asker)).await.unwrap_or_else(late);
        // No answer may tell of a withdrawal that is not in the map yet.
        self.publish();
        answer
    }

    async fn dispatch(&self, request: &Request, asker: Asker) -> Answer {
        self.refresh();
        *self.requests.borrow_mut().entry(request.kind()).or_default() += 1;
        let answer = match request {
            Request::UserByName { name } => self.user_by_name(name, asker.origin).await,
            Request::UserByUid { uid } => self.user_by_uid(*uid, asker.origin).await,
            Request::GroupByName { name } => self.group_by_name(name, asker.origin).await,
            Request::GroupByGid { gid } => self.group_by_gid(*gid, asker.origin).await,
            Request::GroupsOf { name, known } => self.groups_of(name, *known, asker).await,
            Request::Revalidate { name } => self.revalidate(name, asker.origin),
            Request::Keys { name, uid, fingerprint } => {
                self.keys(name, *uid, fingerprint.as_ref(), asker.origin).await
            }
            Request::Decide { name, uid, policy } => {
                self.counted_decision(name, *uid, *policy, asker.origin).await
            }
            Request::Roster => self.roster().await,
            Request::Status => Ok(self.status()),
            Request::Explain { name } => self.explain(name).await,
            Request::WhoIs { uid } => self.who_is(*uid).await,
            Request::Flush { name } => Ok(self.flush(name.as_ref()).await),
            Request::SelfTest => Ok(self.self_test().await),
            Request::Lint => self.lint().await,
            Request::Record { line } => {
                self.trail.record(line);
                Ok(Answer::Done)
            }
        };
        answer.unwrap_or_else(Answer::from)
    }

    /// Waits until all recorded events are written, at most `limit`.
    pub fn finish_trail(&self, limit: Duration) {
        self.trail.finish(limit);
    }

    /// Returns the folders of units and of sysusers.d(5), which claim names.
    pub fn claiming_folders(&self) -> impl Iterator<Item = PathBuf> {
        self.claims.folders()
    }

    /// Returns the folder of the map, which another program may damage.
    pub fn map_folder(&self) -> Option<PathBuf> {
        self.map.as_ref()?.folder().map(Path::to_owned)
    }

    async fn flush(&self, name: Option<&LinuxName>) -> Answer {
        let forgotten = self.directory.flush(name);
        self.directory.dirty.wait_until_persisted().await;
        Answer::report(&Flushed { forgotten })
    }

    fn config(&self) -> &Config {
        &self.directory.config
    }

    fn status(&self) -> Answer {
        let roster = self.directory.cached_roster();
        let stats = self.directory.stats();
        let cache_file = self.directory.dirty.status();
        let requests = self.requests.borrow();
        Answer::report(&Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.directory.started.elapsed().as_secs(),
            roster_age: roster.as_ref().map(|roster| roster.age().as_secs()),
            roster_users: roster.map_or(0, |roster| roster.users().count()),
            known: self.directory.cached_names(),
            cache_age: cache_file.written_at.map(|written_at| written_at.elapsed().as_secs()),
            cache_bytes: cache_file.bytes,
            cache_error: cache_file.error,
            calls: stats.calls,
            errors: stats.errors,
            last_error: stats.last_error,
            last_answer: stats.last_answer.map(|answered_at| answered_at.elapsed().as_secs()),
            unknown_left: self.directory.unknown_left(),
            unknown_per_minute: self.config().freshness.unknown_per_minute,
            backing_off: self.directory.failed_fetches(),
            questions: requests.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
            decisions: self.decisions.borrow().clone(),
        })
    }
}
