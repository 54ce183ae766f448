//! The privileged groups to which IAM groups map. The kernel takes no group from a process that has it, so a sweep looks for processes that
//! hold one which IAM no longer gives.

use std::collections::BTreeSet;
use std::path::Path;

use pam_iam_core::config::{Config, GroupTarget, PRIVILEGED_GROUPS};
use pam_iam_core::id::Gid;
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::name::LinuxName;
use pam_iam_core::resolver::Queries;
use pam_iam_core::{local, paths};

use crate::host::FileError;
use crate::mapped::write_gids;

/// The gids of these groups: those of the configuration now, and those of earlier configurations since the boot. To take the line of a
/// group out of the configuration withdraws the group from everybody.
pub struct Privileged(BTreeSet<Gid>);

/// Why a sweep does not know all of these groups, or the next one will not.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegedError {
    /// The resolver does not tell the gid of these groups.
    #[error("the gid of {groups} cannot be told now: this sweep ends nobody for having lost it")]
    UnknownGid {
        /// The names, separated by commas.
        groups: String,
    },
    /// The gids cannot be written down.
    #[error(transparent)]
    NotKept(FileError),
}

impl Privileged {
    /// Finds out the gids, and keeps them for later sweeps if `remember`.
    ///
    /// # Errors
    /// Returns, beside the gids, an error to log if they cannot be kept, or if one of them is unknown.
    pub fn load(
        config: &Config,
        resolver: &impl Queries,
        remember: bool,
    ) -> (Self, Result<(), PrivilegedError>) {
        let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
        let known = local::gids_of(&local, PRIVILEGED_GROUPS);
        // The groups that the resolver gives only with `allow_privileged`, and any with the gid of a privileged group.
        let is_privileged = |target: &&GroupTarget| {
            let name = target.group.as_str();
            target.allow_privileged
                || PRIVILEGED_GROUPS.contains(&name)
                || local.iter().any(|group| group.name == name && known.contains_key(&group.gid))
        };
        let targets = config.groups.values().filter(is_privileged);
        let names: BTreeSet<&str> = targets.map(|target| target.group.as_str()).collect();
        let gid_of = |name: &str| match local.iter().find(|group| group.name == name) {
            Some(group) => Ok(Some(group.gid)),
            // A group that only the resolver has.
            None => match LinuxName::new(name).ok().and_then(|name| resolver.group(&name).ok()) {
                Some(group) => Ok(group.map(|group| group.gid)),
                None => Err(()),
            },
        };
        let path = Path::new(paths::PRIVILEGED_GIDS);
        let known = std::fs::read_to_string(path).unwrap_or_default();
        let known: BTreeSet<Gid> = known.lines().filter_map(|line| line.parse().ok()).map(Gid).collect();
        let (mut gids, mut unknown) = (BTreeSet::new(), Vec::new());
        for name in names {
            match gid_of(name) {
                Ok(gid) => gids.extend(gid),
                Err(()) => unknown.push(name),
            }
        }
        // Whether a user has this group is unknown too, so holders of groups from earlier configurations are not looked for.
        if !unknown.is_empty() {
            let groups = unknown.join(", ");
            return (Self(gids), Err(PrivilegedError::UnknownGid { groups }));
        }
        gids.extend(known);
        let kept = if remember { write_gids(path, &gids) } else { Ok(()) };
        (Self(gids), kept.map_err(PrivilegedError::NotKept))
    }

    /// Returns the groups among `held` that the managed user `user` no longer has, by IAM and by the host's own files. Empty if that cannot
    /// be told.
    pub fn lost(&self, user: &LinuxName, held: &BTreeSet<Gid>, resolver: &impl Queries) -> BTreeSet<Gid> {
        let mut held: BTreeSet<Gid> = self.0.intersection(held).copied().collect();
        if held.is_empty() {
            return held;
        }
        let Ok(local) = local::groups(Path::new(paths::GROUP)) else { return BTreeSet::new() };
        let account = local::account_by_name(Path::new(paths::PASSWD), user.as_str()).ok().flatten();
        let importer = ImporterRecord::left_behind(Path::new("/"));
        held.retain(|gid| {
            // Members that an importer which no longer runs has written were by IAM's word, not an administrator's.
            let is_listed = |group: &local::Group| {
                group.gid == *gid && !importer.sets_members_of(&group.name) && group.lists(user.as_str())
            };
            !local.iter().any(is_listed) && account.as_ref().is_none_or(|account| account.gid != *gid)
        });
        match resolver.groups_of(user, false) {
            Ok(Some(gids)) => held.retain(|gid| !gids.contains(gid)),
            _ => held.clear(),
        }
        held
    }
}
