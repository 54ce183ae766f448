//! The local accounts and groups. They are read again when their files have changed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::path::Path;

use pam_iam_core::account_kind::Files;
use pam_iam_core::config::{PRIVILEGED_GROUPS, groups_of_root};
use pam_iam_core::file_version::FileVersion;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::local;

/// The accounts of /etc/passwd and the groups of /etc/group.
#[derive(Debug)]
pub struct Locals {
    /// The paths of the two files.
    pub files: Files,
    users: RefCell<Cached<Names<Uid>>>,
    groups: RefCell<Cached<Groups>>,
}

/// What was read from a file, and the file's version. None if the file cannot be read.
type Cached<T> = Option<(FileVersion, T)>;

/// The groups of /etc/group.
#[derive(Debug)]
struct Groups {
    gids: Names<Gid>,
    /// The members of the groups that mean root, each with the name of one such group.
    members: Names<&'static str>,
    /// The names of all groups that have the gid of a privileged group.
    privileged: Names<()>,
}

/// The names in a file, and the value that each stands for.
#[derive(Debug)]
struct Names<T> {
    of: HashMap<String, T>,
    /// The number of names that stand for a value.
    count: HashMap<T, usize>,
    /// The number of names that are the same in lower case. Names with an id of the managed range, which are the
    /// importer's, do not count.
    lower: HashMap<String, usize>,
}

/// A value that a name stands for.
trait Number: Copy + Eq + Hash {
    /// Returns whether this is an id of the managed range, which the importer gives.
    fn is_of_importer(self) -> bool {
        false
    }
}

impl Number for Uid {
    fn is_of_importer(self) -> bool {
        self.is_managed()
    }
}

impl Number for Gid {
    fn is_of_importer(self) -> bool {
        self.is_managed()
    }
}

impl Number for &'static str {}

impl Number for () {}

impl<T: Number> Names<T> {
    /// Returns whether there is a name, other than the importer's, that differs from `name` only in case.
    fn has_in_other_case(&self, name: &str) -> bool {
        let own = usize::from(self.of.get(name).is_some_and(|own| !own.is_of_importer()));
        self.lower.get(&name.to_ascii_lowercase()).copied().unwrap_or_default() > own
    }

    /// Returns whether a name other than `name` stands for `wanted`.
    fn is_of_another(&self, wanted: T, name: &str) -> bool {
        let own = usize::from(self.of.get(name) == Some(&wanted));
        self.count.get(&wanted).copied().unwrap_or_default() > own
    }
}

impl Locals {
    /// Reads the two files.
    pub fn new(files: Files) -> Self {
        let locals = Self { files, users: RefCell::default(), groups: RefCell::default() };
        locals.refresh();
        locals
    }

    /// Reads the files again if they have changed. To be called at the start of a request: the look-ups do not check for
    /// changes. Returns whether a file has changed.
    pub fn refresh(&self) -> bool {
        let users = || Ok(first(local::accounts(&self.files.passwd)?.into_iter().map(|a| (a.name, a.uid))));
        let groups = || {
            let groups = local::groups(&self.files.group)?;
            let privileged = first(privileged_names(&groups));
            let members = first(privileged_members(&groups));
            Ok(Groups { gids: first(groups.into_iter().map(|g| (g.name, g.gid))), members, privileged })
        };
        let users_have_changed = refresh(&self.users, &self.files.passwd, users);
        refresh(&self.groups, &self.files.group, groups) || users_have_changed
    }

    /// Returns the uid of the local account `name`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read: the caller must not conclude that there is no local account `name`.
    pub fn uid_of(&self, name: &str) -> io::Result<Option<Uid>> {
        match &*self.users.borrow() {
            Some((_, users)) => Ok(users.of.get(name).copied()),
            None => Err(unreadable(&self.files.passwd)),
        }
    }

    /// Returns whether a local account other than `name` has `uid`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn is_uid_of_another(&self, uid: Uid, name: &str) -> io::Result<bool> {
        match &*self.users.borrow() {
            Some((_, users)) => Ok(users.is_of_another(uid, name)),
            None => Err(unreadable(&self.files.passwd)),
        }
    }

    /// Returns whether a local group other than `name` has `gid`. The private group of a local account does not count.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn is_gid_of_another(&self, gid: Gid, name: &str) -> io::Result<bool> {
        match &*self.groups.borrow() {
            // The account of a private group is checked by itself, and the importer may be about to rename both.
            Some((_, groups)) if groups.gids.is_of_another(gid, name) => {
                let others = groups.gids.of.iter().filter(|(local, held)| **held == gid && *local != name);
                let is_private = |local: &String| self.uid_of(local).map(|uid| uid == Some(Uid(gid.0)));
                for (local, _) in others {
                    if !is_private(local)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Some(_) => Ok(false),
            None => Err(unreadable(&self.files.group)),
        }
    }

    /// Returns whether a local account or group, other than the importer's, has a name that differs from `name` only in
    /// case.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub fn has_in_other_case(&self, name: &str) -> io::Result<bool> {
        let (users, groups) = (self.users.borrow(), self.groups.borrow());
        match (&*users, &*groups) {
            (Some((_, users)), Some((_, groups))) => {
                Ok(users.has_in_other_case(name) || groups.gids.has_in_other_case(name))
            }
            (None, _) => Err(unreadable(&self.files.passwd)),
            (_, None) => Err(unreadable(&self.files.group)),
        }
    }

    /// Returns the local group that means root and lists `name`, if no local account has the name: an IAM user of that
    /// name would be a member.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub fn privileged_group_of(&self, name: &str) -> io::Result<Option<&'static str>> {
        if self.uid_of(name)?.is_some() {
            return Ok(None);
        }
        self.in_groups(|groups| groups.members.of.get(name).copied())
    }

    /// Returns whether the local group `name` has a privileged name, or the gid of a local group that has one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn is_privileged(&self, name: &str) -> io::Result<bool> {
        self.in_groups(|groups| groups.privileged.of.contains_key(name))
    }

    /// Returns the gid of the local group `name`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn gid_of(&self, name: &str) -> io::Result<Option<Gid>> {
        self.in_groups(|groups| groups.gids.of.get(name).copied())
    }

    fn in_groups<T>(&self, look_up: impl FnOnce(&Groups) -> T) -> io::Result<T> {
        match &*self.groups.borrow() {
            Some((_, groups)) => Ok(look_up(groups)),
            None => Err(unreadable(&self.files.group)),
        }
    }
}

