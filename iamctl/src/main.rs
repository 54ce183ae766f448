//! `iamctl`: the operator's tool.
//!
//! It asks the resolver what PAM, the key command and NSS ask, and shows the answer with its reasons; checks the host for causes of failing
//! logins; and ends sessions that IAM has withdrawn. It decides nothing itself.

mod doctor;
mod enable;
mod enabled;
mod error;
mod explain;
mod here;
mod host;
mod lint;
mod mapped;
mod output;
mod privileged;
mod sessions;
mod status;
mod sweep;
mod swept;
mod whois;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use pam_iam_core::audit::Event;
use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, ConfigDuration, ConfigError, ValueError};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::resolver::{Mode, Queries, Resolver};
use pam_iam_core::wire::{Flushed, Request};
use pam_iam_core::{client, paths};
use serde::de::DeserializeOwned;

use crate::error::{Error, Reply};
use crate::output::Output;

/// The exit status if there is no answer.
const CANNOT_TELL: u8 = 2;

/// Shows and manages SSH logins with AWS IAM users
#[derive(Parser)]
#[command(name = "iamctl", version)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = paths::CONFIG, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say why a user may or may not log in or use sudo. Exit status 0 allowed, 1 refused, 2 cannot tell
    Explain {
        /// The Linux name
        user: String,
        /// The decision that the exit status is about
        #[arg(long, value_enum, default_value_t = Service::Login)]
        service: Service,
        /// A public key, as a file or a fingerprint: say also whether it opens the account
        #[arg(long, value_name = "FILE|FINGERPRINT")]
        key: Option<String>,
    },
    /// Say whose a uid is, even of a user who may not log in and so has no name here. Exit status 1 if nothing tells
    Whois {
        /// The uid
        uid: u32,
    },
    /// Check this host for causes of failing logins, and say how to mend each. Exit status 1 if something is wrong
    Doctor,
    /// Show the state of the resolver
    Status {
        /// Write the counters to FILE in Prometheus' text format, for node_exporter's textfile collector
        #[arg(long, value_name = "FILE")]
        prometheus: Option<PathBuf>,
    },
    /// List who is logged in, by which key and since when, and who runs processes without a session
    Sessions {
        #[command(subcommand)]
        action: Option<SessionsAction>,
    },
    /// End the sessions that IAM has withdrawn. iam-sweep.service does it each minute
    Sweep {
        /// Say what would be ended, and end nothing
        #[arg(long)]
        dry_run: bool,
        /// Sweep repeatedly, each DURATION, like 60s
        #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "dry_run")]
        every: Option<Duration>,
    },
    /// Make the resolver forget a user, or all users
    Flush {
        /// The Linux name
        user: Option<String>,
    },
    /// List the IAM users whose names or uids collide or are refused, or who have no usable key. Exit status 1 if there are any
    Lint,
    /// Switch logins with IAM users on: NSS, PAM, sudo, sshd, units. If anything fails, everything is taken back
    Enable {
        /// Where accounts come from
        #[arg(long, value_enum, default_value_t = enable::Accounts::Nss)]
        accounts: enable::Accounts,
        /// Say what would be changed, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Make home directories also for users who come by su or sudo before their first login by ssh
        #[arg(long)]
        with_su: bool,
        /// Take everything back after DURATION, like 10m, unless --confirm comes first
        #[arg(long = "try", value_name = "DURATION", value_parser = duration, conflicts_with = "dry_run")]
        trial: Option<Duration>,
        /// Keep what enable --try changed, once an IAM user has logged in since
        #[arg(long, conflicts_with_all = ["trial", "dry_run", "accounts", "with_su"])]
        confirm: bool,
    },
    /// Take back what enable --try changed if its time is over. Run by iam-trial.timer
    #[command(hide = true)]
    EndTrial,
    /// Take back what enable changed, byte for byte
    Disable {
        /// Say what would be changed, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Write the gids outside the managed range that the NSS module accepts. Run by the resolver's unit, as root
    #[command(hide = true)]
    WriteMappedGids,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
enum SessionsAction {
    /// End all sessions and processes of a user, without waiting for IAM. A user who may still log in can come back
    End {
        /// The Linux name
        user: String,
    },
}

/// What a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Service {
    /// To log in
    Login,
    /// To use sudo
    Sudo,
}

/// What all commands need: the configuration, the resolver and the output.
struct Context {
    config_path: PathBuf,
    /// The resolver by the mode of the configuration, or the daemon if there is no usable one.
    resolver: Resolver,
    output: Output,
}

