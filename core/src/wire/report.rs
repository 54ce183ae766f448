//! Reports for the operator's programs. The modules in sshd and sudo do not carry the code to parse them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AccountKind, Decision, Group, User};
use crate::fingerprint::Fingerprint;
use crate::id::Uid;
use crate::name::LinuxName;

/// The users who may log in, read from IAM for this request. All lists are sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Users with a managed account.
    pub users: Vec<User>,
    /// Users with an adopted account.
    pub adopted: Vec<LinuxName>,
    /// Users who get no account.
    pub refused: Vec<Refused>,
    /// The Linux groups that IAM gives, with their members from the first two lists.
    pub groups: Vec<Group>,
    /// The IAM groups that the configuration allows or denies and IAM does not have.
    pub missing: Vec<String>,
    /// Whether a user who is not listed has left: every allowed group was found and read to its end.
    pub complete: bool,
}

/// An IAM user who may log in and yet gets no account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The IAM user.
    pub iam_name: String,
    /// The Linux name that the user would have, if it is one.
    pub name: Option<LinuxName>,
    /// The uid that the user would have. An account with this uid, or an adopted one with this name, belongs to a user who is still
    /// there.
    pub uid: Uid,
    /// Why.
    pub why: String,
}

/// The state of the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the resolver.
    pub version: String,
    /// Seconds since its start.
    pub uptime: u64,
    /// The age of the roster, in seconds. None before the first.
    pub roster_age: Option<u64>,
    /// How many IAM users may log in, by the roster.
    pub roster_users: usize,
    /// How many names have an entry.
    pub known: usize,
    /// Seconds since the cache on disk was written; none if it was not since the start.
    #[serde(default)]
    pub cache_age: Option<u64>,
    /// The size of the cache then, in bytes.
    #[serde(default)]
    pub cache_bytes: u64,
    /// Why the cache cannot be written, if so.
    #[serde(default)]
    pub cache_error: Option<String>,
    /// Calls to the IAM API since the start.
    pub calls: u64,
    /// How many of the calls failed.
    pub errors: u64,
    /// The text of the last failure.
    pub last_error: Option<String>,
    /// Seconds since IAM last answered; none if it never did.
    pub last_answer: Option<u64>,
    /// How many look-ups of unknown names may be made now, and how many a minute.
    pub unknown_left: u32,
    /// How many a minute.
    pub unknown_per_minute: u32,
    /// For how many names the last fetch failed.
    pub backing_off: usize,
    /// Requests answered since the start, by kind.
    pub questions: BTreeMap<String, u64>,
    /// Decisions since the start, by policy and reason (`login in-group`).
    pub decisions: BTreeMap<String, u64>,
}

/// Everything that decides about a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The Linux name.
    pub name: LinuxName,
    /// Which kind of account it is.
    pub account_kind: AccountKind,
    /// The uid of the account, or the one that it would have.
    pub uid: Option<Uid>,
    /// The names of IAM users that map to the name.
    pub candidates: Vec<String>,
    /// The IAM users who have it, if they are several.
    pub claimants: Vec<String>,
    /// The IAM user who has it, or all who may use the shared account.
    pub users: Vec<IamEntry>,
    /// The Linux groups of the account.
    pub groups: Vec<LinuxName>,
    /// What of the host claims the name, if anything does.
    #[serde(default)]
    pub claim: Option<String>,
    /// Whether the user may log in.
    pub login: Decision,
    /// Whether the user may use sudo.
    pub sudo: Decision,
}

/// An IAM user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IamEntry {
    /// The name.
    pub iam_name: String,
    /// The id.
    pub iam_id: String,
    /// The uid from the id.
    pub uid: Uid,
    /// The IAM groups; for a shared account those that let the user in.
    pub groups: Vec<String>,
    /// The keys.
    pub keys: Vec<KeyState>,
}

/// A key as IAM has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// IAM's id of it (`APKA...`).
    pub id: String,
    /// Whether IAM has it as active.
    pub active: bool,
    /// Its fingerprint, if sshd would take it.
    pub fingerprint: Option<Fingerprint>,
}

/// The user who has a uid, whether the user may log in or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The Linux name of the IAM user who has it; none if no user is known to have it.
    pub name: Option<LinuxName>,
}

/// The outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many names were forgotten.
    pub forgotten: usize,
}

/// The outcome of a self-test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTested {
    /// One for each API action.
    #[serde(alias = "tries")]
    pub checks: Vec<Try>,
    /// How IAM is reached.
    #[serde(default)]
    pub route: Route,
}

/// How IAM is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The endpoint, and the proxy if there is one.
    pub way: String,
    /// Why a proxy that the environment names is not used.
    pub proxy_error: Option<String>,
}

/// The users who cannot log in as they should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linted {
    /// How many IAM users there are.
    pub users: usize,
    /// How many of the users may log in.
    pub allowed: usize,
    /// The users and the problems, sorted.
    pub findings: Vec<Finding>,
}

/// An API action that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// The action, as a policy has it (`iam:GetUser`).
    pub action: String,
    /// Why the call failed. None if it did not.
    pub error: Option<String>,
    /// Whether IAM denies it, as opposed to not answering.
    pub denied: bool,
}

/// An IAM user who cannot log in as they should.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// The IAM user.
    pub iam_name: String,
    /// Whether the user may log in by the policy.
    pub allowed: bool,
    /// What is wrong.
    pub problem: String,
}
