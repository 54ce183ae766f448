//! What a host has set up by name: for a user of that name, or left over from an earlier one. A user who is created anew in IAM, or takes
//! over a name, is another person and must not inherit it.

use std::path::{Path, PathBuf};

use crate::config::{Config, PRIVILEGED_GROUPS, groups_of_root};
use crate::id::{Gid, Uid};
use crate::importer_record::ImporterRecord;
use crate::local;
use crate::name::LinuxName;
use crate::name::{IAM_SUDO, IAM_USERS};
use crate::owners::Owners;
use crate::unit::runs_as;

/// Files with a line `NAME:…` for each user who has subordinate ids.
const SUBORDINATE: [&str; 2] = ["etc/subuid", "etc/subgid"];

/// Passwords and administrators of groups.
const GSHADOW: &str = "etc/gshadow";

/// Where systemd keeps a file for each user who lingers.
const LINGER: &str = "var/lib/systemd/linger";

/// Where an administrator has units.
const UNITS: &str = "etc/systemd/system";

/// The longest file of sudo's rules that is read, in bytes.
const RULES_MAX: u64 = 1024 * 1024;

/// Returns what the host under `root` has set up for `name`, each as a text that says where it is and what it gives. Only root can read all
/// of it. `of_importer` are groups that the importer fills, whose lists are no administrator's.
fn of(name: &str, of_importer: &[&str], root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in SUBORDINATE {
        let text = std::fs::read(root.join(path)).unwrap_or_default();
        let has = String::from_utf8_lossy(&text).lines().any(|line| line.split(':').next() == Some(name));
        found.extend(has.then(|| format!("/{path} gives subordinate ids to {name}")));
    }
    // An administrator of a group, see gshadow(5), may put anybody into it.
    let gshadow = std::fs::read(root.join(GSHADOW)).unwrap_or_default();
    for line in String::from_utf8_lossy(&gshadow).lines() {
        let mut fields = line.split(':');
        if let (Some(group), Some(mut admins)) =
            (fields.next(), fields.nth(1).map(|admins| admins.split(',')))
            && admins.any(|admin| admin == name)
        {
            found.push(format!("/{GSHADOW} has {name} administer the group {group}"));
        }
    }
    let groups = local::groups(&root.join("etc/group")).unwrap_or_default();
    let lists = |group: &&local::Group| group.lists(name) && !of_importer.contains(&group.name.as_str());
    found.extend(groups.iter().filter(lists).map(|group| format!("/etc/group has {name} in {}", group.name)));
    let linger = root.join(LINGER).join(name);
    found.extend(
        linger.exists().then(|| format!("/{LINGER}/{name} has systemd start what {name} left at boot")),
    );
    found.extend(units(name, root));
    found.extend(rules_for(name, root));
    found
}

/// Returns the files of sudo's rules that name `subject`: a user, or a group with `%` before it.
fn rules_for(subject: &str, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in rules(root) {
        if names_in_rules(&text, subject) {
            let shown = Path::new("/").join(path.strip_prefix(root).unwrap_or(&path));
            found.push(format!("{} names {subject}", shown.display()));
        }
    }
    found
}

