//! What may be passed on to the program that looks up a name, whether it comes from the map or from the resolver. A compromised
//! resolver can decide about managed accounts, and about nothing else.

use std::sync::Mutex;

use pam_iam_core::id::Gid;
use pam_iam_core::map::BootTime;
use pam_iam_core::paths;
use pam_iam_core::wire::User;

use crate::frequency::{is_frequent, serves, try_lock};
use crate::kept;

/// Whether an account may be passed on. Its uid is in the managed range, its primary group is its own, and no field of it would
/// be misread by programs.
pub fn is_sound(user: &User, now: BootTime) -> bool {
    user.uid.is_managed()
        && user.gid == user.uid.private_group()
        && is_path(&user.home)
        && is_path(&user.shell)
        && is_field(&user.gecos)
        && is_shell(&user.shell, now)
}

/// Whether a text can be a field of passwd(5).
fn is_field(text: &str) -> bool {
    !text.contains(|c: char| c == ':' || c.is_control())
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && is_field(path) && !path.split('/').any(|part| part == "..")
}

/// Whether `shell` may be a user's shell: root has configured it, shells(5) lists it, or it admits nobody.
fn is_shell(shell: &str, now: BootTime) -> bool {
    /// The shell that was last found to be known, and when.
    static KNOWN: Mutex<Option<(String, BootTime)>> = Mutex::new(None);

    if shell == paths::NOLOGIN {
        return true;
    }
    if !is_frequent() {
        return kept::is_known_shell(shell);
    }
    let Some(mut known) = try_lock(&KNOWN) else { return kept::is_known_shell(shell) };
    if known.as_ref().is_some_and(|(last, checked)| last == shell && serves(*checked, now)) {
        return true;
    }
    let is_known = kept::is_known_shell(shell);
    *known = is_known.then(|| (shell.to_owned(), now));
    is_known
}

/// Whether NSS may give a user this gid: it is in the managed range, or in `mapped`. 0 is never given.
pub fn is_believed(gid: Gid, mapped: &[Gid]) -> bool {
    gid.is_managed() || gid.0 != 0 && mapped.contains(&gid)
}

/// Returns those of `gids` that NSS may give a user.
pub fn believed(mut gids: Vec<Gid>) -> Vec<Gid> {
    if gids.iter().all(|gid| gid.is_managed()) {
        return gids;
    }
    let mapped = kept::mapped_gids();
    gids.retain(|gid| is_believed(*gid, &mapped));
    gids
}

#[cfg(test)]
mod tests {
    use super::*;
    use pam_iam_core::id::Uid;
    use pam_iam_core::name::LinuxName;

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
        let nologin = paths::NOLOGIN;
        let is_sound = |user: &User| is_sound(user, BootTime::now());
        assert!(is_sound(&user("/home/alice", nologin, "alice")));
        for wrong in [
            user("home", nologin, ""),
            user("/home/../root", nologin, ""),
            user("/home/a:b", nologin, ""),
            user("/home/a", "/bin/sh\n", ""),
            user("/home/a", "sh", ""),
            user("/home/a", "/tmp/made-by-the-user", ""),
            user("/home/a", nologin, "a:0:0"),
            User { gid: Gid(0), ..user("/home/a", nologin, "") },
            User { uid: Uid(0), gid: Gid(0), ..user("/home/a", nologin, "") },
        ] {
            assert!(!is_sound(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_gid_outside_the_range_needs_the_word_of_root() {
        let mapped = [Gid(27), Gid(0)];
        let believed =
            [Gid(pam_iam_core::id::FIRST), Gid(27), Gid(44), Gid(0)].map(|gid| is_believed(gid, &mapped));
        assert_eq!(believed, [true, true, false, false]);
    }
}
