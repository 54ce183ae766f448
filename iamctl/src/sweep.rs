//! `iamctl sweep`: ends the sessions that IAM has withdrawn. A timer runs it every minute.
//!
//! IAM is asked about open sessions only. That nobody can tell ends no session before `freshness.offline` is over; a key that
//! is not the user's in IAM comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::LinuxName;
use pam_iam_core::register::{Origin, Register, Session};
use pam_iam_core::standing::{Files, Standing, standing};
use pam_iam_core::wire::{Answer, Policy, Request};
use pam_iam_core::{paths, process};
use rustix::fs::OFlags;
use serde_json::json;

use crate::{Context, sessions};

/// Why a session is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doomed {
    session: Session,
    /// As the log has it.
    reason: String,
    /// Whether all that the user runs goes too, or this session alone.
    whole_user: bool,
}

/// What IAM says about a session.
enum Verdict {
    /// It may go on, said IAM so long ago.
    GoesOn(Duration),
    /// The user may no longer log in.
    UserWithdrawn(String),
    /// The key is no longer an active key of the user.
    KeyWithdrawn(&'static str),
    /// Nobody can tell.
    Unknown,
}

/// True if all that was to end did.
pub fn run(context: &Context, dry_run: bool) -> Result<bool, String> {
    let config = context.config()?;
    if config.sessions.sweep == Sweep::Off {
        context.output.show(&json!({ "ended": [] }), "sessions.sweep is \"off\"");
        return Ok(true);
    }
    let open = sessions::open().map_err(|error| format!("{}: {error}", paths::SESSIONS))?;
    let doomed = judge(context, &config, open);
    let mut log = Log::to_syslog("iamctl");
    let ended = if dry_run { vec![true; doomed.len()] } else { end(&doomed, config.sessions.grace.0) };
    let mut text = String::new();
    for (Doomed { session, reason, .. }, ended) in doomed.iter().zip(&ended) {
        let word = if dry_run { "would end" } else { "ended" };
        text.push_str(&format!("{word} the session of {} (pid {}): {reason}\n", session.user, session.pid));
        if !dry_run {
            let event = Event::new("sweep")
                .with("user", &session.user)
                .with("iam_name", &session.iam_name)
                .with("key", session.keys.join(","))
                .with("pid", session.pid)
                .with("service", &session.service)
                .with("rhost", &session.rhost)
                .with("result", if *ended { "ended" } else { "fail" });
            log.event(if *ended { Level::Warning } else { Level::Error }, &event.with("reason", reason));
        }
    }
    let json = doomed.iter().zip(&ended).map(|(doomed, ended)| {
        json!({ "user": doomed.session.user, "pid": doomed.session.pid, "reason": doomed.reason, "ended": ended })
    });
    context.output.show(&json!({ "ended": json.collect::<Vec<_>>() }), &text);
    Ok(ended.iter().all(|ended| *ended))
}

/// Which sessions are to end, those of foreign keys first.
fn judge(context: &Context, config: &Config, open: Vec<(Session, SystemTime)>) -> Vec<Doomed> {
    let register = Register::open(Path::new(paths::SESSIONS));
    let mut doomed = Vec::new();
    let mut staying: BTreeSet<Uid> = BTreeSet::new();
    for (session, confirmed) in open {
        let standing = standing(&session.user, session.uid, config, &Files::default());
        let unconfirmed = SystemTime::now().duration_since(confirmed).unwrap_or_default();
        let verdict = match &standing {
            Ok(standing) => ask(context, config, &session, *standing),
            Err(_) => Verdict::Unknown,
        };
        // What a local account runs beside its sessions is the host's, unless its user is withdrawn.
        let (reason, whole_user) = match verdict {
            Verdict::UserWithdrawn(reason) => {
                (reason, matches!(standing, Ok(Standing::Ours | Standing::Adopted)))
            }
            Verdict::KeyWithdrawn(reason) => (reason.to_owned(), matches!(standing, Ok(Standing::Ours))),
            Verdict::Unknown if unconfirmed >= config.freshness.offline.0 => {
                ("offline".to_owned(), matches!(standing, Ok(Standing::Ours)))
            }
            Verdict::GoesOn(_) | Verdict::Unknown => {
                if let (Verdict::GoesOn(age), Ok(register)) = (verdict, &register) {
                    let _ = register.confirm(&session, age);
                }
                staying.insert(session.uid);
                continue;
            }
        };
        doomed.push(Doomed { session, reason, whole_user });
    }
    for doomed in &mut doomed {
        // While another session of the user goes on, what was left behind may be that one's.
        doomed.whole_user &= !staying.contains(&doomed.session.uid);
    }
    doomed.sort_by_key(|doomed| doomed.session.origin != Origin::Foreign);
    doomed
}

fn ask(context: &Context, config: &Config, session: &Session, standing: Standing) -> Verdict {
    let Ok(name) = LinuxName::new(&session.user) else { return Verdict::Unknown };
    if standing == Standing::Local {
        return Verdict::GoesOn(Duration::ZERO);
    }
    let age =
        match context.ask(&Request::Decide { name: name.clone(), uid: session.uid, policy: Policy::Login }) {
            Ok(Answer::Decision(decision)) if decision.allow => Duration::from_secs(decision.age),
            // Of a shared account nobody is left; its keys say the same.
            Ok(Answer::Decision(decision)) => {
                return Verdict::UserWithdrawn(decision.reason.as_str().to_owned());
            }
            _ => return Verdict::Unknown,
        };
    // Further key commands bring keys that IAM does not know.
    let elsewhere = !config.keys.also_run.is_empty() && session.origin == Origin::Foreign;
    // Of a shared account nothing but the key tells whose session it is.
    let by_key = config.sessions.sweep == Sweep::Key || standing == Standing::Shared;
    if !by_key || session.keys.is_empty() || elsewhere {
        return Verdict::GoesOn(age);
    }
    for key in &session.keys {
        let request = Request::Keys { name: name.clone(), uid: session.uid, fingerprint: Some(key.clone()) };
        match context.ask(&request) {
            Ok(Answer::Keys { keys }) if keys.is_empty() => {
                let foreign = session.origin == Origin::Foreign;
                return Verdict::KeyWithdrawn(if foreign { "foreign-key" } else { "key-withdrawn" });
            }
            Ok(Answer::Keys { .. }) => {}
            _ => return Verdict::Unknown,
        }
    }
    Verdict::GoesOn(age)
}

/// Ends sessions together: told on their terminals, asked to end, and after `grace` killed with all that they left.
fn end(doomed: &[Doomed], grace: Duration) -> Vec<bool> {
    let families: Vec<BTreeSet<i32>> = doomed
        .iter()
        .map(|Doomed { session, .. }| process::family(session.pid, session.start).unwrap_or_default())
        .collect();
    for (Doomed { session, reason, .. }, family) in doomed.iter().zip(&families) {
        tell(session, reason, family, grace);
        end_by_logind(session.pid);
    }
    // Who they are is held now: what they start meanwhile descends from one of them, or runs as the user.
    let mut seen: BTreeMap<i32, OwnedFd> = BTreeMap::new();
    let _ = process::end(grace, || {
        let mut running = Vec::new();
        for Doomed { session, whole_user, .. } in doomed {
            for pid in process::family(session.pid, session.start)? {
                if let std::collections::btree_map::Entry::Vacant(place) = seen.entry(pid)
                    && let Some(process) = process::hold(pid)?
                {
                    place.insert(process);
                }
            }
            if *whole_user && session.uid != Uid::ROOT {
                running.append(&mut process::of_user(session.uid)?);
            }
        }
        for (pid, process) in &seen {
            if !process::has_ended(process, Duration::ZERO) {
                running.extend(process::hold(*pid)?);
            }
        }
        Ok(running)
    });
    let gone = |doomed: &Doomed| {
        let alive = process::is_running(doomed.session.pid, doomed.session.start);
        let left =
            doomed.whole_user && !process::of_user(doomed.session.uid).is_ok_and(|left| left.is_empty());
        !alive && !left
    };
    doomed.iter().map(gone).collect()
}

/// Says on the terminals of a session why it ends. A terminal belongs to the user, so nothing else is written to.
fn tell(session: &Session, reason: &str, family: &BTreeSet<i32>, grace: Duration) {
    let terminals: BTreeSet<i32> = family
        .iter()
        .filter_map(|pid| process::stat(*pid))
        .map(|stat| stat.terminal)
        .filter(|terminal| *terminal != 0)
        .collect();
    for terminal in terminals {
        // Unix98 terminals have the major numbers 136 to 143 (devices.txt of the kernel).
        let (major, minor) = (terminal >> 8 & 0xfff, terminal & 0xff | terminal >> 12 & 0xfff00);
        if !(136..=143).contains(&major) {
            continue;
        }
        let path = format!("/dev/pts/{}", (major - 136) * 256 + minor);
        let flags = OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let mut options = OpenOptions::new();
        let file =
            options.write(true).custom_flags(i32::try_from(flags.bits()).unwrap_or_default()).open(path);
        if let Ok(mut file) = file
            && file
                .metadata()
                .is_ok_and(|found| found.uid() == session.uid.0 && found.file_type().is_char_device())
        {
            let seconds = grace.as_secs();
            let _ = write!(
                file,
                "\r\npam_iam: your access to this host was withdrawn ({reason}). This session ends now; what is left is \
                 killed in {seconds} s.\r\n"
            );
        }
    }
}

/// Where logind keeps sessions, it ends this one with all that belongs to it.
fn end_by_logind(pid: i32) {
    if !Path::new(paths::BOOTED_BY_SYSTEMD).exists() {
        return;
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let scope =
        cgroup.split('/').find_map(|part| part.strip_prefix("session-")?.trim_end().strip_suffix(".scope"));
    if let Some(id) = scope.filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        let mut logind = Command::new("loginctl");
        let quiet = logind.arg("terminate-session").arg(id).stdin(Stdio::null());
        let _ = quiet.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
