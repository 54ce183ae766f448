//! `iamctl sessions`: lists who is logged in, by which key and since when, and who runs processes without a session.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use pam_iam_core::id::Uid;
use pam_iam_core::paths;
use pam_iam_core::registry::{self, Origin, Session, SessionRegistry};
use pam_iam_core::served::Served;
use pam_iam_sessions::managed;
use pam_iam_sessions::table::{Effort, Table};
use serde_json::json;

use crate::error::{Error, Reply};
use crate::host::FileError;
use crate::{Context, whois};

/// A managed user who runs processes without a session: the user has logged out, or came by a program that never asks PAM.
struct Sessionless {
    user: String,
    uid: Uid,
    processes: Vec<i32>,
}

pub fn run(context: &Context) -> Result<Reply, Error> {
    let sessions = open().map_err(FileError::of(paths::SESSIONS))?;
    let sessionless = sessionless(context, &sessions).map_err(FileError::of("/proc"))?;
    let mut json: Vec<serde_json::Value> = Vec::new();
    for session in &sessions {
        json.push(serde_json::to_value(session)?);
    }
    let unregistered = sessionless.iter().map(|found| {
        json!({ "user": found.user, "uid": found.uid, "registered": false, "processes": found.processes })
    });
    json.extend(unregistered);
    context.output.show(&json.into(), &text(&sessions, &sessionless));
    Ok(Reply::Yes)
}

/// Returns the open sessions. Empty if nobody has ever logged in.
pub fn open() -> std::io::Result<Vec<Session>> {
    let registry = SessionRegistry::open_if_made(Path::new(paths::SESSIONS))?;
    let sessions = registry.map_or(Ok(Vec::new()), |registry| registry.sessions())?;
    Ok(sessions.into_iter().map(|(session, _)| session).collect())
}

fn sessionless(context: &Context, sessions: &[Session]) -> std::io::Result<Vec<Sessionless>> {
    let registered: BTreeSet<Uid> = sessions.iter().map(|session| session.uid).collect();
    let running = managed::users(&Table::read(Effort::Thorough)?, &Served::new(Path::new(paths::SERVED)))
        .into_iter()
        .filter(|(uid, processes)| !registered.contains(uid) && !processes.is_empty());
    Ok(running
        .map(|(uid, processes)| {
            let known = whois::name_of(context, uid).ok().flatten();
            let name = known.map_or_else(|| uid.to_string(), |name| name.to_string());
            Sessionless { user: name, uid, processes: processes.iter().map(|process| process.pid).collect() }
        })
        .collect())
}

/// Returns a number of processes in words.
pub fn counted(processes: usize) -> String {
    if processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") }
}

fn text(sessions: &[Session], sessionless: &[Sessionless]) -> String {
    if sessions.is_empty() && sessionless.is_empty() {
        return "no IAM user is logged in".to_owned();
    }
    let mut text = String::new();
    if !sessions.is_empty() {
        text = format!(
            "{:<20} {:<20} {:<8} {:<16} {:>9}  {}\n",
            "USER", "IAM USER", "PID", "FROM", "SINCE", "KEY"
        );
    }
    for session in sessions {
        let age = registry::now().saturating_sub(session.since);
        let since = format!("{}:{:02}:{:02}", age / 3600, age / 60 % 60, age % 60);
        let key = match session.origin {
            Origin::None => "none".to_owned(),
            Origin::Iam => session.keys_joined(" "),
            Origin::Foreign => format!("{} (not in IAM)", session.keys_joined(" ")),
            Origin::Unknown => format!("{} (nobody could tell whose)", session.keys_joined(" ")),
        };
        let (user, iam, pid, from) = (&session.user, &session.iam_name, session.pid, &session.rhost);
        let _ = writeln!(text, "{user:<20} {iam:<20} {pid:<8} {from:<16} {since:>9}  {key}");
    }
    for Sessionless { user, uid, processes } in sessionless {
        let first: Vec<String> = processes.iter().take(5).map(ToString::to_string).collect();
        let more = if processes.len() > first.len() { " …" } else { "" };
        let _ = writeln!(
            text,
            "{user} (uid {uid}) has no session here and runs {}: {}{more}",
            counted(processes.len()),
            first.join(" ")
        );
    }
    text
}
