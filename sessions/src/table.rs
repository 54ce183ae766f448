//! All processes at one moment, from proc(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::process::{Process, Stat, audit_session, has_ended, stat};
use pam_iam_core::{local, paths};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

mod lent;

use lent::is_lent;

/// Where proc(5) is mounted.
const PROC: &str = "/proc";

/// How many times the newest processes are looked for after the listed ones were read.
const CHASES: u32 = 100;

/// How many of the newest pids are tried each time: several processes may have begun since the last time.
const CHASED: usize = 3;

/// The most bytes of a `status` file that are read. A user can lengthen it by 65,536 groups. The list is sorted by gid, and
/// the gids that a user can add are higher than those of the host's groups.
const STATUS_MAX: u64 = 32 * 1024;

/// How thoroughly processes are read. A user can make reading slow, by many threads with many groups each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Short time limits: processes that are slow to read stay unread, and do not delay the end of other users' processes.
    Quick,
    /// Time limits that are several times those of [`Self::Quick`].
    Thorough,
}

impl Effort {
    fn limits(self) -> Limits {
        let limits = |user, root, all| {
            let [user, root, all] = [user, root, all].map(Duration::from_millis);
            Limits { user, root, all }
        };
        match self {
            Self::Quick => limits(500, 1000, 3000),
            Self::Thorough => limits(8000, 4000, 10_000),
        }
    }
}

/// The most processor time for reading processes.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For the processes of one user, or for those under the subordinate uids of one user.
    user: Duration,
    /// For the processes of root.
    root: Duration,
    /// For the processes of all users but root together.
    all: Duration,
}

/// The uids of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uids {
    /// The real uid.
    pub real: Uid,
    /// The effective uid.
    pub effective: Uid,
    /// The saved uid.
    pub saved: Uid,
    /// The file system uid (setfsuid(2)).
    pub fs: Uid,
}

impl Uids {
    /// Returns the real, effective, saved and file system uid.
    pub fn all(self) -> [Uid; 4] {
        [self.real, self.effective, self.saved, self.fs]
    }

    /// Whether the real and saved uids are root's. Then root only lends the other two for a moment, as its daemons do to
    /// read a user's files. An unprivileged process cannot have such uids.
    pub fn are_lent_by_root(self) -> bool {
        self.real == Uid::ROOT && self.saved == Uid::ROOT
    }
}

/// A process that has not ended.
#[derive(Clone, Debug)]
pub struct Task {
    /// The pid and the start time.
    pub process: Process,
    /// Its parent, session and terminal.
    pub stat: Stat,
    /// The uids of its threads, without duplicates. In the kernel each thread has its own uids, though setuid(2) of the C
    /// library changes those of all threads.
    pub uids: Vec<Uids>,
    /// The real gids and supplementary groups of its threads.
    pub groups: BTreeSet<Gid>,
    /// The effective, saved and file system gids of its threads that are not in `groups`. A setgid program gets them from
    /// its file.
    pub set_groups: BTreeSet<Gid>,
    /// Its effective uid, if not all its ids could be read in time. Then `uids` has only that uid, or the uids of some
    /// threads.
    pub unread: Option<Uid>,
    /// Whether only its effective uid is known. Root may be lending that uid, so no signal is sent to the process.
    pub is_guessed: bool,
    /// Its audit session. Read together with the other fields, since the process may be gone a moment later.
    pub audit: Option<String>,
    /// The name that it gives itself (at most 15 bytes), escaped.
    pub command: String,
}

impl Task {
    /// Returns the uids of all its threads, without those that root lends.
    pub fn own_uids(&self) -> impl Iterator<Item = Uid> {
        self.uids.iter().filter(|uids| !uids.are_lent_by_root()).flat_map(|uids| uids.all())
    }

    /// Whether it holds the group `gid`. A group that it has only from a setgid program of the host, such as crontab(1),
    /// does not count.
    pub fn holds(&self, gid: Gid) -> bool {
        self.groups.contains(&gid) || self.set_groups.contains(&gid) && !is_lent(self.process.pid, gid)
    }

    /// Returns the uids of all its threads.
    pub fn all_uids(&self) -> impl Iterator<Item = Uid> {
        self.uids.iter().flat_map(|uids| uids.all())
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uids: BTreeSet<Uid> = self.uids.iter().map(|uids| uids.real).collect();
        let uids: Vec<String> = uids.iter().map(ToString::to_string).collect();
        write!(f, "{}({}, uid {})", self.process.pid, self.command, uids.join("+"))
    }
}

