//! Processes of a user or of a session, and their end.
//!
//! A process is named by its number and its start, and signalled by pidfd after both were compared, so that none is taken
//! for another that got its number. No descriptor is held from one process to the next: a user may have thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::id::Uid;
use crate::{local, paths};

/// The process list.
const PROC: &str = "/proc";

/// How often what is left is killed and looked for again: one that forks is faster than one look.
const KILLS_MAX: usize = 50;

/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long logind may take, in seconds.
const LOGIND_SECONDS: &str = "10";

/// What `/proc/PID/sessionid` says of a process that belongs to no audit session.
const NO_SESSION: &str = "4294967295";

/// A process, for ever: its number, and its start in clock ticks since the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The number.
    pub pid: i32,
    /// The start.
    pub start: u64,
}

/// What proc(5) says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Whether it has ended and nobody has waited for it. Of one with several threads this is about the first alone.
    pub zombie: bool,
    /// Its parent.
    pub parent: i32,
    /// Its session (setsid(2)).
    pub session: i32,
    /// Its terminal, as a device number; 0 for none.
    pub terminal: i32,
    /// When it was started, in clock ticks since the boot.
    pub start: u64,
}

/// What proc(5) says of `pid` now; none if there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let stat = std::fs::read(format!("{PROC}/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name comes first, in parentheses, and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = ["Z", "X"].contains(&fields.next()?);
    // Fields 4 to 22 of proc(5).
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let terminal = fields.next()?.parse().ok()?;
    let start = fields.nth(14)?.parse().ok()?;
    Some(Stat { zombie, parent, session, terminal, start })
}

impl Process {
    /// Whether it is still there, and has not ended.
    pub fn is_running(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start == self.start && !stat.zombie)
    }

    /// Sends signals to it, if it is still there.
    fn signal(self, signals: &[Signal]) {
        let process = Pid::from_raw(self.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Whose number it is is certain only while it is held.
        if let Some(process) = process
            && stat(self.pid).is_some_and(|stat| stat.start == self.start)
        {
            for &signal in signals {
                let _ = pidfd_send_signal(&process, signal);
            }
        }
    }
}

/// All processes that run as `uid`.
///
/// # Errors
/// Those of listing processes.
pub fn of_user(uid: Uid) -> io::Result<BTreeSet<Process>> {
    let mut found = BTreeSet::new();
    for pid in pids()? {
        if let Some(stat) = stat(pid)
            && uids(pid)?.is_some_and(|uids| uids.contains(&uid))
            && !(stat.zombie && has_ended(pid)?)
        {
            found.insert(Process { pid, start: stat.start });
        }
    }
    Ok(found)
}

/// The uids of our range that have processes.
///
/// # Errors
/// Those of listing processes.
pub fn users_of_ours() -> io::Result<BTreeSet<Uid>> {
    let mut users = BTreeSet::new();
    for pid in pids()? {
        let running = stat(pid).is_some_and(|stat| !stat.zombie);
        users.extend(uids(pid)?.into_iter().flatten().filter(|uid| running && uid.is_ours()));
    }
    Ok(users)
}

