//! What is switched on on this host: by `iamctl enable`, for a trial, or by hand. For enable, disable, doctor and the sweep.

use std::path::Path;
use std::time::Duration;

use pam_iam_core::nsswitch::{self, DATABASES, NSSWITCH};
use pam_iam_core::paths;

pub mod by_hand;
pub mod error;
pub mod record;
pub mod trial;

use self::by_hand::made_by_hand;
use self::trial::Now;
use crate::host::read;

/// Returns how long the trial still goes on. None if there is no trial.
pub fn trial_left() -> Option<Duration> {
    Some(trial::load().ok()??.left(&Now::read()))
}

/// Whether accounts come from NSS here: `enable` made it so, or nsswitch.conf names pam_iam.
pub fn has_accounts_by_nss() -> bool {
    let record = record::load().ok().flatten().unwrap_or_default();
    let text = read(Path::new("/"), NSSWITCH).ok().flatten().unwrap_or_default();
    record.changes.iter().any(|change| change.path == Path::new(NSSWITCH))
        || DATABASES.iter().any(|database| nsswitch::asks_us(&text, database))
}

/// Whether nothing of pam_iam is switched on, neither by this program nor by hand.
pub fn is_off() -> bool {
    !Path::new(paths::ENABLED).exists() && made_by_hand(Path::new("/")).is_ok_and(|made| made.is_empty())
}
