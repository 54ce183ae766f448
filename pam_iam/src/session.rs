//! The session phase: makes the home directory, logs whose key opened the session, and registers the session for the sweep.

use std::io;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, OnMismatch, Unregistered};
use pam_iam_core::escape::Value;
use pam_iam_core::key::{PublicKey, authenticated_with};
use pam_iam_core::name::LinuxName;
use pam_iam_core::owners::Owners;
use pam_iam_core::process::{Process, own_audit_session};
use pam_iam_core::registry::{self, Origin, Session, SessionKey, SessionRegistry};
use pam_iam_core::resolver::Queries;
use pam_iam_core::served::Served;
use pam_iam_core::{local, paths};
use rustix::fs::{Gid, Uid};

use crate::account::tell_of_name;
use crate::application::{Application, Outcome, Severity};
use crate::arguments::Arguments;
use crate::home::{self, HomeError, Made};
use crate::skeleton::Owner;
use crate::target::TargetAccount;

/// Opens a session (`pam_sm_open_session`).
pub fn open(application: &mut impl Application, arguments: &Arguments) -> Outcome {
    let Some(name) = application.user().filter(|name| !name.is_empty()) else { return Outcome::UnknownUser };
    let Some(account) = TargetAccount::look_up(name, &arguments.config, application.line()) else {
        return Outcome::UnknownUser;
    };
    if account.account_kind == AccountKind::Local {
        return Outcome::Ignore;
    }
    let config = match &account.config {
        Ok(config) => config,
        Err(error) => {
            let event = Event::new("session").with("user", &account.name).with("result", "fail");
            application.audit(Severity::Error, &event.with("error", error));
            return Outcome::SessionFailed;
        }
    };
    // The account phase refuses the user too, if this module is in the stack's account phase.
    if let Some(refusal) = account.leftovers().refusal(&account.name) {
        let event = Event::new("session").with("user", &account.name).with("service", application.service());
        application.audit(Severity::Warning, &event.with("result", "deny").with("reason", refusal.reason));
        tell_of_name(application, &account.name, &refusal);
        return Outcome::SessionFailed;
    }
    let opened = opened_by(application, &account, config);
    let outcome = admit(application, &account, config, &opened, arguments);
    if outcome == Outcome::Success
        && let Err(error) = registry(application, &account, opened)
    {
        application.log(
            Severity::Error,
            &format!("the session of {} cannot be registered: {error}", Value(&account.name)),
        );
        // Without an entry, a sweep does not know by which keys the session was opened.
        if account.account_kind == AccountKind::Managed
            && config.sessions.unregistered == Unregistered::Refuse
        {
            application.message(&format!(
                "{}: this session cannot be registered, so it is refused; ask an administrator.",
                account.name
            ));
            return Outcome::SessionFailed;
        }
    }
    outcome
}

/// Refuses a session because of the keys that opened it, or makes the home directory.
fn admit(
    application: &mut impl Application,
    account: &TargetAccount,
    config: &Config,
    opened: &Opened,
    arguments: &Arguments,
) -> Outcome {
    if opened.keys.is_empty()
        && is_ssh_of_managed(application, account, arguments)
        && config.sessions.without_key == Unregistered::Refuse
    {
        application.message(&format!("{}: log in with one of your keys in IAM.", account.name));
        let event = Event::new("session").with("user", &account.name).with("origin", "none");
        application
            .audit(Severity::Warning, &event.with("service", application.service()).with("result", "deny"));
        return Outcome::SessionFailed;
    }
    if is_refused(account, config, opened.origin) {
        let what = match opened.by_certificate {
            true => "a certificate opens no account of an IAM user; log in with a key that is active in IAM",
            false => "this key is not one of your active keys in IAM",
        };
        application.message(&format!("{}: {what}.", account.name));
        return Outcome::SessionFailed;
    }
    match account.account_kind {
        AccountKind::Managed => make_home(application, account, config),
        // The administrator who made such an account also made its home directory.
        AccountKind::Adopted | AccountKind::Shared | AccountKind::Local => Outcome::Success,
    }
}

/// Closes a session (`pam_sm_close_session`).
pub fn close() -> Outcome {
    let left = Process::this().and_then(|process| {
        match SessionRegistry::open_if_made(Path::new(paths::SESSIONS))? {
            Some(registry) if a_sweep_will_come() => registry.close(process),
            Some(registry) => registry.remove(process),
            None => Ok(()),
        }
    });
    // If the entry could not be changed, the sweep removes it once the process has ended.
    if left.is_ok() { Outcome::Success } else { Outcome::Ignore }
}