/// Those of `roots` that are there, with all that descends from them, shares a session (setsid(2)) with one of these, or, if it
/// runs as `user` or under a subordinate uid, the audit session of one of `roots`.
///
/// An audit session is also that of a daemon which its user has restarted by sudo, sshd for one, and where nobody may begin new
/// ones (in a container) everybody's.
///
/// # Errors
/// Those of listing processes.
pub fn family(roots: &BTreeSet<Process>, user: Uid) -> io::Result<BTreeSet<Process>> {
    let all: BTreeMap<i32, Stat> = pids()?.into_iter().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let there = |process: &&Process| all.get(&process.pid).is_some_and(|stat| stat.start == process.start);
    let mut family: BTreeSet<i32> = roots.iter().filter(there).map(|process| process.pid).collect();
    let parent = |pid: &i32| all.get(pid).and_then(|stat| audit_session(stat.parent));
    // One that was there before is not theirs.
    let of_their_own = |pid: &i32| audit_session(*pid).filter(|id| parent(pid).as_ref() != Some(id));
    let audited: BTreeSet<String> = family.iter().filter_map(of_their_own).collect();
    if !audited.is_empty() {
        let subordinate = local::subordinate(Path::new(paths::SUBUID));
        let theirs = |uid: &Uid| *uid == user || subordinate.iter().any(|range| range.uids.contains(&uid.0));
        let in_one = |pid: &&i32| audit_session(**pid).is_some_and(|id| audited.contains(&id));
        for pid in all.keys().filter(in_one) {
            if uids(*pid)?.is_some_and(|uids| uids.iter().any(theirs)) {
                family.insert(*pid);
            }
        }
    }
    loop {
        // A session counts if its leader is one of them: the session of the first may be that of who started it.
        let sessions: BTreeSet<i32> = family
            .iter()
            .filter_map(|pid| all.get(pid))
            .map(|stat| stat.session)
            .filter(|session| family.contains(session) || !all.contains_key(session) && *session != 0)
            .collect();
        let before = family.len();
        let joins = |stat: &Stat| family.contains(&stat.parent) || sessions.contains(&stat.session);
        let more: Vec<i32> = all.iter().filter(|(_, stat)| joins(stat)).map(|(pid, _)| *pid).collect();
        family.extend(more);
        if family.len() == before {
            break;
        }
    }
    let process = |pid: i32| all.get(&pid).map(|stat| Process { pid, start: stat.start });
    Ok(family.into_iter().filter_map(process).filter(|process| process.is_running()).collect())
}

/// Asks processes to end, by SIGHUP and SIGTERM.
pub fn ask(processes: &BTreeSet<Process>) {
    processes.iter().for_each(|process| process.signal(&[Signal::HUP, Signal::TERM]));
}

/// Waits until none of `processes` runs, for so long at most.
pub fn wait(processes: &BTreeSet<Process>, longest: Duration) {
    let until = Instant::now() + longest;
    while Instant::now() < until && processes.iter().any(|process| process.is_running()) {
        sleep(LOOK_PAUSE);
    }
}

/// What is to end.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// What runs of it.
    pub processes: BTreeSet<Process>,
    /// Users of whom nothing is to go on.
    pub users: BTreeSet<Uid>,
}

/// Ends what `find` finds: asked by SIGHUP and SIGTERM if it is not among those who were `asked`, and after `grace` killed,
/// all processes of a user at once. False if something lives on.
///
/// # Errors
/// Those of `find`.
pub fn end(
    grace: Duration,
    mut asked: BTreeSet<Process>,
    mut find: impl FnMut() -> io::Result<Left>,
) -> io::Result<bool> {
    let asked_until = Instant::now() + grace;
    let mut kills = 0;
    loop {
        let Left { processes: running, users } = find()?;
        if running.is_empty() {
            return Ok(true);
        }
        if Instant::now() < asked_until {
            // Each once: a shell that has its own way with SIGHUP is not to have it again and again.
            ask(&running.difference(&asked).copied().collect());
            asked.extend(running);
        } else if kills == KILLS_MAX {
            return Ok(false);
        } else {
            kills += 1;
            users.iter().for_each(|uid| kill_all(*uid));
            running.iter().for_each(|process| process.signal(&[Signal::KILL]));
        }
        sleep(LOOK_PAUSE);
    }
}

/// Asks systemd-logind, where it runs; none where it does not, or not in time.
pub fn loginctl(arguments: &[&str]) -> Option<Output> {
    if !Path::new(paths::BOOTED_BY_SYSTEMD).exists() {
        return None;
    }
    let mut command = Command::new("timeout");
    command.args([LOGIND_SECONDS, "loginctl"]).args(arguments);
    command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
}

