//! One deadline for a whole call.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The moment by which a call has to be over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// Returns the deadline `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// Returns the time that is left.
    ///
    /// # Errors
    /// Returns `TimedOut` if none is left.
    pub fn left(self) -> io::Result<Duration> {
        self.0
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))
    }

    /// Waits until `fd` is ready for `flags`, or has failed: then the next call on it returns the error.
    ///
    /// # Errors
    /// Returns `TimedOut` at the deadline, or the error of poll(2). A signal that the application handles does not end the wait.
    pub fn wait(self, fd: impl AsFd, flags: PollFlags) -> io::Result<()> {
        self.wait_any(&mut [PollFd::new(&fd, flags)])
    }

    /// Waits until one of `fds` is ready, or has failed.
    ///
    /// # Errors
    /// Returns `TimedOut` at the deadline, or the error of poll(2). A signal that the application handles does not end the wait.
    pub fn wait_any(self, fds: &mut [PollFd<'_>]) -> io::Result<()> {
        loop {
            let left = self.left()?;
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            match poll(fds, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
