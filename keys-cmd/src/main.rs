//! `iam-authorized-keys`: sshd's AuthorizedKeysCommand.
//!
//! sshd starts it, as `keys.user` of the configuration, for every key that a client offers:
//!
//! ```text
//! AuthorizedKeysCommand /usr/libexec/pam_iam/iam-authorized-keys --uid %U --home %h --type %t --key %k %u %f
//! ```
//!
//! It prints the active IAM keys of a managed, adopted or shared account, and then the output of the further key commands of
//! the configuration. sshd ignores all keys of a command that fails, so the exit status is 0 unless the keys of a managed or
//! adopted account cannot be determined.

mod also_run;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::audit::Event;
use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, ConfigError};
use pam_iam_core::escape::Value;
use pam_iam_core::fingerprint::{Fingerprint, NotAFingerprint};
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{LinuxName, NameError};
use pam_iam_core::nsswitch::{NSSWITCH, has_directory, services};
use pam_iam_core::resolver::{Queries, Resolver};
use pam_iam_core::{local, paths};

const USAGE: &str = "usage: iam-authorized-keys [--config FILE] [--uid UID] [--home DIRECTORY] [--type TYPE] [--key KEY] USER [FINGERPRINT]";

/// The request of sshd, from the command line.
struct Question {
    config: String,
    /// The uid that sshd is about to log in. If it is not given, the uid that the account has now is used.
    uid: Option<Uid>,
    user: String,
    fingerprint: Option<String>,
    /// The tokens `%h`, `%t` and `%k` of sshd_config(5), for further key commands.
    home: String,
    key_type: String,
    key: String,
}

impl Question {
    /// Returns the fingerprint by which keys are selected. None if `FingerprintHash` is not sshd's default: then sshd gets
    /// all keys of the account.
    ///
    /// # Errors
    /// Returns an error if the fingerprint is malformed.
    fn sha256_fingerprint(&self) -> Result<Option<Fingerprint>, NotAFingerprint> {
        let sha256 = self.fingerprint.as_deref().filter(|fingerprint| fingerprint.starts_with("SHA256:"));
        sha256.map(str::parse).transpose()
    }
}

fn main() -> ExitCode {
    let Some(question) = question(std::env::args().skip(1)) else {
        let _ = writeln!(io::stderr(), "{USAGE}");
        return ExitCode::from(2);
    };
    let mut log = Log::to_syslog("iam-authorized-keys");
    match run(&question, &mut log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log.event(Level::Error, &failed(&question.user, &why));
            ExitCode::FAILURE
        }
    }
}

