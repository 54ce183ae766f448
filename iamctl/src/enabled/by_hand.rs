//! Finds what pam_iam has in the host's files, whoever put it there.

use std::path::Path;

use pam_iam_core::nsswitch::{self, NSSWITCH};
use pam_iam_core::paths;

use super::error::EnableError;
use super::record::Change;
use crate::host::sshd::DROP_IN as SSHD_DROP_IN;
use crate::host::{FileError, at, pam, read};

/// The rule for sudo.
pub const SUDOERS: &str = "/etc/sudoers.d/pam_iam";

/// The drop-in for sshd, in the share.
pub const SHIPPED_SSHD: &str = "sshd/10-pam_iam.conf";

/// The rule for sudo, in the share.
pub const SHIPPED_SUDOERS: &str = "sudoers/pam_iam";

/// Returns what was changed by hand, as far as the files tell. Lines may be in the stack of any service.
pub fn made_by_hand(root: &Path) -> Result<Vec<Change>, EnableError> {
    let mut changes = Vec::new();
    let mut add = |path: &str, without: &dyn Fn(&str) -> String| -> Result<(), FileError> {
        let Some(after) = read(root, path)? else { return Ok(()) };
        let before = without(&after);
        if before != after {
            changes.push(Change { path: path.into(), before: Some(before), after, mode: 0o644 });
        }
        Ok(())
    };
    for stack in pam::stacks(root)? {
        if let Err(why) = add(&stack, &|text| pam::without_lines(root, text))
            && may_name_us(root, &stack)
        {
            return Err(EnableError::TakeOutByHand(why));
        }
    }
    add(NSSWITCH, &nsswitch::without_us)?;
    for (path, name) in [(SUDOERS, SHIPPED_SUDOERS), (SSHD_DROP_IN, SHIPPED_SSHD)] {
        let Some(_) = read(root, path)? else { continue };
        // An edited file is kept under another name when it is undone.
        let after = read(root, &format!("{}/{name}", paths::SHARE)).ok().flatten().unwrap_or_default();
        changes.push(Change { path: path.into(), before: None, after, mode: 0o600 });
    }
    Ok(changes)
}

/// Whether a stack that is not UTF-8, or cannot be read, may have a line of pam_iam.
fn may_name_us(root: &Path, stack: &str) -> bool {
    std::fs::read(at(root, stack)).map_or(true, |text| {
        let text = String::from_utf8_lossy(&text);
        pam::without_lines(root, &text) != text
    })
}
