//! Whose an account is: ours, adopted, or somebody else's. Answered without asking anybody but /etc/group.

use std::io;
use std::path::PathBuf;

use crate::config::Config;
use crate::id::Uid;
use crate::local;
use crate::paths;

/// Whose an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Made from an IAM user: its uid is in our range.
    Ours,
    /// A local account that the configuration gives to the IAM user of its name.
    Adopted,
    /// A local account to which the members of IAM groups log in with their own keys.
    Shared,
    /// None of our business.
    Local,
}

/// Where the local accounts and groups are.
#[derive(Clone, Debug)]
pub struct Files {
    /// passwd(5)
    pub passwd: PathBuf,
    /// group(5)
    pub group: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { passwd: paths::PASSWD.into(), group: paths::GROUP.into() }
    }
}

/// Whose the account `name` with `uid` is. Only an account that stands in passwd(5) with this uid is adopted or
/// shared.
///
/// # Errors
/// passwd(5) or group(5) cannot be read, and the account may be adopted or not. Who only asks further takes it for
/// adopted; who would give something away gives nothing.
pub fn standing(name: &str, uid: Uid, config: &Config, files: &Files) -> io::Result<Standing> {
    if uid == Uid::ROOT {
        return Ok(Standing::Local);
    }
    if uid.is_ours() {
        return Ok(Standing::Ours);
    }
    let accounts = &config.accounts;
    let shared = config.shared.keys().any(|shared| shared.as_str() == name);
    let listed = accounts.adopt.iter().any(|adopted| adopted.as_str() == name);
    if !shared && !listed && accounts.adopt_group.is_empty() {
        return Ok(Standing::Local);
    }
    let account = local::account_by_name(&files.passwd, name)?;
    let Some(account) = account.filter(|account| account.uid == uid) else { return Ok(Standing::Local) };
    if shared {
        return Ok(Standing::Shared);
    }
    let group = || local::group_by_name(&files.group, &accounts.adopt_group);
    let adopted = listed || group()?.is_some_and(|group| group.has(&account));
    Ok(if adopted { Standing::Adopted } else { Standing::Local })
}

/// Whether an account might be adopted by a configuration that cannot be parsed: its text names the account or one
/// of its groups, or hides names behind escapes. Then it is treated as adopted, which refuses it; every other local
/// account stays free, so that a typo does not keep the operator out.
pub fn could_be_adopted(name: &str, uid: Uid, broken_config: &str, files: &Files) -> bool {
    if uid == Uid::ROOT || uid.is_ours() || uid.0 < FIRST_HUMAN {
        return false;
    }
    let text: Vec<&str> = broken_config.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let words = || {
        text.iter().flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && !"./_-".contains(c)))
    };
    let named = |wanted: &str| words().any(|word| word == wanted);
    if is_shared_in(broken_config, name) {
        return false;
    }
    if named(name) || text.iter().any(|line| line.contains('\\')) {
        return true;
    }
    let (Ok(Some(account)), Ok(groups)) =
        (local::account_by_name(&files.passwd, name), local::groups(&files.group))
    else {
        return false;
    };
    groups.iter().any(|group| named(&group.name) && group.has(&account))
}

/// Whether the account is shared by a configuration that has a mistake elsewhere.
fn is_shared_in(broken_config: &str, name: &str) -> bool {
    let table: toml::Table = toml::from_str(broken_config).unwrap_or_default();
    table.get("shared").is_some_and(|shared| shared.get(name).is_some())
}

