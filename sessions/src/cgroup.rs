//! Control groups (cgroups(7)): finds the control group of a process, and freezes or kills all processes in a control group.
//!
//! A host has the unified hierarchy (version 2), old hierarchies (version 1), or both. Where it has both, systemd's tree is
//! in the old hierarchy named `systemd`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pam_iam_core::id::Uid;
use pam_iam_core::paths::FROZEN;
use pam_iam_core::process::Process;

/// Returns the path of a process in systemd's tree, like `/user.slice/user-1000.slice/session-3.scope`.
pub fn of_process(pid: i32) -> Option<String> {
    // Read as bytes: a user can give a control group a name that is not UTF-8.
    path_in(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?))
}

/// Finds the path in the `ID:CONTROLLERS:PATH` lines of a process: that in the old hierarchy of systemd, or that in the
/// unified one if systemd does not use the old one, where the path is `/`.
fn path_in(text: &str) -> Option<String> {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == wanted).then(|| fields.next().unwrap_or_default().to_owned())
        })
    };
    of("name=systemd").filter(|path| path != "/").or_else(|| of(""))
}

/// Returns the user in whose slice a path lies, and the path of that slice. Only a slice directly under `/user.slice` counts: a deeper one
/// belongs to the systemd of a container.
fn slice_in(path: &str) -> Option<(Uid, &str)> {
    let part = path.strip_prefix("/user.slice/")?.split('/').next()?;
    let uid = part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()?;
    Some((Uid(uid), path.get(..="/user.slice".len() + part.len())?))
}

/// Whether a path lies in the slice of a user.
pub fn is_in_slice(path: &str, uid: Uid) -> bool {
    user_of_slice(path) == Some(uid)
}

/// Returns the part of `path` up to the user's slice. None if the path is not in that slice.
pub fn slice_of(path: &str, uid: Uid) -> Option<String> {
    slice_in(path).filter(|(owner, _)| *owner == uid).map(|(_, slice)| slice.to_owned())
}

/// Returns the path of a user's slice, if it exists in the unified hierarchy.
pub fn existing_slice(uid: Uid) -> Option<String> {
    let slice = format!("/user.slice/user-{uid}.slice");
    directory(&unified()?, &slice)?.is_dir().then_some(slice)
}

/// Returns the user in whose slice a path lies.
pub fn user_of_slice(path: &str) -> Option<Uid> {
    slice_in(path).map(|(uid, _)| uid)
}

/// Returns the part of `path` up to the user's own unit that may be killed as a whole: `user@UID.service` or a session's scope in the
/// user's slice.
pub fn unit_of_user(path: &str, uid: Uid) -> Option<String> {
    let slice = slice_of(path, uid)?;
    let unit = path.strip_prefix(&slice)?.strip_prefix('/')?.split('/').next()?;
    let is_own =
        unit == format!("user@{uid}.service") || unit.starts_with("session-") && unit.ends_with(".scope");
    is_own.then(|| format!("{slice}/{unit}"))
}

/// Returns where the unified hierarchy is mounted.
fn unified() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

/// Frozen control groups. Dropping this thaws them.
#[derive(Debug, Default)]
pub struct Frozen {
    groups: Vec<File>,
    /// A file that lists the control groups, so that [`thaw_abandoned`] can thaw them if this process is killed first.
    record: Option<PathBuf>,
}

