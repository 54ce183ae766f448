//! The questions behind the entry points, in safe Rust.

use std::path::Path;

use pam_iam_core::client;
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::LinuxName;
use pam_iam_core::paths;
use pam_iam_core::wire::{Answer, CLIENT_DEADLINE, Group, Request, User};

/// What a look-up brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// An entry.
    Yes(T),
    /// There is none.
    No,
    /// Nobody can tell now.
    Unknown,
}

pub fn user_by_name(name: &str) -> Found<User> {
    match LinuxName::new(name) {
        Ok(name) => user(&Request::UserByName { name }),
        Err(_) => Found::No,
    }
}

/// A uid outside our range is nobody of ours, and nobody is asked.
pub fn user_by_uid(uid: Uid) -> Found<User> {
    if uid.is_ours() { user(&Request::UserByUid { uid }) } else { Found::No }
}

pub fn group_by_name(name: &str) -> Found<Group> {
    match LinuxName::new(name) {
        Ok(name) => group(&Request::GroupByName { name }),
        Err(_) => Found::No,
    }
}

/// A gid outside our range is no group of ours, and nobody is asked.
pub fn group_by_gid(gid: Gid) -> Found<Group> {
    if gid.is_ours() { group(&Request::GroupByGid { gid }) } else { Found::No }
}

/// The supplementary groups of `user`. A user whose primary group is outside our range is none of ours, and nobody
/// is asked: services start at boot before the resolver does.
pub fn groups_of(user: &str, primary: Gid) -> Found<Vec<Gid>> {
    let (true, Ok(name)) = (primary.is_ours(), LinuxName::new(user)) else { return Found::No };
    match ask(&Request::GroupsOf { name }) {
        Some(Answer::Groups { gids }) => Found::Yes(gids),
        Some(Answer::NotFound) => Found::No,
        _ => Found::Unknown,
    }
}

fn user(request: &Request) -> Found<User> {
    match ask(request) {
        // What does not lie in our range is never believed, whoever says it: uid 0 least of all.
        Some(Answer::User(user)) if user.uid.is_ours() && user.gid.is_ours() => Found::Yes(user),
        Some(Answer::NotFound) => Found::No,
        _ => Found::Unknown,
    }
}

fn group(request: &Request) -> Found<Group> {
    match ask(request) {
        Some(Answer::Group(group)) if group.gid.is_ours() => Found::Yes(group),
        Some(Answer::NotFound) => Found::No,
        _ => Found::Unknown,
    }
}

fn ask(request: &Request) -> Option<Answer> {
    client::ask(Path::new(paths::SOCKET), request, Deadline::after(CLIENT_DEADLINE)).ok()
}

/// In a build for the tests, panics if the environment says so.
#[cfg(feature = "test-panic")]
#[expect(clippy::panic, reason = "what the feature is for")]
pub fn panic_if_tested(entry: &str) {
    if std::env::var("NSS_IAM_TEST_PANIC").is_ok_and(|wanted| wanted == entry) {
        panic!("forced in {entry}");
    }
}

/// Nothing, in a build for use.
#[cfg(not(feature = "test-panic"))]
pub fn panic_if_tested(_entry: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_ours_is_answered_without_asking() {
        // With no resolver about, whoever asks gets `Unknown`.
        assert_eq!(user_by_uid(Uid(0)), Found::No);
        assert_eq!(user_by_uid(Uid(1000)), Found::No);
        assert_eq!(group_by_gid(Gid(27)), Found::No);
        assert_eq!(groups_of("postgres", Gid(112)), Found::No);
        assert_eq!(user_by_name("a:b"), Found::No);
        assert_eq!(user_by_name(""), Found::No);
        assert_eq!(user_by_name("0"), Found::No);
        assert_eq!(group_by_name("-x"), Found::No);
    }
}