/// Whether sweeps run on this host: the last one, or else the boot, was less than an hour ago. A sweep reads and removes the
/// entries of closed sessions.
fn a_sweep_will_come() -> bool {
    const RECENT: Duration = Duration::from_secs(3600);
    let last = std::fs::metadata(paths::SWEPT).and_then(|record| record.modified());
    match last {
        // If the clock was set back, the age is unknown and the sweep counts as recent.
        Ok(last) => last.elapsed().map_or(true, |age| age < RECENT),
        Err(_) => registry::since_boot() < RECENT.as_secs(),
    }
}

/// The keys that opened a session.
struct Opened {
    keys: Vec<SessionKey>,
    origin: Origin,
    iam_name: String,
    /// Whether any of the keys is a certificate.
    by_certificate: bool,
}

/// Logs the fingerprint and the owner of each key that opened the session. A key that is not an active IAM key of the user
/// is foreign: IAM cannot withdraw it, and for a managed account sshd's rule against such keys (`Match Group iam-users`) has
/// failed.
fn opened_by(application: &mut impl Application, account: &TargetAccount, config: &Config) -> Opened {
    let info = application.environment(c"SSH_AUTH_INFO_0").unwrap_or_default();
    let (service, rhost) = (application.service(), application.remote_host());
    let mut opened =
        Opened { keys: Vec::new(), origin: Origin::None, iam_name: String::new(), by_certificate: false };
    for key in authenticated_with(&info) {
        opened.by_certificate |= key.as_ref().is_some_and(PublicKey::is_certificate);
        let key = key.map_or(SessionKey::Unreadable, |key| SessionKey::Known(key.fingerprint()));
        let (origin, iam_name) = match owner(account, config, &key) {
            KeyOwner::Iam(owner) => (Origin::Iam, owner),
            KeyOwner::Foreign => (Origin::Foreign, String::new()),
            KeyOwner::Unknown => (Origin::Unknown, String::new()),
        };
        let (severity, word) = match origin {
            Origin::Iam => (Severity::Info, "iam"),
            // The host's own keys of a shared account need no warning.
            Origin::Foreign if account.account_kind == AccountKind::Shared => (Severity::Info, "foreign"),
            Origin::Foreign => (Severity::Warning, "foreign"),
            Origin::Unknown | Origin::None => (Severity::Warning, "unknown"),
        };
        let event = Event::new("session").with("user", &account.name).with("iam_name", &iam_name);
        let event = event.with("key", &key).with("origin", word);
        let event = event.with("service", &service).with("rhost", &rhost);
        application.audit(
            severity,
            &event.with("result", if is_refused(account, config, origin) { "deny" } else { "allow" }),
        );
        // In a session of a shared account, only the keys of IAM users can be withdrawn.
        if !(account.account_kind == AccountKind::Shared && origin == Origin::Foreign) {
            opened.keys.push(key);
        }
        // One foreign key makes a session foreign, but an IAM key makes a session of a shared account one of IAM's. Beside
        // an IAM or foreign key, a key of unknown origin changes nothing.
        opened.origin = match (opened.origin, origin) {
            (Origin::Iam, Origin::Foreign) | (Origin::Foreign, Origin::Iam)
                if account.account_kind == AccountKind::Shared =>
            {
                Origin::Iam
            }
            (Origin::Foreign, _) => Origin::Foreign,
            (Origin::Iam, Origin::Unknown) => Origin::Iam,
            (_, origin) => origin,
        };
        if opened.iam_name.is_empty() {
            opened.iam_name = iam_name;
        }
    }
    opened
}

/// Whether this is a login to a managed account by sshd. Without a key it is one by Kerberos, a trusted host or a password,
/// which IAM does not know.
fn is_ssh_of_managed(application: &impl Application, account: &TargetAccount, arguments: &Arguments) -> bool {
    account.account_kind == AccountKind::Managed && (arguments.is_sshd || application.service() == "sshd")
}

/// Whether a session by a key of this origin is refused.
fn is_refused(account: &TargetAccount, config: &Config, origin: Origin) -> bool {
    account.account_kind == AccountKind::Managed
        && origin == Origin::Foreign
        && !config.keys.others_open_managed_accounts()
}

