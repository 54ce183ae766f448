//! Processes of a user or of a session, and their end. By pidfd, so that none is taken for another that got its number.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::id::Uid;

/// The process list.
const PROC: &str = "/proc";

/// How often what is left is killed and looked for again: one that forks is faster than one look.
const KILLS_MAX: usize = 50;

/// How long a killed process may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// What proc(5) says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its parent.
    pub parent: i32,
    /// Its session (setsid(2)).
    pub session: i32,
    /// Its terminal, as a device number; 0 for none.
    pub terminal: i32,
    /// When it was started, in clock ticks since the boot. With the pid it names one process for ever.
    pub start: u64,
}

/// What proc(5) says of `pid` now; none if there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let stat = std::fs::read(format!("{PROC}/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name comes first, in parentheses, and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // Fields 4 to 22 of proc(5), after the state.
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let terminal = fields.next()?.parse().ok()?;
    let start = fields.nth(14)?.parse().ok()?;
    Some(Stat { parent, session, terminal, start })
}

/// Whether `pid` is still the process that was started at `start`.
pub fn is_running(pid: i32, start: u64) -> bool {
    let Some(process) = hold(pid).ok().flatten() else { return false };
    stat(pid).is_some_and(|stat| stat.start == start) && !has_ended(&process, Duration::ZERO)
}

/// All processes that run as `uid`, held.
///
/// # Errors
/// Those of listing processes.
pub fn of_user(uid: Uid) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for pid in pids()? {
        if !runs_as(pid, uid)? {
            continue;
        }
        let Some(process) = hold(pid)? else { continue };
        // Whose number it is is certain only now that it is held. One that has ended is readable.
        if runs_as(pid, uid)? && !has_ended(&process, Duration::ZERO) {
            found.push(process);
        }
    }
    Ok(found)
}

/// The pids of a process and of all that descend from it or share a session (setsid(2)) with one of them. Empty if `pid` is no
/// longer the process that was started at `start`.
///
/// # Errors
/// Those of listing processes.
pub fn family(pid: i32, start: u64) -> io::Result<BTreeSet<i32>> {
    let stats: HashMap<i32, Stat> = pids()?.into_iter().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut family = BTreeSet::new();
    if stats.get(&pid).is_none_or(|stat| stat.start != start) {
        return Ok(family);
    }
    family.insert(pid);
    // The first process's own session is whoever started it: sshd's, say.
    let own = stats.get(&pid).map(|stat| stat.session);
    loop {
        let before = family.len();
        let sessions: BTreeSet<i32> = family
            .iter()
            .filter_map(|pid| stats.get(pid))
            .map(|stat| stat.session)
            .filter(|session| Some(*session) != own && *session != 0)
            .collect();
        let joins = |stat: &Stat| family.contains(&stat.parent) || sessions.contains(&stat.session);
        let more: Vec<i32> = stats.iter().filter(|(_, stat)| joins(stat)).map(|(pid, _)| *pid).collect();
        family.extend(more);
        if family.len() == before {
            return Ok(family);
        }
    }
}

/// Holds a process by its number; none if there is none.
///
/// # Errors
/// Those of pidfd_open(2).
pub fn hold(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends what `find` finds: asked by SIGHUP and SIGTERM, and after `grace` killed. False if something lives on.
///
/// # Errors
/// Those of `find`.
pub fn end(grace: Duration, mut find: impl FnMut() -> io::Result<Vec<OwnedFd>>) -> io::Result<bool> {
    let asked_until = Instant::now() + grace;
    let mut kills = 0;
    loop {
        let running = find()?;
        if running.is_empty() {
            return Ok(true);
        }
        if kills == KILLS_MAX {
            return Ok(false);
        }
        let patient = Instant::now() < asked_until;
        kills += usize::from(!patient);
        let signals = if patient { &[Signal::HUP, Signal::TERM][..] } else { &[Signal::KILL] };
        for process in &running {
            for &signal in signals {
                let _ = pidfd_send_signal(process, signal);
            }
        }
        let until = if patient { asked_until } else { Instant::now() + KILLED_WITHIN };
        for process in &running {
            has_ended(process, until.saturating_duration_since(Instant::now()));
        }
    }
}

/// Waits until a process has ended with all its threads, at most so long.
pub fn has_ended(process: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) == Ok(1)
}

fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(PROC)? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Whether the real, effective or saved uid of a process is `uid` (proc(5), status). False if it is gone.
fn runs_as(pid: i32, uid: Uid) -> io::Result<bool> {
    // Not as text: a process may call itself anything.
    let status = match std::fs::read(format!("{PROC}/{pid}/status")) {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(false),
        Err(error) => return Err(error),
    };
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uids.split_whitespace().take(3).any(|known| known.parse() == Ok(uid.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(script: &str) -> (Killed, i32) {
        let mut command = Command::new("sh");
        let child =
            command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut killed = Killed(child);
        // It says a line when it has started what it starts.
        let mut output = killed.0.stdout.take().unwrap();
        output.read_exact(&mut [0]).unwrap();
        (killed, pid)
    }

    #[test]
    fn a_process_is_told_by_its_number_and_its_start() {
        let me = i32::try_from(std::process::id()).unwrap();
        let stat = stat(me).unwrap();
        assert!(is_running(me, stat.start) && !is_running(me, stat.start + 1) && !is_running(i32::MAX, 0));
        assert!(family(me, stat.start + 1).unwrap().is_empty());
        assert!(runs_as(me, Uid(rustix::process::getuid().as_raw())).unwrap());
    }

    #[test]
    fn a_family_is_all_that_descends_and_what_shares_a_session_with_it() {
        // The grandchild has a session of its own, in which its own child is left without a parent.
        let (_shell, pid) = start("setsid sh -c '(sleep 1000 & echo; exec sleep 1000) & wait'; wait");
        let start = stat(pid).unwrap().start;
        let family = family(pid, start).unwrap();
        let sleeping = family.iter().filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
        });
        assert!(sleeping.count() >= 1 && family.contains(&pid), "{family:?}");
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!family.contains(&me), "and not who started it");
        let find = || {
            Ok(family
                .iter()
                .filter_map(|pid| hold(*pid).ok().flatten())
                .filter(|process| !has_ended(process, Duration::ZERO))
                .collect())
        };
        assert!(end(Duration::from_secs(10), find).unwrap());
    }

    #[test]
    fn who_does_not_heed_is_killed() {
        let (_shell, pid) = start("trap '' HUP TERM; echo; exec sleep 1000");
        let find =
            || Ok(hold(pid)?.into_iter().filter(|process| !has_ended(process, Duration::ZERO)).collect());
        assert!(end(Duration::ZERO, find).unwrap());
        assert!(!is_running(pid, stat(pid).map_or(0, |stat| stat.start)));
    }
}
