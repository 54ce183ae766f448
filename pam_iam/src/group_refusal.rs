//! Refuses a user whom IAM allows but who has a Linux group that IAM does not give: a group of a managed account that means root and,
//! for sudo, also a mapped group that IAM has withdrawn.

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::wire::{Decision, Policy};

use crate::application::Application;
use crate::given::{self, Withdrawn};
use crate::target::{QueryError, TargetAccount};

/// The message to a refused user whose group does not go with a new login, since /etc/group or another directory lists the user.
const ASK_ABOUT_GROUP: &str =
    "your name is in a Linux group that IAM does not give you; ask an administrator.";

/// Why a user whom IAM allows is refused for a group.
pub struct GroupRefusal {
    /// The audit field `reason`.
    pub reason: &'static str,
    /// The name of the group, or its gid.
    pub group: String,
    /// The log line, with what to do.
    pub why: String,
    /// The PAM message to the user.
    pub message: String,
}

/// Returns the first group for which the user is refused. None if there is no such group, or `decision` refuses the user anyway.
///
/// # Errors
/// Returns an error if the account has such a group and the resolver does not tell whether IAM gives it.
pub fn refusal_by_group<'a>(
    application: &impl Application,
    account: &'a TargetAccount,
    policy: Policy,
    decision: &Decision,
) -> Result<Option<GroupRefusal>, QueryError<'a>> {
    if !decision.allow {
        return Ok(None);
    }
    let user = &account.name;
    if account.account_kind == AccountKind::Managed
        && let Some(found) = given::root_group_from_elsewhere(application, account)?
    {
        return Ok(Some(GroupRefusal {
            reason: "name-claimed",
            why: format!("{user} is refused, since a group gives root: {}", found.advice(user)),
            message: ASK_ABOUT_GROUP.to_owned(),
            group: found.group,
        }));
    }
    let withdrawn = match policy {
        Policy::Sudo => given::withdrawn_group(application, account)?,
        Policy::Login => None,
    };
    Ok(withdrawn.map(|Withdrawn { group, is_listed, .. }| match is_listed {
        true => GroupRefusal {
            reason: "group-withdrawn",
            why: format!(
                "/etc/group still lists {user} in {group}, by an earlier run of iam-importer, and IAM no longer gives it; to remove it: gpasswd -d {user} {group}"
            ),
            message: ASK_ABOUT_GROUP.to_owned(),
            group,
        },
        false => GroupRefusal {
            reason: "group-withdrawn",
            why: format!("the session of {user} still has the group {group}, which IAM has withdrawn, and a rule in sudoers may match it"),
            message: format!("IAM no longer gives you the group {group}, and this session still has it; log in again to use sudo."),
            group,
        },
    }))
}
