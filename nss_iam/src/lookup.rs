//! The lookups behind the entry points, in safe Rust.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pam_iam_core::client::{self, Behalf, ClientError};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::{IAM_USERS, LinuxName};
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Answer, CLIENT_DEADLINE, Group, Request, User};
use pam_iam_core::{local, paths};

/// The longest list of mapped gids that is read, in bytes.
const MAPPED_MAX: u64 = 64 * 1024;

/// The outcome of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// An entry.
    Yes(T),
    /// There is no such entry.
    No,
    /// The resolver has no answer now.
    Unknown,
}

pub fn user_by_name(name: &str) -> Found<User> {
    match LinuxName::new(name) {
        Ok(name) => user(Nss.user(&name), |user| user.name == name),
        Err(_) => Found::No,
    }
}

/// Returns the account with `uid`. For a uid outside the managed range the resolver is not asked, and there is none.
pub fn user_by_uid(uid: Uid) -> Found<User> {
    if !uid.is_managed() {
        return Found::No;
    }
    user(Nss.user_by_uid(uid), |user| user.uid == uid)
}

pub fn group_by_name(name: &str) -> Found<Group> {
    match LinuxName::new(name) {
        Ok(name) if name.as_str() == IAM_USERS => iam_users(Path::new(paths::GROUP)),
        Ok(name) => group(Nss.group(&name), |group| group.name == name),
        Err(_) => Found::No,
    }
}

/// Returns the group with `gid`. For iam-users, and for a gid outside the managed range, the resolver is not asked.
pub fn group_by_gid(gid: Gid) -> Found<Group> {
    if gid == Gid::IAM_USERS {
        return iam_users(Path::new(paths::GROUP));
    }
    if !gid.is_managed() {
        return Found::No;
    }
    group(Nss.group_by_gid(gid), |group| group.gid == gid)
}

/// Returns the group `iam-users`, unless group(5) has one of that name. The resolver is not asked, so that sshd's rule about
/// authorized_keys, which looks up the names of a user's groups, works without the resolver.
fn iam_users(groups: &Path) -> Found<Group> {
    match (local::group_by_name(groups, IAM_USERS), LinuxName::new(IAM_USERS)) {
        (Ok(None), Ok(name)) => Found::Yes(Group { name, gid: Gid::IAM_USERS, members: Vec::new() }),
        (Err(_), _) => Found::Unknown,
        _ => Found::No,
    }
}

/// Returns the supplementary groups of `user`. The name decides, since a service may run as the user with another primary
/// group.
///
/// A managed account is always in iam-users, even without an answer of the resolver: sshd's rule about authorized_keys
/// applies to that group. An account counts as managed if `primary` is in the managed range and its uid is in it too or is
/// unknown. About other local accounts the resolver is not asked. About other accounts of directories the resolver answers
/// without IAM, since services start at boot before the network.
pub fn groups_of(user: &str, primary: Gid) -> Found<Vec<Gid>> {
    let Ok(name) = LinuxName::new(user) else { return Found::No };
    // The uid decides, since a local account or one of another directory may have a primary group in the managed range.
    let seen = if primary.is_managed() { seen_by_all(user) } else { None };
    let is_managed = primary.is_managed() && seen.is_none_or(|(uid, _)| uid.is_managed());
    if let Some((uid, gid)) = seen
        && !uid.is_managed()
        && gid != primary
        && !is_local(Path::new(paths::PASSWD), user)
    {
        // The account was managed when the caller looked it up, and now another directory answers for its name. It gets
        // iam-users, the group that restricts, and no other.
        return groups_in(Ok(None), restricting(), &[]);
    }
    if !is_managed && is_local(Path::new(paths::PASSWD), user) {
        return Found::No;
    }
    let given = Nss.groups_of(&name, !is_managed || looks_only());
    if !is_managed && matches!(given, Ok(Some(_))) && !is_managed_to_all(user) {
        return Found::No;
    }
    let mapped = mapped_gids(Path::new(paths::MAPPED_GIDS));
    groups_in(given, restricting().filter(|_| is_managed), &mapped)
}

/// Returns the gid of iam-users, for whose members sshd does not read authorized_keys: that of the local group, if there is
/// one of that name.
fn restricting() -> Option<Gid> {
    let own = local::group_by_name(Path::new(paths::GROUP), IAM_USERS).ok().flatten();
    Some(own.map_or(Gid::IAM_USERS, |group| group.gid))
}

/// Returns uid and primary gid of the account `user` from the first service that knows it. None if no service does, or
/// passwd(5) cannot be read.
fn seen_by_all(user: &str) -> Option<(Uid, Gid)> {
    match local::account_by_name(Path::new(paths::PASSWD), user) {
        Ok(Some(account)) => Some((account.uid, account.gid)),
        Ok(None) => {
            users::get_user_by_name(user).map(|account| (Uid(account.uid()), Gid(account.primary_group_id())))
        }
        Err(_) => None,
    }
}

