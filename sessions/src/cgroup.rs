//! Control groups: where a process is, and the end of all that is in one (cgroups(7)).
//!
//! Hosts have the unified hierarchy, the old ones, or both: systemd's own tree is then in the hierarchy called `systemd`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pam_iam_core::id::Uid;
use pam_iam_core::paths::FROZEN;
use pam_iam_core::process::Process;

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
pub struct Frozen {
    groups: Vec<File>,
    /// Where they are written down, so that they go on too if this process is killed before it lets them.
    record: Option<PathBuf>,
}

impl Frozen {
    /// Whether nothing stands still.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

/// How long it is waited for until a control group stands still.
const FREEZING_MAX: Duration = Duration::from_millis(200);

/// Has control groups of the unified hierarchy stand still, with all that is below them and all that is just being forked. No
/// process notices more than a pause, and its parent nothing. Returns which of them stand still or are gone, too: not the root, one
/// that this process is in, or one of the old hierarchies.
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
    // What somebody else has stopped is not ours to let go on.
    let ours: Vec<&PathBuf> =
        groups.values().filter(|group| group.exists() && !stands_still(group)).collect();
    if !ours.is_empty() && write_down(records, &ours).map(|record| frozen.record = Some(record)).is_err() {
        return (frozen, BTreeSet::new());
    }
    for group in ours {
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
            while group.exists() && !stands_still(group) {
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

/// Whether a control group stands still or is gone.
pub fn is_still(path: &str) -> bool {
    let group = unified().and_then(|root| directory(&root, path));
    group.is_some_and(|group| !group.exists() || stands_still(&group))
}

fn stands_still(group: &Path) -> bool {
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

/// Lets go on what processes that were killed have left standing still.
pub fn let_go_on() {
    let_go_on_in(Path::new(FROZEN));
}

fn let_go_on_in(records: &Path) {
    for record in std::fs::read_dir(records).into_iter().flatten().filter_map(Result::ok) {
        // A number is given again.
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

    /// A control group, as far as files can be one: it stands still if they say so.
    fn group(root: &Path, name: &str, frozen: u8) -> PathBuf {
        let group = root.join(name);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("cgroup.events"), format!("populated 1\nfrozen {frozen}\n")).unwrap();
        std::fs::write(group.join("cgroup.freeze"), "x").unwrap();
        group
    }

    #[test]
    fn what_stood_still_goes_on_and_what_a_killed_process_left_too() {
        let dir = tempfile::tempdir().unwrap();
        let (root, records) = (dir.path().join("cgroup"), dir.path().join("frozen"));
        let (ours, theirs) = (group(&root, "user-7.slice", 0), group(&root, "user-8.slice", 1));
        let state = |group: &Path| std::fs::read_to_string(group.join("cgroup.freeze")).unwrap();
        let paths = ["/user-7.slice", "/user-8.slice", "/gone.slice", "/"].map(str::to_owned).into();
        let (frozen, still) = freeze_in(&root, &records, paths);
        assert_eq!(state(&ours), "1");
        assert_eq!(
            still,
            ["/gone.slice", "/user-8.slice"].map(str::to_owned).into(),
            "these files never say so"
        );
        let own = Process::this().unwrap();
        let record = records.join(format!("{}-{}", own.pid, own.start));
        assert_eq!(std::fs::read_to_string(&record).unwrap(), ours.display().to_string());
        // While its process lives, nobody else lets it go on.
        let_go_on_in(&records);
        assert_eq!(state(&ours), "1");
        // Its number is somebody else's by then.
        std::fs::rename(&record, records.join(format!("{}-{}", own.pid, own.start + 1))).unwrap();
        let_go_on_in(&records);
        assert_eq!((state(&ours).as_str(), state(&theirs).as_str()), ("0", "x"));
        std::fs::write(&record, "").unwrap();
        drop(frozen);
        assert!(std::fs::read_dir(&records).unwrap().next().is_none());
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_followed() {
        assert!(!kill("/") && !kill("") && !kill("/../../etc"));
    }
}
