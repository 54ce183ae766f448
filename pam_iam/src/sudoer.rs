//! Who invokes sudo by a group that only IAM gives, without an account that IAM is asked about.
//!
//! The rule in sudoers goes by the group `iam-sudo`, and this module goes by the account. An account that is neither
//! managed nor adopted gets no answer from IAM, so it must not hold the group: an account of another directory with an
//! admin's name could enter it by newgrp(1), a former adopted account could still be in it, an administrator could
//! have put the name there by hand.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use pam_iam_core::config::Config;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::IAM_SUDO;
use pam_iam_core::standing::Files;
use pam_iam_core::{local, paths};
use serde::Deserialize;

/// An account that IAM is not asked about, and that invokes sudo.
pub struct Invoker<'a> {
    /// The name.
    pub name: &'a str,
    /// The uid.
    pub uid: Uid,
    /// The gids of the process, and those that initgroups(3) would give the account.
    pub gids: &'a [Gid],
}

/// What the host knows of groups, from every service of nsswitch.conf.
pub trait Groups {
    /// The name of a group.
    fn name_of(&self, gid: Gid) -> Option<String>;
    /// The gid and the listed members of a group.
    fn find(&self, name: &str) -> Option<(Gid, Vec<String>)>;
}

/// The groups as NSS has them.
pub struct NssGroups;

impl Groups for NssGroups {
    fn name_of(&self, gid: Gid) -> Option<String> {
        Some(users::get_group_by_gid(gid.0)?.name().to_string_lossy().into_owned())
    }

    fn find(&self, name: &str) -> Option<(Gid, Vec<String>)> {
        use users::os::unix::GroupExt;
        let group = users::get_group_by_name(name)?;
        let members = group.members().iter().map(|member| member.to_string_lossy().into_owned()).collect();
        Some((Gid(group.gid()), members))
    }
}

/// The group by which `invoker` must not use sudo, if there is one: `iam-sudo`, or a mapped group that the host's own
/// files do not give. uid 0 is never refused: `sudo -P` gives root its caller's groups.
pub fn refused_for(
    invoker: &Invoker<'_>,
    config: Option<&Config>,
    groups: &impl Groups,
    files: &Files,
    importer: &Path,
) -> Option<String> {
    if invoker.uid == Uid::ROOT {
        return None;
    }
    if holds(invoker, IAM_SUDO, Gid::IAM_SUDO, groups, files) {
        return Some(IAM_SUDO.to_owned());
    }
    let targets: BTreeSet<&str> = config
        .into_iter()
        .flat_map(|config| config.groups.values())
        .map(|target| target.group.as_str())
        .collect();
    let mapped =
        targets.into_iter().find(|group| is_held_by_no_file(invoker, group, groups, files, importer));
    mapped.map(str::to_owned)
}

/// Whether sudo would take `invoker` for a member of `group`: by a gid, by the name of a gid, or by a list of members.
fn holds(invoker: &Invoker<'_>, group: &str, computed: Gid, groups: &impl Groups, files: &Files) -> bool {
    let (gid, members) = groups.find(group).unwrap_or((computed, Vec::new()));
    let has_gid = |gid: Gid| invoker.gids.contains(&gid);
    has_gid(gid)
        || has_gid(computed)
        || members.iter().any(|member| member == invoker.name)
        || is_listed(invoker, group, files)
        || invoker.gids.iter().any(|gid| groups.name_of(*gid).is_some_and(|name| name == group))
}

/// Whether `invoker` holds a mapped group which the host's own files do not give, or give only since the importer put the
/// account there while it was adopted.
fn is_held_by_no_file(
    invoker: &Invoker<'_>,
    group: &str,
    groups: &impl Groups,
    files: &Files,
    importer: &Path,
) -> bool {
    let Some((gid, _)) = groups.find(group) else { return false };
    if !invoker.gids.contains(&gid) {
        return false;
    }
    let account = local::account_by_name(&files.passwd, invoker.name).ok().flatten();
    let is_primary = account.is_some_and(|account| account.uid == invoker.uid && account.gid == gid);
    if is_primary {
        return false;
    }
    !is_listed(invoker, group, files) || was_joined(invoker.name, importer)
}

/// Whether group(5) itself lists `invoker`, or has its primary group.
fn is_listed(invoker: &Invoker<'_>, group: &str, files: &Files) -> bool {
    let found = local::groups(&files.group).unwrap_or_default();
    found.iter().any(|found| found.name == group && found.members.iter().any(|member| member == invoker.name))
}

