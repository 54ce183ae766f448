//! Refuses sudo to local and shared accounts that hold a group which only IAM may give.
//!
//! The rule in sudoers allows the members of the group `iam-sudo`, and IAM is not asked about an account that is neither
//! managed nor adopted. So such an account must not hold the group. Yet an account of another directory with an admin's name
//! could enter it by newgrp(1), an account that is no longer adopted could still be in it, and an administrator could have
//! put the name there by hand.

use std::collections::BTreeSet;

use pam_iam_core::account_kind::Files;
use pam_iam_core::config::Config;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::local::{self, Group};
use pam_iam_core::name::IAM_SUDO;
use pam_iam_core::name::LinuxName;

/// A local or shared account that invokes sudo. IAM is not asked about it.
pub struct Invoker<'a> {
    /// The name.
    pub name: &'a str,
    /// The uid.
    pub uid: Uid,
    /// The gids of the process.
    pub process_gids: &'a [Gid],
    /// The gids that the host gives the account: the primary one, and those of initgroups(3) in every service of
    /// nsswitch.conf. libnss_iam gives such an account no group.
    pub account_gids: &'a [Gid],
}

impl Invoker<'_> {
    fn gids(&self) -> impl Iterator<Item = Gid> {
        self.process_gids.iter().chain(self.account_gids).copied()
    }
}

/// The names of groups outside the managed range, from every service of nsswitch.conf. For such gids libnss_iam does not ask
/// the resolver: a local account's sudo must not wait for a resolver that does not answer.
pub trait Groups {
    /// Returns the name of a group.
    fn name_of(&self, gid: Gid) -> Option<String>;
}

/// The groups that NSS finds.
pub struct NssGroups;

impl Groups for NssGroups {
    fn name_of(&self, gid: Gid) -> Option<String> {
        Some(users::get_group_by_gid(gid.0)?.name().to_string_lossy().into_owned())
    }
}

/// Returns the group because of which `invoker` must not use sudo: `iam-sudo`, or a mapped group that the host does not give
/// the account. None if there is no such group. uid 0 is never refused: `sudo -P` gives root its caller's groups.
pub fn refused_for(
    invoker: &Invoker<'_>,
    config: Option<&Config>,
    groups: &impl Groups,
    files: &Files,
    importer: &ImporterRecord,
) -> Option<String> {
    if invoker.uid == Uid::ROOT {
        return None;
    }
    let local = local::groups(&files.group).unwrap_or_default();
    if invoker.gids().any(|gid| gid == Gid::IAM_SUDO) || holds(invoker, IAM_SUDO, &local, groups) {
        return Some(IAM_SUDO.to_owned());
    }
    let targets: BTreeSet<&str> =
        config.into_iter().flat_map(Config::mapped_groups).map(LinuxName::as_str).collect();
    // A mapped group that is not in a file has a gid of the managed range.
    let of_ours = invoker.gids().find(|gid| gid.is_managed() && !is_in_files(invoker, *gid, &local, files));
    if let Some(gid) = of_ours.filter(|_| !targets.is_empty()) {
        return Some(gid.to_string());
    }
    let mapped = targets.into_iter().find(|group| {
        let gid = invoker.gids().find(|gid| is_called(*gid, group, &local, groups));
        gid.is_some_and(|gid| {
            let is_given = match gid.is_managed() {
                true => is_in_files(invoker, gid, &local, files),
                false => invoker.account_gids.contains(&gid),
            };
            !is_given || importer.has_joined(invoker.name)
        })
    });
    mapped.map(str::to_owned)
}

/// Whether sudo would take `invoker` for a member of `group`: by the name of a gid, or as a listed member.
fn holds(invoker: &Invoker<'_>, group: &str, local: &[Group], groups: &impl Groups) -> bool {
    let is_listed = local.iter().any(|known| known.name == group && known.lists(invoker.name));
    is_listed || invoker.gids().any(|gid| is_called(gid, group, local, groups))
}

/// Whether a gid is that of the group `name`, by group(5) or by another service.
fn is_called(gid: Gid, name: &str, local: &[Group], groups: &impl Groups) -> bool {
    match local.iter().find(|group| group.gid == gid) {
        Some(group) => group.name == name,
        None => !gid.is_managed() && groups.name_of(gid).is_some_and(|known| known == name),
    }
}