/// Returns the administrator's services that run as `name`, by `User=NAME` or as an instance of `User=%i`.
fn units(name: &str, root: &Path) -> Vec<String> {
    let folder = root.join(UNITS);
    // A drop-in may say as whom a unit of a package runs.
    let mut names: Vec<String> = file_names(&folder)
        .into_iter()
        .map(|entry| entry.strip_suffix(".d").map(str::to_owned).unwrap_or(entry))
        .collect();
    names.retain(|unit| !unit.contains('@'));
    // Instances that start at boot are links in the folders of what wants them.
    let wants = |entry: &String| entry.ends_with(".wants") || entry.ends_with(".requires");
    let wanted =
        file_names(&folder).into_iter().filter(wants).flat_map(|wants| file_names(&folder.join(wants)));
    // A timer starts the service of its name.
    let wanted =
        wanted.map(|unit| unit.strip_suffix(".timer").map(|name| format!("{name}.service")).unwrap_or(unit));
    names.extend(wanted.filter(|unit| unit.contains('@')));
    names.retain(|unit| unit.ends_with(".service"));
    names.sort();
    names.dedup();
    let folders = [folder, root.join("usr/local/lib/systemd/system"), root.join("usr/lib/systemd/system")];
    names.retain(|unit| {
        let user = runs_as(&folders, unit).and_then(|runs_as| runs_as.user);
        let instance = unit.split_once('@').and_then(|(_, instance)| instance.strip_suffix(".service"));
        user.is_some_and(|user| {
            user == name || ["%i", "%I"].contains(&user.as_str()) && instance == Some(name)
        })
    });
    names.iter().map(|unit| format!("/{UNITS} has {unit} run as {name}")).collect()
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A group as good as root that a managed user has by the name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenElsewhere {
    /// The number of the group.
    pub gid: Gid,
    /// The name of the group.
    pub group: String,
    /// Whether /etc/group lists the user there because the importer once wrote that.
    pub is_by_import: bool,
}

impl GivenElsewhere {
    /// Returns what is wrong and what to do, for an administrator.
    pub fn advice(&self, user: &str) -> String {
        let Self { group, is_by_import, .. } = self;
        match is_by_import {
            true => format!(
                "/etc/group has {user} in the group {group}, which iam-importer wrote and IAM no longer gives: gpasswd -d {user} {group}"
            ),
            false => format!("another directory has {user} in the group {group}: take the name out there"),
        }
    }
}

/// Returns the groups as good as root that are given to `name` by the name alone and not by an administrator in /etc/group under
/// `root`: by IAM, by a directory, or by an import before accounts came from NSS. `gids` are those that all services give, `name_of`
/// tells the names of those that /etc/group does not have.
pub fn groups_given_elsewhere(
    name: &str,
    gids: &[Gid],
    name_of: &dyn Fn(Gid) -> Option<String>,
    config: Option<&Config>,
    root: &Path,
) -> Vec<GivenElsewhere> {
    let record = ImporterRecord::left_behind(root);
    let local = local::groups(&root.join("etc/group")).unwrap_or_default();
    let listed_in = |gid: Gid| {
        let mut groups = local.iter().filter(move |group| group.gid == gid);
        groups.find(|group| group.lists(name))
    };
    // A local group of another name may have the number of one that means root.
    let privileged = groups_of_root();
    let by_gid = local::gids_of(&local, &privileged);
    let is_privileged_target = |group: &str| {
        let mut targets = config.into_iter().flat_map(|config| config.groups.values());
        targets.any(|target| target.allow_privileged && target.group.as_str() == group)
    };
    let found = gids.iter().copied().filter_map(|gid| match listed_in(gid) {
        Some(group) => {
            let may_mean_root = PRIVILEGED_GROUPS.contains(&group.name.as_str())
                || is_privileged_target(&group.name)
                || by_gid.contains_key(&gid);
            let is_left = record.sets_members_of(&group.name) && may_mean_root;
            is_left.then(|| GivenElsewhere { gid, group: group.name.clone(), is_by_import: true })
        }
        None if gid.is_managed() => None,
        None => {
            let is_local = local.iter().any(|group| group.gid == gid);
            let group = match by_gid.get(&gid) {
                Some(group) => Some((*group).to_owned()),
                None if is_local => None,
                None => name_of(gid).filter(|group| privileged.contains(&group.as_str())),
            };
            Some(GivenElsewhere { gid, group: group?, is_by_import: false })
        }
    });
    found.collect()
}

/// What a name brings to a user who has not yet logged in here under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Nothing, or the user has logged in here before.
    None,
    /// This, to the first user of the name: it is probably meant for that user.
    First(Vec<String>),
    /// This, which was set up while another user had the name.
    Inherited(Vec<String>),
    /// Rules of sudo's for the group of that name, which the private group of the user would be: they are meant for another.
    OfGroup(Vec<String>),
}

/// Why a user is refused for what the name brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The word of the audit trail.
    pub reason: &'static str,
    /// For administrators.
    pub why: String,
}

impl Leftovers {
    /// Returns why the user called `name` is refused for them, if so.
    pub fn refusal(&self, name: &str) -> Option<Refusal> {
        match self {
            Self::None | Self::First(_) => None,
            Self::Inherited(found) => Some(Refusal {
                reason: "name-inherited",
                why: format!(
                    "another user had the name {name} before, and this one would inherit: {}",
                    found.join("; ")
                ),
            }),
            Self::OfGroup(found) => Some(Refusal {
                reason: "name-of-group",
                why: format!(
                    "the user's own group would be called {name}, and have these rights: {}",
                    found.join("; ")
                ),
            }),
        }
    }
}

/// Returns what the host under `root` has set up for `name` that the user with `uid` would get with the first login. Where the
/// importer has made the account, the groups of `config` are its doing.
pub fn for_user(name: &str, uid: Uid, owners: &Owners, config: Option<&Config>, root: &Path) -> Leftovers {
    if owners.last(name) == Some(uid) {
        return Leftovers::None;
    }
    let account = local::account_by_name(&root.join("etc/passwd"), name).ok().flatten();
    let of_importer: Vec<&str> = match account.filter(|account| account.uid == uid) {
        Some(_) => {
            let mapped = config.into_iter().flat_map(Config::mapped_groups);
            mapped.map(LinuxName::as_str).chain([IAM_USERS, IAM_SUDO]).collect()
        }
        None => Vec::new(),
    };
    let rules_of_group = rules_for(&format!("%{name}"), root);
    if !rules_of_group.is_empty() {
        return Leftovers::OfGroup(rules_of_group);
    }
    let found = of(name, &of_importer, root);
    if found.is_empty() {
        Leftovers::None
    } else if owners.former(name, uid).is_some() {
        Leftovers::Inherited(found)
    } else {
        Leftovers::First(found)
    }
}