impl Frozen {
    /// Whether no control group was frozen.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

/// How long to wait for control groups to freeze.
const FREEZING_MAX: Duration = Duration::from_millis(200);

/// Freezes control groups of the unified hierarchy and those below them, forks in progress included. The processes notice
/// only a pause, and their parents notice nothing. Returns the control groups that it has frozen, and those of `paths` that
/// are now frozen or gone. The root, a group that this process is in, and groups of an old hierarchy are never frozen.
pub fn freeze(paths: BTreeSet<String>) -> (Frozen, BTreeSet<String>) {
    match unified() {
        Some(root) if !paths.is_empty() => freeze_in(&root, Path::new(FROZEN), paths),
        _ => (Frozen::default(), BTreeSet::new()),
    }
}

fn freeze_in(root: &Path, records: &Path, mut paths: BTreeSet<String>) -> (Frozen, BTreeSet<String>) {
    let own = i32::try_from(std::process::id()).ok().and_then(of_process).unwrap_or_default();
    let mut frozen = Frozen::default();
    let mut groups = BTreeMap::new();
    paths.retain(|path| {
        let is_own = own == *path || own.starts_with(&format!("{path}/"));
        let group = directory(root, path).filter(|_| !is_own);
        group.is_some_and(|group| groups.insert(path.clone(), group).is_none())
    });
    // A group that another process has frozen is not frozen here, and so not thawed either.
    let running: Vec<&PathBuf> =
        groups.values().filter(|group| group.exists() && !is_frozen(group)).collect();
    if !running.is_empty()
        && write_down(records, &running).map(|record| frozen.record = Some(record)).is_err()
    {
        return (frozen, BTreeSet::new());
    }
    for group in running {
        let opened = OpenOptions::new().write(true).open(group.join("cgroup.freeze"));
        if let Ok(mut file) = opened
            && file.write_all(b"1").is_ok()
        {
            frozen.groups.push(file);
        }
    }
    let until = Instant::now() + FREEZING_MAX;
    paths.retain(|path| {
        groups.get(path).is_some_and(|group| {
            while group.exists() && !is_frozen(group) {
                if Instant::now() >= until {
                    return false;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            true
        })
    });
    (frozen, paths)
}

/// Whether a control group is frozen or gone.
pub fn is_frozen_or_gone(path: &str) -> bool {
    let group = unified().and_then(|root| directory(&root, path));
    group.is_some_and(|group| !group.exists() || is_frozen(&group))
}

fn is_frozen(group: &Path) -> bool {
    std::fs::read_to_string(group.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
}

fn write_down(records: &Path, groups: &[&PathBuf]) -> std::io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(records)?;
    let own = Process::this()?;
    let record = records.join(format!("{}-{}", own.pid, own.start));
    let lines: Vec<String> = groups.iter().map(|group| group.display().to_string()).collect();
    std::fs::write(&record, lines.join("\n"))?;
    Ok(record)
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for file in &mut self.groups {
            let _ = file.write_all(b"0");
        }
        if let Some(record) = &self.record {
            let _ = std::fs::remove_file(record);
        }
    }
}

/// Thaws the control groups that were frozen by processes which were killed before they could thaw them.
pub fn thaw_abandoned() {
    thaw_abandoned_in(Path::new(FROZEN));
}

fn thaw_abandoned_in(records: &Path) {
    for record in std::fs::read_dir(records).into_iter().flatten().filter_map(Result::ok) {
        // The start time distinguishes a process from a later one with the same pid.
        let process = record.file_name().to_str().and_then(|name| {
            let (pid, start) = name.split_once('-')?;
            Some(Process { pid: pid.parse().ok()?, start: start.parse().ok()? })
        });
        if process.is_some_and(Process::is_running) {
            continue;
        }
        for group in std::fs::read_to_string(record.path()).unwrap_or_default().lines() {
            let opened = OpenOptions::new().write(true).open(Path::new(group).join("cgroup.freeze"));
            let _ = opened.and_then(|mut file| file.write_all(b"0"));
        }
        let _ = std::fs::remove_file(record.path());
    }
}

/// Returns the directory of the control group `path`. None for the root, and for a path with `..`.
fn directory(root: &Path, path: &str) -> Option<PathBuf> {
    let is_refused = path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty();
    (!is_refused).then(|| root.join(path.trim_start_matches('/')))
}

/// Kills all processes in the control group `path` of the unified hierarchy and below it, forks in progress included. Returns false where
/// that is not possible: in an old hierarchy, or with a kernel before 5.14.
pub fn kill(path: &str) -> bool {
    let Some(group) = unified().and_then(|root| directory(&root, path)) else { return false };
    // The file is not created: if it is missing, the kernel or the hierarchy cannot kill a control group.
    let opened = OpenOptions::new().write(true).open(group.join("cgroup.kill"));
    opened.is_ok_and(|mut file| file.write_all(b"1").is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_hierarchy_is_read_on_a_host_with_both() {
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
        // The slice of a container's own systemd.
        let inside = format!("/machine.slice/c1.scope{slice}/session-2.scope");
        assert_eq!((user_of_slice(&inside), unit(&inside)), (None, None));
        assert_eq!(unit(&format!("{slice}/x.slice/session-2.scope")), None);
        assert_eq!(slice_of(&format!("{slice}/session-2.scope"), Uid(7)).unwrap(), slice);
    }

    /// Makes a control group of plain files, which is frozen if `frozen` is 1.
    fn group(root: &Path, name: &str, frozen: u8) -> PathBuf {
        let group = root.join(name);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("cgroup.events"), format!("populated 1\nfrozen {frozen}\n")).unwrap();
        std::fs::write(group.join("cgroup.freeze"), "x").unwrap();
        group
    }

    #[test]
    fn groups_are_thawed_on_drop_and_after_a_killed_process() {
        let dir = tempfile::tempdir().unwrap();
        let (root, records) = (dir.path().join("cgroup"), dir.path().join("frozen"));
        let (running, frozen_before) = (group(&root, "user-7.slice", 0), group(&root, "user-8.slice", 1));
        let state = |group: &Path| std::fs::read_to_string(group.join("cgroup.freeze")).unwrap();
        let paths = ["/user-7.slice", "/user-8.slice", "/gone.slice", "/"].map(str::to_owned).into();
        let (frozen, still) = freeze_in(&root, &records, paths);
        assert_eq!(state(&running), "1");
        assert_eq!(
            still,
            ["/gone.slice", "/user-8.slice"].map(str::to_owned).into(),
            "a plain file never reports that it is frozen"
        );
        let own = Process::this().unwrap();
        let record = records.join(format!("{}-{}", own.pid, own.start));
        assert_eq!(std::fs::read_to_string(&record).unwrap(), running.display().to_string());
        // While the process of the record runs, nobody else thaws the group.
        thaw_abandoned_in(&records);
        assert_eq!(state(&running), "1");
        // Now the record is of a process that is gone, and another has its pid.
        std::fs::rename(&record, records.join(format!("{}-{}", own.pid, own.start + 1))).unwrap();
        thaw_abandoned_in(&records);
        assert_eq!((state(&running).as_str(), state(&frozen_before).as_str()), ("0", "x"));
        std::fs::write(&record, "").unwrap();
        drop(frozen);
        assert!(std::fs::read_dir(&records).unwrap().next().is_none());
    }

    #[test]
    fn the_root_and_paths_with_dots_are_never_killed() {
        assert!(!kill("/") && !kill("") && !kill("/../../etc"));
    }
}
