//! Control groups: where a process is, and the end of all that is in one (cgroups(7)).
//!
//! Hosts have the unified hierarchy, the old ones, or both: systemd's own tree is then in the hierarchy called `systemd`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// The user in whose slice a path lies, and the path of that slice. Only the host's systemd has slices of users right under
/// `/user.slice`: one further down is that of a container's systemd.
fn slice_in(path: &str) -> Option<(Uid, &str)> {
    let part = path.strip_prefix("/user.slice/")?.split('/').next()?;
    let uid = part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()?;
    Some((Uid(uid), path.get(..="/user.slice".len() + part.len())?))
}

/// Whether a path lies in the slice of a user.
pub fn is_in_slice(path: &str, uid: Uid) -> bool {
    user_of_slice(path) == Some(uid)
}

/// The part of `path` up to the slice of a user, if it lies in it.
pub fn slice_of(path: &str, uid: Uid) -> Option<String> {
    slice_in(path).filter(|(owner, _)| *owner == uid).map(|(_, slice)| slice.to_owned())
}

/// The slice of a user in the unified hierarchy, if there is one.
pub fn slice_that_is_there(uid: Uid) -> Option<String> {
    let slice = format!("/user.slice/user-{uid}.slice");
    directory(&unified()?, &slice)?.is_dir().then_some(slice)
}

/// The user in whose slice a path lies.
pub fn user_of_slice(path: &str) -> Option<Uid> {
    slice_in(path).map(|(uid, _)| uid)
}

/// The part of `path` up to the user's own unit that may be killed as a whole: `user@UID.service` or a session's scope
/// in the user's slice.
pub fn unit_of_user(path: &str, uid: Uid) -> Option<String> {
    let slice = slice_of(path, uid)?;
    let unit = path.strip_prefix(&slice)?.strip_prefix('/')?.split('/').next()?;
    let is_own =
        unit == format!("user@{uid}.service") || unit.starts_with("session-") && unit.ends_with(".scope");
    is_own.then(|| format!("{slice}/{unit}"))
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

/// Control groups that stand still for a moment; they go on when this is dropped.
#[derive(Debug, Default)]
pub struct Frozen(Vec<File>);

/// How long it is waited for until a control group stands still.
const FREEZING_MAX: Duration = Duration::from_millis(200);

/// Has control groups of the unified hierarchy stand still, with all that is below them and all that is just being forked. No
/// process notices more than a pause, and its parent nothing. Returns which of them stand still or are gone, too: not the root, one
/// that this process is in, or one of the old hierarchies.
pub fn freeze(mut paths: BTreeSet<String>) -> (Frozen, BTreeSet<String>) {
    let own = i32::try_from(std::process::id()).ok().and_then(of_process).unwrap_or_default();
    let (mut frozen, root) = (Frozen::default(), unified());
    paths.retain(|path| {
        let is_own = own == *path || own.starts_with(&format!("{path}/"));
        let group = root.as_ref().and_then(|root| directory(root, path)).filter(|_| !is_own);
        group.is_some_and(|group| !group.exists() || stop(&group, &mut frozen))
    });
    (frozen, paths)
}

/// Has one control group stand still. False if it does not within [`FREEZING_MAX`].
fn stop(group: &Path, frozen: &mut Frozen) -> bool {
    let stands_still = || {
        std::fs::read_to_string(group.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
    };
    // What somebody else has stopped is not ours to let go on.
    if stands_still() {
        return true;
    }
    let Ok(mut file) = OpenOptions::new().write(true).open(group.join("cgroup.freeze")) else { return false };
    if file.write_all(b"1").is_err() {
        return false;
    }
    frozen.0.push(file);
    let until = Instant::now() + FREEZING_MAX;
    while !stands_still() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    true
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for file in &mut self.0 {
            let _ = file.write_all(b"0");
        }
    }
}

/// The directory of the control group `path`; none for the root.
fn directory(root: &Path, path: &str) -> Option<PathBuf> {
    let leads_elsewhere = path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty();
    (!leads_elsewhere).then(|| root.join(path.trim_start_matches('/')))
}

/// Kills all that is in the control group `path` of the unified hierarchy and below it, also what is just being forked.
/// False where there is no such thing (the old hierarchies, or a kernel before 5.14).
pub fn kill(path: &str) -> bool {
    let Some(group) = unified().and_then(|root| directory(&root, path)) else { return false };
    // Opened, never made: a kernel or a hierarchy without the file cannot do it.
    let opened = OpenOptions::new().write(true).open(group.join("cgroup.kill"));
    opened.is_ok_and(|mut file| file.write_all(b"1").is_ok())
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
        // What a container calls its own.
        let inside = format!("/machine.slice/c1.scope{slice}/session-2.scope");
        assert_eq!((user_of_slice(&inside), unit(&inside)), (None, None));
        assert_eq!(unit(&format!("{slice}/x.slice/session-2.scope")), None);
        assert_eq!(slice_of(&format!("{slice}/session-2.scope"), Uid(7)).unwrap(), slice);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_followed() {
        assert!(!kill("/") && !kill("") && !kill("/../../etc"));
    }
}
