//! The log of the programs: standard error under systemd (the journal) or on request, else syslog's authpriv. The modules in sshd and sudo
//! do not use it; they have `pam_syslog`.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::Event;
use crate::paths;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// syslog(3)'s socket.
const DEV_LOG: &str = "/dev/log";

/// The longest wait for a log daemon whose queue is full.
const PATIENCE: Duration = Duration::from_millis(200);

/// A line's severity, as syslog(3) numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something failed, and an operator has to act.
    Error = 3,
    /// Something was refused, or went wrong and was handled.
    Warning = 4,
    /// Something worth knowing happened.
    Info = 6,
}

/// A log.
pub struct Log(Sink);

enum Sink {
    Stderr,
    Syslog(Box<Syslog>),
    /// syslog(3), whose socket the first line opens: a program that usually logs nothing runs at each login.
    Unopened(PathBuf, Formatter3164),
    /// No log: a program that cannot log still does its work.
    None,
}

/// syslog(3), and its socket once more, to change how it is written to.
struct Syslog {
    logger: Logger<LoggerBackend, Formatter3164>,
    socket: UnixDatagram,
}

impl Log {
    /// Returns a log on standard error, each line with the priority prefix of sd-daemon(3).
    pub fn to_stderr() -> Self {
        Self(Sink::Stderr)
    }

    /// Returns a log that writes nothing.
    pub fn silent() -> Self {
        Self(Sink::None)
    }

    /// Returns a log to /dev/log as `program`.
    pub fn to_syslog(program: &str) -> Self {
        Self::to_socket(Path::new(DEV_LOG), program)
    }

    fn to_socket(path: &Path, program: &str) -> Self {
        let formatter = Formatter3164 {
            facility: Facility::LOG_AUTHPRIV,
            hostname: None,
            process: program.to_owned(),
            pid: std::process::id(),
        };
        Self(Sink::Unopened(path.to_owned(), formatter))
    }

    /// Writes an event, with its fields where journald runs.
    pub fn event(&mut self, level: Level, event: &Event) {
        let line = event.to_string();
        let formatter = match &self.0 {
            Sink::Syslog(syslog) => Some(&syslog.logger.formatter),
            Sink::Unopened(_, formatter) => Some(formatter),
            Sink::Stderr | Sink::None => None,
        };
        let taken = formatter.is_some_and(|formatter| {
            event.to_journal(Path::new(paths::JOURNAL), level as u8, &formatter.process, &line)
        });
        if !taken {
            self.write(level, line);
        }
    }

    /// Writes a line. A line feed in it becomes a space: a line stays a line.
    pub fn write(&mut self, level: Level, message: impl Display) {
        let line = message.to_string().replace('\n', " ");
        if let Sink::Unopened(path, formatter) = &self.0 {
            self.0 = open_syslog(path, formatter.clone())
                .map_or(Sink::None, |syslog| Sink::Syslog(Box::new(syslog)));
        }
        let _ = match &mut self.0 {
            Sink::Stderr => writeln!(io::stderr(), "<{}>{line}", level as u8).is_ok(),
            Sink::Syslog(syslog) => {
                let written = match level {
                    Level::Error => syslog.logger.err(line),
                    Level::Warning => syslog.logger.warning(line),
                    Level::Info => syslog.logger.info(line),
                };
                // A log daemon that hangs is waited for once.
                written.is_ok() || syslog.socket.set_nonblocking(true).is_ok()
            }
            Sink::Unopened(..) | Sink::None => false,
        };
    }
}

fn open_syslog(path: &Path, formatter: Formatter3164) -> io::Result<Syslog> {
    let socket = open(path)?;
    let logger = Logger::new(LoggerBackend::Unix(socket.try_clone()?), formatter);
    Ok(Syslog { logger, socket })
}

/// Opens the socket of a log daemon. A full queue (10 lines where net.unix.max_dgram_qlen is the kernel's default) is waited for; a
/// daemon that hangs loses lines and does not delay a login by more than [`PATIENCE`].
fn open(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_lines_arrives_whole_and_a_daemon_that_hangs_is_waited_for_once() {
        const LINES: usize = 2000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut log = Log::to_socket(&path, "test");
        let reader = std::thread::spawn(move || {
            for line in 0..LINES {
                let mut text = [0; 200];
                let length = daemon.recv(&mut text).unwrap();
                assert!(String::from_utf8_lossy(&text[..length]).ends_with(&format!(": line {line}")));
            }
            daemon
        });
        for line in 0..LINES {
            log.write(Level::Info, format!("line {line}"));
        }
        // Nobody reads any more: a wait for each line would take minutes.
        let daemon = reader.join().unwrap();
        for line in 0..LINES {
            log.write(Level::Info, format!("line {line}"));
        }
        drop(daemon);
    }
}
