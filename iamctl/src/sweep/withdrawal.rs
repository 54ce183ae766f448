//! What is to end, and why.

use std::collections::BTreeSet;

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::registry::Session;
use pam_iam_core::wire::{Policy, Reason};
use pam_iam_sessions::termination::Outcome;

/// What is to end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// The Linux name, or the uid where nobody knows the name any more.
    pub user: String,
    /// The uid.
    pub uid: Uid,
    /// Why.
    pub cause: Cause,
    /// The sessions that end; none for what runs without one.
    pub sessions: Vec<Session>,
    /// Logins that are over, of which what was left ends too.
    pub left: Vec<Session>,
    /// What else of the user's holds one of these groups ends too.
    pub groups: BTreeSet<Gid>,
    /// Whether all that the user runs ends, or these sessions alone.
    pub whole_user: bool,
}

/// Why something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The user may not log in.
    Refused(Reason),
    /// The key that opened a session no longer opens the account.
    KeyWithdrawn,
    /// The key that opened a session is not in IAM.
    ForeignKey,
    /// A session, or what runs without one, holds a privileged group which IAM no longer gives.
    GroupWithdrawn,
    /// IAM could not be asked for as long as `freshness.offline`.
    Offline,
    /// An operator said so.
    Operator,
}

impl Cause {
    /// Whether a key is withdrawn, and not the user.
    pub fn is_of_a_key(self) -> bool {
        matches!(self, Self::KeyWithdrawn | Self::ForeignKey)
    }

    /// As the log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.as_str(),
            Self::KeyWithdrawn => "key-withdrawn",
            Self::ForeignKey => "foreign-key",
            Self::GroupWithdrawn => "group-withdrawn",
            Self::Offline => "offline",
            Self::Operator => "operator",
        }
    }

    /// As the user is told it on the terminal.
    pub fn for_user(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.for_user(Policy::Login),
            Self::KeyWithdrawn => "the key of this session no longer opens this account",
            Self::ForeignKey => "the key of this session is none that IAM has of you",
            Self::GroupWithdrawn => {
                "this session has a Linux group that was taken from you; log in again to work without it"
            }
            Self::Offline => "IAM could not be asked for too long whether you may still log in",
            Self::Operator => "an administrator has ended all that you run on this host",
        }
    }
}

impl Withdrawal {
    /// One of which nothing is said yet but whose it is and why.
    pub fn new(user: String, uid: Uid, cause: Cause) -> Self {
        let (sessions, left, groups) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { user, uid, cause, sessions, left, groups, whole_user: false }
    }

    /// Whether there was anything to end: what the kernel counts may have ended already, and nobody has waited for it.
    pub fn had_something_to_end(&self, outcome: &Outcome) -> bool {
        !self.sessions.is_empty() || !outcome.is_complete() || outcome.ended > 0
    }
}
