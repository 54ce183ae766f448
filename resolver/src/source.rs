//! The source of users: the calls that the resolver needs, and their errors. [`iam`] makes the calls to AWS.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use pam_iam_core::name::IamName;
use pam_iam_core::wire::Route;
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub mod fake;
mod http;
pub mod iam;
pub mod sshkey;

/// The immutable id of an IAM user or group (`AIDA...`, `AGPA...`). AWS never gives it to another user or group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IamId(String);

/// A text that is not an id of an IAM user or group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of IAM")]
pub struct NotAnId(String);

impl TryFrom<String> for IamId {
    type Error = NotAnId;

    fn try_from(id: String) -> Result<Self, NotAnId> {
        Self::new(&id).ok_or(NotAnId(id))
    }
}

impl From<IamId> for String {
    fn from(id: IamId) -> Self {
        id.0
    }
}

impl IamId {
    /// Parses an id: 16 to 128 word characters (API reference, type `idType`).
    pub fn new(id: &str) -> Option<Self> {
        let word = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (word && (16..=128).contains(&id.len())).then(|| Self(id.to_owned()))
    }

    /// Returns the id as IAM spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IAM user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IamUser {
    /// The name as IAM spells it.
    pub name: IamName,
    /// The id.
    pub id: IamId,
    /// When the user was created, in seconds since 1970.
    pub created: i64,
}

/// An IAM group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IamGroup {
    /// The name as IAM spells it.
    pub name: IamName,
    /// The id.
    pub id: IamId,
}

/// A negative answer of IAM, or the reason why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IamError {
    /// IAM answered that there is no such user, group or key.
    #[error("there is no such entity")]
    NoSuchEntity,
    /// IAM denies this host the call. For a call about a user this is a negative answer; for a list it is a mistake in
    /// the configuration.
    #[error("access denied: {0}")]
    Denied(String),
    /// The configuration does not fit this instance, for example because it names a tag that the instance does not have.
    #[error("{0}")]
    Configuration(String),
    /// IAM did not answer, which says nothing about the user.
    #[error("IAM cannot be reached: {0}")]
    Unavailable(#[from] Cause),
    /// IAM was not asked, since the origin of the request has caused too many calls. A stale entry does not decide
    /// instead, except about keys that PAM checks again: a client who uses up a limit could otherwise hide a withdrawal.
    #[error("too many look-ups; try again in a minute")]
    Limited,
}

/// Why IAM did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The call failed: not connected, throttled, credentials refused. The text is the SDK's.
    #[error("{0}")]
    Call(String),
    /// The calls took longer than this.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The answer makes no sense.
    #[error("IAM answered with {0}")]
    Malformed(String),
    /// IAM was silent already, and did not answer within the short wait of an outage.
    #[error("it was silent, and no answer came at once")]
    Silent,
    /// The machine slept during the call.
    #[error("the machine was asleep")]
    Asleep,
    /// A flush cancelled the call.
    #[error("the look-up was broken off by a flush")]
    Flushed,
    /// A bug: the task that made the calls has panicked.
    #[error("the look-up failed: {0}")]
    Panicked(String),
    /// The roster was read before the resolver started, so it does not prove that there is no such user.
    #[error("the list of users is from before the start")]
    RosterBeforeStart,
    /// The tags of the instance were not read yet.
    #[error("the instance's tags were not read")]
    TagsUnread,
    /// The metadata service did not answer.
    #[error("instance metadata: {0}")]
    Metadata(String),
    /// A shared account has more members than this.
    #[error("more than {0} IAM users share it, each of whom costs a call for a login")]
    TooManyMembers(usize),
    /// IAM denies this host to list a group of a shared account.
    #[error("IAM denies this host to list the group {group}: {why}")]
    GroupDenied {
        /// The group.
        group: IamName,
        /// The message of IAM.
        why: String,
    },
}

/// The id of a key (`APKA...`). Under one id, IAM never changes the key.
pub type KeyId = String;

/// The ids of a user's keys, in IAM's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyIds {
    /// The keys that IAM has as active.
    pub active: Vec<KeyId>,
    /// The keys that IAM has as inactive.
    pub inactive: Vec<KeyId>,
}

impl KeyIds {
    /// Adds the id of a key.
    fn add(&mut self, id: KeyId, is_active: bool) {
        if is_active { self.active.push(id) } else { self.inactive.push(id) }
    }
}

/// The calls that the resolver needs. Each list is read to its last page.
pub trait Iam: 'static {
    /// `GetUser`
    fn user(&self, name: &IamName) -> impl Future<Output = Result<IamUser, IamError>>;
    /// `ListGroupsForUser`
    fn groups_of(&self, name: &IamName) -> impl Future<Output = Result<Vec<IamGroup>, IamError>>;
    /// `ListSSHPublicKeys`
    fn keys_of(&self, name: &IamName) -> impl Future<Output = Result<KeyIds, IamError>>;
    /// `GetSSHPublicKey`: the body as IAM stores it, not to be trusted before it is parsed.
    fn key_body(&self, name: &IamName, key: &str) -> impl Future<Output = Result<String, IamError>>;
    /// `GetGroup`
    fn group(&self, name: &IamName) -> impl Future<Output = Result<(IamGroup, Vec<IamUser>), IamError>>;
    /// `ListUsers`
    fn all_users(&self) -> impl Future<Output = Result<Vec<IamUser>, IamError>>;
    /// Returns the value of a tag of this EC2 instance, from the metadata service.
    fn instance_tag(&self, tag: &str) -> impl Future<Output = Result<String, IamError>>;
    /// Returns how IAM is reached.
    fn route(&self) -> Route {
        Route::default()
    }
    /// Returns the counters of calls.
    fn stats(&self) -> CallStats;
}

/// Counters of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallStats {
    /// The number of calls. A call and its retries count as one.
    pub calls: u64,
    /// The number of calls that got no answer.
    pub errors: u64,
    /// The message of the last call that failed or was denied.
    pub last_error: Option<String>,
    /// When a call last got an answer.
    pub last_answer: Option<tokio::time::Instant>,
}
