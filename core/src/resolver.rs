//! The typed client of the resolver. It asks the daemon, a process of its own, or whichever the configuration names.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::client::{ClientError, Line};
use crate::deadline::Deadline;
use crate::fingerprint::Fingerprint;
use crate::id::{Gid, Uid};
use crate::name::LinuxName;
use crate::once::{self, Once};
use crate::paths;
use crate::wire::{Answer, Decision, Group, Key, Policy, Request, User};

/// Who answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The daemon on the socket.
    Daemon,
    /// `iam-resolver --once`.
    Once,
    /// The daemon where one listens, else `iam-resolver --once`.
    #[default]
    Auto,
}

/// The ways to the resolver.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Which of them to take.
    pub mode: Mode,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The process.
    pub once: Once,
    /// The connection to the daemon. Resolvers that share it make fewer of them.
    pub line: Rc<Line>,
}

impl Resolver {
    /// Returns the resolver in its usual places. A process that is started reads the configuration `config`.
    pub fn new(mode: Mode, config: &Path) -> Self {
        let once = Once { config: config.to_owned(), ..Once::default() };
        Self { mode, socket: paths::SOCKET.into(), once, line: Rc::default() }
    }
}

impl Queries for Resolver {
    /// Sends a request and waits for its answer, at most [`Request::patience`].
    ///
    /// # Errors
    /// Returns an error if there is no answer. A daemon that is there and fails is not replaced by a process: a client that can
    /// make it fail could make every login start one.
    fn send(&self, request: &Request) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(request.patience());
        match self.mode {
            Mode::Daemon => self.line.ask(&self.socket, request, deadline),
            Mode::Once => once::ask(&self.once, request, deadline),
            Mode::Auto => match self.line.ask(&self.socket, request, deadline) {
                Err(ClientError::NoListener(_)) => once::ask(&self.once, request, deadline),
                answer => answer,
            },
        }
    }
}

/// What the resolver can be asked, each with an answer of its own type. An error is never a yes.
///
/// # Errors
/// All of them return an error if there is no answer, if the resolver answers with one, or if the answer is to another request.
pub trait Queries {
    /// Sends a request. The other methods know which answer belongs to it.
    ///
    /// # Errors
    /// Returns an error if there is no answer.
    fn send(&self, request: &Request) -> Result<Answer, ClientError>;

    /// Returns whether the account `name` with `uid` may do what `policy` is about.
    ///
    /// # Errors
    /// See the trait.
    fn decide(&self, name: &LinuxName, uid: Uid, policy: Policy) -> Result<Decision, ClientError> {
        match self.send(&Request::Decide { name: name.clone(), uid, policy })? {
            Answer::Decision(decision) => Ok(decision),
            answer => Err(answer.into()),
        }
    }

    /// Returns the active keys of the account `name` with `uid`, or the one with `fingerprint`.
    ///
    /// # Errors
    /// See the trait.
    fn keys(
        &self,
        name: &LinuxName,
        uid: Uid,
        fingerprint: Option<&Fingerprint>,
    ) -> Result<Vec<Key>, ClientError> {
        let fingerprint = fingerprint.cloned();
        match self.send(&Request::Keys { name: name.clone(), uid, fingerprint })? {
            Answer::Keys { keys } => Ok(keys),
            answer => Err(answer.into()),
        }
    }

    /// Returns the supplementary groups that IAM gives a managed user; None if there is no such user. With `known`, IAM is not
    /// asked.
    ///
    /// # Errors
    /// See the trait.
    fn groups_of(&self, name: &LinuxName, known: bool) -> Result<Option<Vec<Gid>>, ClientError> {
        match self.send(&Request::GroupsOf { name: name.clone(), known })? {
            Answer::Groups { gids } => Ok(Some(gids)),
            Answer::NotFound => Ok(None),
            answer => Err(answer.into()),
        }
    }

    /// Returns the supplementary groups of a managed user about whom the resolver has just decided. A daemon answers from memory; a
    /// resolver without one asks IAM again.
    ///
    /// # Errors
    /// See the trait.
    fn groups_decided_on(&self, name: &LinuxName) -> Result<Vec<Gid>, ClientError> {
        match self.groups_of(name, true)? {
            Some(gids) => Ok(gids),
            None => Ok(self.groups_of(name, false)?.unwrap_or_default()),
        }
    }

    /// Returns the account that NSS shows under a name, if any.
    ///
    /// # Errors
    /// See the trait.
    fn user(&self, name: &LinuxName) -> Result<Option<User>, ClientError> {
        match self.send(&Request::UserByName { name: name.clone() })? {
            Answer::User(user) => Ok(Some(user)),
            Answer::NotFound => Ok(None),
            answer => Err(answer.into()),
        }
    }

    /// Returns the account that NSS shows for a uid, if any.
    ///
    /// # Errors
    /// See the trait.
    fn user_by_uid(&self, uid: Uid) -> Result<Option<User>, ClientError> {
        match self.send(&Request::UserByUid { uid })? {
            Answer::User(user) => Ok(Some(user)),
            Answer::NotFound => Ok(None),
            answer => Err(answer.into()),
        }
    }

    /// Returns the group that NSS shows for a gid, if any.
    ///
    /// # Errors
    /// See the trait.
    fn group_by_gid(&self, gid: Gid) -> Result<Option<Group>, ClientError> {
        match self.send(&Request::GroupByGid { gid })? {
            Answer::Group(group) => Ok(Some(group)),
            Answer::NotFound => Ok(None),
            answer => Err(answer.into()),
        }
    }

    /// Returns the group that NSS shows under a name, if any.
    ///
    /// # Errors
    /// See the trait.
    fn group(&self, name: &LinuxName) -> Result<Option<Group>, ClientError> {
        match self.send(&Request::GroupByName { name: name.clone() })? {
            Answer::Group(group) => Ok(Some(group)),
            Answer::NotFound => Ok(None),
            answer => Err(answer.into()),
        }
    }

    /// Returns the report that belongs to `request`. The caller names its type.
    ///
    /// # Errors
    /// See the trait.
    fn report<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError>
    where
        Self: Sized,
    {
        match self.send(request)? {
            Answer::Report { report } => serde_json::from_value(report).map_err(|_| ClientError::OtherAnswer),
            answer => Err(answer.into()),
        }
    }
}

impl From<Answer> for ClientError {
    /// An answer that does not belong to the request.
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Error { kind, message } => Self::Failed { kind, message },
            _ => Self::OtherAnswer,
        }
    }
}