/// Returns the groups that IAM gives and `restricts`, which a managed account has even without an answer.
fn groups_in(
    given: Result<Option<Vec<Gid>>, ClientError>,
    restricts: Option<Gid>,
    mapped: &[Gid],
) -> Found<Vec<Gid>> {
    let mut gids = match given {
        Ok(Some(gids)) => gids,
        _ if restricts.is_some() => Vec::new(),
        Ok(None) => return Found::No,
        Err(_) => return Found::Unknown,
    };
    gids.retain(|gid| is_believed(*gid, mapped));
    gids.extend(restricts.filter(|gid| gid.0 != 0 && !gids.contains(gid)));
    Found::Yes(gids)
}

/// Whether the first service that knows the account `name` gives it a uid of the managed range: an account of another directory must not
/// get the groups of the IAM user of its name.
fn is_managed_to_all(name: &str) -> bool {
    users::get_user_by_name(name).is_some_and(|user| Uid(user.uid()).is_managed())
}

/// Whether `name` is that of a local account, or the file cannot be read.
fn is_local(passwd: &Path, name: &str) -> bool {
    local::account_by_name(passwd, name).map_or(true, |account| account.is_some())
}

/// Returns the account of an answer, if it is sound and the one that was asked for.
fn user(answer: Result<Option<User>, ClientError>, is_asked_for: impl Fn(&User) -> bool) -> Found<User> {
    match answer {
        Ok(Some(user)) if is_sound(&user) && is_asked_for(&user) => Found::Yes(user),
        Ok(None) => Found::No,
        _ => Found::Unknown,
    }
}

/// Returns the group of an answer, if it is in the managed range and the one that was asked for.
fn group(answer: Result<Option<Group>, ClientError>, is_asked_for: impl Fn(&Group) -> bool) -> Found<Group> {
    match answer {
        // Members are never listed: newgrp(1) would let any account with a listed name into the group.
        Ok(Some(group)) if group.gid.is_managed() && is_asked_for(&group) => {
            Found::Yes(Group { members: Vec::new(), ..group })
        }
        Ok(None) => Found::No,
        _ => Found::Unknown,
    }
}

/// Whether NSS may give a user this gid: it is in the managed range, or in `mapped`. 0 is never given.
fn is_believed(gid: Gid, mapped: &[Gid]) -> bool {
    gid.is_managed() || gid.0 != 0 && mapped.contains(&gid)
}

/// Returns the gids of mapped groups outside the managed range, from a file that root writes after checking the
/// configuration. Empty if the file is missing or could have been written by other users.
fn mapped_gids(path: &Path) -> Vec<Gid> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let is_roots = file.metadata().is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0);
    let mut text = String::new();
    if !is_roots || file.take(MAPPED_MAX).read_to_string(&mut text).is_err() {
        return Vec::new();
    }
    text.lines().filter_map(|line| line.parse().ok()).map(Gid).collect()
}

/// Whether an account is well formed. A home, shell or GECOS field that programs would misread is not passed on.
fn is_sound(user: &User) -> bool {
    let path_is_sound = |path: &str| {
        path.starts_with('/')
            && !path.contains(|c: char| c == ':' || c.is_control())
            && !path.split('/').any(|part| part == "..")
    };
    // A uid outside the managed range, such as 0, is never passed on, even if the resolver sends it.
    user.uid.is_managed()
        && user.gid == user.uid.private_group()
        && path_is_sound(&user.home)
        && path_is_sound(&user.shell)
        && !user.gecos.contains(|c: char| c == ':' || c.is_control())
}

/// Whether this process only inspects the host, as `sshd -T` does for doctor and the sweep: its lookups are not part of a
/// login and start no revalidation. The environment of a setuid program comes from its caller and does not count.
fn looks_only() -> bool {
    let is_setuid = rustix::process::getuid() != rustix::process::geteuid();
    !is_setuid && std::env::var_os(paths::LOOK_ONLY).is_some()
}

/// The running resolver, asked on behalf of the user of this process or the client of sshd. It is never started.
struct Nss;

impl Queries for Nss {
    fn send(&self, request: &Request) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(CLIENT_DEADLINE);
        let behalf =
            Behalf { client: crate::host::client_of_sshd(), caller: looks_only().then_some(Uid::RESERVED) };
        client::ask_on_behalf(Path::new(paths::SOCKET), request, behalf, deadline)
    }
}

/// In a build for the tests, panics if the environment says so.
#[cfg(feature = "test-panic")]
#[expect(clippy::panic, reason = "what the feature is for")]
pub fn panic_if_tested(entry: &str) {
    if std::env::var("NSS_IAM_TEST_PANIC").is_ok_and(|wanted| wanted == entry) {
        panic!("forced in {entry}");
    }
}

