//! Whose an account is: ours, adopted, or somebody else's. Answered without asking anybody but /etc/group.

use std::path::Path;

use crate::config::Accounts;
use crate::id::Uid;
use crate::local;

/// Whose an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Made from an IAM user: its uid is in our range.
    Ours,
    /// A local account that the configuration gives to the IAM user of its name.
    Adopted,
    /// None of our business.
    Local,
}

/// Whose the account `name` with `uid` is. `group_file` is /etc/group.
///
/// An `adopt_group` that cannot be read adopts its members: a group file that is gone must not free an account from
/// what IAM says about it.
pub fn standing(name: &str, uid: Uid, accounts: &Accounts, group_file: &Path) -> Standing {
    if uid == Uid::ROOT {
        return Standing::Local;
    }
    if uid.is_ours() {
        return Standing::Ours;
    }
    let listed = accounts.adopt.iter().any(|adopted| adopted.as_str() == name);
    let adopted = listed || in_adopt_group(name, &accounts.adopt_group, group_file);
    if adopted { Standing::Adopted } else { Standing::Local }
}

fn in_adopt_group(name: &str, adopt_group: &str, group_file: &Path) -> bool {
    if adopt_group.is_empty() {
        return false;
    }
    match local::group_by_name(group_file, adopt_group) {
        Ok(Some(group)) => group.members.iter().any(|member| member == name),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Whether an account might be adopted by a configuration that cannot be parsed: its text names the account or one
/// of its groups. Then it is treated as adopted, which refuses it; every other local account stays free, so that a
/// typo does not keep the operator out.
pub fn could_be_adopted(name: &str, uid: Uid, broken_config: &str, group_file: &Path) -> bool {
    let named = |word: &str| {
        broken_config.contains(&format!("\"{word}\"")) || broken_config.contains(&format!("'{word}'"))
    };
    let in_named_group = || {
        let mut groups = local::groups(group_file).unwrap_or_default().into_iter();
        groups.any(|group| named(&group.name) && group.members.iter().any(|member| member == name))
    };
    uid != Uid::ROOT && !uid.is_ours() && (named(name) || in_named_group())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id;
    use crate::name::LinuxName;

    fn group_file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "synced:x:2000:ann,root\n").unwrap();
        file
    }

    #[test]
    fn an_account_is_ours_by_its_uid_alone() {
        let none = Accounts::default();
        assert_eq!(standing("x", Uid(id::FIRST), &none, Path::new("/nonexistent")), Standing::Ours);
        assert_eq!(standing("ec2-user", Uid(1000), &none, Path::new("/nonexistent")), Standing::Local);
    }

    #[test]
    fn accounts_are_adopted_by_name_or_group_and_root_never() {
        let groups = group_file();
        let listed = Accounts {
            adopt: ["bob", "root"].map(|name| LinuxName::new(name).unwrap()).to_vec(),
            ..Accounts::default()
        };
        assert_eq!(standing("bob", Uid(1001), &listed, groups.path()), Standing::Adopted);
        assert_eq!(standing("root", Uid(0), &listed, groups.path()), Standing::Local);
        let grouped = Accounts { adopt_group: "synced".into(), ..Accounts::default() };
        assert_eq!(standing("ann", Uid(1002), &grouped, groups.path()), Standing::Adopted);
        assert_eq!(standing("bob", Uid(1001), &grouped, groups.path()), Standing::Local);
        assert_eq!(standing("root", Uid(0), &grouped, groups.path()), Standing::Local);
        assert_eq!(standing("bob", Uid(1001), &grouped, Path::new("/nonexistent")), Standing::Adopted);
    }

    #[test]
    fn a_broken_configuration_frees_no_account_that_it_names() {
        let groups = group_file();
        let broken = "[accounts\nadopt = [\"bob\"]\nadopt_group = 'synced'";
        assert!(could_be_adopted("bob", Uid(1001), broken, groups.path()));
        assert!(could_be_adopted("ann", Uid(1002), broken, groups.path()));
        assert!(!could_be_adopted("ec2-user", Uid(1000), broken, groups.path()));
        assert!(!could_be_adopted("root", Uid(0), broken, groups.path()));
    }
}
