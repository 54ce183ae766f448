//! Child processes under a deadline.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Output};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use crate::deadline::Deadline;

/// The most bytes that are read of standard output, and of standard error.
pub const OUTPUT_MAX: usize = 1024 * 1024;

/// A child process. It does not outlive the call that waits for it, and neither does the process group that it leads.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: Option<OwnedFd>,
}

impl Running {
    /// Starts `command`. With `process_group(0)` the process leads a group of its own, which is killed as a whole.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        // It fails where the application ignores SIGCHLD and the process has ended already.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Ok(Self { child, pidfd })
    }

    /// Waits for the exit, and kills the process at the deadline.
    ///
    /// # Errors
    /// Returns `TimedOut` at the deadline, or an error if the process cannot be waited for.
    pub fn wait(mut self, deadline: Deadline) -> io::Result<ExitStatus> {
        let exited = self.exit_by(deadline);
        if exited.is_err() {
            self.kill();
        }
        let status = self.child.wait()?;
        exited.map(|()| status)
    }

    /// Reads those of standard output and standard error that are pipes to their ends, waits for the exit, and kills the process at the
    /// deadline.
    ///
    /// # Errors
    /// Returns `TimedOut` at the deadline, `FileTooLarge` after [`OUTPUT_MAX`] bytes, or an error if the process cannot be read or
    /// waited for.
    pub fn output(mut self, deadline: Deadline) -> io::Result<Output> {
        let stdout = self.child.stdout.take().map(OwnedFd::from);
        let stderr = self.child.stderr.take().map(OwnedFd::from);
        let read = read_to_ends([stdout, stderr], deadline).and_then(|read| {
            self.exit_by(deadline)?;
            Ok(read)
        });
        if read.is_err() {
            self.kill();
        }
        let status = self.child.wait()?;
        let [stdout, stderr] = read?;
        Ok(Output { status, stdout, stderr })
    }

    /// Waits for the exit until the deadline, then kills what is left of the process group. For a process whose application may reap
    /// it, or ignore SIGCHLD.
    pub fn end(mut self, deadline: Deadline) {
        let has_exited = self.exit_by(deadline).is_ok();
        // As long as nobody has reaped the process, its number is the group's. An application that reaps every child has
        // taken that away, and then the number may be another's.
        if !has_exited || is_zombie(Pid::from_child(&self.child)) {
            self.kill();
        }
        // ECHILD, if the application has reaped it, or has told the kernel to.
        let _ = self.child.wait();
    }

    fn exit_by(&self, deadline: Deadline) -> io::Result<()> {
        let pidfd = self.pidfd.as_ref().ok_or(io::ErrorKind::NotFound)?;
        deadline.wait(pidfd, PollFlags::IN)
    }

    fn kill(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        // One that leads no group, or none yet.
        let _ = self.child.kill();
    }
}

/// Whether `child` has exited and has not been reaped.
fn is_zombie(child: Pid) -> bool {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::Pid(child), flags), Ok(Some(_)))
}

/// Reads two pipes to their ends. A pipe that is not there is empty.
fn read_to_ends(pipes: [Option<OwnedFd>; 2], deadline: Deadline) -> io::Result<[Vec<u8>; 2]> {
    let mut pipes = pipes.map(|pipe| pipe.map(File::from));
    let mut read = [Vec::new(), Vec::new()];
    while pipes.iter().any(Option::is_some) {
        let mut polled: Vec<PollFd<'_>> =
            pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        deadline.wait_any(&mut polled)?;
        let mut ready =
            polled.iter().map(|polled| !polled.revents().is_empty()).collect::<Vec<_>>().into_iter();
        for (pipe, bytes) in pipes.iter_mut().zip(&mut read) {
            let Some(file) = pipe.as_mut().filter(|_| ready.next() == Some(true)) else { continue };
            let mut part = [0; 4096];
            let count = file.read(&mut part)?;
            bytes.extend_from_slice(part.get(..count).unwrap_or_default());
            if bytes.len() > OUTPUT_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            if count == 0 {
                *pipe = None;
            }
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;
    use std::time::Duration;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).process_group(0);
        Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).unwrap()
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(300))
    }

    fn later() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let done = shell("echo no >&2; head -c 100000 /dev/zero; exit 3").output(later()).unwrap();
        assert_eq!((done.status.code(), done.stdout.len(), &*done.stderr), (Some(3), 100_000, &b"no\n"[..]));
        assert!(shell("exit 0").wait(later()).unwrap().success());
    }

    #[test]
    fn a_process_that_hangs_is_killed_with_its_group() {
        for script in ["sleep 1000", "sleep 1000 & echo $!; sleep 1000", "exec >&- 2>&-; sleep 1000"] {
            let error = shell(script).output(soon()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
        }
        assert_eq!(shell("sleep 1000").wait(soon()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // The pipe ends with the last process that has it.
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]).process_group(0).stdout(writer);
        let running = Running::start(&mut command).unwrap();
        drop(command);
        running.end(soon());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn endless_output_is_an_error() {
        assert_eq!(shell("yes").output(later()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
