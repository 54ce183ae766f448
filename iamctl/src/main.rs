//! `iamctl`: the operator's tool.
//!
//! It asks the resolver what PAM, the key command and NSS ask, and shows the answer with its reasons; checks the host for causes of failing
//! logins; and ends sessions that IAM has withdrawn. It decides nothing itself.

mod cli;
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

use clap::{CommandFactory, Parser};
use pam_iam_core::audit::Event;
use pam_iam_core::client;
use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, ConfigError};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::resolver::{Mode, Queries, Resolver};
use pam_iam_core::wire::{Flushed, Request};
use serde::de::DeserializeOwned;

use crate::cli::{Arguments, Command, SessionsAction};
use crate::error::{Error, Reply};
use crate::output::Output;

/// The exit status if there is no answer.
const CANNOT_TELL: u8 = 2;

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
