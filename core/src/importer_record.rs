//! The record that the importer keeps for its next run. It tells other programs what the importer has put into the
//! account files.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::name::IAM_USERS;
use crate::nsswitch::{NSSWITCH, asks_us};
use crate::{local, paths};

/// The fields of the record that other programs read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImporterRecord {
    #[serde(default)]
    joined: BTreeSet<String>,
    #[serde(default)]
    groups: BTreeSet<String>,
}

impl ImporterRecord {
    /// Returns the record of the host under `root`. Empty if there is none or it cannot be parsed: a broken record must
    /// not keep an administrator out.
    pub fn load(root: &Path) -> Self {
        let path = root.join(paths::IMPORTER_STATE.trim_start_matches('/'));
        let record =
            std::fs::read(path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        record.unwrap_or_default()
    }

    /// Returns the record of the host under `root` if accounts come from our NSS module there: the importer has then
    /// stopped running, and nothing removes what it wrote. Otherwise returns an empty record.
    pub fn left_behind(root: &Path) -> Self {
        let path = root.join(NSSWITCH.trim_start_matches('/'));
        let nsswitch = std::fs::read_to_string(path).unwrap_or_default();
        if asks_us(&nsswitch, "passwd") { Self::load(root) } else { Self::default() }
    }

    /// Whether the importer put the adopted account `name` into groups.
    pub fn has_joined(&self, name: &str) -> bool {
        self.joined.contains(name)
    }

    /// Whether the importer sets the members of `group`, or once did.
    pub fn sets_members_of(&self, group: &str) -> bool {
        self.groups.contains(group)
    }

    /// Returns pairs of a group and an account: the managed and adopted accounts that /etc/group under `root` lists in
    /// groups that the importer sets. Not iam-users, which only restricts its members.
    pub fn members(&self, root: &Path) -> Vec<(String, String)> {
        let groups = local::groups(&root.join("etc/group")).unwrap_or_default();
        let accounts = local::accounts(&root.join("etc/passwd")).unwrap_or_default();
        let managed = accounts.into_iter().filter(|account| account.uid.is_managed());
        let managed: HashSet<String> = managed.map(|account| account.name).collect();
        let is_users = |name: &String| self.has_joined(name) || managed.contains(name);
        let set = groups.into_iter().filter(|group| self.groups.contains(&group.name));
        set.filter(|group| group.name != IAM_USERS)
            .flat_map(|group| {
                let members = group.members.into_iter().filter(is_users);
                members.map(|name| (group.name.clone(), name)).collect::<Vec<_>>()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_iam_users_in_groups_of_the_importers_are_found_and_a_broken_record_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let uid = crate::id::FIRST;
        write("etc/passwd", &format!("alice:x:{uid}:{uid}::/:/bin/sh\nann:x:1001:1001::/:/bin/sh\n"));
        write("etc/group", "docker:x:998:bob,alice,ann\niam-users:x:2:alice\nother:x:3:alice\n");
        assert_eq!(ImporterRecord::load(root.path()), ImporterRecord::default());
        write(paths::IMPORTER_STATE, r#"{"version":1,"joined":["ann"],"groups":["docker","iam-users"]}"#);
        let record = ImporterRecord::load(root.path());
        assert_eq!(
            record.members(root.path()),
            ["alice", "ann"].map(|name| ("docker".to_owned(), name.to_owned()))
        );
        assert!(record.has_joined("ann") && record.sets_members_of("docker"));
        write(paths::IMPORTER_STATE, "{");
        assert_eq!(ImporterRecord::load(root.path()), ImporterRecord::default());
    }
}