/// All processes that have not ended, by pid.
#[derive(Clone, Debug, Default)]
pub struct Table(pub BTreeMap<i32, Task>);

impl Table {
    /// Reads proc(5), the newest processes first: a process that forks and ends all the time would be gone if older ones
    /// were read before it. Then looks for processes that began during the reading.
    ///
    /// # Errors
    /// Returns an error if the list of processes cannot be read. A process that ends during the reading is left out.
    pub fn read(effort: Effort) -> io::Result<Self> {
        let mut reader = Reader::new(effort, local::subordinate(Path::new(paths::SUBUID)));
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(PROC)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        let newest = newest_pid();
        // After the highest pid the kernel begins again with the lowest, so pids above the newest one are the oldest.
        pids.sort_by_key(|pid| (*pid > newest, std::cmp::Reverse(*pid)));
        for pid in pids {
            reader.add(pid, true)?;
        }
        for _ in 0..CHASES {
            let newest = newest_pid();
            for pid in (1..=newest).rev().take(CHASED) {
                if !reader.table.0.contains_key(&pid) {
                    reader.add(pid, false)?;
                }
            }
        }
        Ok(reader.table)
    }

    /// Returns how many processes could not be read completely in time.
    pub fn unread(&self) -> usize {
        self.0.values().filter(|task| task.unread.is_some()).count()
    }

    /// Returns the entry of a process. None if its pid is not in the table, or is that of another process.
    pub fn task(&self, process: Process) -> Option<&Task> {
        self.0.get(&process.pid).filter(|task| task.process == process)
    }
}

/// Reads processes within the limits of time for each user.
struct Reader {
    table: Table,
    limits: Limits,
    /// The ranges of subordinate uids.
    subordinate: Vec<local::Subordinate>,
    /// The time spent on the processes of each user.
    spent: BTreeMap<Payer, Duration>,
    /// The time spent on the processes of all users but root.
    spent_together: Duration,
}

impl Reader {
    fn new(effort: Effort, subordinate: Vec<local::Subordinate>) -> Self {
        let (table, spent) = Default::default();
        Self { table, limits: effort.limits(), subordinate, spent, spent_together: Duration::ZERO }
    }

    /// Adds a process, unless it has ended. A pid that was not listed may be a thread's, so it is added only if its status could be read.
    fn add(&mut self, pid: i32, is_listed: bool) -> io::Result<()> {
        let Some(stat) = stat(pid).filter(|stat| !stat.zombie || !has_ended(pid)) else { return Ok(()) };
        let process = Process { pid, start: stat.start };
        let Ok(found) = std::fs::metadata(format!("{PROC}/{pid}")) else { return Ok(()) };
        let audit = audit_session(pid);
        let effective = Uid(found.uid());
        let began = work_done();
        let left = self.left(effective);
        let status = if left.is_zero() {
            Some(Status::default())
        } else {
            // After any other error, such as lack of memory, the process counts as unread.
            status(pid, stat.threads, began + left).unwrap_or_else(|_| Some(Status::default()))
        };
        self.spend(effective, work_done().saturating_sub(began));
        let is_process = |status: &Status| status.group == pid || is_listed && !status.is_read;
        let Some(status) = status.filter(is_process) else { return Ok(()) };
        let unread = (!status.is_read).then_some(effective);
        let Status { mut uids, groups, set_groups, command, .. } = status;
        let is_guessed = uids.is_empty();
        if is_guessed {
            uids.push(Uids { real: effective, effective, saved: effective, fs: effective });
        }
        self.table.0.insert(
            pid,
            Task { process, stat, uids, groups, set_groups, unread, is_guessed, audit, command },
        );
        Ok(())
    }

    /// Returns how long processes with this effective uid may still be read.
    fn left(&self, effective: Uid) -> Duration {
        let payer = self.payer(effective);
        let (limits, spent) = (self.limits, self.spent.get(&payer).copied().unwrap_or_default());
        match payer {
            Payer::User(Uid::ROOT) => limits.root.saturating_sub(spent),
            _ => limits.user.saturating_sub(spent).min(limits.all.saturating_sub(self.spent_together)),
        }
    }

    fn spend(&mut self, effective: Uid, time: Duration) {
        let payer = self.payer(effective);
        if payer != Payer::User(Uid::ROOT) {
            self.spent_together += time;
        }
        *self.spent.entry(payer).or_default() += time;
    }