/// The first uid of people; below are system users (login.defs(5), `UID_MIN`), whom nobody adopts by accident.
const FIRST_HUMAN: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id;

    fn config(text: &str) -> Config {
        Config::parse(&format!("[access]\nallow = 'all'\n{text}"), "config.toml".as_ref()).unwrap()
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { passwd: dir.path().join("passwd"), group: dir.path().join("group") };
        let line = |name: &str, uid: u32, gid: u32| format!("{name}:x:{uid}:{gid}::/home/{name}:/bin/sh\n");
        let accounts = [("root", 0, 0), ("bob", 1001, 1001), ("ann", 1002, 1002), ("dave", 1003, 2000)];
        let accounts = accounts.map(|(name, uid, gid)| line(name, uid, gid)).concat();
        std::fs::write(&files.passwd, accounts + &line("ec2-user", 1000, 1000)).unwrap();
        std::fs::write(&files.group, "synced:x:2000:ann,root\n").unwrap();
        (dir, files)
    }

    #[test]
    fn an_account_is_ours_by_its_uid_alone() {
        let none = config("");
        let nowhere = Files { passwd: "/nonexistent".into(), group: "/nonexistent".into() };
        assert_eq!(standing("x", Uid(id::FIRST), &none, &nowhere).unwrap(), Standing::Ours);
        assert_eq!(standing("ec2-user", Uid(1000), &none, &nowhere).unwrap(), Standing::Local);
    }

    #[test]
    fn accounts_are_adopted_by_name_or_group_and_root_never() {
        let (_dir, files) = files();
        let listed = config("[accounts]\nadopt = ['bob', 'root', 'ghost']");
        assert_eq!(standing("bob", Uid(1001), &listed, &files).unwrap(), Standing::Adopted);
        assert_eq!(standing("bob", Uid(1009), &listed, &files).unwrap(), Standing::Local, "another bob");
        assert_eq!(
            standing("ghost", Uid(1005), &listed, &files).unwrap(),
            Standing::Local,
            "not in passwd(5)"
        );
        assert_eq!(standing("root", Uid(0), &listed, &files).unwrap(), Standing::Local);
        let grouped = config("[accounts]\nadopt_group = 'synced'");
        assert_eq!(standing("ann", Uid(1002), &grouped, &files).unwrap(), Standing::Adopted);
        assert_eq!(
            standing("dave", Uid(1003), &grouped, &files).unwrap(),
            Standing::Adopted,
            "by the primary group"
        );
        assert_eq!(standing("bob", Uid(1001), &grouped, &files).unwrap(), Standing::Local);
        assert_eq!(standing("root", Uid(0), &grouped, &files).unwrap(), Standing::Local);
        let blind = Files { group: "/nonexistent".into(), ..files };
        assert!(standing("bob", Uid(1001), &grouped, &blind).is_err(), "nobody can tell");
        assert_eq!(standing("root", Uid(0), &grouped, &blind).unwrap(), Standing::Local);
    }

    #[test]
    fn an_account_is_shared_by_name_before_it_is_adopted_by_group() {
        let (_dir, files) = files();
        let shared = config("[accounts]\nadopt_group = 'synced'\n[shared.ann]\ngroups = ['ops']");
        assert_eq!(standing("ann", Uid(1002), &shared, &files).unwrap(), Standing::Shared);
        assert_eq!(standing("ann", Uid(1009), &shared, &files).unwrap(), Standing::Local, "another ann");
        assert_eq!(standing("ann", Uid(id::FIRST), &shared, &files).unwrap(), Standing::Ours);
        assert_eq!(standing("dave", Uid(1003), &shared, &files).unwrap(), Standing::Adopted);
    }

    #[test]
    fn a_broken_configuration_frees_no_account_that_it_names() {
        let (_dir, files) = files();
        let broken = "# ec2-user stays local\n[accounts\nadopt = [\"bob\"]\nadopt_group = 'synced'";
        for (name, uid) in [("bob", 1001), ("ann", 1002), ("dave", 1003)] {
            assert!(could_be_adopted(name, Uid(uid), broken, &files), "{name}");
        }
        assert!(could_be_adopted("bob", Uid(1001), "adopt = [bob]", &files), "without quotes");
        assert!(could_be_adopted("bob", Uid(1001), "adopt = ['b\\u006fb']", &files), "behind an escape");
        assert!(!could_be_adopted("ec2-user", Uid(1000), broken, &files));
        assert!(
            !could_be_adopted("bob", Uid(1001), "also_run = ['/opt/bob/bin/keys']", &files),
            "a part of a path"
        );
        assert!(!could_be_adopted("root", Uid(0), "adopt = ['root']", &files));
        let shared = "alow = 1\n[shared.\"bob\"]\ngroups = [\"bob\"]";
        assert!(!could_be_adopted("bob", Uid(1001), shared, &files), "shared, whatever else is wrong");
    }
}