/// Kills every process of a user at once, as the user: kill(2) of -1 leaves none that is just being forked.
fn kill_all(uid: Uid) {
    if uid == Uid::ROOT {
        return;
    }
    let mut kill = Command::new("/bin/kill");
    let quiet =
        kill.args(["-KILL", "--", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = quiet.current_dir("/").uid(uid.0).gid(uid.0).status();
}

fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(PROC)? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// The real and the saved uid of a process (proc(5), status); none if it is gone. The effective one may be lent: root's
/// daemons act as a user for a moment.
fn uids(pid: i32) -> io::Result<Option<[Uid; 2]>> {
    // Not as text: a process may call itself anything.
    let status = match std::fs::read(format!("{PROC}/{pid}/status")) {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let uids: Vec<u32> = uids.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    Ok(uids.first().zip(uids.get(2)).map(|(real, saved)| [Uid(*real), Uid(*saved)]))
}

/// Whether a process has ended with all its threads.
fn has_ended(pid: i32) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(true) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            Ok(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)) == Ok(1))
        }
        Err(Errno::SRCH) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The audit session of a process, which its descendants have too and cannot change (credentials(7)).
fn audit_session(pid: i32) -> Option<String> {
    let id = std::fs::read_to_string(format!("{PROC}/{pid}/sessionid")).ok()?;
    Some(id.trim().to_owned()).filter(|id| id != NO_SESSION && !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Child;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(script: &str) -> (Killed, Process) {
        let mut command = Command::new("sh");
        let child =
            command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut killed = Killed(child);
        // It says a line when it has started what it starts.
        let mut output = killed.0.stdout.take().unwrap();
        output.read_exact(&mut [0]).unwrap();
        (killed, Process { pid, start: stat(pid).unwrap().start })
    }

    fn of_one(process: Process) -> BTreeSet<Process> {
        BTreeSet::from([process])
    }

    #[test]
    fn a_process_is_told_by_its_number_and_its_start() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Process { pid, start: stat(pid).unwrap().start };
        let other = Process { start: me.start + 1, ..me };
        assert!(me.is_running() && !other.is_running() && !Process { pid: i32::MAX, start: 0 }.is_running());
        let uid = Uid(rustix::process::getuid().as_raw());
        assert!(family(&of_one(other), uid).unwrap().is_empty());
        assert!(of_user(uid).unwrap().contains(&me) && !of_user(Uid(uid.0 + 1)).unwrap().contains(&me));
    }

    #[test]
    fn a_family_is_all_that_descends_and_what_shares_a_session_with_it() {
        // The grandchild has a session of its own, in which its own child is left without a parent.
        let (_shell, root) = start("setsid sh -c '(sleep 1000 & echo; exec sleep 1000) & wait'; wait");
        let me = Uid(rustix::process::getuid().as_raw());
        let mut known = family(&of_one(root), me).unwrap();
        let sleeping = known.iter().filter(|process| {
            std::fs::read_to_string(format!("/proc/{}/comm", process.pid)).is_ok_and(|comm| comm == "sleep\n")
        });
        assert!(sleeping.count() >= 1 && known.contains(&root), "{known:?}");
        let mine = i32::try_from(std::process::id()).unwrap();
        assert!(known.iter().all(|process| process.pid != mine), "and not who started it");
        let find = || {
            known.append(&mut family(&known, me)?);
            let processes = known.iter().copied().filter(|process| process.is_running()).collect();
            Ok(Left { processes, ..Left::default() })
        };
        assert!(end(Duration::from_secs(10), BTreeSet::new(), find).unwrap());
    }

    #[test]
    fn who_does_not_heed_is_killed() {
        let (_shell, root) = start("trap '' HUP TERM; echo; exec sleep 1000");
        let find = || {
            let processes = of_one(root).into_iter().filter(|process| process.is_running()).collect();
            Ok(Left { processes, ..Left::default() })
        };
        assert!(end(Duration::ZERO, BTreeSet::new(), find).unwrap());
        assert!(!root.is_running());
    }
}
