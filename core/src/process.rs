//! A process: its pid and start time, its state in proc(5), and whether it has ended.
//!
//! A process is identified by its pid and start time, so that it is not confused with a later process of that pid. The
//! crate `sessions` finds and ends the processes of a user.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::id::Uid;

/// The mount point of proc(5).
const PROC: &str = "/proc";

/// The content of `/proc/PID/sessionid` for a process that belongs to no audit session.
const NO_SESSION: &str = "4294967295";

/// The identity of a process, which no other process has before the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The pid.
    pub pid: i32,
    /// The start time, in clock ticks since the boot.
    pub start: u64,
}

/// The state of a process, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Whether the first thread has ended and was not waited for. Other threads may still run: see [`has_ended`].
    pub zombie: bool,
    /// The pid of the parent.
    pub parent: i32,
    /// The session (setsid(2)).
    pub session: i32,
    /// The terminal, as a device number. 0 for none.
    pub terminal: i32,
    /// The number of threads.
    pub threads: u32,
    /// The start time, in clock ticks since the boot.
    pub start: u64,
}

/// Returns the current state of the process `pid`. None if there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let stat = std::fs::read(format!("{PROC}/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name of the program stands before these fields, in parentheses, and may contain any character.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = ["Z", "X"].contains(&fields.next()?);
    // Fields 4 to 22 of proc(5).
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let terminal = fields.next()?.parse().ok()?;
    let threads = fields.nth(12)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { zombie, parent, session, terminal, threads, start })
}

/// Whether a process has ended with all its threads. proc(5) shows a process whose first thread has ended as a zombie,
/// even if other threads still run. A pidfd becomes readable only when the last thread has ended (pidfd_open(2)). False
/// if this cannot be determined.
pub fn has_ended(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)) == Ok(1)
        }
        Err(errno) => errno == rustix::io::Errno::SRCH,
    }
}

/// Returns the audit session of a process, if it has one. Its descendants have it too and cannot change it
/// (credentials(7)).
pub fn audit_session(pid: i32) -> Option<String> {
    let id = std::fs::read_to_string(format!("{PROC}/{pid}/sessionid")).ok()?;
    Some(id.trim().to_owned()).filter(|id| id != NO_SESSION && !id.is_empty())
}

/// Returns the audit session of a process if its parent has a different one or none. In a container all processes may
/// have the same, which then says nothing about a login.
pub fn own_audit_session(pid: i32) -> Option<String> {
    let parent = stat(pid).and_then(|stat| audit_session(stat.parent));
    audit_session(pid).filter(|own| parent.as_ref() != Some(own))
}

/// Whether the kernel counts any thread with `uid` as its real uid. The count also includes a process that is just being
/// forked, and one that has ended and was not waited for.
pub fn is_at_work(uid: Uid) -> bool {
    rustix::process::getpriority_user(rustix::process::Uid::from_raw(uid.0)).is_ok()
}

impl Process {
    /// Returns this process.
    ///
    /// # Errors
    /// Returns an error if proc(5) is not mounted.
    pub fn this() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "/proc is not there");
        let stat = stat(pid).ok_or_else(missing)?;
        Ok(Self { pid, start: stat.start })
    }

    /// Whether the process still exists and has not ended.
    pub fn is_running(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start == self.start && !(stat.zombie && has_ended(self.pid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_is_not_running() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process { pid, start: stat(pid).unwrap().start };
        assert!(process.is_running());
        assert!(!Process { start: process.start + 1, ..process }.is_running());
        drop(child.stdin.take());
        while !has_ended(pid) {
            std::thread::yield_now();
        }
        assert!(!process.is_running() && stat(pid).unwrap().zombie);
        child.wait().unwrap();
        assert!(stat(pid).is_none() && has_ended(pid));
    }
}
