//! Services of the host whose unit runs them as a user by `User=`.
//!
//! An administrator has written the user's name or uid into the unit, so the service is the host's, and its processes are
//! not ended. A transient unit, or a specifier like `%i`, can be a user's own choice and protects no process.

use std::path::PathBuf;

use pam_iam_core::id::Uid;
use pam_iam_core::unit::{FOLDERS, runs_as};

/// Returns the service of the host in whose control group `path` is, if its unit names the user in `User=`.
pub fn that_names(path: &str, name: &str, uid: Uid) -> Option<String> {
    let unit = service_in(path)?;
    let runs_as = runs_as(&FOLDERS.map(PathBuf::from), unit)?;
    let user = runs_as.literal_user()?;
    (user == name || user == uid.to_string()).then(|| unit.to_owned())
}

/// Returns the service that a control group belongs to: the first one on the path. None in a user's slice, whose services are the user's.
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
}
