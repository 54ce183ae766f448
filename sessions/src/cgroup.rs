//! Control groups: where a process is, and the end of all that is in one (cgroups(7)).
//!
//! Hosts have the unified hierarchy, the old ones, or both: systemd's own tree is then in the hierarchy called `systemd`.

use std::path::{Path, PathBuf};

use pam_iam_core::id::Uid;

/// The path of a process in systemd's tree, like `/user.slice/user-1000.slice/session-3.scope`.
pub fn of_process(pid: i32) -> Option<String> {
    // Not as text: a user may call a control group of his own anything.
    path_in(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?))
}

/// `ID:CONTROLLERS:PATH` lines. The hierarchy that systemd does not use says nothing but `/`.
fn path_in(text: &str) -> Option<String> {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == wanted).then(|| fields.next().unwrap_or_default().to_owned())
        })
    };
    of("name=systemd").filter(|path| path != "/").or_else(|| of(""))
}

/// Whether a path lies in the slice of a user.
pub fn is_in_slice(path: &str, uid: Uid) -> bool {
    slice_of(path, uid).is_some()
}

/// The part of `path` up to the slice of a user, if it lies in it.
pub fn slice_of(path: &str, uid: Uid) -> Option<String> {
    let slice = format!("user-{uid}.slice");
    let parts: Vec<&str> = path.split('/').collect();
    let at = parts.iter().position(|part| *part == slice)?;
    Some(parts.get(..=at)?.join("/"))
}

/// The user in whose slice a path lies.
pub fn user_of_slice(path: &str) -> Option<Uid> {
    let uid = |part: &str| part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok();
    path.split('/').find_map(uid).map(Uid)
}

/// The part of `path` up to the user's own unit that may be killed as a whole: `user@UID.service` or a session's scope
/// in the user's slice.
pub fn unit_of_user(path: &str, uid: Uid) -> Option<String> {
    if !is_in_slice(path, uid) {
        return None;
    }
    let manager = format!("user@{uid}.service");
    let parts: Vec<&str> = path.split('/').collect();
    let at = parts
        .iter()
        .position(|part| *part == manager || part.starts_with("session-") && part.ends_with(".scope"))?;
    Some(parts.get(..=at)?.join("/"))
}

/// Where the unified hierarchy is mounted, if it is.
fn unified() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

/// Kills all that is in the control group `path` of the unified hierarchy and below it, also what is just being forked.
/// False where there is no such thing (the old hierarchies, or a kernel before 5.14).
pub fn kill(path: &str) -> bool {
    let Some(root) = unified() else { return false };
    if path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty() {
        return false;
    }
    let group: &Path = path.trim_start_matches('/').as_ref();
    let file = root.join(group).join("cgroup.kill");
    // Opened, never made: a kernel or a hierarchy without the file cannot do it.
    let opened = std::fs::OpenOptions::new().write(true).open(file);
    opened.is_ok_and(|mut file| std::io::Write::write_all(&mut file, b"1").is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_own_hierarchy_is_read_where_there_are_both() {
        let hybrid = "12:pids:/user.slice\n1:name=systemd:/user.slice/user-7.slice/session-2.scope\n0::/\n";
        assert_eq!(path_in(hybrid).unwrap(), "/user.slice/user-7.slice/session-2.scope");
        assert_eq!(path_in("0::/system.slice/cron.service\n").unwrap(), "/system.slice/cron.service");
        let unified = "1:name=systemd:/\n0::/system.slice/cron.service\n";
        assert_eq!(path_in(unified).unwrap(), "/system.slice/cron.service");
        assert_eq!(path_in("3:cpu:/a:b\n"), None);
    }

    #[test]
    fn only_the_users_own_units_may_be_killed_as_a_whole() {
        let unit = |path: &str| unit_of_user(path, Uid(7));
        let slice = "/user.slice/user-7.slice";
        assert_eq!(
            unit(&format!("{slice}/user@7.service/app.slice/x.service")).unwrap(),
            format!("{slice}/user@7.service")
        );
        assert_eq!(unit(&format!("{slice}/session-2.scope")).unwrap(), format!("{slice}/session-2.scope"));
        assert_eq!(unit("/user.slice/user-77.slice/session-2.scope"), None);
        assert_eq!(unit(&format!("{slice}/other.scope")), None);
        assert_eq!(unit("/system.slice/user@7.service"), None);
        assert_eq!(user_of_slice(&format!("{slice}/session-2.scope")), Some(Uid(7)));
        assert_eq!(user_of_slice("/user.slice/user-x.slice"), None);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_followed() {
        assert!(!kill("/") && !kill("") && !kill("/../../etc"));
    }
}
