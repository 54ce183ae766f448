//! Reasons on this host that keep out a user whom IAM lets in: the account, its expiry, the home directory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pam_iam_core::config::{Config, OnMismatch};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::leftovers;
use pam_iam_core::name::IAM_SUDO;
use pam_iam_core::owners::Owners;
use pam_iam_core::registry;
use users::os::unix::UserExt;

/// Where passwords and expiry dates are (shadow(5)).
const SHADOW: &str = "/etc/shadow";

/// Seconds of a day. shadow(5) counts days since 1970.
const DAY: u64 = 86_400;

/// Returns what keeps the managed user with `uid` from logging in as `name`, with advice for an administrator. Empty if there is no account
/// yet. `given` returns the groups that IAM gives, and is called only if they matter.
pub fn obstacles(name: &str, uid: Uid, given: &dyn Fn() -> Vec<Gid>, config: Option<&Config>) -> Vec<String> {
    let Some(account) = users::get_user_by_name(name) else { return Vec::new() };
    if account.uid() != uid.0 {
        return vec![format!(
            "getent passwd {name} gives uid {}, not the IAM user's: another directory has the name, or an earlier user had it",
            account.uid()
        )];
    }
    let shadow = std::fs::read_to_string(SHADOW).unwrap_or_default();
    let expired = has_expired(&shadow, name, registry::now() / DAY)
        .then(|| format!("the account has expired in {SHADOW}; usermod -e '' {name} takes that back"));
    let moves_aside = config.is_some_and(|config| config.home.on_mismatch == OnMismatch::Aside);
    let name_of = |gid: Gid| Some(users::get_group_by_gid(gid.0)?.name().to_string_lossy().into_owned());
    let groups = users::get_user_groups(name, account.primary_group_id()).unwrap_or_default();
    let gids: Vec<Gid> = groups.iter().map(|group| Gid(group.gid())).collect();
    let elsewhere = leftovers::groups_given_elsewhere(name, &gids, &name_of, config, Path::new("/"));
    let given = if elsewhere.is_empty() { Vec::new() } else { given() };
    let group = elsewhere.into_iter().find(|found| !given.contains(&found.gid));
    let group = group.map(|found| found.advice(name));
    expired
        .into_iter()
        .chain(group)
        .chain(home(account.home_dir(), name, uid, moves_aside, &Owners::of_host()))
        .collect()
}

/// Returns the groups that an import has left to the user `name` and that IAM no longer gives. PAM refuses sudo for each of them.
pub fn groups_left_by_import(name: &str, given: &dyn Fn() -> Vec<Gid>) -> Vec<String> {
    let left: Vec<String> = ImporterRecord::load(Path::new("/"))
        .members(Path::new("/"))
        .into_iter()
        .filter_map(|(group, member)| (member == name && group != IAM_SUDO).then_some(group))
        .collect();
    let given = if left.is_empty() { Vec::new() } else { given() };
    let is_given = |group: &String| {
        users::get_group_by_name(group).is_some_and(|group| given.contains(&Gid(group.gid())))
    };
    let advice = |group: String| {
        format!("/etc/group has {name} in the group {group} by an import: gpasswd -d {name} {group}")
    };
    left.into_iter().filter(|group| !is_given(group)).map(advice).collect()
}

/// Whether the account's date of expiry has come.
fn has_expired(shadow: &str, name: &str, today: u64) -> bool {
    let row = shadow.lines().find(|line| line.split(':').next() == Some(name));
    let date = row.and_then(|row| row.split(':').nth(7)).and_then(|date| date.parse::<u64>().ok());
    date.is_some_and(|date| date <= today)
}

/// Returns what the session phase will refuse about the home directory `path`.
fn home(path: &Path, name: &str, uid: Uid, moves_aside: bool, owners: &Owners) -> Option<String> {
    let found = std::fs::metadata(path).ok()?;
    let (shown, owner) = (path.display(), Uid(found.uid()));
    if !found.is_dir() {
        return Some(format!("{shown} is no directory: move it away"));
    }
    if owner == uid || owner.is_managed() && moves_aside {
        return None;
    }
    if owner != Uid::ROOT {
        return Some(format!(
            "the home directory {shown} belongs to uid {owner}: move it away, or see home.on_mismatch"
        ));
    }
    let former = owners.former(name, uid)?;
    Some(format!("{shown} is root's, and may hold files of uid {former}, who had the name before"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_expired_from_its_date_on() {
        let shadow = "alice:*:1::::::\nbob:*:1:::::1:\ncarol:*:1:::::20000:\n";
        let expired = |name| has_expired(shadow, name, 20_000);
        assert_eq!(["alice", "bob", "carol", "dave"].map(expired), [false, true, true, false]);
        assert!(!has_expired(shadow, "carol", 19_999));
    }

    #[test]
    fn a_home_of_another_user_and_one_that_is_no_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let owners = Owners::new(&dir.path().join("owners"), &dir.path().join("served"));
        let own = Uid(rustix::process::geteuid().as_raw());
        let first = Uid(pam_iam_core::id::FIRST);
        let of = |path: &Path, uid| home(path, "alice", uid, false, &owners);
        assert_eq!(of(&dir.path().join("none"), first), None);
        assert_eq!(of(dir.path(), own), None);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(of(&file, own).unwrap().contains("is no directory"));
        let other = Uid(own.0 + 1);
        if own == Uid::ROOT {
            assert_eq!(of(dir.path(), first), None, "as sshd's ChrootDirectory wants it");
            owners.record("alice", other).unwrap();
            assert!(of(dir.path(), first).unwrap().contains("had the name before"));
        } else {
            assert!(of(dir.path(), first).unwrap().contains(&format!("belongs to uid {own}")));
        }
    }
}