/// The most files of sudo's rules that are read.
const RULES_FILES_MAX: usize = 200;

/// Returns sudo's files with their texts, as /etc/sudoers includes them: from a folder, no name with a dot or with `~` at its end.
fn rules(root: &Path) -> Vec<(PathBuf, String)> {
    // The folder counts also where the file that includes it cannot be read.
    let (mut read, mut next) = (Vec::new(), vec![root.join("etc/sudoers")]);
    next.extend(rules_in(&root.join("etc/sudoers.d")));
    let host_name = host_name();
    while let Some(path) = next.pop() {
        if read.iter().any(|(known, _)| *known == path) || read.len() >= RULES_FILES_MAX {
            continue;
        }
        let is_short = std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= RULES_MAX);
        let text = if is_short { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let text = String::from_utf8_lossy(&text).into_owned();
        let folder = path.parent().unwrap_or(root).to_owned();
        for line in text.lines().map(str::trim) {
            // `#include` is the older form.
            let Some((word, rest)) = line.split_once([' ', '\t']) else { continue };
            let rest = rest.trim().trim_matches('"').replace("%h", &host_name);
            // What is relative lies beside the file that includes it.
            let at =
                rest.strip_prefix('/').map_or_else(|| folder.join(&rest), |absolute| root.join(absolute));
            match word {
                "@include" | "#include" => next.push(at),
                "@includedir" | "#includedir" => next.extend(rules_in(&at)),
                _ => {}
            }
        }
        read.push((path, text));
    }
    read.sort();
    read
}

/// Returns sudo's `%h`: the name of the host without its domain.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn rules_in(folder: &Path) -> Vec<PathBuf> {
    let is_read = |name: &String| !name.contains('.') && !name.ends_with('~');
    file_names(folder).into_iter().filter(is_read).map(|name| folder.join(name)).collect()
}

