//! The audit trail: events with fixed fields, as lines for syslog and as fields for journald.
//!
//! `docs/audit.md` explains every event and field. No value can forge a field or a line.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::escape::Value;

/// The fields of a decision, in their order.
const DECISION: &[&str] = &[
    "user", "iam_name", "iam_id", "key", "group", "service", "rhost", "result", "reason", "source", "age",
    "error",
];

/// Every event and the fields that it may have.
pub const EVENTS: &[(&str, &[&str])] = &[
    ("login", DECISION),
    ("sudo", DECISION),
    ("session", &["user", "iam_name", "key", "origin", "service", "rhost", "result", "error"]),
    ("home", &["user", "path", "result", "moved_to", "error"]),
    ("keys", &["user", "result", "error"]),
    ("also-run", &["command", "error"]),
    ("panic", &["entry", "result"]),
    (
        "sweep",
        &["user", "iam_name", "key", "pid", "service", "rhost", "result", "reason", "processes", "remaining"],
    ),
    (
        "import",
        &[
            "action", "user", "users", "uid", "old_name", "group", "gid", "gecos", "shell", "home",
            "iam_name", "reason", "result", "accounts", "created", "changed", "unlocked", "locked",
            "removed", "refused", "error",
        ],
    ),
];

/// The facility of these events, `LOG_AUTHPRIV` (syslog(3)).
const AUTHPRIV: &str = "10";

/// An event on its way to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    name: &'static str,
    fields: Vec<(&'static str, String)>,
}

impl Event {
    /// Returns an event without fields. `kind` is one of [`EVENTS`].
    pub fn new(name: &'static str) -> Self {
        debug_assert!(EVENTS.iter().any(|(known, _)| *known == name), "{name} is not in EVENTS");
        Self { name, fields: Vec::new() }
    }

    /// Returns the event with one more field.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl ToString) -> Self {
        let known = EVENTS.iter().find(|(name, _)| *name == self.name).map(|(_, fields)| *fields);
        debug_assert!(known.is_some_and(|fields| fields.contains(&field)), "{} has no {field}", self.name);
        self.fields.push((field, value.to_string()));
        self
    }

    /// Sends the event to journald, if it runs: `message` for people, and every field for programs (`PAM_IAM_USER` and so
    /// on). Never waits: an event that a busy journald does not take is lost, since syslog would wait for the same daemon. Returns false if
    /// journald does not run.
    pub fn to_journal(&self, journal: &Path, priority: u8, identifier: &str, message: &str) -> bool {
        let mut datagram = Vec::new();
        let mut put = |name: &str, value: &str| {
            datagram.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                // systemd's "Journal Native Protocol": a value with line feeds goes by its length.
                datagram.push(b'\n');
                datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                datagram.push(b'=');
            }
            datagram.extend_from_slice(value.as_bytes());
            datagram.push(b'\n');
        };
        put("MESSAGE", message);
        put("PRIORITY", &priority.to_string());
        put("SYSLOG_FACILITY", AUTHPRIV);
        put("SYSLOG_IDENTIFIER", identifier);
        put("PAM_IAM_EVENT", self.name);
        for (field, value) in &self.fields {
            put(&format!("PAM_IAM_{}", field.to_ascii_uppercase()), value);
        }
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match socket.and_then(|socket| socket.send_to(&datagram, journal)) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event={}", self.name)?;
        self.fields.iter().try_for_each(|(field, value)| write!(f, " {field}={}", Value(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_documented_and_nothing_forges_a_field() {
        let event =
            Event::new("login").with("user", "al ice\nresult=allow").with("result", "deny").with("age", 3);
        assert_eq!(event.to_string(), "event=login user=\"al ice\\x0aresult=allow\" result=deny age=3");
    }

    #[test]
    fn journald_gets_each_field_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let event = Event::new("login").with("user", "a\nRESULT=allow").with("result", "deny");
        assert!(!event.to_journal(&path, 4, "sshd", "x"), "nobody listens");
        let journal = UnixDatagram::bind(&path).unwrap();
        assert!(event.to_journal(&path, 4, "sshd", &event.to_string()));
        let mut buffer = [0; 1024];
        let length = journal.recv(&mut buffer).unwrap();
        let sent = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert_eq!(
            sent,
            "MESSAGE=event=login user=\"a\\x0aRESULT=allow\" result=deny\nPRIORITY=4\nSYSLOG_FACILITY=10\n\
             SYSLOG_IDENTIFIER=sshd\nPAM_IAM_EVENT=login\nPAM_IAM_USER\n\x0e\0\0\0\0\0\0\0a\nRESULT=allow\n\
             PAM_IAM_RESULT=deny\n"
        );
    }

    #[test]
    fn the_documentation_has_every_event_and_field_and_no_other() {
        let text = include_str!("../../docs/audit.md");
        let mut documented = Vec::new();
        let mut event = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("## `event=").and_then(|rest| rest.strip_suffix('`')) {
                event = name.to_owned();
            } else if let Some(field) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
                documented.push(format!("{event}.{field}"));
            }
        }
        let mut known: Vec<String> = EVENTS
            .iter()
            // Both are decisions, and have one chapter.
            .filter(|(name, _)| *name != "sudo")
            .flat_map(|(name, fields)| fields.iter().map(move |field| format!("{name}.{field}")))
            .collect();
        documented.sort();
        known.sort();
        assert_eq!(documented, known);
    }
}
