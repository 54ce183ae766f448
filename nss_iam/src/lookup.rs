//! The lookups behind the entry points, in safe Rust. The map answers what it can, and the resolver the rest.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use pam_iam_core::client::{self, Behalf, ClientError};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::map::{AccountRecord, BootTime, GroupRecord, Record};
use pam_iam_core::name::{IAM_USERS, LinuxName};
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Answer, CLIENT_DEADLINE, Group, Request, User};
use pam_iam_core::{local, paths};

use crate::filter::{believed, is_sound};
use crate::map::{Age, Key, Seen};
use crate::{frequency, kept, map, recent};

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
    let Ok(name) = LinuxName::new(name) else { return Found::No };
    let now = BootTime::now();
    match by_map(Key::Name(&name), now, account) {
        Some(found) => found,
        None => ask(&Request::UserByName { name: name.clone() }, now, || {
            user(Nss.user(&name), now, |user| user.name == name)
        }),
    }
}

/// Returns the account with `uid`. A uid outside the managed range is not looked up.
pub fn user_by_uid(uid: Uid) -> Found<User> {
    if !uid.is_managed() {
        return Found::No;
    }
    let now = BootTime::now();
    match by_map(Key::Id(uid.0), now, account) {
        Some(found) => found,
        None => ask(&Request::UserByUid { uid }, now, || {
            unclaimed(user(Nss.user_by_uid(uid), now, |user| user.uid == uid))
        }),
    }
}

pub fn group_by_name(name: &str) -> Found<Group> {
    let Ok(name) = LinuxName::new(name) else { return Found::No };
    if name.as_str() == IAM_USERS {
        return iam_users(kept::local_gid(IAM_USERS));
    }
    let now = BootTime::now();
    match by_map(Key::Name(&name), now, any_group) {
        Some(found) => found,
        None => ask(&Request::GroupByName { name: name.clone() }, now, || {
            group(Nss.group(&name), |group| group.name == name)
        }),
    }
}

/// Returns the group with `gid`. iam-users, and a gid outside the managed range, are not looked up.
pub fn group_by_gid(gid: Gid) -> Found<Group> {
    if gid == Gid::IAM_USERS {
        return iam_users(kept::local_gid(IAM_USERS));
    }
    if !gid.is_managed() {
        return Found::No;
    }
    let now = BootTime::now();
    match by_map(Key::Id(gid.0), now, any_group) {
        Some(found) => found,
        None => ask(&Request::GroupByGid { gid }, now, || {
            unclaimed(group(Nss.group_by_gid(gid), |group| group.gid == gid))
        }),
    }
}

/// An account or a group.
trait Entry {
    fn name(&self) -> &LinuxName;
    fn gid(&self) -> Gid;
}

impl Entry for User {
    fn name(&self) -> &LinuxName {
        &self.name
    }

    fn gid(&self) -> Gid {
        self.gid
    }
}

impl Entry for Group {
    fn name(&self) -> &LinuxName {
        &self.name
    }

    fn gid(&self) -> Gid {
        self.gid
    }
}

/// Returns the entry that the map has for `key`. None if the resolver has to be asked: there is no map, its record is too old or
/// not one that `convert` accepts, or the map does not know whether there is such an entry.
fn by_map<T: Entry>(
    key: Key<'_>,
    now: BootTime,
    convert: impl Fn(Record, BootTime) -> Option<T>,
) -> Option<Found<T>> {
    let seen = map::look_up(key, Age::Second, now)?;
    let Some(record) = seen.record else {
        // Root's programs log people in, and ask about each name, so that a user who was just created gets in at once.
        let is_unlisted = now < seen.about.complete_until && !rustix::process::geteuid().is_root();
        return is_unlisted.then_some(Found::No);
    };
    let found = Found::Yes(convert(record, now)?);
    let needs_check = matches!(key, Key::Id(_)) || !seen.about.files_first;
    Some(if needs_check { unclaimed(found) } else { found })
}

/// Returns whether a local account has `name`, or a local group has it with another gid than `gid`. A lookup by name comes here
/// only if the local files do not know the name, and a lookup by id only if they do not know the id.
fn is_claimed(name: &LinuxName, gid: Gid) -> io::Result<bool> {
    let name = name.as_str();
    Ok(kept::local_uid(name)?.is_some() || kept::local_gid(name)?.is_some_and(|local| local != gid))
}