/// Whether the host's own files give `invoker` a group: listed in group(5), or the primary one in passwd(5).
fn is_in_files(invoker: &Invoker<'_>, gid: Gid, local: &[Group], files: &Files) -> bool {
    let is_listed = local.iter().any(|group| group.gid == gid && group.lists(invoker.name));
    let account = local::account_by_name(&files.passwd, invoker.name).ok().flatten();
    is_listed || account.is_some_and(|account| account.uid == invoker.uid && account.gid == gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The groups of `files`, and those of another directory.
    struct FakeGroups;

    impl Groups for FakeGroups {
        fn name_of(&self, gid: Gid) -> Option<String> {
            [(700, "iam-sudo"), (998, "docker"), (100, "users")]
                .iter()
                .find_map(|(known, name)| (Gid(*known) == gid).then(|| (*name).to_owned()))
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
        (dir, files)
    }

    /// `held` are the gids of the process, `given` those that the host gives the account.
    fn refused(name: &str, uid: u32, held: &[u32], given: &[u32]) -> Option<String> {
        let (_dir, files) = host();
        let text = "[access]\nallow = 'all'\n[groups]\nops = { group = 'docker', allow_privileged = true }";
        let config = Config::parse(text, "config.toml".as_ref()).unwrap();
        let [held, given] = [held, given].map(|gids| gids.iter().map(|gid| Gid(*gid)).collect::<Vec<_>>());
        let invoker = Invoker { name, uid: Uid(uid), process_gids: &held, account_gids: &given };
        let record: ImporterRecord = serde_json::from_str(r#"{"version":1,"joined":["old"]}"#).unwrap();
        refused_for(&invoker, Some(&config), &FakeGroups, &files, &record)
    }

    #[test]
    fn an_account_that_iam_is_not_asked_about_uses_no_sudo_by_iam_sudo() {
        for (name, gids) in [
            ("ann", vec![1000, Gid::IAM_SUDO.0]),
            // Another directory has a group of that name.
            ("ann", vec![1000, 700]),
        ] {
            for (held, given) in [(&*gids, &[1000][..]), (&[1000], &gids)] {
                assert_eq!(
                    refused(name, 1000, held, given).as_deref(),
                    Some("iam-sudo"),
                    "{held:?} {given:?}"
                );
            }
        }
        assert_eq!(refused("ann", 1000, &[1000, 100], &[1000]), None);
        assert_eq!(
            refused("root", 0, &[0, Gid::IAM_SUDO.0], &[0]),
            None,
            "sudo -P gives root its caller's groups"
        );
    }

    #[test]
    fn iam_sudo_in_group_5_counts_also_where_nss_finds_another() {
        let (_dir, files) = host();
        std::fs::write(&files.group, "iam-sudo:x:50:ann\n").unwrap();
        let gids = [Gid(1000)];
        let invoker = Invoker { name: "ann", uid: Uid(1000), process_gids: &gids, account_gids: &gids };
        let refused = refused_for(&invoker, None, &FakeGroups, &files, &ImporterRecord::default());
        assert_eq!(refused.as_deref(), Some("iam-sudo"));
    }

    #[test]
    fn a_mapped_group_is_the_hosts_to_give() {
        assert_eq!(
            refused("ann", 1000, &[1000, 998], &[1000, 998]),
            None,
            "by initgroups(3), also of a directory"
        );
        assert_eq!(refused("bob", 1001, &[998], &[998]), None, "the primary group, also of a directory");
        assert_eq!(refused("ann", 1000, &[1000], &[1000]), None, "not held");
        let ours = pam_iam_core::id::FIRST;
        for given in [&[1000][..], &[1000, ours]] {
            let by_gid = refused("ann", 1000, &[1000, ours], given);
            assert_eq!(by_gid, Some(ours.to_string()), "a mapped group that no file has");
        }
        let docker = Some("docker".to_owned());
        assert_eq!(refused("eve", 1003, &[1003, 998], &[1003]), docker, "held, and not given by the host");
        assert_eq!(refused("old", 1002, &[1002, 998], &[1002, 998]), docker, "put there by the importer");
    }
}
