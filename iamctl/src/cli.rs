//! The command line: the parser, the help, the completions and the manual page come from this file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use pam_iam_core::config::{ConfigDuration, ValueError};
use pam_iam_core::paths;

/// Shows and manages SSH logins with AWS IAM users
#[derive(Parser)]
#[command(name = "iamctl", version)]
pub struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = paths::CONFIG, global = true)]
    pub config: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
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
        #[arg(long, value_enum, default_value_t = Accounts::Nss)]
        accounts: Accounts,
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
pub enum SessionsAction {
    /// End all sessions and processes of a user, without waiting for IAM. A user who may still log in can come back
    End {
        /// The Linux name
        user: String,
    },
}

/// What a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// To log in
    Login,
    /// To use sudo
    Sudo,
}

/// Where accounts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accounts {
    /// `libnss_iam.so.2`: they exist the moment IAM has them.
    Nss,
    /// `iam-importer`: they are put into /etc/passwd by a timer.
    Importer,
}

/// Parses a duration, written as in the configuration.
fn duration(text: &str) -> Result<Duration, ValueError> {
    text.parse().map(|ConfigDuration(duration)| duration)
}
