//! The command line: the parser, the help and the manual page come from this file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use pam_iam_core::paths;

/// Answers which users may log in to this host, from AWS IAM.
#[derive(Parser)]
#[command(name = "iam-resolver", version)]
pub struct Arguments {
    /// Answer one request from standard input on standard output, without a command
    #[arg(long)]
    pub once: bool,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = paths::CONFIG, global = true)]
    pub config: PathBuf,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Answer requests on a socket until SIGTERM
    Serve {
        /// The socket, unless systemd passes one
        #[arg(long, value_name = "PATH", default_value = paths::SOCKET)]
        socket: PathBuf,
        /// The folder in which the cache survives a restart
        #[arg(long, value_name = "DIR", default_value = paths::CACHE)]
        cache: PathBuf,
    },
    /// Check a configuration
    CheckConfig {
        /// The configuration to check
        file: PathBuf,
    },
    /// Print the uid of an IAM user by the UserId (or the gid of an IAM group by the GroupId)
    Uid {
        /// The id, like AIDACKCEVSQ6C2EXAMPLE
        id: String,
    },
}
