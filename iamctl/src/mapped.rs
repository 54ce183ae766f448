//! The gids of the local groups to which IAM groups map, and the shell of managed accounts, written by root from the checked
//! configuration.
//!
//! The NSS module accepts no other gid outside the managed range, even from the resolver: a compromised resolver must not put a user into
//! the group `sudo`.

use std::collections::BTreeSet;
use std::path::Path;

use pam_iam_core::config::Config;
use pam_iam_core::id::Gid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::replace::replace;
use pam_iam_core::{local, paths};

use crate::Context;
use crate::host::FileError;

/// Writes both files. Without a usable configuration they are empty.
pub fn write(context: &Context) -> Result<(), FileError> {
    let config = context.config();
    let gids = config.as_ref().map(gids).unwrap_or_default();
    write_gids(Path::new(paths::MAPPED_GIDS), &gids)?;
    let shell = config.map(|config| format!("{}\n", config.accounts.shell.0.display())).unwrap_or_default();
    write_text(Path::new(paths::SHELL), &shell)
}

/// Writes a list of gids, one a line, unless the file `path` has the same already.
///
/// # Errors
/// Returns an error that names the file if it cannot be written.
pub fn write_gids(path: &Path, gids: &BTreeSet<Gid>) -> Result<(), FileError> {
    let text: String = gids.iter().map(|gid| format!("{gid}\n")).collect();
    write_text(path, &text)
}

fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    if std::fs::read(path).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    replace(path, text.as_bytes(), 0o644).map_err(FileError::of(path))
}

fn gids(config: &Config) -> BTreeSet<Gid> {
    let names: BTreeSet<&str> = config.mapped_groups().map(LinuxName::as_str).collect();
    let groups = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
    // The C library takes the first of several lines with one name.
    let gid = |name: &&str| groups.iter().find(|group| group.name == **name).map(|group| group.gid);
    // These two groups may have been created by hand.
    let own = [pam_iam_core::name::IAM_USERS, pam_iam_core::name::IAM_SUDO];
    let all = names.iter().copied().chain(own).collect::<Vec<_>>();
    all.iter().filter_map(gid).filter(|gid| gid.0 != 0).collect()
}
