//! Settings of this machine that keep users out, or let them in without asking pam_iam.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pam_iam_core::config::Config;
use pam_iam_core::id::{FIRST, Gid, LAST};
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::name::LinuxName;
use pam_iam_core::nsswitch::{NSSWITCH, asks_us, has_directory};
use pam_iam_core::wire::Roster;
use pam_iam_core::{local, paths};

use super::Finding;
use crate::host::units::{IMPORTER_TIMER, UnitState, states};
use crate::is_installed;

/// The importer's line for cron, which an administrator may have installed.
const IMPORTER_CRON: &str = "/etc/cron.d/iam-importer";

/// Where nscd(8) listens.
const NSCD: &str = "/run/nscd/socket";

/// Programs of Session Manager's agent.
const SSM_AGENTS: [&str; 3] = [
    "/usr/bin/amazon-ssm-agent",
    "/snap/amazon-ssm-agent/current/amazon-ssm-agent",
    "/usr/bin/ssm-agent-worker",
];

/// Runs all checks of this file.
pub fn look(config: &Config, roster: Option<&Roster>) -> Vec<Finding> {
    let home = roster.and_then(|roster| roster.users.first()).map_or("/home/user", |user| user.home.as_str());
    let one = [ids(Path::new("/proc/self/uid_map")), shell(config), homes(Path::new(home)), nscd(), run_as()];
    let users = roster.map(|roster| roster.users.as_slice()).unwrap_or_default();
    let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
    let in_range = accounts_without_user(roster);
    let nsswitch = std::fs::read_to_string(NSSWITCH).unwrap_or_default();
    one.into_iter()
        .flatten()
        .chain(at_boot(&names, Path::new("/")))
        .chain(in_range)
        .chain(groups_elsewhere(config))
        .chain(importer_beside(&nsswitch))
        .chain(left_by_importer(&nsswitch))
        .collect()
}

/// Checks for the importer on a host with another directory.
fn importer_beside(nsswitch: &str) -> Option<Finding> {
    let imports = is_installed(paths::IMPORTER_STATE) && !asks_us(nsswitch, "passwd");
    (imports && has_directory(nsswitch)).then(|| {
        Finding::warning(
            "importer",
            "accounts come from another directory too: while that is down, the importer treats its names as unused",
            "switch to NSS: iamctl disable, then iamctl enable",
        )
    })
}

/// Checks for groups that the importer has put IAM users into, on a host where it no longer runs.
fn left_by_importer(nsswitch: &str) -> Vec<Finding> {
    let is_at_work =
        states(&[IMPORTER_TIMER]).iter().any(UnitState::is_in_use) || is_installed(IMPORTER_CRON);
    if !asks_us(nsswitch, "passwd") || is_at_work {
        return Vec::new();
    }
    let left = ImporterRecord::load(Path::new("/")).members(Path::new("/"));
    let finding = |(group, name): (String, String)| {
        Finding::warning(
            "groups",
            format!("{name} is in the group {group} by an earlier import, whatever IAM says now"),
            format!("gpasswd -d {name} {group}"),
        )
    };
    left.into_iter().map(finding).collect()
}

/// Checks for groups of `[groups]` that are in another directory: the resolver reads /etc/group alone.
fn groups_elsewhere(config: &Config) -> Vec<Finding> {
    let local = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
    let names: BTreeSet<&str> = config.mapped_groups().map(LinuxName::as_str).collect();
    let is_elsewhere = |name: &&str| {
        !local.iter().any(|group| group.name == **name)
            && users::get_group_by_name(*name).is_some_and(|group| !Gid(group.gid()).is_managed())
    };
    let found = names.into_iter().filter(is_elsewhere);
    found
        .map(|name| {
            Finding::warning(
                "groups",
                format!("another directory has the group {name}, and IAM users get one of that name with another number"),
                format!("in [groups], map to a group of /etc/group, or to another name than {name}"),
            )
        })
        .collect()
}

/// Checks for local accounts whose uid is managed but belongs to no IAM user.
fn accounts_without_user(roster: Option<&Roster>) -> Vec<Finding> {
    // The importer creates and retires such accounts itself.
    let Some(roster) = roster.filter(|_| !is_installed(paths::IMPORTER_STATE)) else { return Vec::new() };
    let accounts = local::accounts(Path::new(paths::PASSWD)).unwrap_or_default();
    let is_users = |account: &local::Account| roster.users.iter().any(|user| user.uid == account.uid);
    let strangers = accounts.iter().filter(|account| account.uid.is_managed() && !is_users(account));
    strangers
        .map(|local::Account { name, uid, .. }| {
            Finding::warning(
                "uids",
                format!("the local account {name} has uid {uid}, which is one of IAM users: it can't log in unless IAM lets {name} in"),
                format!("if it is the host's own, give it another uid: usermod -u NUMBER {name}"),
            )
        })
        .collect()
}

