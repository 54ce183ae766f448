//! Services of the host that run as a user because their unit says so.
//!
//! Whoever administers the host wrote `User=NAME` there, so such a service is the host's and no user's. A transient unit
//! or a specifier like `%i` is anybody's choice and protects nothing.

use std::path::{Path, PathBuf};

use pam_iam_core::id::Uid;

/// Where units lie that an administrator or a package wrote. Not /run: what is transient is there.
const FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The service of the host in whose control group `path` is, if its unit names the user in `User=`.
pub fn that_names(path: &str, name: &str, uid: Uid) -> Option<String> {
    let unit = service_in(path)?;
    let user = user_of(&FOLDERS.map(PathBuf::from), unit)?;
    (user == name || user == uid.to_string()).then(|| unit.to_owned())
}

/// The service that a control group is of: the first one on the path. Nothing in a user's slice is a service of the host.
fn service_in(path: &str) -> Option<&str> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let unit = loop {
        let part = parts.next()?;
        if part == "user.slice" || part.starts_with("user-") && part.ends_with(".slice") {
            return None;
        }
        if part.ends_with(".service") {
            break part;
        }
    };
    (!unit.starts_with("user@")).then_some(unit)
}

/// The last `User=` of a unit's fragment and drop-ins, unless it holds a specifier.
fn user_of(folders: &[PathBuf], unit: &str) -> Option<String> {
    // An instance has the fragment of its template, unless it has one of its own.
    let template = unit.split_once('@').map(|(prefix, _)| format!("{prefix}@.service"));
    let names = [Some(unit.to_owned()), template];
    let names: Vec<String> = names.into_iter().flatten().collect();
    let mut user = None;
    let fragment = names.iter().find_map(|name| folders.iter().find_map(|folder| read(&folder.join(name))));
    set_user(&mut user, &fragment?);
    for name in names.iter().rev() {
        for folder in folders.iter().rev() {
            for drop_in in drop_ins(&folder.join(format!("{name}.d"))) {
                set_user(&mut user, &drop_in);
            }
        }
    }
    user.filter(|user| !user.contains('%'))
}

fn drop_ins(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect());
    let mut paths: Vec<PathBuf> =
        entries.unwrap_or_else(|_| Vec::new()).iter().map(std::fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    paths.iter().filter_map(|path| read(path)).collect()
}

fn read(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())
}

/// Takes `User=` of the section `[Service]` over; an empty one takes back what was set before.
fn set_user(user: &mut Option<String>, text: &str) {
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[Service]"
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == "User"
        {
            let value = value.trim();
            *user = (!value.is_empty()).then(|| value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_the_hosts_only_outside_users_slices() {
        assert_eq!(service_in("/system.slice/app.service"), Some("app.service"));
        assert_eq!(service_in("/system.slice/system-x.slice/x@1.service/y.service"), Some("x@1.service"));
        for path in [
            "/user.slice/user-7.slice/user@7.service/app.slice/app.service",
            "/user-7.slice/app.service",
            "/system.slice/user@7.service",
            "/init.scope",
            "/",
        ] {
            assert_eq!(service_in(path), None, "{path}");
        }
    }

    #[test]
    fn the_last_user_that_an_administrator_wrote_literally_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, lib) = (dir.path().join("etc"), dir.path().join("lib"));
        let folders = [etc.clone(), lib.clone()];
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(lib.join("app.service"), "[Unit]\nUser=no\n[Service]\n User = alice\n");
        write(lib.join("run@.service"), "[Service]\nUser=%i\n");
        write(lib.join("none.service"), "[Service]\nExecStart=/bin/true\n");
        let user = |unit: &str| user_of(&folders, unit);
        assert_eq!(user("app.service").as_deref(), Some("alice"));
        assert_eq!(user("run@alice.service"), None, "whoever starts it chooses");
        assert_eq!(user("none.service"), None);
        assert_eq!(user("run-r123.service"), None, "transient");
        write(etc.join("app.service.d/user.conf"), "[Service]\nUser=bob\n");
        assert_eq!(user("app.service").as_deref(), Some("bob"));
        write(etc.join("app.service"), "[Service]\nUser=carol\n");
        write(etc.join("app.service.d/user.conf"), "[Service]\nUser=\n");
        assert_eq!(user("app.service"), None);
    }
}