/// Why the keys of an account cannot be determined or printed.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error("the name {0}")]
    Name(#[from] NameError),
    #[error("the fingerprint {0}")]
    Fingerprint(#[from] NotAFingerprint),
    #[error(transparent)]
    Resolver(#[from] ClientError),
    #[error("writing to sshd: {0}")]
    Output(#[from] io::Error),
}

fn failed(user: &str, why: impl fmt::Display) -> Event {
    Event::new("keys").with("user", user).with("result", "fail").with("error", why)
}

fn question(mut arguments: impl Iterator<Item = String>) -> Option<Question> {
    let (mut config, mut uid) = (paths::CONFIG.to_owned(), None);
    let (mut home, mut key_type, mut key) = (String::new(), String::new(), String::new());
    let user = loop {
        match arguments.next()? {
            option if option == "--config" => config = arguments.next()?,
            option if option == "--uid" => uid = Some(Uid(arguments.next()?.parse().ok()?)),
            option if option == "--home" => home = arguments.next()?,
            option if option == "--type" => key_type = arguments.next()?,
            option if option == "--key" => key = arguments.next()?,
            user => break user,
        }
    };
    let fingerprint = arguments.next().filter(|fingerprint| !fingerprint.is_empty());
    arguments.next().is_none().then_some(Question { config, uid, user, fingerprint, home, key_type, key })
}

fn run(question: &Question, log: &mut Log) -> Result<(), KeysError> {
    let Some(uid) = question.uid.or_else(|| uid_of(&question.user)) else { return Ok(()) };
    // sshd looked up the account once, when the login began. PAM would check the account that has the name now.
    if uid.is_managed() && is_of_another(&question.user, uid) {
        let why = "another account has the name than when the login began";
        log.event(Level::Warning, &failed(&question.user, why));
        return Ok(());
    }
    let path = Path::new(&question.config);
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) if uid.is_managed() => return Err(error.into()),
        // A local account needs no configuration. Whether it is adopted, PAM checks again and more strictly.
        Err(error) => {
            log.write(Level::Error, error);
            also_run::run(&Config::rescue_commands(path), question, uid, log);
            return Ok(());
        }
    };
    let kind = account_kind(&question.user, uid, &config, &Files::default());
    match &kind {
        Ok(AccountKind::Local) => {}
        Ok(AccountKind::Managed | AccountKind::Adopted) => print(&keys(question, uid, &config)?)?,
        // A shared account must not lose its other keys, which the host gives, so the failure is only logged.
        Ok(AccountKind::Shared) => match keys(question, uid, &config) {
            Ok(lines) => print(&lines)?,
            Err(error) => log.event(Level::Error, &failed(&question.user, &error)),
        },
        Err(error) => log.write(
            Level::Error,
            format!("whether {} is adopted cannot be told: {error}", Value(&question.user)),
        ),
    }
    if !matches!(kind, Ok(AccountKind::Managed)) || config.keys.others_open_managed_accounts() {
        also_run::run(&config.keys.also_run, question, uid, log);
    }
    Ok(())
}

/// Returns the uid of the account that has a name now.
fn uid_of(name: &str) -> Option<Uid> {
    users::get_user_by_name(name).map(|user| Uid(user.uid()))
}

/// Whether /etc/passwd or a directory has an account of this name with another uid than the managed one. (Whose the managed
/// uid is, the resolver knows.) The modules of NSS are loaded only where there is a directory: they take as long as all else
/// here, and only root could make systemd or altfiles know the name in this moment.
fn is_of_another(name: &str, uid: Uid) -> bool {
    if let Ok(Some(account)) = local::account_by_name(Path::new(paths::PASSWD), name) {
        return account.uid != uid;
    }
    // `compat` may bring NIS.
    let is_directory = |text: String| {
        has_directory(&text) || services(&text, "passwd").is_none_or(|services| services.contains(&"compat"))
    };
    let has_directory = std::fs::read_to_string(NSSWITCH).map_or(true, is_directory);
    has_directory && uid_of(name).is_some_and(|now| now != uid)
}

/// Returns the lines for sshd: type, base64 and the IAM name as comment.
fn keys(question: &Question, uid: Uid, config: &Config) -> Result<String, KeysError> {
    let name = LinuxName::new(&question.user)?;
    let wanted = question.sha256_fingerprint()?;
    let keys =
        Resolver::new(config.resolver.mode, Path::new(&question.config)).keys(&name, uid, wanted.as_ref())?;
    let line = |key: &pam_iam_core::wire::Key| {
        let parsed = PublicKey::parse(&key.line).ok()?;
        let name = pam_iam_core::name::IamName::user(&key.iam_name).ok()?;
        let is_wanted = wanted.as_ref().is_none_or(|wanted| *wanted == parsed.fingerprint());
        is_wanted.then(|| format!("{parsed} {name}\n"))
    };
    Ok(keys.iter().filter_map(line).collect())
}

fn print(lines: &str) -> Result<(), KeysError> {
    let mut output = io::stdout();
    output.write_all(lines.as_bytes())?;
    Ok(output.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<(Option<Uid>, String, Option<String>)> {
        let question = question(line.split(' ').map(str::to_owned))?;
        Some((question.uid, question.user, question.fingerprint))
    }

    #[test]
    fn arguments_are_those_of_sshd() {
        assert_eq!(parse("alice"), Some((None, "alice".into(), None)));
        assert_eq!(parse("alice SHA256:x"), Some((None, "alice".into(), Some("SHA256:x".into()))));
        assert_eq!(parse("--uid 7 alice"), Some((Some(Uid(7)), "alice".into(), None)));
        assert_eq!(parse("--uid x alice"), None);
        assert_eq!(parse("--uid 7"), None);
        assert_eq!(parse("alice SHA256:x more"), None);
        let picks = |line: &str| {
            let question = question(line.split(' ').map(str::to_owned)).unwrap();
            question.sha256_fingerprint().map(|fingerprint| fingerprint.map(String::from))
        };
        let fingerprint = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";
        assert_eq!(picks(&format!("alice {fingerprint}")), Ok(Some(fingerprint.to_owned())));
        assert_eq!(picks("alice SHA256:x"), Err(NotAFingerprint), "and not all keys");
        assert_eq!((picks("alice MD5:16:27:ac"), picks("alice")), (Ok(None), Ok(None)));
    }
}
