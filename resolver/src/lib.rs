//! `iam-resolver`: the only part of pam_iam that talks to AWS.
//!
//! `iam-resolver serve` is the daemon; `iam-resolver --once` answers one request from standard input on standard output,
//! for hosts where no daemon runs. Both decide in the same way: each is an [`answer::Answerer`] over a
//! [`lookup::Directory`] over [`source::iam::AwsIam`]. The resolver runs as its own user. It never asks NSS about a name,
//! since NSS would ask the resolver.

mod answer;
mod claims;
mod cli;
mod connection;
mod daemon;
mod ids;
mod limits;
mod locals;
mod lookup;
mod once;
mod persist;
mod policy;
mod publish;
mod rate_limit;
mod server;
mod source;
mod trail;
mod watch;

pub use persist::file as cache_file;
pub use persist::snapshot::{Snapshot, setup as cache_setup};
pub use source::sshkey;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use pam_iam_core::config::Config;
use pam_iam_core::log::{Level, Log};

use crate::cli::{Arguments, Command};

/// Parses the command line and runs its command. Prints the help and returns 2 if there is no command, or one with
/// `--once`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.once, arguments.command) {
        (true, None) => once::main(&arguments.config),
        (false, Some(Command::Serve { socket, cache })) => daemon::main(&arguments.config, &socket, &cache),
        (false, Some(Command::CheckConfig { file })) => check_config(&file),
        (false, Some(Command::Uid { id })) => say(&ids::uid_of(&id)),
        (true, Some(_)) | (false, None) => {
            let _ = write!(std::io::stderr(), "{}", Arguments::command().render_help());
            ExitCode::from(2)
        }
    }
}

/// Parses the configuration in `file`, which any user may own, and prints its warnings or its error.
fn check_config(file: &std::path::Path) -> ExitCode {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return fail(&format!("{}: {error}", file.display())),
    };
    match Config::parse(&text, file) {
        Ok(config) => {
            for warning in config.warnings() {
                let _ = writeln!(std::io::stderr(), "iam-resolver: warning: {warning}");
            }
            say(&format!("{}: ok", file.display()))
        }
        Err(error) => fail(&error),
    }
}

fn say(what: &impl std::fmt::Display) -> ExitCode {
    match writeln!(std::io::stdout(), "{what}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(what: &impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "iam-resolver: {what}");
    ExitCode::FAILURE
}

/// Loads the configuration. Logs the error and returns None if it has one.
fn configuration(path: &std::path::Path, log: &mut Log) -> Option<Config> {
    let config = Config::load(path);
    config.inspect_err(|error| log.write(Level::Error, error)).ok()
}
