//! The groups as good as root that IAM groups map to. The kernel takes no group away from a process that has it, so a sweep
//! looks for those who hold one that IAM no longer gives.

use std::collections::BTreeSet;
use std::path::Path;

use pam_iam_core::config::{Config, PRIVILEGED_GROUPS};
use pam_iam_core::id::Gid;
use pam_iam_core::importer_record::was_joined;
use pam_iam_core::name::LinuxName;
use pam_iam_core::standing::Standing;
use pam_iam_core::wire::{Answer, Request};
use pam_iam_core::{local, paths};

use crate::mapped::write_gids;

/// The gids of these groups: those of the configuration, and those that it had since the boot. Whoever takes the line of a
/// group out of the configuration withdraws it from everybody.
pub struct Privileged(BTreeSet<Gid>);

impl Privileged {
    /// Finds out the gids; `ask` asks the resolver. Kept for later sweeps if `remember` says so.
    ///
    /// # Errors
    /// Returns the gids all the same, with what to log, if they cannot be kept.
    pub fn load(
        config: &Config,
        ask: impl Fn(&Request) -> Option<Answer>,
        remember: bool,
    ) -> (Self, Result<(), String>) {
        let targets = config.groups.values().map(|target| target.group.as_str());
        let names: BTreeSet<&str> = targets.filter(|group| PRIVILEGED_GROUPS.contains(group)).collect();
        let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
        let gid_of = |name: &str| match local.iter().find(|group| group.name == name) {
            Some(group) => Some(group.gid),
            // One of ours, with a gid of its own.
            None => match ask(&Request::GroupByName { name: LinuxName::new(name).ok()? }) {
                Some(Answer::Group(group)) => Some(group.gid),
                _ => None,
            },
        };
        let path = Path::new(paths::PRIVILEGED_GIDS);
        let known = std::fs::read_to_string(path).unwrap_or_default();
        let known: BTreeSet<Gid> = known.lines().filter_map(|line| line.parse().ok()).map(Gid).collect();
        let gids: BTreeSet<Gid> = names.into_iter().filter_map(gid_of).chain(known.iter().copied()).collect();
        let kept = if remember { write_gids(path, &gids) } else { Ok(()) };
        (Self(gids), kept)
    }

    /// Whether it is one of them.
    pub fn has(&self, gid: Gid) -> bool {
        self.0.contains(&gid)
    }

    /// The groups among `held` that `user` no longer has: neither by IAM nor by the host's own files.
    pub fn lost(
        &self,
        user: &LinuxName,
        standing: Standing,
        held: &BTreeSet<Gid>,
        ask: impl Fn(&Request) -> Option<Answer>,
    ) -> BTreeSet<Gid> {
        // What a shared account or a local one has is the host's.
        if !matches!(standing, Standing::Ours | Standing::Adopted) || self.0.is_disjoint(held) {
            return BTreeSet::new();
        }
        let account = local::account_by_name(Path::new(paths::PASSWD), user.as_str()).ok().flatten();
        let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
        let is_the_hosts = |gid: &Gid| {
            let mut groups = local.iter().filter(|group| group.gid == *gid);
            groups.any(|group| {
                group.members.iter().any(|member| member == user.as_str())
                    || account.as_ref().is_some_and(|account| account.gid == *gid)
            })
        };
        let is_joined = was_joined(user.as_str(), Path::new(paths::IMPORTER_STATE));
        let mut held: BTreeSet<Gid> = self.0.intersection(held).copied().collect();
        held.retain(|gid| is_joined || !is_the_hosts(gid));
        if held.is_empty() {
            return held;
        }
        match ask(&Request::GroupsOf { name: user.clone() }) {
            Some(Answer::Groups { gids }) => held.retain(|gid| !gids.contains(gid)),
            _ => held.clear(),
        }
        held
    }
}