    fn payer(&self, uid: Uid) -> Payer {
        let range = self.subordinate.iter().find(|range| uid != Uid::ROOT && range.uids.contains(&uid.0));
        range.map_or(Payer::User(uid), |range| Payer::OwnerOfRange(range.owner.clone()))
    }
}

/// The user whose limit is charged for reading a process. A user with a subordinate range has thousands of uids, which count as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Payer {
    User(Uid),
    OwnerOfRange(String),
}

/// Reads the ids of a process and of all its threads, as far as there is time, and its name. None if the process is gone, or
/// `pid` is that of a thread. No more threads are read once [`work_done`] reaches `until`.
fn status(pid: i32, threads: u32, until: Duration) -> io::Result<Option<Status>> {
    let Some(mut status) = status_at(&format!("{PROC}/{pid}/status"))? else { return Ok(None) };
    // `pid` is that of a thread, not of a process.
    if status.group != pid {
        return Ok(None);
    }
    if threads < 2 {
        return Ok(Some(status));
    }
    let mut uids: BTreeSet<Uids> = status.uids.iter().copied().collect();
    for entry in std::fs::read_dir(format!("{PROC}/{pid}/task")).into_iter().flatten().filter_map(Result::ok)
    {
        if work_done() >= until {
            status.is_read = false;
            break;
        }
        let Some(thread) = status_at(&entry.path().join("status").to_string_lossy())? else { continue };
        uids.extend(thread.uids);
        status.groups.extend(thread.groups);
        status.set_groups.extend(thread.set_groups);
    }
    status.uids = uids.into_iter().collect();
    Ok(Some(status))
}

/// Returns the processor time that this thread has used. Other load on the machine does not count towards the limits.
fn work_done() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// Returns the pid that the kernel gave last (proc(5), loadavg), or 0 if it cannot be read.
fn newest_pid() -> i32 {
    let loads = std::fs::read_to_string(format!("{PROC}/loadavg")).unwrap_or_default();
    loads.split_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or_default()
}

/// The fields of a `status` file (proc(5)).
#[derive(Default)]
struct Status {
    /// Whether the ids of all threads were read.
    is_read: bool,
    /// The pid of the process that the thread belongs to.
    group: i32,
    uids: Vec<Uids>,
    groups: BTreeSet<Gid>,
    set_groups: BTreeSet<Gid>,
    command: String,
}

fn status_at(path: &str) -> io::Result<Option<Status>> {
    // Read as bytes: the name of a process need not be UTF-8.
    let mut status = Vec::new();
    match File::open(path).and_then(|file| file.take(STATUS_MAX).read_to_end(&mut status)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    }
    if status.len() as u64 == STATUS_MAX {
        // The last word may be half a number.
        let end = status.iter().rposition(u8::is_ascii_whitespace).unwrap_or_default();
        status.truncate(end);
    }
    let status = String::from_utf8_lossy(&status);
    // The kernel writes the name first and escapes its line feeds, so that it cannot look like another line.
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let ids = |name: &str| -> Vec<u32> {
        field(name).split_whitespace().filter_map(|id| id.parse().ok()).collect()
    };
    let &[real, effective, saved, fs] = ids("Uid:").as_slice() else { return Ok(None) };
    let uids = vec![Uids { real: Uid(real), effective: Uid(effective), saved: Uid(saved), fs: Uid(fs) }];
    let mut set_groups: BTreeSet<Gid> = ids("Gid:").into_iter().map(Gid).collect();
    let mut groups: BTreeSet<Gid> = ids("Groups:").into_iter().map(Gid).collect();
    groups.extend(ids("Gid:").first().copied().map(Gid));
    set_groups.retain(|gid| !groups.contains(gid));
    let command = field("Name:").escape_default().to_string();
    let group = field("Tgid:").parse().unwrap_or_default();
    Ok(Some(Status { is_read: true, group, uids, groups, set_groups, command }))
}

/// Returns the uid that a login gave a process and its descendants (pam_loginuid(8)), or 4294967295 if none did. Once set it cannot be
/// removed. None if it cannot be read.
pub fn loginuid(pid: i32) -> Option<Uid> {
    std::fs::read_to_string(format!("{PROC}/{pid}/loginuid")).ok()?.trim().parse().ok().map(Uid)
}

/// Sends `signals` to a process, unless another process has its pid by now, which is checked while a pidfd is open. The
/// pidfd is closed at once, since a user may have thousands of processes.
pub fn signal(process: Process, signals: &[Signal]) {
    let held = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(held) = held
        && stat(process.pid).is_some_and(|stat| stat.start == process.start)
    {
        for &signal in signals {
            let _ = pidfd_send_signal(&held, signal);
        }
    }
}