/// Returns the entry that a lookup found, unless a local account or group has its name.
fn unclaimed<T: Entry>(found: Found<T>) -> Found<T> {
    let Found::Yes(entry) = found else { return found };
    match is_claimed(entry.name(), entry.gid()) {
        Ok(false) => Found::Yes(entry),
        Ok(true) => Found::No,
        Err(_) => Found::Unknown,
    }
}

/// Returns the account of a record that still serves.
fn account(record: Record, now: BootTime) -> Option<User> {
    match record {
        Record::Account(AccountRecord { user, until, .. }) => {
            (now < until.exists && is_sound(&user, now)).then_some(user)
        }
        Record::Group(_) => None,
    }
}

/// Returns a record that still serves as a group: the private group of an account, or another group.
fn any_group(record: Record, now: BootTime) -> Option<Group> {
    let GroupRecord { name, gid, until } = record.into_group();
    (now < until && gid.is_managed()).then(|| Group { name, gid, members: Vec::new() })
}

/// Asks the resolver, unless it answered the same request of this process with "not found" a moment ago.
fn ask<T>(request: &Request, now: BootTime, query: impl FnOnce() -> Found<T>) -> Found<T> {
    if recent::is_not_found(request, now) {
        return Found::No;
    }
    let found = query();
    if matches!(found, Found::No) {
        recent::note_not_found(request, now);
    }
    found
}

/// Returns the group `iam-users`, unless group(5) has one of that name, with the gid `local`. The resolver is not asked, so that
/// sshd's rule about authorized_keys, which looks up the names of a user's groups, works without the resolver.
fn iam_users(local: io::Result<Option<Gid>>) -> Found<Group> {
    match (local, LinuxName::new(IAM_USERS)) {
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
    if primary.is_managed()
        && let Some(gids) = groups_by_map(&name, primary)
    {
        return Found::Yes(gids);
    }
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
        return groups_in(Ok(None), restricting());
    }
    if !is_managed && is_local(Path::new(paths::PASSWD), user) {
        return Found::No;
    }
    let given = Nss.groups_of(&name, !is_managed || looks_only());
    if !is_managed && matches!(given, Ok(Some(_))) && !is_managed_to_all(user) {
        return Found::No;
    }
    groups_in(given, restricting().filter(|_| is_managed))
}

/// Returns the supplementary groups of the managed account `name` with the private group `primary`, by the map. If the record is
/// stale and a root process asks, such as sshd before a login, starts a revalidation and does not wait for it.
///
/// None if the resolver has to be asked, or if the account may be one of another directory.
fn groups_by_map(name: &LinuxName, primary: Gid) -> Option<Vec<Gid>> {
    let now = BootTime::now();
    let Seen { about, record: Some(Record::Account(record)) } =
        map::look_up(Key::Name(name), Age::None, now)?
    else {
        return None;
    };
    let AccountRecord { user, groups, privileged, until } = record;
    let is_current = now < until.exists && now < until.groups;
    // If a directory is asked before us, the account may be its own.
    if !about.files_first || !is_current || user.gid != primary || !is_sound(&user, now) {
        return None;
    }
    if now >= until.fresh && rustix::process::geteuid().is_root() && !looks_only() {
        start_revalidation(name, about.max_age, now);
    }
    let mut gids = groups;
    if now < until.privileged {
        gids.extend(privileged);
    }
    match groups_in(Ok(Some(gids)), restricting()) {
        Found::Yes(gids) => Some(gids),
        Found::No | Found::Unknown => None,
    }
}

/// Has the resolver revalidate a user, unless this process has done so in the last `max_age` milliseconds. An error is no matter:
/// the key command revalidates too.
fn start_revalidation(name: &LinuxName, max_age: u32, now: BootTime) {
    let request = Request::Revalidate { name: name.clone() };
    if recent::is_due(&request, max_age, now) {
        let _ = client::notify(Path::new(paths::SOCKET), &request, Nss::behalf());
    }
}

