//! `iamctl sweep`: ends the sessions that IAM has withdrawn. A timer runs it every minute.
//!
//! IAM is asked about open sessions, and about users of ours who have processes without one: who has logged out and left
//! something running. That nobody can tell ends nothing before `freshness.offline` is over.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::LinuxName;
use pam_iam_core::process::{self, Left, Process};
use pam_iam_core::register::{Origin, Register, Session};
use pam_iam_core::standing::{Files, Standing, standing};
use pam_iam_core::wire::{Answer, Policy, Reason, Request};
use pam_iam_core::{local, paths};
use rustix::fs::OFlags;
use serde_json::json;

use crate::Context;

/// How long the resolver is asked: each session whose turn does not come goes on until the next sweep.
const ASKING_MAX: Duration = Duration::from_secs(60);

/// The longest `sessions.grace` that is waited for: a sweep is to be over before many more are due.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// How long sshd may take to carry to its client what a terminal was told.
const RELAY_MAX: Duration = Duration::from_secs(5);

/// However short `freshness.offline` is, one hiccup ends nobody.
const OFFLINE_MIN: Duration = Duration::from_secs(120);

/// What is to end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doomed {
    /// The session; none for what was left behind by one that is over.
    session: Option<Session>,
    /// The Linux name.
    user: String,
    /// The uid.
    uid: Uid,
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
    let failed = |error: std::io::Error| format!("{}: {error}", paths::SESSIONS);
    let register = Register::open(Path::new(paths::SESSIONS)).map_err(failed)?;
    if !dry_run && !register.lock().map_err(failed)? {
        context.output.show(&json!({ "ended": [] }), "another sweep is running");
        return Ok(true);
    }
    let judge = Judge { context, config: &config, asked_until: Instant::now() + ASKING_MAX };
    let doomed = judge.judge(&register, register.sessions().map_err(failed)?)?;
    let ended = if dry_run {
        vec![true; doomed.len()]
    } else {
        end(&doomed, &register, config.sessions.grace.0.min(GRACE_MAX))
    };
    report(context, &doomed, &ended, dry_run);
    Ok(ended.iter().all(|ended| *ended))
}

fn report(context: &Context, doomed: &[Doomed], ended: &[bool], dry_run: bool) {
    let mut log = Log::to_syslog("iamctl");
    let (mut text, mut json) = (String::new(), Vec::new());
    for (Doomed { session, user, reason, .. }, ended) in doomed.iter().zip(ended) {
        let pid = session.as_ref().map_or(0, |session| session.pid);
        let what = if session.is_some() { "the session" } else { "what is left" };
        let word = if dry_run { "would end" } else { "ended" };
        text.push_str(&format!("{word} {what} of {user} (pid {pid}): {reason}\n"));
        json.push(json!({ "user": user, "pid": pid, "reason": reason, "ended": ended }));
        if dry_run {
            continue;
        }
        let of = |field: fn(&Session) -> String| session.as_ref().map(field).unwrap_or_default();
        let event = Event::new("sweep")
            .with("user", user)
            .with("iam_name", of(|session| session.iam_name.clone()))
            .with("key", of(|session| session.keys.join(",")))
            .with("pid", pid)
            .with("service", of(|session| session.service.clone()))
            .with("rhost", of(|session| session.rhost.clone()))
            .with("result", if *ended { "ended" } else { "fail" });
        log.event(if *ended { Level::Warning } else { Level::Error }, &event.with("reason", reason));
    }
    context.output.show(&json!({ "ended": json }), &text);
}

/// Asks the resolver about sessions, within a time.
struct Judge<'a> {
    context: &'a Context,
    config: &'a Config,
    asked_until: Instant,
}