/// Whether a rule of sudo's names a user, or a group with `%` before it, in any case, as sudo compares by default: as a word of
/// its own, not part of a longer one.
fn names_in_rules(text: &str, name: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "_-.%#/@!".contains(letter);
    let is_rule = |line: &&str| !line.starts_with(['#', '@']) && !line.starts_with("Defaults ");
    // A backslash may stand before any letter of a name. Behind blanks, `#` begins a comment; before a digit it is a uid.
    let rules = text.lines().map(|line| line.trim_start().replace('\\', ""));
    rules.into_iter().filter(|line| is_rule(&line.as_str())).any(|line| {
        let end = line.match_indices(" #").map(|(at, _)| at).find(|at| {
            !line.get(at + 2..).is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()))
        });
        let rule = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
        rule.split(|letter| !is_letter(letter)).any(|word| word.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_set_up_for_a_name_are_found_and_mere_look_alikes_are_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/subuid", "alice2:1:2\nbob:100000:65536\n");
        write(
            "etc/sudoers",
            "# alice ALL=(ALL) ALL\n%alice ALL=(ALL) ALL\nroot ALL=(alice2) /bin/alice\n@includedir /etc/alice\n",
        );
        write("etc/sudoers.d/old.bak", "alice ALL=(ALL) ALL\n");
        write("etc/sudoers.d/rules", "@includedir ../rules.d\n");
        write(
            "etc/sudoers.d/no",
            "bob ALL=ALL # not alice\nbob, !alice ALL = ALL\nDefaults passprompt=\"alice\"\n",
        );
        write("etc/group", "devs:x:1:alice2\nalice:x:2:\n");
        write("etc/systemd/system/other.service", "[Service]\nUser=alice2\n");
        write("usr/lib/systemd/system/run@.service", "[Service]\nUser=%i\n");
        write("usr/lib/systemd/system/log@.service", "[Service]\nUser=log\n");
        write("etc/systemd/system/multi-user.target.wants/log@alice.service", "");
        assert_eq!(of("alice", &[], root.path()), [""; 0]);
        write("etc/group", "devs:x:1:bob,alice\ndocker:x:3:alice\n");
        write("etc/gshadow", "devs:!:bob,alice:alice\ndocker:!::alice\n");
        write("etc/systemd/system/app.service", "[Service]\nUser=alice\n");
        write("etc/systemd/system/multi-user.target.wants/run@alice.service", "");
        write("etc/subgid", "alice:1:2\n");
        write("var/lib/systemd/linger/alice", "");
        write("etc/sudoers.d/app", "User_Alias OPS = bob, Al\\ice\n");
        write("etc/rules.d/more", "alice ALL = ALL\n");
        write("etc/systemd/system/packaged.service.d/user.conf", "[Service]\nUser=alice\n");
        write("usr/lib/systemd/system/packaged.service", "[Service]\nUser=daemon\n");
        assert_eq!(
            of("alice", &["docker"], root.path()),
            [
                "/etc/subgid gives subordinate ids to alice",
                "/etc/gshadow has alice administer the group devs",
                "/etc/group has alice in devs",
                "/var/lib/systemd/linger/alice has systemd start what alice left at boot",
                "/etc/systemd/system has app.service run as alice",
                "/etc/systemd/system has packaged.service run as alice",
                "/etc/systemd/system has run@alice.service run as alice",
                "/etc/sudoers.d/../rules.d/more names alice",
                "/etc/sudoers.d/app names alice",
            ]
        );
    }

    #[test]
    fn a_group_that_only_a_directory_gives_is_found_also_by_a_local_number() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| std::fs::write(root.path().join(path), text).unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        write("etc/group", "containers:x:998:\ndocker:x:998:bob\ndevs:x:900:\nvideo:x:44:\n");
        let of = |name: &str, gids: &[u32]| {
            let gids: Vec<Gid> = gids.iter().map(|gid| Gid(*gid)).collect();
            let name_of = |gid: Gid| (gid == Gid(7000)).then(|| "wheel".to_owned());
            let found = groups_given_elsewhere(name, &gids, &name_of, None, root.path());
            found.into_iter().map(|found| format!("{} {}", found.gid, found.group)).collect::<Vec<_>>()
        };
        assert_eq!(of("alice", &[998, 900, 44, 7000, 7001]), ["998 docker", "7000 wheel"]);
        assert_eq!(of("bob", &[998]), [""; 0]);
        // What an import has written is no administrator's word.
        let record = root.path().join(crate::paths::IMPORTER_STATE.trim_start_matches('/'));
        std::fs::create_dir_all(record.parent().unwrap()).unwrap();
        std::fs::write(record, r#"{"groups":["docker"]}"#).unwrap();
        assert_eq!(of("bob", &[998]), [""; 0], "the importer is at work, and takes it out");
        write("etc/nsswitch.conf", "passwd: files iam\ngroup: files iam\n");
        assert_eq!(of("bob", &[998]), ["998 docker"]);
    }

    #[test]
    fn the_first_owner_of_a_name_inherits_nothing_and_the_next_one_does_until_it_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/subuid"), "alice:1:2\n").unwrap();
        let owners = Owners::new(&root.path().join("owners"), &root.path().join("served"));
        let (first, next) = (Uid(crate::id::FIRST), Uid(crate::id::FIRST + 1));
        let found = vec!["/etc/subuid gives subordinate ids to alice".to_owned()];
        let of = |uid| for_user("alice", uid, &owners, None, root.path());
        assert_eq!(of(first), Leftovers::First(found.clone()));
        owners.record("alice", first).unwrap();
        assert_eq!(of(first), Leftovers::None);
        assert_eq!(of(next), Leftovers::Inherited(found));
        std::fs::write(root.path().join("etc/subuid"), "").unwrap();
        assert_eq!(of(next), Leftovers::None);
        std::fs::write(root.path().join("etc/sudoers"), "%Alice ALL=(ALL) ALL\n").unwrap();
        assert_eq!(of(next), Leftovers::OfGroup(vec!["/etc/sudoers names %alice".to_owned()]));
        std::fs::remove_file(root.path().join("etc/sudoers")).unwrap();
        // What an administrator sets up for the new owner afterwards is meant.
        owners.record("alice", next).unwrap();
        std::fs::write(root.path().join("etc/subuid"), "alice:1:2\n").unwrap();
        assert_eq!(of(next), Leftovers::None);
    }

    #[test]
    fn groups_that_the_importer_fills_are_no_leftovers_of_the_account_that_it_made() {
        let root = tempfile::tempdir().unwrap();
        let owners = Owners::new(&root.path().join("owners"), &root.path().join("served"));
        let uid = Uid(crate::id::FIRST);
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/group"), "iam-users:x:7:alice\ndocker:x:8:alice\n").unwrap();
        let text = "[access]\nallow = 'all'\n[groups]\nops = { group = 'docker', allow_privileged = true }";
        let config = Config::parse(text, "config.toml".as_ref()).unwrap();
        let of = || for_user("alice", uid, &owners, Some(&config), root.path());
        assert!(matches!(of(), Leftovers::First(found) if found.len() == 2));
        std::fs::write(root.path().join("etc/passwd"), format!("alice:x:{uid}:{uid}::/:/bin/sh\n")).unwrap();
        assert_eq!(of(), Leftovers::None);
    }
}
