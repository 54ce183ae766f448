//! Kills every process of a user at once by kill(2) with pid -1, which no fork in progress escapes.
//!
//! The killer is this very program, started again by root in a session of its own with an empty environment. Its real and saved uid is the
//! reserved one, which is assigned to nobody, and its effective uid is the user's. kill(2) allows a signal if the sender's real or
//! effective uid is the target's real or saved one, so it reaches the user's processes and no others. The user can neither signal nor trace
//! the killer, since its real uid is another, but can lower its priority and bind it to a processor. So the caller waits for a limited
//! time.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pam_iam_core::child::Running;
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::Uid;
use rustix::process::{DumpableBehavior, Pid, Signal};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// The name (`argv[0]`) of this program when it is the killer.
const KILLER: &str = "pam_iam-kill";

/// The most time for all killers together. One does its work in well under 1 ms.
const KILLERS_MAX: Duration = Duration::from_secs(1);

/// The most time for one killer. The user whose processes it kills can slow it down.
const KILLER_MAX: Duration = Duration::from_millis(200);

/// Does the work of a killer if this process was started as a killer. Returns None otherwise. Must be called first in
/// `main`.
pub fn run_if_started_as_killer() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    if arguments.next()? != KILLER {
        return None;
    }
    let uid = arguments.next().and_then(|uid| uid.parse().ok()).map(Uid);
    Some(match uid.filter(|uid| may_be_killed(*uid)).map(kill_all) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Whether all processes of a uid may be killed at once: never those of root or of the reserved uid.
fn may_be_killed(uid: Uid) -> bool {
    uid != Uid::ROOT && uid != Uid::RESERVED && uid.0 != u32::MAX
}

fn kill_all(uid: Uid) -> rustix::io::Result<()> {
    let reserved = rustix::process::Uid::from_raw(Uid::RESERVED.0);
    let group = rustix::process::Gid::from_raw(Uid::RESERVED.0);
    let victim = rustix::process::Uid::from_raw(uid.0);
    let _ = rustix::process::setsid();
    // Set before the user can change the priority.
    let _ = rustix::process::setpriority_process(None, -20);
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(reserved, victim, reserved)?;
    // For kill(2), "process group 1" is pid -1: every process that may be signalled.
    rustix::process::kill_process_group(Pid::INIT, Signal::KILL)
}

/// Kills all processes of each of `uids` at once, in that order, and waits at most [`KILLERS_MAX`] in total. Killers run one at a time:
/// they have the same real uid and would kill each other. Returns the uids whose killer succeeded.
pub fn kill_all_of(uids: impl IntoIterator<Item = Uid>) -> BTreeSet<Uid> {
    let mut killed = BTreeSet::new();
    let until = Instant::now() + KILLERS_MAX;
    for uid in uids.into_iter().filter(|uid| may_be_killed(*uid)) {
        if Instant::now() >= until {
            break;
        }
        let ended = start(uid).and_then(|killer| killer.wait(Deadline::after(KILLER_MAX)));
        if ended.is_ok_and(|status| status.success()) {
            killed.insert(uid);
        }
    }
    killed
}

fn start(uid: Uid) -> io::Result<Running> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(KILLER).arg(uid.to_string()).env_clear().current_dir("/");
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_reserved_uid_are_never_killed() {
        assert!(may_be_killed(Uid(1000)));
        assert!(!may_be_killed(Uid::ROOT) && !may_be_killed(Uid::RESERVED) && !may_be_killed(Uid(u32::MAX)));
    }
}
