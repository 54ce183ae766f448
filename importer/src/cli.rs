//! The command line: the parser, the help and the manual page come from this file.

use std::path::PathBuf;

use clap::Parser;
use pam_iam_core::paths;

/// Makes the local accounts equal to the IAM users who may log in to this host.
///
/// Exit status: 0 done, 1 done except for some users or accounts, 2 nothing done.
#[derive(Parser)]
#[command(name = "iam-importer", version)]
pub struct Arguments {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Retire more accounts in one run than importer.max_retire allows
    #[arg(long)]
    pub force: bool,
    /// Print nothing but errors; the log has the rest
    #[arg(long, short)]
    pub quiet: bool,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = paths::CONFIG)]
    pub config: PathBuf,
}
