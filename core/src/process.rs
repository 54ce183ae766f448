//! A process: its number and start, what proc(5) says of it, and whether it has ended.
//!
//! A process is named by its number and its start, so that none is taken for another that got its number. Finding and
//! ending the processes of a user is the business of the crate `sessions`.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::id::Uid;

/// The process list.
const PROC: &str = "/proc";

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
    /// Whether its first thread has ended and nobody has waited for it. Others may go on: see [`has_ended`].
    pub zombie: bool,
    /// Its parent.
    pub parent: i32,
    /// Its session (setsid(2)).
    pub session: i32,
    /// Its terminal, as a device number; 0 for none.
    pub terminal: i32,
    /// How many threads it has.
    pub threads: u32,
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
    let threads = fields.nth(12)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { zombie, parent, session, terminal, threads, start })
}

/// Whether a process has ended with all its threads. proc(5) shows one whose first thread has ended as a zombie, while the
/// others work on; a pidfd becomes readable when the last of them has ended (pidfd_open(2)). What cannot be told counts
/// as not ended.
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

/// The audit session of a process, which its descendants have too and cannot change (credentials(7)).
pub fn audit_session(pid: i32) -> Option<String> {
    let id = std::fs::read_to_string(format!("{PROC}/{pid}/sessionid")).ok()?;
    Some(id.trim().to_owned()).filter(|id| id != NO_SESSION && !id.is_empty())
}

/// The audit session of a process, if it has begun one of its own: in a container everybody may have the same.
pub fn own_audit_session(pid: i32) -> Option<String> {
    let parent = stat(pid).and_then(|stat| audit_session(stat.parent));
    audit_session(pid).filter(|own| parent.as_ref() != Some(own))
}

/// Whether any thread has the uid as its real one, as the kernel counts them: none is missed that is just being forked. Processes
/// that have ended and were not waited for count.
pub fn is_at_work(uid: Uid) -> bool {
    rustix::process::getpriority_user(rustix::process::Uid::from_raw(uid.0)).is_ok()
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// Returns an error if proc(5) is not there.
    pub fn this() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "/proc is not there");
        let stat = stat(pid).ok_or_else(missing)?;
        Ok(Self { pid, start: stat.start })
    }

    /// Whether it is still there, and has not ended.
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
