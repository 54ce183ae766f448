//! Who invokes sudo by a group that only IAM gives, without an account that IAM is asked about.
//!
//! The rule in sudoers goes by the group `iam-sudo`, and this module goes by the account. An account that is neither
//! managed nor adopted gets no answer from IAM, so it must not hold the group: an account of another directory with an
//! admin's name could enter it by newgrp(1), a former adopted account could still be in it, an administrator could
//! have put the name there by hand.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use pam_iam_core::account_kind::Files;
use pam_iam_core::config::Config;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::local::Group;
use pam_iam_core::name::IAM_SUDO;
use pam_iam_core::{local, paths};
use serde::Deserialize;
use users::os::unix::GroupExt;

/// An account that IAM is not asked about, and that invokes sudo.
pub struct Invoker<'a> {
    /// The name.
    pub name: &'a str,
    /// The uid.
    pub uid: Uid,
    /// The gids of the process, and those that initgroups(3) would give the account.
    pub gids: &'a [Gid],
}

/// The names of groups outside our range, from every service of nsswitch.conf. Our own service is never asked: a local
/// account's sudo must not wait for a resolver that does not answer.
pub trait Groups {
    /// The name of a group.
    fn name_of(&self, gid: Gid) -> Option<String>;
    /// Whether a service lists `member` in a group. Ours lists nobody.
    fn lists(&self, gid: Gid, member: &str) -> bool;
}

/// The groups as NSS has them.
pub struct NssGroups;

impl Groups for NssGroups {
    fn name_of(&self, gid: Gid) -> Option<String> {
        Some(users::get_group_by_gid(gid.0)?.name().to_string_lossy().into_owned())
    }

    fn lists(&self, gid: Gid, member: &str) -> bool {
        users::get_group_by_gid(gid.0)
            .is_some_and(|group| group.members().iter().any(|known| known.as_os_str() == member))
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
    let local = local::groups(&files.group).unwrap_or_default();
    if invoker.gids.contains(&Gid::IAM_SUDO) || holds(invoker, IAM_SUDO, &local, groups) {
        return Some(IAM_SUDO.to_owned());
    }
    let targets: BTreeSet<&str> = config
        .into_iter()
        .flat_map(|config| config.groups.values())
        .map(|target| target.group.as_str())
        .collect();
    // A mapped group that no file has is one of ours, and so is its gid.
    let of_ours =
        invoker.gids.iter().find(|gid| gid.is_managed() && !is_given(invoker, **gid, &local, files));
    if let Some(gid) = of_ours.filter(|_| !targets.is_empty()) {
        return Some(gid.to_string());
    }
    let mapped = targets.into_iter().find(|group| {
        let gid = invoker.gids.iter().copied().find(|gid| is_called(*gid, group, &local, groups));
        gid.is_some_and(|gid| {
            let is_given = is_given(invoker, gid, &local, files) || groups.lists(gid, invoker.name);
            !is_given || was_joined(invoker.name, importer)
        })
    });
    mapped.map(str::to_owned)
}

/// Whether sudo would take `invoker` for a member of `group`: by the name of a gid, or as a listed member.
fn holds(invoker: &Invoker<'_>, group: &str, local: &[Group], groups: &impl Groups) -> bool {
    let is_listed = local
        .iter()
        .any(|known| known.name == group && known.members.iter().any(|member| member == invoker.name));
    is_listed || invoker.gids.iter().any(|gid| is_called(*gid, group, local, groups))
}

/// Whether a gid is that of the group `name`, by group(5) or by another service.
fn is_called(gid: Gid, name: &str, local: &[Group], groups: &impl Groups) -> bool {
    match local.iter().find(|group| group.gid == gid) {
        Some(group) => group.name == name,
        None => !gid.is_managed() && groups.name_of(gid).is_some_and(|known| known == name),
    }
}

/// Whether the host's own files give `invoker` a group: listed in group(5), or the primary one in passwd(5).
fn is_given(invoker: &Invoker<'_>, gid: Gid, local: &[Group], files: &Files) -> bool {
    let is_listed = local
        .iter()
        .any(|group| group.gid == gid && group.members.iter().any(|member| member == invoker.name));
    let account = local::account_by_name(&files.passwd, invoker.name).ok().flatten();
    is_listed || account.is_some_and(|account| account.uid == invoker.uid && account.gid == gid)
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
        fn lists(&self, gid: Gid, member: &str) -> bool {
            gid == Gid(998) && member == "dana"
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
        assert_eq!(refused("dana", 1004, &[1004, 998]), None, "listed by another service");
        let ours = pam_iam_core::id::FIRST;
        assert_eq!(
            refused("ann", 1000, &[1000, ours]),
            Some(ours.to_string()),
            "a mapped group that no file has"
        );
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