/// Whether the importer put the account into groups, by the record that it keeps for its next run.
fn was_joined(name: &str, importer: &Path) -> bool {
    #[derive(Deserialize)]
    struct Record {
        #[serde(default)]
        joined: BTreeSet<String>,
    }
    // Without a record nobody was put anywhere; one that is broken must not keep an administrator out.
    let record = std::fs::read(importer)
        .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(io::Error::other));
    record.is_ok_and(|record| record.joined.contains(name))
}

/// Where the importer's record is.
pub fn importer_record() -> &'static Path {
    Path::new(paths::IMPORTER_STATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `files`, and another directory behind it.
    struct FakeGroups;

    impl Groups for FakeGroups {
        fn name_of(&self, gid: Gid) -> Option<String> {
            [(700, "iam-sudo"), (998, "docker"), (100, "users")]
                .iter()
                .find_map(|(known, name)| (Gid(*known) == gid).then(|| (*name).to_owned()))
        }
        fn find(&self, name: &str) -> Option<(Gid, Vec<String>)> {
            match name {
                "iam-sudo" => Some((Gid::IAM_SUDO, vec!["listed".to_owned()])),
                "docker" => Some((Gid(998), vec!["ann".to_owned()])),
                _ => None,
            }
        }
    }

    fn host() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { passwd: dir.path().join("passwd"), group: dir.path().join("group") };
        std::fs::write(
            &files.passwd,
            "ann:x:1000:1000::/:/bin/sh\nbob:x:1001:998::/:/bin/sh\nold:x:1002:1002::/:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(&files.group, "docker:x:998:ann,old\nother:x:5:\n").unwrap();
        std::fs::write(dir.path().join("importer.json"), r#"{"version":1,"joined":["old"]}"#).unwrap();
        (dir, files)
    }

    fn refused(name: &str, uid: u32, gids: &[u32]) -> Option<String> {
        let (dir, files) = host();
        let text = "[access]\nallow = 'all'\n[groups]\nops = { group = 'docker', allow_privileged = true }";
        let config = Config::parse(text, "config.toml".as_ref()).unwrap();
        let gids: Vec<Gid> = gids.iter().map(|gid| Gid(*gid)).collect();
        let invoker = Invoker { name, uid: Uid(uid), gids: &gids };
        refused_for(&invoker, Some(&config), &FakeGroups, &files, &dir.path().join("importer.json"))
    }

    #[test]
    fn an_account_that_iam_is_not_asked_about_uses_no_sudo_by_iam_sudo() {
        for (name, gids) in [
            ("ann", vec![1000, Gid::IAM_SUDO.0]),
            // Another directory has a group of that name.
            ("ann", vec![1000, 700]),
            ("listed", vec![1000]),
        ] {
            assert_eq!(refused(name, 1000, &gids).as_deref(), Some("iam-sudo"), "{name} {gids:?}");
        }
        assert_eq!(refused("ann", 1000, &[1000, 100]), None);
        assert_eq!(refused("root", 0, &[0, Gid::IAM_SUDO.0]), None, "sudo -P gives root its caller's groups");
    }

    #[test]
    fn iam_sudo_in_group_5_counts_also_where_nss_finds_another() {
        let (dir, files) = host();
        std::fs::write(&files.group, "iam-sudo:x:50:ann\n").unwrap();
        let invoker = Invoker { name: "ann", uid: Uid(1000), gids: &[Gid(1000)] };
        let refused = refused_for(&invoker, None, &FakeGroups, &files, dir.path());
        assert_eq!(refused.as_deref(), Some("iam-sudo"));
    }

    #[test]
    fn a_mapped_group_is_the_hosts_to_give() {
        assert_eq!(refused("ann", 1000, &[1000, 998]), None, "listed in group(5)");
        assert_eq!(refused("bob", 1001, &[998]), None, "the primary group in passwd(5)");
        assert_eq!(refused("ann", 1000, &[1000]), None, "not held");
        let docker = Some("docker".to_owned());
        assert_eq!(refused("eve", 1003, &[1003, 998]), docker, "held, and no file says why");
        assert_eq!(refused("bob", 1009, &[998]), docker, "another bob");
        assert_eq!(refused("old", 1002, &[1002, 998]), docker, "put there by the importer");
    }

    #[test]
    fn a_broken_record_keeps_nobody_out() {
        let (dir, _) = host();
        let record = dir.path().join("importer.json");
        assert!(was_joined("old", &record));
        std::fs::write(&record, "{").unwrap();
        assert!(!was_joined("old", &record));
        assert!(!was_joined("old", Path::new("/nonexistent")));
    }
}
