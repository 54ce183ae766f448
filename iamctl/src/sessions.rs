//! `iamctl sessions`: who is logged in, by which key, since when.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::paths;
use pam_iam_core::register::{self, Origin, Register, Session};

use crate::Context;

pub fn run(context: &Context) -> Result<bool, String> {
    let sessions = open().map_err(|error| format!("{}: {error}", paths::SESSIONS))?;
    let sessions: Vec<Session> = sessions.into_iter().map(|(session, _)| session).collect();
    let json = serde_json::to_value(&sessions).map_err(|error| error.to_string())?;
    context.output.show(&json, &text(&sessions));
    Ok(true)
}

/// The open sessions, each with how long ago IAM said that it may go on. None where nobody ever logged in.
fn open() -> std::io::Result<Vec<(Session, Duration)>> {
    let register = Register::open_if_made(Path::new(paths::SESSIONS))?;
    register.map_or(Ok(Vec::new()), |register| register.sessions())
}

fn text(sessions: &[Session]) -> String {
    if sessions.is_empty() {
        return "nobody of IAM is logged in".to_owned();
    }
    let mut text =
        format!("{:<20} {:<20} {:<8} {:<16} {:>9}  {}\n", "USER", "IAM USER", "PID", "FROM", "SINCE", "KEY");
    for session in sessions {
        let age = register::now().saturating_sub(session.since);
        let since = format!("{}:{:02}:{:02}", age / 3600, age / 60 % 60, age % 60);
        let key = match session.origin {
            Origin::None => "none".to_owned(),
            Origin::Iam => session.keys.join(" "),
            Origin::Foreign => format!("{} (not in IAM)", session.keys.join(" ")),
            Origin::Unknown => format!("{} (nobody could tell whose)", session.keys.join(" ")),
        };
        let (user, iam, pid, from) = (&session.user, &session.iam_name, session.pid, &session.rhost);
        let _ = writeln!(text, "{user:<20} {iam:<20} {pid:<8} {from:<16} {since:>9}  {key}");
    }
    text
}