/// Registers the session for the sweep. A session of a shared account without a key that IAM knows is the host's own, and is not
/// registered.
fn registry(application: &mut impl Application, account: &TargetAccount, opened: Opened) -> io::Result<()> {
    if account.account_kind == AccountKind::Shared && [Origin::Foreign, Origin::None].contains(&opened.origin)
    {
        return Ok(());
    }
    if account.uid.is_managed() {
        // A failure is only logged, since the registered session has the uid and the name too.
        if let Err(error) = Served::new(Path::new(paths::SERVED)).add(account.uid, &account.name) {
            application.log(Severity::Warning, &format!("{}: {error}", paths::SERVED));
        }
        Owners::of_host().record(&account.name, account.uid)?;
    }
    let Process { pid, start } = Process::this()?;
    let mut groups = application.gids_of(&account.name, account.gid);
    groups.sort();
    groups.dedup();
    SessionRegistry::open(Path::new(paths::SESSIONS))?.insert(&Session {
        pid,
        start,
        user: account.name.clone(),
        uid: account.uid,
        service: application.service(),
        rhost: application.remote_host(),
        iam_name: opened.iam_name,
        keys: opened.keys,
        origin: opened.origin,
        groups,
        since: registry::now(),
        audit: own_audit_session(pid),
        closed: false,
        unseen: 0,
    })
}

/// The owner of a key that opened a session.
enum KeyOwner {
    /// IAM users who may use the account and have the key as an active key: their names, separated by commas.
    Iam(String),
    /// No such user.
    Foreign,
    /// The resolver did not answer.
    Unknown,
}

/// Returns the owner of a key.
fn owner(account: &TargetAccount, config: &Config, key: &SessionKey) -> KeyOwner {
    let Some(fingerprint) = key.fingerprint() else { return KeyOwner::Foreign };
    let Ok(name) = LinuxName::new(&account.name) else { return KeyOwner::Unknown };
    let Ok(keys) = account.resolver(config).keys(&name, account.uid, Some(fingerprint)) else {
        return KeyOwner::Unknown;
    };
    // Two users may have uploaded the same key.
    let owners: Vec<String> = keys.into_iter().map(|key| key.iam_name).collect();
    if owners.is_empty() { KeyOwner::Foreign } else { KeyOwner::Iam(owners.join(",")) }
}

/// Whether another account in passwd(5) has the same home directory, or the file cannot be read.
fn is_home_of_another(account: &TargetAccount) -> bool {
    let others = local::accounts(Path::new(paths::PASSWD));
    others.map_or(true, |all| {
        all.iter().any(|other| other.uid != account.uid && Path::new(&other.home) == account.home)
    })
}

fn make_home(application: &mut impl Application, account: &TargetAccount, config: &Config) -> Outcome {
    let owner = Owner { uid: Uid::from_raw(account.uid.0), gid: Gid::from_raw(account.gid) };
    let path = account.home.display().to_string();
    let event = |result: &str| {
        Event::new("home").with("user", &account.name).with("path", &path).with("result", result)
    };
    // If root owns the directory, as sshd requires of a `ChrootDirectory`, its owner does not show whose files it contains.
    if let Some(former) = Owners::of_host().former(&account.name, account.uid)
        && home::is_roots(&account.home)
    {
        let why = format!(
            "is root's, and may hold files of uid {former}, who had the name before; if it holds none: install -d -m 700 {folder} && echo {} >{folder}/{}",
            account.uid,
            account.name,
            folder = paths::OWNERS
        );
        application.audit(Severity::Error, &event("fail").with("error", why));
        application.message(&belonged_to_another(&account.name, &path));
        return Outcome::SessionFailed;
    }
    let mut settings = config.home.clone();
    // A user who was renamed in IAM may still have the home directory with the former name.
    if settings.on_mismatch == OnMismatch::Aside && is_home_of_another(account) {
        settings.on_mismatch = OnMismatch::Refuse;
    }
    match home::ensure(&account.home, owner, &settings) {
        Ok(Made::WasThere) => Outcome::Success,
        Ok(Made::New) => {
            application.audit(Severity::Info, &event("made"));
            Outcome::Success
        }
        Ok(Made::Aside(old)) => {
            let old = old.display().to_string();
            application.audit(Severity::Warning, &event("made").with("moved_to", &old));
            application.message(&format!(
                "{}: the home directory of an earlier user was moved to {old}.",
                account.name
            ));
            Outcome::Success
        }
        Err(error) => {
            application.audit(Severity::Error, &event("fail").with("error", &error));
            application.message(&match error {
                HomeError::Foreign { .. } => belonged_to_another(&account.name, &path),
                _ => format!("{}: the home directory {path} could not be made.", account.name),
            });
            Outcome::SessionFailed
        }
    }
}

fn belonged_to_another(user: &str, path: &str) -> String {
    format!("{user}: {path} belonged to an earlier user of this name and is not yours; ask an administrator.")
}
