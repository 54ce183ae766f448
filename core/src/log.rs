//! The log of the programs: standard error under systemd (the journal) or on request, else syslog's authpriv. The modules in sshd and sudo
//! do not use it; they have `pam_syslog`.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::audit::Event;
use crate::paths;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// syslog(3)'s socket.
const DEV_LOG: &str = "/dev/log";

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
    Syslog(Box<Logger<LoggerBackend, Formatter3164>>),
    /// No log: a program that cannot log still does its work.
    None,
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
        let formatter = Formatter3164 {
            facility: Facility::LOG_AUTHPRIV,
            hostname: None,
            process: program.to_owned(),
            pid: std::process::id(),
        };
        let logger = open().map(|socket| Logger::new(LoggerBackend::Unix(socket), formatter));
        Self(logger.map_or(Sink::None, |logger| Sink::Syslog(Box::new(logger))))
    }

    /// Writes an event, with its fields where journald runs.
    pub fn event(&mut self, level: Level, event: &Event) {
        let line = event.to_string();
        let taken = match &self.0 {
            Sink::Syslog(logger) => {
                event.to_journal(Path::new(paths::JOURNAL), level as u8, &logger.formatter.process, &line)
            }
            Sink::Stderr | Sink::None => false,
        };
        if !taken {
            self.write(level, line);
        }
    }

    /// Writes a line. A line feed in it becomes a space: a line stays a line.
    pub fn write(&mut self, level: Level, message: impl Display) {
        let line = message.to_string().replace('\n', " ");
        let _ = match &mut self.0 {
            Sink::Stderr => writeln!(io::stderr(), "<{}>{line}", level as u8).is_ok(),
            Sink::Syslog(logger) => match level {
                Level::Error => logger.err(line).is_ok(),
                Level::Warning => logger.warning(line).is_ok(),
                Level::Info => logger.info(line).is_ok(),
            },
            Sink::None => false,
        };
    }
}

/// Non-blocking: a log daemon that hangs loses our lines and does not hold up a login.
fn open() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(DEV_LOG)?;
    Ok(socket)
}