impl Judge<'_> {
    fn judge(&self, register: &Register, mut open: Vec<(Session, Duration)>) -> Result<Vec<Doomed>, String> {
        let mut doomed = Vec::new();
        let mut staying: BTreeSet<Uid> = BTreeSet::new();
        let mut seen: BTreeSet<Uid> = BTreeSet::new();
        // There may not be time for all.
        open.sort_by_key(|(session, _)| session.origin == Origin::Iam);
        for (session, unconfirmed) in open {
            seen.insert(session.uid);
            let standing = standing(&session.user, session.uid, self.config, &Files::default());
            let verdict = match &standing {
                Ok(standing) => self.verdict(&session, *standing, register),
                Err(_) => Verdict::Unknown,
            };
            let ours = matches!(standing, Ok(Standing::Ours));
            let (reason, whole_user) = match verdict {
                // What a local account runs beside its sessions is the host's, unless its user is withdrawn.
                Verdict::UserWithdrawn(reason) => (reason, ours || matches!(standing, Ok(Standing::Adopted))),
                Verdict::KeyWithdrawn(reason) => (reason.to_owned(), ours),
                Verdict::Unknown if unconfirmed >= self.config.freshness.offline.0.max(OFFLINE_MIN) => {
                    ("offline".to_owned(), ours)
                }
                Verdict::GoesOn(age) => {
                    let _ = register.confirm(&session, age);
                    staying.insert(session.uid);
                    continue;
                }
                Verdict::Unknown => {
                    staying.insert(session.uid);
                    continue;
                }
            };
            let (user, uid) = (session.user.clone(), session.uid);
            doomed.push(Doomed { session: Some(session), user, uid, reason, whole_user });
        }
        for doomed in &mut doomed {
            // While another session of the user goes on, what was left behind may be that one's.
            doomed.whole_user &= !staying.contains(&doomed.uid);
        }
        let running = process::users_of_ours().map_err(|error| format!("/proc: {error}"))?;
        doomed.extend(running.difference(&seen).filter_map(|uid| self.left_behind(*uid)));
        Ok(doomed)
    }

    /// Processes of a user of ours who has no session any more, if the user may not log in.
    fn left_behind(&self, uid: Uid) -> Option<Doomed> {
        let local = local::account_by_uid(Path::new(paths::PASSWD), uid).ok()?;
        let name = match local.map(|account| account.name) {
            Some(name) => LinuxName::new(&name).ok()?,
            None => match self.ask(&Request::UserByUid { uid })? {
                Answer::User(user) => user.name,
                Answer::NotFound => {
                    let reason = Reason::NoSuchUser.as_str().to_owned();
                    return Some(Doomed {
                        session: None,
                        user: uid.to_string(),
                        uid,
                        reason,
                        whole_user: true,
                    });
                }
                _ => return None,
            },
        };
        match self.login(&name, uid) {
            Verdict::UserWithdrawn(reason) => {
                Some(Doomed { session: None, user: name.to_string(), uid, reason, whole_user: true })
            }
            _ => None,
        }
    }

    fn verdict(&self, session: &Session, standing: Standing, register: &Register) -> Verdict {
        let Ok(name) = LinuxName::new(&session.user) else { return Verdict::Unknown };
        if standing == Standing::Local {
            return Verdict::GoesOn(Duration::ZERO);
        }
        // Nobody could tell whose key it was. If it is not a member's now, it is taken for the host's own.
        if standing == Standing::Shared && session.origin != Origin::Iam {
            let members = |key: &String| {
                let (name, fingerprint) = (name.clone(), Some(key.clone()));
                let answer = self.ask(&Request::Keys { name, uid: session.uid, fingerprint });
                matches!(answer, Some(Answer::Keys { keys }) if !keys.is_empty())
            };
            if session.keys.iter().any(members) {
                let _ = register.enter(&Session { origin: Origin::Iam, ..session.clone() });
            }
            return Verdict::GoesOn(Duration::ZERO);
        }
        let age = match self.login(&name, session.uid) {
            Verdict::GoesOn(age) => age,
            verdict => return verdict,
        };
        // Keys that IAM does not know may be meant: of further key commands, or an adopted account's own.
        let elsewhere = session.origin != Origin::Iam
            && (!self.config.keys.also_run.is_empty() || standing == Standing::Adopted);
        // Of a shared account nothing but the key tells whose session it is.
        let by_key = self.config.sessions.sweep == Sweep::Key || standing == Standing::Shared;
        if !by_key || elsewhere {
            return Verdict::GoesOn(age);
        }
        for key in &session.keys {
            let request =
                Request::Keys { name: name.clone(), uid: session.uid, fingerprint: Some(key.clone()) };
            match self.ask(&request) {
                Some(Answer::Keys { keys }) if keys.is_empty() => {
                    let foreign = session.origin == Origin::Foreign;
                    return Verdict::KeyWithdrawn(if foreign { "foreign-key" } else { "key-withdrawn" });
                }
                Some(Answer::Keys { .. }) => {}
                _ => return Verdict::Unknown,
            }
        }
        Verdict::GoesOn(age)
    }

    /// Whether a user may still log in.
    fn login(&self, name: &LinuxName, uid: Uid) -> Verdict {
        match self.ask(&Request::Decide { name: name.clone(), uid, policy: Policy::Login }) {
            Some(Answer::Decision(decision)) if decision.allow => {
                Verdict::GoesOn(Duration::from_secs(decision.age))
            }
            // Whoever takes a permission from this host's role is not to end every session with it.
            Some(Answer::Decision(decision)) if decision.reason == Reason::Denied => Verdict::Unknown,
            Some(Answer::Decision(decision)) => Verdict::UserWithdrawn(decision.reason.as_str().to_owned()),
            _ => Verdict::Unknown,
        }
    }

    fn ask(&self, request: &Request) -> Option<Answer> {
        if Instant::now() >= self.asked_until {
            return None;
        }
        self.context.ask(request).ok()
    }
}

