//! A decision: about which kind of account, by which policy, and why.

use serde::{Deserialize, Serialize};

/// The kind of an account. Its groups, its keys, its right to sudo and whether the sweep may end its processes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccountKind {
    /// It exists because of an IAM user: its uid is in the managed range.
    Managed,
    /// A local account that the configuration gives to the IAM user of its name.
    Adopted,
    /// A local account to which the members of IAM groups log in with their own keys.
    Shared,
    /// A local account in which IAM has no say.
    Local,
}

/// The action that a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// To log in (`access.allow`).
    Login,
    /// To use sudo (`access.sudo`).
    Sudo,
}

/// A decision with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the action is allowed.
    pub allow: bool,
    /// Why.
    pub reason: Reason,
    /// The IAM user, if there is one.
    pub iam_name: Option<String>,
    /// The IAM user's id, if there is one.
    pub iam_id: Option<String>,
    /// The IAM group that decided, if one did.
    pub group: Option<String>,
    /// The source of the answer.
    pub source: Source,
    /// The age of IAM's answer, in seconds.
    pub age: u64,
}

/// The source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// IAM, asked for this request.
    Iam,
    /// The cache: the entry is younger than `freshness.max_age`.
    Cache,
    /// The cache, since IAM cannot be reached: the entry is stale and still serves.
    Offline,
}

/// The reason for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The user is in a group that is allowed.
    InGroup,
    /// The configuration allows all.
    All,
    /// The user is in none of the groups that are allowed.
    NotInGroup,
    /// The configuration allows this to nobody.
    PolicyNone,
    /// The user may not log in, and so may not use sudo.
    NoLogin,
    /// IAM has no user of this name.
    NoSuchUser,
    /// Two IAM users claim this name.
    Ambiguous,
    /// An older IAM user has the same uid.
    UidTaken,
    /// The account has another uid than the IAM user: it is left over from a deleted user of the same name.
    UidMismatch,
    /// The account is local and not adopted.
    Local,
    /// IAM denies this host to look at the user.
    Denied,
    /// The user's private group would have the name of a group with rights on this host.
    NameOfGroup,
    /// The name is claimed by the host: by a unit, by sysusers.d(5), or as a member of a privileged group.
    NameClaimed,
    /// In an IAM group whose members may do nothing (`access.deny`).
    InDeniedGroup,
}

impl Policy {
    /// Returns the policy as the log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Sudo => "sudo",
        }
    }
}

impl Reason {
    /// Returns the reason as the log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InGroup => "in-group",
            Self::All => "all",
            Self::NotInGroup => "not-in-group",
            Self::PolicyNone => "policy-none",
            Self::NoLogin => "no-login",
            Self::NoSuchUser => "no-such-user",
            Self::Ambiguous => "ambiguous",
            Self::UidTaken => "uid-taken",
            Self::UidMismatch => "uid-mismatch",
            Self::Local => "local",
            Self::Denied => "denied",
            Self::NameOfGroup => "name-of-group",
            Self::NameClaimed => "name-claimed",
            Self::InDeniedGroup => "in-denied-group",
        }
    }

    /// Returns the reason for the user, to follow "NAME: ".
    pub fn for_user(self, policy: Policy) -> &'static str {
        match (self, policy) {
            (Self::InGroup | Self::All, _) => "allowed",
            (Self::NotInGroup, Policy::Login) => {
                "you are in none of the IAM groups that may log in to this host"
            }
            (Self::NotInGroup, Policy::Sudo) => {
                "you are in none of the IAM groups that may use sudo on this host"
            }
            (Self::PolicyNone, Policy::Login) => "no IAM user may log in to this host",
            (Self::PolicyNone, Policy::Sudo) => "no IAM user may use sudo on this host",
            (Self::NoLogin, _) => "you may no longer log in to this host",
            (Self::NoSuchUser, _) => "there is no such IAM user",
            (Self::Ambiguous, _) => "two IAM users claim this name, so neither gets it",
            (Self::UidTaken, _) => "the uid of your IAM user is taken on this host",
            (Self::UidMismatch, _) => "this account belonged to an earlier IAM user of the same name",
            (Self::Local, _) => "this is a local account",
            (Self::Denied, _) => "this host is not allowed to look you up in IAM",
            (Self::NameOfGroup, _) => "this is the name of a group on this host, so no IAM user gets it",
            (Self::NameClaimed, _) => "this host needs this name for itself, so no IAM user gets it",
            (Self::InDeniedGroup, _) => "you are in an IAM group that may do nothing on this host",
        }
    }
}

impl Source {
    /// Returns the source as the log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iam => "iam",
            Self::Cache => "cache",
            Self::Offline => "offline",
        }
    }
}
