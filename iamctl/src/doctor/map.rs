//! The map, from which NSS takes names.

use std::path::Path;

use pam_iam_core::map::BootedAt;
use pam_iam_core::map::file::open;
use pam_iam_core::map::reader::Map;
use pam_iam_core::nsswitch::{self, NSSWITCH, SERVICE};
use pam_iam_core::paths;

use super::Finding;
use crate::Context;

const CHECK: &str = "map";

/// Checks whether NSS can use the map, and whether the local files are asked before our module, if NSS asks our module and a
/// daemon runs.
pub fn look(context: &Context) -> Vec<Finding> {
    let text = std::fs::read_to_string(NSSWITCH).unwrap_or_default();
    if !nsswitch::asks_us(&text, "passwd") || context.has_no_daemon() {
        return Vec::new();
    }
    let map = open(Path::new(paths::MAP)).and_then(|(file, _)| Map::new(file, BootedAt::now()));
    let usable = match map {
        Ok(_) => Finding::ok(CHECK, format!("names come from {}", paths::MAP)),
        Err(why) => Finding::warning(
            CHECK,
            format!("names are looked up on the socket, since the map {} is of no use: {why}", paths::MAP),
            "systemctl restart iam-resolver; the journal of iam-resolver says why it cannot write the map",
        ),
    };
    [usable].into_iter().chain(order(&text)).collect()
}

/// Warns if our module is asked before the local files.
fn order(text: &str) -> Option<Finding> {
    let services = nsswitch::services(text, "passwd").unwrap_or_default();
    let position = |name: &str| services.iter().position(|service| *service == name);
    let is_first = position(SERVICE)? < position("files").unwrap_or(usize::MAX);
    is_first.then(|| {
        Finding::warning(
            CHECK,
            format!("the line passwd: of {NSSWITCH} asks iam before files, so each look-up of a local account waits for us"),
            format!("put iam behind files in the line passwd: of {NSSWITCH}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_module_belongs_behind_the_local_files() {
        for good in ["passwd: files iam", "passwd: files sss iam", "passwd: files", ""] {
            assert!(order(good).is_none(), "{good}");
        }
        for bad in ["passwd: iam files", "passwd: iam"] {
            assert!(order(bad).is_some(), "{bad}");
        }
    }
}
