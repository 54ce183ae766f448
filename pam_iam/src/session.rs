//! The session phase: a home directory, and a line in the log that says whose key opened the session.

use pam_iam_core::config::Config;
use pam_iam_core::escape::Value;
use pam_iam_core::key::authenticated_with;
use pam_iam_core::name::LinuxName;
use pam_iam_core::standing::Standing;
use pam_iam_core::wire::{Answer, Request};
use rustix::fs::{Gid, Uid};

use crate::account::Subject;
use crate::arguments::Arguments;
use crate::home::{self, HomeError, Made, Owner};
use crate::host::{Host, Outcome, Severity};

/// The body of `pam_sm_open_session`.
pub fn open(host: &mut impl Host, arguments: &Arguments) -> Outcome {
    let Some(name) = host.user().filter(|name| !name.is_empty()) else { return Outcome::UnknownUser };
    let Some(subject) = Subject::look_up(name, &arguments.config) else { return Outcome::UnknownUser };
    if subject.standing == Standing::Local {
        return Outcome::Ignore;
    }
    let config = match &subject.config {
        Ok(config) => config,
        Err(error) => {
            let user = Value(&subject.name);
            host.log(
                Severity::Error,
                &format!("event=session user={user} result=fail error={}", Value(&error.to_string())),
            );
            return Outcome::SessionFailed;
        }
    };
    let foreign = log_key(host, &subject, config);
    if subject.standing != Standing::Ours {
        // Its home, and the keys in it, are the business of whoever made the account.
        return Outcome::Success;
    }
    if foreign && config.keys.also_run.is_empty() {
        host.tell(&format!("{}: this key is not one of your active keys in IAM.", subject.name));
        return Outcome::SessionFailed;
    }
    make_home(host, &subject, config)
}

/// Logs the fingerprint of the key that opened the session. One that is not an active IAM key of the user is called
/// foreign: it comes from a place that IAM cannot withdraw, and sshd's rule that keeps such keys out (`Match Group
/// iam-users`) did not hold. True if there is one.
fn log_key(host: &mut impl Host, subject: &Subject, config: &Config) -> bool {
    let mut foreign = false;
    let info = host.environment(c"SSH_AUTH_INFO_0").unwrap_or_default();
    let (service, rhost) = (host.service(), host.remote_host());
    for key in authenticated_with(&info) {
        let fingerprint = key.fingerprint();
        let owner = owner(subject, config, &fingerprint);
        foreign |= owner.as_ref().is_some_and(Option::is_none);
        let (severity, origin, iam_name) = match &owner {
            Some(Some(owner)) => (Severity::Info, "iam", owner.as_str()),
            // The host's own keys of a shared account are nothing to warn of.
            Some(None) if subject.standing == Standing::Shared => (Severity::Info, "foreign", ""),
            Some(None) => (Severity::Warning, "foreign", ""),
            None => (Severity::Warning, "unknown", ""),
        };
        let line = format!(
            "event=session user={} iam_name={} key={fingerprint} origin={origin} service={} rhost={}",
            Value(&subject.name),
            Value(iam_name),
            Value(&service),
            Value(&rhost),
        );
        host.log(severity, &line);
    }
    foreign
}

/// The IAM user whose active key this is, if it is anybody's who may use the account; none if nobody can tell.
fn owner(subject: &Subject, config: &Config, fingerprint: &str) -> Option<Option<String>> {
    let name = LinuxName::new(&subject.name).ok()?;
    let request = Request::Keys { name, uid: subject.uid, fingerprint: Some(fingerprint.to_owned()) };
    match subject.resolver(config).ask(&request) {
        Ok(Answer::Keys { keys }) => {
            // Two may have uploaded one key.
            let owners: Vec<String> = keys.into_iter().map(|key| key.iam_name).collect();
            Some((!owners.is_empty()).then(|| owners.join(",")))
        }
        _ => None,
    }
}

fn make_home(host: &mut impl Host, subject: &Subject, config: &Config) -> Outcome {
    let owner = Owner { uid: Uid::from_raw(subject.uid.0), gid: Gid::from_raw(subject.gid) };
    let user = Value(&subject.name);
    let path = subject.home.display().to_string();
    match home::ensure(&subject.home, owner, &config.home) {
        Ok(Made::WasThere) => Outcome::Success,
        Ok(Made::New) => {
            host.log(Severity::Info, &format!("event=home user={user} path={} result=made", Value(&path)));
            Outcome::Success
        }
        Ok(Made::Aside(old)) => {
            let old = old.display().to_string();
            let line =
                format!("event=home user={user} path={} result=made aside={}", Value(&path), Value(&old));
            host.log(Severity::Warning, &line);
            host.tell(&format!(
                "{}: the home directory of an earlier user was moved to {old}.",
                subject.name
            ));
            Outcome::Success
        }
        Err(error) => {
            let reason = Value(&error.to_string()).to_string();
            let line = format!("event=home user={user} path={} result=fail error={reason}", Value(&path));
            host.log(Severity::Error, &line);
            host.tell(&match error {
                HomeError::Foreign { .. } => format!(
                    "{}: {path} belonged to an earlier user of this name and is not yours; ask an administrator.",
                    subject.name
                ),
                _ => format!("{}: the home directory {path} could not be made.", subject.name),
            });
            Outcome::SessionFailed
        }
    }
}
