//! What the resolver wants from IAM, apart from how it is got.

use std::fmt;
use std::future::Future;

use pam_iam_core::name::IamName;
use pam_iam_core::wire::Route;
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub mod fake;
mod http;
pub mod iam;
pub mod sshkey;

/// The immutable id of an IAM user or group (`AIDA...`, `AGPA...`): it is never given to another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IamId(String);

impl TryFrom<String> for IamId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, String> {
        Self::new(&id).ok_or_else(|| format!("{id:?} is no id of IAM"))
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

    /// The id as IAM spells it.
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
    /// When it was made, in seconds since 1970.
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

/// Why IAM gave no answer, or which answer it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IamError {
    /// There is no such user, group or key: an answer.
    #[error("there is no such entity")]
    NoSuchEntity,
    /// This host may not ask that: an answer about one user, a mistake in the configuration about a list.
    #[error("access denied: {0}")]
    Denied(String),
    /// What the configuration leaves to the instance is not there.
    #[error("{0}")]
    Configuration(String),
    /// No answer: not reached, throttled, refused credentials, or nonsense.
    #[error("IAM cannot be reached: {0}")]
    Unreachable(String),
    /// IAM was not asked, since whoever causes the call has caused too many. Never answered by anything older: who could
    /// use up a limit could keep a withdrawal from being heard.
    #[error("too many look-ups; try again in a minute")]
    Limited,
}

/// The calls that are made, each list paged to its end.
pub trait Iam: 'static {
    /// `GetUser`
    fn user(&self, name: &IamName) -> impl Future<Output = Result<IamUser, IamError>>;
    /// `ListGroupsForUser`
    fn groups_of(&self, name: &IamName) -> impl Future<Output = Result<Vec<IamGroup>, IamError>>;
    /// `ListSSHPublicKeys`: the ids, and whether they are active.
    fn keys_of(&self, name: &IamName) -> impl Future<Output = Result<Vec<(String, bool)>, IamError>>;
    /// `GetSSHPublicKey`: the body as IAM stores it, not to be trusted before it is parsed.
    fn key_body(&self, name: &IamName, key: &str) -> impl Future<Output = Result<String, IamError>>;
    /// `GetGroup`
    fn group(&self, name: &IamName) -> impl Future<Output = Result<(IamGroup, Vec<IamUser>), IamError>>;
    /// `ListUsers`
    fn all_users(&self) -> impl Future<Output = Result<Vec<IamUser>, IamError>>;
    /// The value of a tag of this EC2 instance, by the metadata service.
    fn instance_tag(&self, tag: &str) -> impl Future<Output = Result<String, IamError>>;
    /// How IAM is reached.
    fn route(&self) -> Route {
        Route::default()
    }
    /// How many calls were made, how many of them failed, and how the last failure read.
    fn stats(&self) -> CallStats;
}

/// Counters of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallStats {
    /// Calls made, retries not counted apart.
    pub calls: u64,
    /// Those that brought no answer.
    pub errors: u64,
    /// Why the last of them did not.
    pub last_error: Option<String>,
    /// When one last brought an answer.
    pub last_answer: Option<tokio::time::Instant>,
}