/// Builds processes for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A pid higher than any process can have, so that nothing of a real process is read.
    pub(crate) const P: i32 = 0x4000_0000;

    /// Returns a process with these real, effective and saved uids.
    pub(crate) fn task(pid: i32, parent: i32, session: i32, uids: [u32; 3]) -> Task {
        let [real, effective, saved] = uids.map(Uid);
        Task {
            process: Process { pid, start: 1 },
            stat: Stat { zombie: false, parent, session, terminal: 0, threads: 1, start: 1 },
            uids: vec![Uids { real, effective, saved, fs: effective }],
            groups: BTreeSet::new(),
            set_groups: BTreeSet::new(),
            unread: None,
            is_guessed: false,
            audit: None,
            command: String::new(),
        }
    }

    pub(crate) fn table(tasks: &[Task]) -> Table {
        Table(tasks.iter().map(|task| (task.process.pid, task.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::lent::gives_groups;
    use super::*;

    #[test]
    fn this_process_is_in_the_table_and_one_that_has_ended_is_not() {
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(ended.id()).unwrap();
        while !has_ended(pid) {
            std::thread::yield_now();
        }
        let table = Table::read(Effort::Quick).unwrap();
        let own = table.0.get(&i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(own.uids[0].real.0, rustix::process::getuid().as_raw());
        assert!(own.holds(Gid(rustix::process::getgid().as_raw())) && !own.holds(Gid(3_999_999_999)));
        assert!(table.task(own.process).is_some());
        assert!(!table.0.contains_key(&pid), "it has ended, though nobody has waited for it");
        ended.wait().unwrap();
    }

    #[test]
    fn uids_are_lent_if_the_real_and_saved_ones_are_roots() {
        let uids = |real, effective, saved| Uids {
            real: Uid(real),
            effective: Uid(effective),
            saved: Uid(saved),
            fs: Uid(effective),
        };
        assert!(uids(0, 7, 0).are_lent_by_root());
        assert!(!uids(7, 0, 0).are_lent_by_root() && !uids(0, 0, 7).are_lent_by_root());
        assert!(!uids(8, 7, 8).are_lent_by_root());
    }

    #[test]
    fn a_setgid_file_counts_on_a_mount_of_the_host_and_not_on_fuse_or_nosuid() {
        let mounts = "30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            31 30 0:44 / /home/alice/mnt rw,nosuid,nodev - fuse.liar liar rw,user_id=1001\n\
            32 30 0:45 / /mnt/sshfs rw - fuse.sshfs host rw\n33 30 8:2 / /srv rw,nosuid - ext4 /dev/sda2 rw\n";
        let gives = |mount| gives_groups(mounts, Some(mount), (0, 99));
        assert!(gives(30) && !gives(31) && !gives(32) && !gives(33) && !gives(34));
        // In another mount namespace, or with a kernel that does not return the mount.
        for mount in [None, Some(34)] {
            let gives = |device| gives_groups(mounts, mount, device);
            assert!(gives((8, 1)) && !gives((0, 44)) && !gives((0, 45)) && !gives((8, 2)) && !gives((0, 99)));
        }
    }

    #[test]
    fn a_user_who_is_slow_to_read_uses_up_a_share_of_the_time_and_none_of_roots() {
        let range = |owner: &str, uids| local::Subordinate { owner: owner.into(), uids };
        let subordinate = vec![range("alice", 100_000..165_536), range("bob", 165_536..231_072)];
        let mut reader = Reader::new(Effort::Quick, subordinate);
        let Limits { user, root, .. } = reader.limits;
        let (some, other) = (Uid(100_001), Uid(100_002));
        reader.spend(some, user);
        assert!(
            reader.left(some).is_zero() && reader.left(other).is_zero(),
            "both uids are in the range of one user"
        );
        assert_eq!((reader.left(Uid(1000)), reader.left(Uid(165_536))), (user, user));
        for uid in (1000..).take(5) {
            assert!(reader.left(Uid(uid)) > Duration::ZERO, "{uid}");
            reader.spend(Uid(uid), user);
        }
        assert!(reader.left(Uid(5000)).is_zero(), "several slow users have used up the time of all");
        assert_eq!(reader.left(Uid::ROOT), root);
        reader.spend(Uid::ROOT, root);
        assert!(reader.left(Uid::ROOT).is_zero());
    }
}