/// Does nothing in a build for use.
#[cfg(not(feature = "test-panic"))]
pub fn panic_if_tested(_entry: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compromised_resolver_gives_only_managed_gids_and_those_that_root_wrote() {
        let ours = Gid(pam_iam_core::id::FIRST);
        let mapped = [Gid(0), Gid(998)];
        let believed = [ours, Gid(998), Gid(27), Gid(0)].map(|gid| is_believed(gid, &mapped));
        assert_eq!(believed, [true, true, false, false]);
        assert!(mapped_gids(Path::new("/nonexistent")).is_empty());
        // A file that other users may write to.
        let file = std::env::temp_dir().join(format!("pam_iam-mapped-{}", std::process::id()));
        std::fs::write(&file, "27\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert!(mapped_gids(&file).is_empty());
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_group_that_restricts_has_a_name_without_a_resolver_unless_the_host_has_its_own() {
        let Found::Yes(group) = group_by_gid(Gid::IAM_USERS) else { panic!("it has no name") };
        assert_eq!((group.name.as_str(), group.gid), (IAM_USERS, Gid::IAM_USERS));
        assert_eq!(group_by_name(IAM_USERS), Found::Yes(group));
        let file = std::env::temp_dir().join(format!("pam_iam-group-{}", std::process::id()));
        std::fs::write(&file, "iam-users:x:990:\n").unwrap();
        assert_eq!(iam_users(&file), Found::No);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(iam_users(&file), Found::Unknown);
    }

    #[test]
    fn a_managed_primary_group_always_comes_with_iam_users() {
        let (dev, sudo) = (Gid(pam_iam_core::id::FIRST), Gid(27));
        let groups = |gids: &[Gid]| Ok(Some(gids.to_vec()));
        let silent = || Err(ClientError::TimedOut);
        for (given, is_managed, found) in [
            (silent(), true, Found::Yes(vec![Gid::IAM_USERS])),
            (Ok(None), true, Found::Yes(vec![Gid::IAM_USERS])),
            (groups(&[dev, sudo]), true, Found::Yes(vec![dev, Gid::IAM_USERS])),
            (groups(&[Gid::IAM_USERS, dev]), true, Found::Yes(vec![Gid::IAM_USERS, dev])),
            (groups(&[dev]), false, Found::Yes(vec![dev])),
            (Ok(None), false, Found::No),
            (silent(), false, Found::Unknown),
        ] {
            assert_eq!(groups_in(given, is_managed.then_some(Gid::IAM_USERS), &[]), found);
        }
    }

    #[test]
    fn an_account_that_means_something_else_to_its_readers_is_not_passed_on() {
        let uid = Uid(pam_iam_core::id::FIRST);
        let user = |home: &str, shell: &str, gecos: &str| User {
            name: LinuxName::new("alice").unwrap(),
            uid,
            gid: uid.private_group(),
            gecos: gecos.into(),
            home: home.into(),
            shell: shell.into(),
        };
        assert!(is_sound(&user("/home/alice", "/bin/sh", "alice")));
        for wrong in [
            user("home", "/bin/sh", ""),
            user("/home/../root", "/bin/sh", ""),
            user("/home/a:b", "/bin/sh", ""),
            user("/home/a", "/bin/sh\n", ""),
            user("/home/a", "sh", ""),
            user("/home/a", "/bin/sh", "a:0:0"),
            User { gid: Gid(0), ..user("/home/a", "/bin/sh", "") },
            User { uid: Uid(0), gid: Gid(0), ..user("/home/a", "/bin/sh", "") },
        ] {
            assert!(!is_sound(&wrong), "{wrong:?}");
        }
        let alice =
            super::user(Ok(Some(user("/home/alice", "/bin/sh", ""))), |user| user.name.as_str() == "bob");
        assert_eq!(alice, Found::Unknown, "who was not asked for");
    }

    #[test]
    fn names_and_ids_that_cannot_be_managed_are_answered_without_the_resolver() {
        // No resolver runs here, so a lookup that asked it would return `Unknown`.
        assert_eq!(user_by_uid(Uid(0)), Found::No);
        assert_eq!(user_by_uid(Uid(1000)), Found::No);
        assert_eq!(group_by_gid(Gid(27)), Found::No);
        assert_eq!(groups_of("daemon", Gid(112)), Found::No, "a local account");
        assert_eq!(user_by_name("a:b"), Found::No);
        assert_eq!(user_by_name(""), Found::No);
        assert_eq!(user_by_name("0"), Found::No);
        assert_eq!(group_by_name("-x"), Found::No);
    }
}
