//! Groups that a managed user holds and IAM does not give. They come from another directory, an earlier import, or a session
//! that was opened when IAM still gave them.

use std::path::Path;

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::config::Config;
use pam_iam_core::id::Gid;
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::leftovers::{self, GivenElsewhere};
use pam_iam_core::local::{self, Group};
use pam_iam_core::paths;
use pam_iam_core::resolver::Queries;

use crate::application::Application;
use crate::sudoer::{Groups, NssGroups};
use crate::target::{QueryError, TargetAccount};

/// Returns a privileged group that the user has only because another directory or an earlier import lists the name. Called
/// for a user whom IAM allows.
///
/// # Errors
/// Returns an error if there is such a group and the resolver does not answer whether IAM gives it.
pub fn root_group_from_elsewhere<'a>(
    application: &impl Application,
    account: &'a TargetAccount,
) -> Result<Option<GivenElsewhere>, QueryError<'a>> {
    let gids = application.gids_of(&account.name, account.gid);
    let name_of = |gid| NssGroups.name_of(gid);
    let config = account.config.as_ref().ok();
    let found = leftovers::groups_given_elsewhere(&account.name, &gids, &name_of, config, Path::new("/"));
    if found.is_empty() {
        return Ok(None);
    }
    let given = by_iam(account)?;
    Ok(found.into_iter().find(|found| !given.contains(&found.gid)))
}

/// Returns a mapped group that a user who invokes sudo holds and IAM no longer gives. sudo uses the groups of the process,
/// which stay while a session lasts, and a sudoers rule for the group may allow more than IAM allows now.
///
/// # Errors
/// Returns an error if there is a mapped group and the resolver does not answer whether IAM gives it.
pub fn withdrawn_group<'a>(
    application: &impl Application,
    account: &'a TargetAccount,
) -> Result<Option<Withdrawn>, QueryError<'a>> {
    let (process_gids, account_gids) =
        (application.process_gids(), application.gids_of(&account.name, account.gid));
    let held = match account.account_kind {
        // The importer keeps the groups of an adopted account in /etc/group, and IAM is not asked about them.
        AccountKind::Adopted => process_gids.into_iter().filter(|gid| !account_gids.contains(gid)).collect(),
        _ => [process_gids, account_gids].concat(),
    };
    let host = Host {
        local: local::groups(Path::new(paths::GROUP)).unwrap_or_default(),
        importer: ImporterRecord::load(Path::new("/")),
        config: account.config.as_ref().ok(),
    };
    let mapped = host.mapped(&account.name, Gid(account.gid), &held);
    if mapped.is_empty() {
        return Ok(None);
    }
    let given = match account.account_kind {
        AccountKind::Adopted => Vec::new(),
        _ => by_iam(account)?,
    };
    Ok(mapped.into_iter().find(|withdrawn| !given.contains(&withdrawn.gid)))
}

/// A mapped group that a user holds and IAM does not give.
#[derive(Debug, PartialEq, Eq)]
pub struct Withdrawn {
    gid: Gid,
    /// The name of the group, or its gid if group(5) does not have it.
    pub group: String,
    /// Whether an earlier import lists the user in /etc/group, so that a new session has the group too.
    pub is_listed: bool,
}

/// Returns the groups that IAM gives the user.
fn by_iam(account: &TargetAccount) -> Result<Vec<Gid>, QueryError<'_>> {
    let (name, resolver) = account.to_ask()?;
    Ok(resolver.groups_decided_on(&name)?)
}

/// The sources of this host about groups.
struct Host<'a> {
    local: Vec<Group>,
    importer: ImporterRecord,
    config: Option<&'a Config>,
}

impl Host<'_> {
    /// Returns those of `held` that only IAM may give to the user `name`, whose primary group is `own`.
    fn mapped(&self, name: &str, own: Gid, held: &[Gid]) -> Vec<Withdrawn> {
        let is_target = |group: &Group| self.config.is_some_and(|config| config.is_mapped(&group.name));
        let others = held.iter().filter(|gid| ![own, Gid::IAM_USERS, Gid::IAM_SUDO].contains(gid));
        let mapped = others.filter_map(|gid| match self.local.iter().find(|group| group.gid == *gid) {
            // A gid of the managed range that group(5) does not have is that of a mapped group.
            None => {
                gid.is_managed().then(|| Withdrawn { gid: *gid, group: gid.to_string(), is_listed: false })
            }
            Some(group) => {
                let is_imported = self.importer.sets_members_of(&group.name);
                let is_listed = group.lists(name);
                let is_admins_word = is_listed && !is_imported;
                ((is_imported || is_target(group)) && !is_admins_word).then(|| Withdrawn {
                    gid: *gid,
                    group: group.name.clone(),
                    is_listed,
                })
            }
        });
        mapped.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_group_is_iams_to_give_unless_an_administrator_lists_the_user() {
        let text = "[access]\nallow = 'all'\n[groups]\nadmins = 'ssh-admins'\nops = 'ssh-ops'";
        let config = Config::parse(text, Path::new("config.toml")).unwrap();
        let group = |name: &str, gid: u32, members: &[&str]| Group {
            name: name.to_owned(),
            gid: Gid(gid),
            members: members.iter().map(|&member| member.to_owned()).collect(),
        };
        let local = vec![
            group("ssh-admins", 700, &["carol"]),
            group("ssh-ops", 701, &[]),
            group("imported", 702, &["carol"]),
            group("own", 703, &["carol"]),
        ];
        let importer = serde_json::from_str(r#"{"groups":["imported"]}"#).unwrap();
        let host = Host { local, importer, config: Some(&config) };
        let first = pam_iam_core::id::FIRST;
        let held = [700, 701, 702, 703, 800, first, first + 1].map(Gid);
        let mapped = |name| -> Vec<String> {
            host.mapped(name, Gid(first), &held).into_iter().map(|withdrawn| withdrawn.group).collect()
        };
        let of_ours = (first + 1).to_string();
        assert_eq!(mapped("carol"), ["ssh-ops", "imported", &of_ours]);
        assert_eq!(mapped("alice"), ["ssh-admins", "ssh-ops", "imported", &of_ours]);
        assert!(host.mapped("carol", Gid(first), &[Gid(702)]).iter().all(|found| found.is_listed));
        assert!(host.mapped("alice", Gid(first), &[Gid::IAM_SUDO, Gid::IAM_USERS, Gid(first)]).is_empty());
    }
}
