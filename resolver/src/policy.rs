//! The policy: a pure function of a user's IAM groups and the rules of access.

use pam_iam_core::config::{Access, Allowed};
use pam_iam_core::name::IamName;
use pam_iam_core::wire::{Policy, Reason};

/// The decision of a policy about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the user may log in, or use sudo.
    pub allow: bool,
    /// The reason that PAM logs.
    pub reason: Reason,
    /// The IAM group that decided. None if no single group did.
    pub group: Option<IamName>,
}

impl Verdict {
    /// Returns a verdict that refuses for `reason`.
    pub fn refused(reason: Reason) -> Self {
        Self { allow: false, reason, group: None }
    }
}

/// Decides by `access` about a user who is in `groups`. `access.deny` comes first. A user who may not log in may not use
/// sudo either, so taking a user out of the login groups takes away both.
pub fn decide(access: &Access, policy: Policy, groups: &[IamName]) -> Verdict {
    if let Some(group) = access.deny.iter().find(|group| groups.contains(group)) {
        return Verdict { allow: false, reason: Reason::InDeniedGroup, group: Some(group.clone()) };
    }
    let login = judge(&access.allow, groups);
    match policy {
        Policy::Login => login,
        Policy::Sudo if !login.allow => Verdict { reason: Reason::NoLogin, ..login },
        Policy::Sudo => judge(&access.sudo, groups),
    }
}

fn judge(who: &Allowed, groups: &[IamName]) -> Verdict {
    match who {
        // A tag that was not replaced by the groups that it names allows no user.
        Allowed::None | Allowed::Tag(_) => Verdict { allow: false, reason: Reason::PolicyNone, group: None },
        Allowed::All => Verdict { allow: true, reason: Reason::All, group: None },
        Allowed::Groups(allowed) => match allowed.iter().find(|group| groups.contains(group)) {
            Some(group) => Verdict { allow: true, reason: Reason::InGroup, group: Some(group.clone()) },
            None => Verdict { allow: false, reason: Reason::NotInGroup, group: None },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<IamName> {
        names.iter().map(|name| IamName::group(name).unwrap()).collect()
    }

    fn verdict(allow: &Allowed, sudo: &Allowed, policy: Policy, groups: &[&str]) -> (bool, Reason) {
        let access = Access { allow: allow.clone(), sudo: sudo.clone(), deny: names(&["out"]) };
        let verdict = decide(&access, policy, &names(groups));
        (verdict.allow, verdict.reason)
    }

    #[test]
    fn members_of_an_allowed_group_may() {
        let (users, admins) = (Allowed::Groups(names(&["users"])), Allowed::Groups(names(&["admins"])));
        assert_eq!(verdict(&users, &admins, Policy::Login, &["x", "users"]), (true, Reason::InGroup));
        assert_eq!(verdict(&users, &admins, Policy::Login, &["admins"]), (false, Reason::NotInGroup));
        assert_eq!(verdict(&users, &admins, Policy::Login, &["Users"]), (false, Reason::NotInGroup));
        assert_eq!(verdict(&users, &admins, Policy::Sudo, &["users", "admins"]), (true, Reason::InGroup));
        assert_eq!(verdict(&users, &admins, Policy::Sudo, &["users"]), (false, Reason::NotInGroup));
    }

    #[test]
    fn members_of_a_denied_group_may_nothing_whatever_else_they_are_in() {
        let users = Allowed::Groups(names(&["users"]));
        for (allow, groups) in [(&users, &["users", "out"][..]), (&Allowed::All, &["out"])] {
            for policy in [Policy::Login, Policy::Sudo] {
                assert_eq!(verdict(allow, &Allowed::All, policy, groups), (false, Reason::InDeniedGroup));
            }
        }
    }

    #[test]
    fn sudo_without_login_is_nothing() {
        let (users, admins) = (Allowed::Groups(names(&["users"])), Allowed::Groups(names(&["admins"])));
        assert_eq!(verdict(&users, &admins, Policy::Sudo, &["admins"]), (false, Reason::NoLogin));
        assert_eq!(verdict(&users, &Allowed::All, Policy::Sudo, &[]), (false, Reason::NoLogin));
    }

    #[test]
    fn all_allows_every_user_and_none_allows_none() {
        assert_eq!(verdict(&Allowed::All, &Allowed::None, Policy::Login, &[]), (true, Reason::All));
        assert_eq!(verdict(&Allowed::All, &Allowed::All, Policy::Sudo, &[]), (true, Reason::All));
        assert_eq!(
            verdict(&Allowed::All, &Allowed::None, Policy::Sudo, &["root"]),
            (false, Reason::PolicyNone)
        );
    }
}
