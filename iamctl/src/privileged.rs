//! The groups as good as root that IAM groups map to. The kernel takes no group away from a process that has it, so a sweep
//! looks for those who hold one that IAM no longer gives.

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

/// The gids of these groups: those of the configuration, and those that it had since the boot. Whoever takes the line of a
/// group out of the configuration withdraws it from everybody.
pub struct Privileged(BTreeSet<Gid>);

/// Why a sweep does not know all of these groups, or the next one will not.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegedError {
    /// The resolver does not tell the gid of these groups.
    #[error("the gid of {groups} cannot be told now: nobody is asked about it")]
    UnknownGid {
        /// The names, separated by commas.
        groups: String,
    },
    /// The gids cannot be written down.
    #[error(transparent)]
    NotKept(FileError),
}

impl Privileged {
    /// Finds out the gids. Kept for later sweeps if `remember` says so.
    ///
    /// # Errors
    /// Returns the gids all the same, with what to log, if they cannot be kept, or one of them cannot be told.
    pub fn load(
        config: &Config,
        resolver: &impl Queries,
        remember: bool,
    ) -> (Self, Result<(), PrivilegedError>) {
        let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
        let known = local::gids_of(&local, PRIVILEGED_GROUPS);
        // Whatever the resolver gives only by the operator's word, and what has the gid of such a group.
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
            // One of ours, with a gid of its own.
            None => match LinuxName::new(name).ok().and_then(|name| resolver.group(&name).ok()) {
                Some(group) => Ok(group.map(|group| group.gid)),
                None => Err(()),
            },
        };
        let path = Path::new(paths::PRIVILEGED_GIDS);
        let known = std::fs::read_to_string(path).unwrap_or_default();
        let known: BTreeSet<Gid> = known.lines().filter_map(|line| line.parse().ok()).map(Gid).collect();
        let (mut gids, mut untold) = (BTreeSet::new(), Vec::new());
        for name in names {
            match gid_of(name) {
                Ok(gid) => gids.extend(gid),
                Err(()) => untold.push(name),
            }
        }
        // Whether a user has such a group cannot be told either: those that were known by it are not looked for.
        if !untold.is_empty() {
            let groups = untold.join(", ");
            return (Self(gids), Err(PrivilegedError::UnknownGid { groups }));
        }
        gids.extend(known);
        let kept = if remember { write_gids(path, &gids) } else { Ok(()) };
        (Self(gids), kept.map_err(PrivilegedError::NotKept))
    }

    /// The groups among `held` that the managed user `user` no longer has: neither by IAM nor by the host's own files. None
    /// where that cannot be told.
    pub fn lost(&self, user: &LinuxName, held: &BTreeSet<Gid>, resolver: &impl Queries) -> BTreeSet<Gid> {
        let mut held: BTreeSet<Gid> = self.0.intersection(held).copied().collect();
        if held.is_empty() {
            return held;
        }
        let Ok(local) = local::groups(Path::new(paths::GROUP)) else { return BTreeSet::new() };
        let account = local::account_by_name(Path::new(paths::PASSWD), user.as_str()).ok().flatten();
        let importer = ImporterRecord::left_behind(Path::new("/"));
        held.retain(|gid| {
            // What an importer that is no longer at work has written was IAM's word, and not an administrator's.
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