impl Context {
    fn new(config_path: PathBuf, json: bool) -> Self {
        let mode = Config::load(&config_path).map_or(Mode::Daemon, |config| config.resolver.mode);
        Self { resolver: Resolver::new(mode, &config_path), config_path, output: Output::new(json) }
    }

    /// Reads the configuration.
    fn config(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config_path)
    }

    /// Whether no daemon listens, so that nothing is kept from one request to the next.
    fn has_no_daemon(&self) -> bool {
        let patience = Request::Status.patience();
        let answer = client::ask(&self.resolver.socket, &Request::Status, Deadline::after(patience));
        matches!(answer, Err(ClientError::NoListener(_)))
    }

    /// Sends an event to the daemon's trail, if a daemon listens.
    fn record(&self, event: &Event) {
        let request = Request::Record { line: event.to_string() };
        let _ = client::ask(&self.resolver.socket, &request, Deadline::after(request.patience()));
    }

    /// Returns the resolver's answer to a request for a report.
    fn report<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        self.resolver.report(request)
    }
}

fn main() -> ExitCode {
    if let Some(status) = pam_iam_sessions::killer::run_if_started_as_killer() {
        return status;
    }
    let arguments = Arguments::parse();
    let context = Context::new(arguments.config, arguments.json);
    let done = match (rustix::process::geteuid().is_root(), arguments.command) {
        (false, Command::Completions { shell }) => completions(shell),
        (false, _) => Err(Error::NotRoot),
        (true, Command::Explain { user, service, key }) => {
            explain::run(&context, &user, service, key.as_deref())
        }
        (true, Command::Whois { uid }) => whois::run(&context, Uid(uid)),
        (true, Command::Doctor) => {
            enable::end_trial_that_is_over(&context).and_then(|_| doctor::run(&context))
        }
        (true, Command::Status { prometheus }) => status::run(&context, prometheus.as_deref()),
        (true, Command::Sessions { action: None }) => sessions::run(&context),
        (true, Command::Sessions { action: Some(SessionsAction::End { user }) }) => {
            sweep::end_user(&context, &user)
        }
        (true, Command::WriteMappedGids) => mapped::write(&context).map(|()| Reply::Yes).map_err(Error::from),
        (true, Command::Sweep { every: Some(every), .. }) => sweep::every::run(&context.config_path, every),
        (true, Command::Sweep { dry_run, .. }) => sweep::run(&context, dry_run),
        (true, Command::Flush { user }) => flush(&context, user.as_deref()),
        (true, Command::Lint) => lint::run(&context),
        (true, Command::Enable { confirm: true, .. }) => enable::confirm(&context),
        (true, Command::Enable { accounts, dry_run, with_su, trial, .. }) => {
            enable::enable(&context, enable::Options { accounts, dry_run, with_su, trial })
        }
        (true, Command::EndTrial) => enable::end_trial_that_is_over(&context),
        (true, Command::Disable { dry_run }) => enable::disable(&context, dry_run),
        (true, Command::Completions { shell }) => completions(shell),
    };
    match done {
        Ok(Reply::Yes) => ExitCode::SUCCESS,
        Ok(Reply::No) => ExitCode::FAILURE,
        Err(why) => {
            context.output.error(&why.to_string());
            ExitCode::from(CANNOT_TELL)
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Reply, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "iamctl", &mut script);
    std::io::stdout().write_all(&script).map_err(Error::Output)?;
    Ok(Reply::Yes)
}

fn flush(context: &Context, user: Option<&str>) -> Result<Reply, Error> {
    let name = user.map(linux_name).transpose()?;
    if context.has_no_daemon() {
        let json = serde_json::json!({ "forgotten": 0, "daemon": false });
        context.output.show(&json, "no resolver runs, so nothing is remembered");
        return Ok(Reply::Yes);
    }
    let Flushed { forgotten } = context.report(&Request::Flush { name })?;
    let json = serde_json::json!({ "forgotten": forgotten });
    context.output.show(&json, &format!("{forgotten} forgotten; IAM is asked again"));
    Ok(Reply::Yes)
}

/// Parses a duration, written as in the configuration.
fn duration(text: &str) -> Result<Duration, ValueError> {
    text.parse().map(|ConfigDuration(duration)| duration)
}

fn linux_name(name: &str) -> Result<LinuxName, Error> {
    LinuxName::new(name).map_err(|source| Error::Name { name: name.to_owned(), source })
}

/// Whether a file of this path exists.
fn is_installed(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_passes_claps_own_checks() {
        Arguments::command().debug_assert();
    }
}
