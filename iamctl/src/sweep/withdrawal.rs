//! What is to end, and why.

use std::collections::BTreeSet;

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::registry::Session;
use pam_iam_core::wire::{Policy, Reason};
use pam_iam_sessions::termination::Outcome;

/// The sessions and processes of one user that are to end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// The Linux name, or the uid if no name is known.
    pub user: String,
    /// The uid.
    pub uid: Uid,
    /// Why they end.
    pub cause: Cause,
    /// The open sessions that end. Empty for processes without a session.
    pub sessions: Vec<Session>,
    /// Logins that are over, whose remaining processes end too.
    pub left: Vec<Session>,
    /// The user's processes that hold one of these groups end too.
    pub groups: BTreeSet<Gid>,
    /// Whether all processes of the user end, or only these.
    pub whole_user: bool,
}

/// Why sessions and processes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The user may not log in.
    Refused(Reason),
    /// The key that opened a session no longer opens the account.
    KeyWithdrawn,
    /// The key that opened a session is not in IAM.
    ForeignKey,
    /// A session, or a process without one, holds a privileged group that IAM no longer gives.
    GroupWithdrawn,
    /// IAM gave no answer for as long as `freshness.offline`.
    Offline,
    /// An operator has ended them.
    Operator,
}

impl Cause {
    /// Whether a key is withdrawn, rather than the user.
    pub fn is_of_a_key(self) -> bool {
        matches!(self, Self::KeyWithdrawn | Self::ForeignKey)
    }

    /// Returns the word for the log.
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

    /// Returns the text for the user's terminal.
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
    /// Returns a withdrawal without sessions, logins and groups, to be filled in.
    pub fn new(user: String, uid: Uid, cause: Cause) -> Self {
        let (sessions, left, groups) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { user, uid, cause, sessions, left, groups, whole_user: false }
    }

    /// Whether there was anything to end. A process that the kernel still counts may have ended, and its parent not have waited for it.
    pub fn had_something_to_end(&self, outcome: &Outcome) -> bool {
        !self.sessions.is_empty() || !outcome.is_complete() || outcome.ended > 0
    }
}
