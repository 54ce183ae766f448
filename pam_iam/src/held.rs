//! Whether a user whom IAM lets in is kept out by a group: one that may mean root and that IAM does not give.

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::wire::{Decision, Policy};

use crate::application::Application;
use crate::given::{self, Withdrawn};
use crate::target::{QueryError, TargetAccount};

/// The message to a user who is in a group that only an administrator can take away.
const ASK_ABOUT_GROUP: &str =
    "your name is in a group that IAM does not give you and that may mean root; ask an administrator.";

/// A group that keeps a user out whom IAM lets in.
pub struct Held {
    /// The word of the audit trail.
    pub reason: &'static str,
    /// The group.
    pub group: String,
    /// For administrators.
    pub why: String,
    /// For the user.
    pub message: String,
}

/// Returns a group that a user holds, that IAM does not give, and that may mean root.
///
/// # Errors
/// Returns an error if there may be one and the resolver does not tell.
pub fn held_without_right<'a>(
    application: &impl Application,
    account: &'a TargetAccount,
    policy: Policy,
    decision: &Decision,
) -> Result<Option<Held>, QueryError<'a>> {
    if !decision.allow {
        return Ok(None);
    }
    let user = &account.name;
    if account.account_kind == AccountKind::Managed
        && let Some(found) = given::elsewhere(application, account)?
    {
        return Ok(Some(Held {
            reason: "name-claimed",
            why: format!("{}; the group means root, so {user} is refused", found.advice(user)),
            message: ASK_ABOUT_GROUP.to_owned(),
            group: found.group,
        }));
    }
    let withdrawn = match policy {
        Policy::Sudo => given::withdrawn(application, account)?,
        Policy::Login => None,
    };
    Ok(withdrawn.map(|Withdrawn { group, is_listed, .. }| match is_listed {
        true => Held {
            reason: "group-withdrawn",
            why: format!(
                "/etc/group has {user} in the group {group}, which iam-importer wrote and IAM no longer gives: gpasswd -d {user} {group}"
            ),
            message: ASK_ABOUT_GROUP.to_owned(),
            group,
        },
        false => Held {
            reason: "group-withdrawn",
            why: format!("{user} has the group {group} from before IAM withdrew it, and a rule of sudo's may go by it"),
            message: format!("you have the group {group} no longer; log in again to use sudo."),
            group,
        },
    }))
}