/// Returns the gid of iam-users, for whose members sshd does not read authorized_keys: that of the local group, if there is
/// one of that name. A process that asks often reads group(5) once a second for it.
fn restricting() -> Option<Gid> {
    static LAST: Mutex<Option<(Gid, BootTime)>> = Mutex::new(None);

    let read = || kept::local_gid(IAM_USERS).ok().flatten().unwrap_or(Gid::IAM_USERS);
    if !frequency::is_frequent() {
        return Some(read());
    }
    let now = BootTime::now();
    let Some(mut last) = frequency::try_lock(&LAST) else { return Some(read()) };
    if let Some((gid, checked)) = *last
        && frequency::serves(checked, now)
    {
        return Some(gid);
    }
    let gid = read();
    *last = Some((gid, now));
    Some(gid)
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
fn groups_in(given: Result<Option<Vec<Gid>>, ClientError>, restricts: Option<Gid>) -> Found<Vec<Gid>> {
    let gids = match given {
        Ok(Some(gids)) => gids,
        _ if restricts.is_some() => Vec::new(),
        Ok(None) => return Found::No,
        Err(_) => return Found::Unknown,
    };
    let mut gids = believed(gids);
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
fn user(
    answer: Result<Option<User>, ClientError>,
    now: BootTime,
    is_asked_for: impl Fn(&User) -> bool,
) -> Found<User> {
    match answer {
        Ok(Some(user)) if is_asked_for(&user) && is_sound(&user, now) => Found::Yes(user),
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

/// Whether this process only inspects the host, as `sshd -T` does for doctor and the sweep: its lookups are not part of a
/// login and start no revalidation. The environment of a setuid program comes from its caller and does not count.
fn looks_only() -> bool {
    let is_setuid = rustix::process::getuid() != rustix::process::geteuid();
    !is_setuid && std::env::var_os(paths::LOOK_ONLY).is_some()
}

/// The running resolver, asked on behalf of the user of this process or the client of sshd. It is never started.
struct Nss;

impl Nss {
    fn behalf() -> Behalf {
        Behalf { client: crate::host::client_of_sshd(), caller: looks_only().then_some(Uid::RESERVED) }
    }
}

impl Queries for Nss {
    fn send(&self, request: &Request) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(CLIENT_DEADLINE);
        client::ask_on_behalf(Path::new(paths::SOCKET), request, Self::behalf(), deadline)
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
    fn the_group_that_restricts_has_a_name_without_a_resolver_unless_the_host_has_its_own() {
        let Found::Yes(group) = group_by_gid(Gid::IAM_USERS) else { panic!("it has no name") };
        assert_eq!((group.name.as_str(), group.gid), (IAM_USERS, Gid::IAM_USERS));
        assert_eq!(group_by_name(IAM_USERS), Found::Yes(group));
        assert_eq!(iam_users(Ok(Some(Gid(990)))), Found::No);
        assert_eq!(iam_users(Err(io::ErrorKind::NotFound.into())), Found::Unknown);
    }

    #[test]
    fn a_managed_primary_group_always_comes_with_iam_users() {
        let (dev, root) = (Gid(pam_iam_core::id::FIRST), Gid(0));
        let groups = |gids: &[Gid]| Ok(Some(gids.to_vec()));
        let silent = || Err(ClientError::TimedOut);
        for (given, is_managed, found) in [
            (silent(), true, Found::Yes(vec![Gid::IAM_USERS])),
            (Ok(None), true, Found::Yes(vec![Gid::IAM_USERS])),
            (groups(&[dev, root]), true, Found::Yes(vec![dev, Gid::IAM_USERS])),
            (groups(&[Gid::IAM_USERS, dev]), true, Found::Yes(vec![Gid::IAM_USERS, dev])),
            (groups(&[dev]), false, Found::Yes(vec![dev])),
            (Ok(None), false, Found::No),
            (silent(), false, Found::Unknown),
        ] {
            assert_eq!(groups_in(given, is_managed.then_some(Gid::IAM_USERS)), found);
        }
    }

    #[test]
    fn an_account_that_was_not_asked_for_is_not_passed_on() {
        let uid = Uid(pam_iam_core::id::FIRST);
        let alice = User {
            name: LinuxName::new("alice").unwrap(),
            uid,
            gid: uid.private_group(),
            gecos: "alice".into(),
            home: "/home/alice".into(),
            shell: paths::NOLOGIN.into(),
        };
        let found =
            |name: &str| user(Ok(Some(alice.clone())), BootTime::now(), |user| user.name.as_str() == name);
        assert_eq!(found("alice"), Found::Yes(alice.clone()));
        assert_eq!(found("bob"), Found::Unknown);
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