/// Checks for tmpfiles.d(5) files that name IAM users: systemd-tmpfiles reads them at boot, before NSS can look these users up.
fn at_boot(users: &[&str], root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in ["etc/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d"] {
        for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            // Type, path, mode, user, group.
            let named = text.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
                let mut words = line.split_whitespace().skip(3).take(2);
                words.find_map(|word| users.iter().find(|user| **user == word.trim_start_matches(':')))
            });
            let Some(user) = named else { continue };
            findings.push(Finding::warning(
                "boot",
                format!(
                    "/{folder}/{} names {user}, whom systemd-tmpfiles does not know at boot",
                    entry.file_name().display()
                ),
                format!("write the number there instead: id -u {user}"),
            ));
        }
    }
    findings
}

/// Checks that this machine has the managed uids: a container may have only 65,536 uids.
fn ids(map: &Path) -> Option<Finding> {
    let map = std::fs::read_to_string(map).ok()?;
    let has = map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        first <= FIRST.into() && first + count > LAST.into()
    });
    (!has).then(|| {
        Finding::wrong(
            "uids",
            format!("this container has no uids {FIRST} to {LAST}, so no IAM user can log in"),
            "give it more: raise the count of root's or the container user's line in the host's /etc/subuid and /etc/subgid, or run it \
             without a user namespace; or adopt local accounts",
        )
    })
}

/// Checks that the shell of managed users is installed: sshd refuses users whose shell is missing.
fn shell(config: &Config) -> Option<Finding> {
    let shell = &config.accounts.shell.0;
    let is_program = std::fs::metadata(shell).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
    (!is_program).then(|| {
        Finding::wrong(
            "shell",
            format!("accounts.shell is {}, which is not installed: sshd lets nobody in", shell.display()),
            format!("install {}, or set accounts.shell to a shell that is there", shell.display()),
        )
    })
}

/// Checks that home directories can be made in the folder of `home`.
fn homes(home: &Path) -> Option<Finding> {
    let exposed = home.ancestors().skip(1).find_map(|folder| {
        let found = std::fs::metadata(folder).ok()?;
        let is_exposed = found.uid() != 0 || found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
        is_exposed.then_some(folder)
    })?;
    let shown = exposed.display();
    Some(Finding::warning(
        "homes",
        format!(
            "{shown} can be changed by others than root, so no home directory is made there: users without one are refused"
        ),
        format!(
            "chown root {shown} && chmod go-w {shown}; on a network file system, make the home directories on its server"
        ),
    ))
}

/// Checks for nscd, whose cache outlives the resolver's answers.
fn nscd() -> Option<Finding> {
    is_installed(NSCD).then(|| {
        Finding::warning(
            "nscd",
            "nscd runs: it remembers accounts and groups, so that a user who is let in or put out is noticed late",
            "set enable-cache passwd no and enable-cache group no in /etc/nscd.conf, and restart it; the resolver remembers already",
        )
    })
}

/// Checks for Session Manager's agent, which starts shells without PAM if Run As is switched on.
fn run_as() -> Option<Finding> {
    let agent = SSM_AGENTS.into_iter().find(|agent| is_installed(agent))?;
    Some(Finding::warning(
        "Session Manager",
        format!(
            "{agent} is installed: with Run As, Session Manager starts a shell as any account without asking PAM or us"
        ),
        "allow ssm:StartSession with an SSMSessionRunAs tag to nobody whom IAM does not let in here; the sweep ends what a withdrawn \
         user runs that way",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfiles_line_that_names_a_user_is_found() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/tmpfiles.d");
        std::fs::create_dir_all(&folder).unwrap();
        let text =
            "# d /x 0755 alice\nd /srv/alice 0755 root root -\nf /srv/b 0644 2013265921 alice2 - alice\n";
        std::fs::write(folder.join("app.conf"), text).unwrap();
        assert!(at_boot(&["alice"], root.path()).is_empty());
        std::fs::write(folder.join("app.conf"), format!("{text}d /srv/c 0755 root :alice -\n")).unwrap();
        let found = at_boot(&["bob", "alice"], root.path());
        assert!(found.len() == 1 && found[0].message.contains("/etc/tmpfiles.d/app.conf names alice"));
    }

    #[test]
    fn a_container_without_the_uids_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (map, is_wrong) in [
            ("         0          0 4294967295\n", false),
            ("0 100000 65536\n", true),
            ("0 100000 65536\n1879048192 500000 536870912\n", false),
            ("0 0 2013265920\n", true),
        ] {
            std::fs::write(file.path(), map).unwrap();
            assert_eq!(ids(file.path()).is_some(), is_wrong, "{map}");
        }
    }
}