/// Returns the names of the groups that have the gid of a privileged group.
fn privileged_names(groups: &[local::Group]) -> impl Iterator<Item = (String, ())> {
    let gids = local::gids_of(groups, PRIVILEGED_GROUPS);
    groups.iter().filter(move |group| gids.contains_key(&group.gid)).map(|group| (group.name.clone(), ()))
}

/// Returns the members of the groups that mean root, each with the name of such a group. A group with the gid of one that
/// means root counts too.
fn privileged_members(groups: &[local::Group]) -> impl Iterator<Item = (String, &'static str)> {
    let gids = local::gids_of(groups, &groups_of_root());
    groups.iter().flat_map(move |group| {
        let name = gids.get(&group.gid).copied();
        name.into_iter()
            .flat_map(move |name| group.members.clone().into_iter().map(move |member| (member, name)))
    })
}

/// Indexes entries by name. Of several lines with one name the first counts, as in the C library.
fn first<T: Number>(entries: impl Iterator<Item = (String, T)>) -> Names<T> {
    let (mut of, mut count, mut lower) = (HashMap::new(), HashMap::new(), HashMap::new());
    for (name, id) in entries {
        of.entry(name).or_insert(id);
    }
    for (name, id) in &of {
        *count.entry(*id).or_default() += 1;
        if !id.is_of_importer() {
            *lower.entry(name.to_ascii_lowercase()).or_default() += 1;
        }
    }
    Names { of, count, lower }
}

fn unreadable(path: &Path) -> io::Error {
    io::Error::other(format!("{} cannot be read", path.display()))
}

fn refresh<T>(cached: &RefCell<Cached<T>>, path: &Path, read: impl FnOnce() -> io::Result<T>) -> bool {
    let Ok(version) = FileVersion::of(path) else { return cached.take().is_some() };
    if cached.borrow().as_ref().is_some_and(|(known, _)| *known == version) {
        return false;
    }
    let now = read().ok().map(|read| (version, read));
    let is_readable = now.is_some();
    // A file that stays unreadable does not change.
    cached.replace(now).is_some() || is_readable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(&passwd, "ann:x:1000:1000::/:/bin/sh\n").unwrap();
        std::fs::write(&group, "").unwrap();
        let locals = Locals::new(Files { passwd: passwd.clone(), group });
        assert_eq!(locals.uid_of("ann").unwrap(), Some(Uid(1000)));
        assert_eq!(locals.uid_of("bob").unwrap(), None);
        std::fs::write(&passwd, "ann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n").unwrap();
        locals.refresh();
        assert_eq!(locals.uid_of("bob").unwrap(), Some(Uid(1001)));
        std::fs::write(&passwd, "ann:x:1000:1000::/:/bin/sh\nann:x:7:7::/:/bin/sh\n").unwrap();
        locals.refresh();
        assert_eq!(locals.uid_of("ann").unwrap(), Some(Uid(1000)), "of two lines the first");
        let is_of_another = |uid, name| locals.is_uid_of_another(Uid(uid), name).unwrap();
        assert!(is_of_another(1000, "bob") && !is_of_another(1000, "ann") && !is_of_another(1001, "bob"));
        std::fs::write(&locals.files.group, "docker:x:998:\ncontainers:x:998:\ndev:x:2000:\n").unwrap();
        locals.refresh();
        let privileged =
            ["docker", "containers", "dev", "none"].map(|name| locals.is_privileged(name).unwrap());
        assert_eq!(privileged, [true, true, false, false]);
        let groups = "docker:x:998:\ncontainers:x:998:carol\nvideo:x:44:dave\ndev:x:2000:erin\n";
        std::fs::write(&locals.files.group, groups).unwrap();
        locals.refresh();
        let claim = |name| locals.privileged_group_of(name).unwrap();
        assert_eq!(["carol", "dave", "erin"].map(claim), [Some("docker"), None, None]);
        std::fs::remove_file(&passwd).unwrap();
        assert!(locals.refresh() && !locals.refresh());
        std::fs::create_dir(&passwd).unwrap();
        assert!(!locals.refresh(), "it can be read neither before nor now");
        assert!(locals.uid_of("ann").is_err());
    }
}
