//! Audit events with fixed fields. Each is formatted as a line for syslog and as fields for journald.
//!
//! `docs/audit.md` explains every event and field. Values are escaped for syslog and, if they need it, sent with their length to
//! journald, so that none can pass for another field or line.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::escape::Value;

/// The fields of the events `login` and `sudo`.
const DECISION: &[&str] = &[
    "user", "iam_name", "iam_id", "key", "group", "service", "rhost", "result", "reason", "source", "age",
    "error",
];

/// Every event and the fields that it may have.
pub const EVENTS: &[(&str, &[&str])] = &[
    ("login", DECISION),
    ("sudo", DECISION),
    ("session", &["user", "iam_name", "key", "origin", "service", "rhost", "result", "reason", "error"]),
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

/// An audit event: a name from [`EVENTS`] and some of its fields, in the order in which they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    name: &'static str,
    fields: Vec<(&'static str, String)>,
}

impl Event {
    /// Returns an event without fields. `name` must be in [`EVENTS`], which debug builds check.
    pub fn new(name: &'static str) -> Self {
        debug_assert!(EVENTS.iter().any(|(event, _)| *event == name), "{name} is not in EVENTS");
        Self { name, fields: Vec::new() }
    }

    /// Returns the event with one more field, which must be one of the event's in [`EVENTS`].
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl ToString) -> Self {
        let allowed = EVENTS.iter().find(|(name, _)| *name == self.name).map(|(_, fields)| *fields);
        debug_assert!(
            allowed.is_some_and(|fields| fields.contains(&field)),
            "the event {} has no field {field} in EVENTS",
            self.name
        );
        self.fields.push((field, value.to_string()));
        self
    }

    /// Sends the event to the journald that listens on `journal`: `message` as MESSAGE, and each field as PAM_IAM_FIELD. Never blocks. If
    /// the queue of journald is full, the event is lost and the result is true, so that the caller does not try syslog(3), which
    /// would block on the same daemon. Returns false if the event cannot be sent for another reason, for instance because
    /// no journald runs: the caller then writes to syslog.
    pub fn to_journal(&self, journal: &Path, priority: u8, identifier: &str, message: &str) -> bool {
        let mut datagram = Vec::new();
        let mut put = |name: &str, value: &str| {
            datagram.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                // systemd's "Journal Native Protocol": a value with a line feed is sent with its length before it.
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
    fn a_value_cannot_forge_a_field_in_a_line() {
        let event =
            Event::new("login").with("user", "al ice\nresult=allow").with("result", "deny").with("age", 3);
        assert_eq!(event.to_string(), "event=login user=\"al ice\\x0aresult=allow\" result=deny age=3");
    }

    #[test]
    fn a_value_with_a_line_feed_stays_one_field_of_journald() {
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
        let mut in_code: Vec<String> = EVENTS
            .iter()
            // `sudo` has the fields of `login`, and is documented in its section.
            .filter(|(name, _)| *name != "sudo")
            .flat_map(|(name, fields)| fields.iter().map(move |field| format!("{name}.{field}")))
            .collect();
        documented.sort();
        in_code.sort();
        assert_eq!(documented, in_code);
    }
}