/// Ends sessions together: told on their terminals, asked to end, and after `grace` killed with all that they left.
///
/// Where a terminal was told something, the sshd between it and its user is asked last: it is over by itself once the shell is,
/// and by then has sent what was on the terminal. Ended with the shell, it would take the reason with it.
fn end(doomed: &[Doomed], register: &Register, grace: Duration) -> Vec<bool> {
    // Who belongs to them is known before the first of them ends: afterwards nobody knows whose child was whose.
    let mut families: Vec<BTreeSet<Process>> = doomed
        .iter()
        .map(|doomed| {
            let root = doomed.session.as_ref().map(Session::process);
            process::family(&root.into_iter().collect(), doomed.uid).unwrap_or_default()
        })
        .collect();
    let sessions = doomed.iter().filter_map(|doomed| doomed.session.as_ref());
    let of_logind: Vec<String> = sessions.filter_map(|session| logind_session(session.pid)).collect();
    let (mut asked, mut relays) = (BTreeSet::new(), BTreeSet::new());
    for (Doomed { session, uid, reason, .. }, family) in doomed.iter().zip(&families) {
        if tell(*uid, reason, family, grace)
            && let Some(session) = session
        {
            // Of sshd's processes none is in a session (setsid(2)) with what it runs for the user.
            let of = |pid| process::stat(pid).map(|stat| stat.session);
            let (sshd, shell): (Vec<Process>, Vec<Process>) =
                family.iter().partition(|process| of(process.pid) == of(session.pid));
            if !shell.is_empty() {
                asked.extend(shell);
                relays.extend(sshd);
            }
        }
    }
    let began = Instant::now();
    process::ask(&asked);
    // What is left of the time is sshd's own, to end as it should.
    process::wait(&relays, RELAY_MAX.min(grace / 2));
    let grace = grace.saturating_sub(began.elapsed());
    of_logind.iter().for_each(|id| drop(process::loginctl(&["terminate-session", id])));
    let mut users = BTreeSet::new();
    let _ = process::end(grace, asked, || {
        let mut processes = BTreeSet::new();
        for (family, doomed) in families.iter_mut().zip(doomed) {
            family.append(&mut process::family(family, doomed.uid)?);
            processes.extend(family.iter().copied().filter(|process| process.is_running()));
        }
        users = whole_users(doomed, register);
        for uid in &users {
            processes.append(&mut process::of_user(*uid)?);
        }
        Ok(Left { processes, users: users.clone() })
    });
    let ended: BTreeSet<Uid> =
        doomed.iter().filter(|doomed| doomed.whole_user).map(|doomed| doomed.uid).collect();
    let runs_on = |uid: &Uid| process::of_user(*uid).map_or(true, |left| !left.is_empty());
    let running: BTreeSet<Uid> = ended.into_iter().filter(runs_on).collect();
    let gone = |(doomed, family): (&Doomed, &BTreeSet<Process>)| {
        let lives_on = family.iter().any(|process| process.is_running());
        // Of who is in anew what runs may be the new session's.
        let counts = doomed.whole_user && (doomed.session.is_none() || users.contains(&doomed.uid));
        !(lives_on || counts && running.contains(&doomed.uid))
    };
    doomed.iter().zip(&families).map(gone).collect()
}

/// The users of whom nothing is to go on: who has logged in anew meanwhile, by another key say, is let be.
fn whole_users(doomed: &[Doomed], register: &Register) -> BTreeSet<Uid> {
    let ends = |process: Process| {
        doomed.iter().filter_map(|doomed| doomed.session.as_ref()).any(|session| session.process() == process)
    };
    let open = register.sessions().unwrap_or_default();
    let anew: BTreeSet<Uid> =
        open.iter().filter(|(open, _)| !ends(open.process())).map(|(open, _)| open.uid).collect();
    let whole = doomed.iter().filter(|doomed| doomed.whole_user).map(|doomed| doomed.uid);
    whole.filter(|uid| !anew.contains(uid)).collect()
}

/// Says on the terminals of a session why it ends. True if one took it. A terminal belongs to the user, so nothing else is
/// written to.
fn tell(uid: Uid, reason: &str, family: &BTreeSet<Process>, grace: Duration) -> bool {
    let mut told = false;
    let terminals = family.iter().filter_map(|process| process::stat(process.pid)).map(|stat| stat.terminal);
    for terminal in terminals.filter(|terminal| *terminal != 0).collect::<BTreeSet<i32>>() {
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
            && file.metadata().is_ok_and(|found| found.uid() == uid.0 && found.file_type().is_char_device())
        {
            let seconds = grace.as_secs();
            told |= write!(
                file,
                "\r\npam_iam: your access to this host was withdrawn ({reason}). This session ends now; what is left is \
                 killed in {seconds} s.\r\n"
            )
            .is_ok();
        }
    }
    told
}

/// Where logind keeps sessions, which of them this one is, if `pid` is who it was made for: a process that was started from
/// somebody else's session is in that one.
fn logind_session(pid: i32) -> Option<String> {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let id = cgroup
        .split('/')
        .find_map(|part| part.strip_prefix("session-")?.trim_end().strip_suffix(".scope"))?;
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let leader = process::loginctl(&["show-session", id, "--property=Leader", "--value"])?;
    (String::from_utf8_lossy(&leader.stdout).trim() == pid.to_string()).then(|| id.to_owned())
}
