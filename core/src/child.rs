//! Child processes under a deadline.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use crate::deadline::Deadline;

/// The longest output that is kept whole, in bytes: of standard output and of standard error each.
pub const OUTPUT_MAX: usize = 1024 * 1024;

/// How long the output of a process that has ended is still read after the deadline, in case this process was stopped or
/// got no processor time before.
const LATE: Duration = Duration::from_secs(1);

/// The pause between two checks whether a process has ended, if the kernel gives no pidfd.
const PAUSE: Duration = Duration::from_millis(1);

/// A child process. Every method that waits for it kills it at the deadline.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: Option<OwnedFd>,
}

impl Running {
    /// Starts `command`. With `process_group(0)` the process leads a group of its own, which is killed as a whole at the deadline.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        // pidfd_open(2) fails without memory or descriptors, and if the application ignores SIGCHLD and the process has
        // ended already.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Ok(Self { child, pidfd })
    }

    /// Waits for the process to exit, and kills it at the deadline.
    ///
    /// # Errors
    /// Returns an error if the deadline passes (`TimedOut`) or the process cannot be waited for.
    pub fn wait(mut self, deadline: Deadline) -> io::Result<ExitStatus> {
        let exited = self.exit_by(deadline);
        if exited.is_err() {
            self.kill();
        }
        let status = self.child.wait()?;
        exited.map(|()| status)
    }

    /// Reads standard output and standard error, if they are pipes, to their ends, waits for the process to exit, and
    /// kills it at the deadline. Of an output longer than [`OUTPUT_MAX`], the first [`OUTPUT_MAX`] + 1 bytes are
    /// returned; the rest is read and dropped.
    ///
    /// # Errors
    /// Returns an error if the deadline passes (`TimedOut`), if the output cannot be read, or if the process cannot be
    /// waited for.
    pub fn output(mut self, deadline: Deadline) -> io::Result<Output> {
        let stdout = self.child.stdout.take().map(OwnedFd::from);
        let stderr = self.child.stderr.take().map(OwnedFd::from);
        let read = self.read_to_ends([stdout, stderr], deadline).and_then(|read| {
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

    /// Waits until the process exits or the deadline passes, then kills what is left of its process group. Without a
    /// pidfd it kills at once. For a process that the application may reap, or whose SIGCHLD the application may ignore.
    pub fn end(mut self, deadline: Deadline) {
        if let Some(pidfd) = &self.pidfd {
            let _ = deadline.wait(pidfd, PollFlags::IN);
        }
        self.kill();
        // Fails with ECHILD if the application has reaped the process, or has told the kernel to do so.
        let _ = self.child.wait();
    }

    /// Waits for the process to exit. Succeeds also after the deadline if the process has exited by the time of this
    /// check.
    fn exit_by(&mut self, deadline: Deadline) -> io::Result<()> {
        let waited = match &self.pidfd {
            Some(pidfd) => deadline.wait(pidfd, PollFlags::IN),
            None => loop {
                if has_exited(&self.child)? {
                    break Ok(());
                }
                match deadline.left() {
                    Ok(left) => std::thread::sleep(PAUSE.min(left)),
                    Err(error) => break Err(error),
                }
            },
        };
        waited.or_else(|error| if has_exited(&self.child)? { Ok(()) } else { Err(error) })
    }

    /// Kills the process and the group that it leads. Does nothing once the process was reaped: another process may have
    /// its pid by then.
    fn kill(&mut self) {
        if has_exited(&self.child).is_ok() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            // This is for a process that leads no group, or does not yet lead it.
            let _ = self.child.kill();
        }
    }

    /// Reads two pipes to their ends. The output of a pipe that is None is empty.
    fn read_to_ends(&self, pipes: [Option<OwnedFd>; 2], mut deadline: Deadline) -> io::Result<[Vec<u8>; 2]> {
        let mut pipes = pipes.map(|pipe| pipe.map(File::from));
        let mut read = [Vec::new(), Vec::new()];
        let mut is_late = false;
        while pipes.iter().any(Option::is_some) {
            let mut polled: Vec<PollFd<'_>> =
                pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
            match deadline.wait_any(&mut polled) {
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && !is_late && has_exited(&self.child)? =>
                {
                    (is_late, deadline) = (true, Deadline::after(LATE));
                    continue;
                }
                waited => waited?,
            }
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            for (pipe, bytes) in pipes.iter_mut().zip(&mut read) {
                let Some(file) = pipe.as_mut() else { continue };
                if ready.next() == Some(true) && !read_some(file, bytes)? {
                    *pipe = None;
                }
            }
        }
        Ok(read)
    }
}

/// Reads once, and keeps at most [`OUTPUT_MAX`] + 1 bytes in all. Returns false at the end of the file.
fn read_some(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = [0; 4096];
    let count = file.read(&mut part)?;
    let room = (OUTPUT_MAX + 1).saturating_sub(bytes.len());
    bytes.extend_from_slice(part.get(..count.min(room)).unwrap_or_default());
    Ok(count > 0)
}

/// Whether a child has exited. The child is not reaped.
///
/// # Errors
/// Returns an error if the child was reaped already, by the application or by the kernel.
fn has_exited(child: &Child) -> io::Result<bool> {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(Pid::from_child(child)), flags)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;

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
        // Reading the pipe ends when the last process that can write to it has ended.
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]).process_group(0).stdout(writer);
        let running = Running::start(&mut command).unwrap();
        drop(command);
        running.end(soon());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn output_beyond_the_limit_is_dropped() {
        let done = shell("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo x")
            .output(later())
            .unwrap();
        assert_eq!((done.stdout.len(), done.stderr.len()), (OUTPUT_MAX + 1, OUTPUT_MAX + 1));
        assert!(done.status.success());
        assert_eq!(shell("yes").output(soon()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_process_without_a_pidfd_is_waited_for_and_killed_too() {
        let without_pidfd = |script| Running { pidfd: None, ..shell(script) };
        assert!(without_pidfd("sleep 0.1").wait(later()).unwrap().success());
        assert_eq!(without_pidfd("echo x").output(later()).unwrap().stdout, b"x\n");
        let error = without_pidfd("exec sleep 1000").wait(soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_process_that_ended_in_time_counts_although_the_deadline_has_passed() {
        let running = shell("echo x");
        while !has_exited(&running.child).unwrap() {
            std::thread::yield_now();
        }
        let done = running.output(Deadline::after(Duration::ZERO)).unwrap();
        assert!(done.status.success() && done.stdout == b"x\n");
    }
}
