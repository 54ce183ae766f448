//! Computes uids and gids from immutable ids. docs/uids.md has the rule and test vectors.

use pam_iam_core::config::Accounts;
use pam_iam_core::id::{FIRST, Gid, LAST_HASHED, Uid};
use sha2::{Digest, Sha256};

use crate::source::IamUser;

/// The number of uids that a hash may give: 134021120.
const COUNT: u64 = (LAST_HASHED - FIRST) as u64 + 1;

/// Returns the uid of a user on this host: the one that the operator assigns, or the computed one.
pub fn uid(accounts: &Accounts, user: &IamUser) -> Uid {
    let id = user.id.as_str();
    accounts.uids.get(id).copied().unwrap_or_else(|| uid_of(id))
}

/// Returns the computed uid of the IAM user with this `UserId`.
pub fn uid_of(user_id: &str) -> Uid {
    Uid(hash(user_id))
}

/// Returns the gid of the IAM group with this `GroupId`, or of iam-users and iam-sudo by their names.
pub fn gid_of(group_id: &str) -> Gid {
    Gid(hash(group_id))
}

/// Returns the first 8 bytes of the SHA-256 of `id` as a number in network byte order, modulo 134021120, plus 2013265920.
fn hash(id: &str) -> u32 {
    let digest = Sha256::digest(id.as_bytes());
    let number = digest.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let offset = u32::try_from(number % COUNT).unwrap_or_default();
    FIRST + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_hold() {
        let text = include_str!("../../docs/uids.md");
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let id = cells.next()?.trim_end_matches('`').to_owned();
            Some((id, cells.next()?.parse::<u32>().ok()?))
        };
        let vectors: Vec<(String, u32)> = text.lines().filter_map(row).collect();
        assert!(vectors.len() >= 20, "no vectors found in docs/uids.md");
        for (id, number) in vectors {
            assert_eq!(uid_of(&id), Uid(number), "{id}");
            assert_eq!(gid_of(&id), Gid(number), "{id}");
        }
    }

    #[test]
    fn the_gids_of_iam_users_and_iam_sudo_are_those_that_the_modules_know() {
        assert_eq!(gid_of(pam_iam_core::name::IAM_SUDO), Gid::IAM_SUDO);
        assert_eq!(gid_of(pam_iam_core::name::IAM_USERS), Gid::IAM_USERS);
    }

    #[test]
    fn every_hash_is_in_the_managed_range() {
        for number in 0..10_000 {
            assert!(uid_of(&format!("AIDA{number:017}")).is_managed());
        }
    }
}
