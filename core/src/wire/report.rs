//! What only an operator's programs ask for, each of which parses what it asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AccountKind, Decision, Group, User};
use crate::id::Uid;
use crate::name::LinuxName;

/// The users who may log in, read from IAM for the one who asked. All lists are sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Those who have an account of ours.
    pub users: Vec<User>,
    /// Those who have a local account that is adopted.
    pub adopted: Vec<LinuxName>,
    /// Those who get none.
    pub refused: Vec<Refused>,
    /// The Linux groups that users are in by what IAM says, with those of the first two lists who are.
    pub groups: Vec<Group>,
    /// The IAM groups that the configuration allows or denies and IAM does not have.
    pub missing: Vec<String>,
    /// Whether who is not listed has left: every allowed group was found and read to its end.
    pub complete: bool,
}

/// An IAM user who may log in and yet gets no account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The IAM user.
    pub iam_name: String,
    /// The Linux name that the user would have, if it is one.
    pub name: Option<LinuxName>,
    /// The uid that the user would have. An account with it, or an adopted one with this name, belongs to
    /// somebody who is still there.
    pub uid: Uid,
    /// Why.
    pub why: String,
}

/// How the resolver is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the resolver.
    pub version: String,
    /// Seconds since its start.
    pub uptime: u64,
    /// How old the roster is, in seconds; none before the first.
    pub roster_age: Option<u64>,
    /// How many IAM users may log in, by the roster.
    pub roster_users: usize,
    /// How many names are remembered.
    pub known: usize,
    /// Seconds since the cache on disk was written; none if it was not since the start.
    #[serde(default)]
    pub cache_age: Option<u64>,
    /// Its size then, in bytes.
    #[serde(default)]
    pub cache_bytes: u64,
    /// Why it cannot be written, if that is so.
    #[serde(default)]
    pub cache_error: Option<String>,
    /// Calls to the IAM API since the start.
    pub calls: u64,
    /// How many of them failed.
    pub errors: u64,
    /// What the last failure was.
    pub last_error: Option<String>,
    /// Seconds since IAM last answered; none if it never did.
    pub last_answer: Option<u64>,
    /// How many look-ups of unknown names may be made now, and how many a minute.
    pub unknown_left: u32,
    /// How many a minute.
    pub unknown_per_minute: u32,
    /// For how many names IAM is taken for unreachable at the moment.
    pub backing_off: usize,
    /// Questions answered since the start, by their kind.
    pub questions: BTreeMap<String, u64>,
    /// Decisions since the start, by policy and reason (`login in-group`).
    pub decisions: BTreeMap<String, u64>,
}

/// All that decides about a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The Linux name.
    pub name: LinuxName,
    /// Which kind of account it is.
    pub account_kind: AccountKind,
    /// The uid of the account, or the one that it would have.
    pub uid: Option<Uid>,
    /// The IAM users who could stand behind the name.
    pub candidates: Vec<String>,
    /// Those who claim it, if they are several.
    pub claimants: Vec<String>,
    /// The IAM user behind it, or all who share it.
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
    pub fingerprint: Option<String>,
}

/// Whose a uid is by what the resolver knows, whether the user may log in or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The Linux name of the IAM user who has it; none if no user is known to have it.
    pub name: Option<LinuxName>,
}

/// So many names were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many.
    pub forgotten: usize,
}

/// What became of each IAM permission that was tried.
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

/// Who cannot log in as they should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linted {
    /// How many IAM users there are.
    pub users: usize,
    /// How many of them may log in.
    pub allowed: usize,
    /// Who and why, sorted.
    pub findings: Vec<Finding>,
}

/// An API action that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// The action, as a policy has it (`iam:GetUser`).
    pub action: String,
    /// Why it did not work.
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
