//! Uids and gids, and the managed range.
//!
//! The range is a constant, not a setting, so that the uid alone tells whether an account is managed, without I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The first uid and gid that the hash of an IAM user's or group's immutable id can give.
///
/// The managed range begins above the ids that sssd (`ldap_idmap_range_max`) and FreeIPA use by default, up to
/// 2000200000, and ends below the foreign uids in systemd's table, from 2147352576: <https://systemd.io/UIDS-GIDS/>.
pub const FIRST: u32 = 0x7800_0000;

/// The last uid and gid that a hash can give.
pub const LAST_HASHED: u32 = 0x7FFC_FFFF;

/// The last uid and gid of the managed range. Those above [`LAST_HASHED`] are assigned by operators.
pub const LAST: u32 = 0x7FFD_FFFE;

/// [`Gid::IAM_SUDO`] as a number. A test of the resolver compares it with the hash.
const IAM_SUDO_GID: u32 = 2_121_148_082;

/// [`Gid::IAM_USERS`] as a number. A test of the resolver compares it with the hash.
const IAM_USERS_GID: u32 = 2_018_472_259;

/// A user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub u32);

/// A group id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gid(pub u32);

impl Uid {
    /// The uid after the managed range. It belongs to no user: the process that ends a user's processes runs as this
    /// uid.
    pub const RESERVED: Self = Self(0x7FFD_FFFF);

    /// The superuser, who is never managed, adopted or shared.
    pub const ROOT: Self = Self(0);

    /// Whether the uid is in the managed range: the account exists because of an IAM user.
    pub fn is_managed(self) -> bool {
        (FIRST..=LAST).contains(&self.0)
    }

    /// Whether an operator may assign this uid in `accounts.uids`. No hash gives such a uid.
    pub fn may_be_assigned(self) -> bool {
        (LAST_HASHED + 1..=LAST).contains(&self.0)
    }

    /// Returns the gid of the private group of a managed account. The group has the name and the number of the account.
    pub fn private_group(self) -> Gid {
        Gid(self.0)
    }
}

impl Gid {
    /// The gid of the group `iam-sudo`, if group(5) has no group of that name. It is the hash of the name, which
    /// `iam-resolver uid iam-sudo` prints.
    pub const IAM_SUDO: Self = Self(IAM_SUDO_GID);

    /// The gid of the group `iam-users`, if group(5) has no group of that name. It is the hash of the name.
    pub const IAM_USERS: Self = Self(IAM_USERS_GID);

    /// Whether the gid is in the managed range: the group exists because of IAM.
    pub fn is_managed(self) -> bool {
        (FIRST..=LAST).contains(&self.0)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_closed_at_both_ends() {
        assert!(Uid(FIRST).is_managed() && Uid(LAST).is_managed());
        assert!(!Uid(FIRST - 1).is_managed() && !Uid(LAST + 1).is_managed() && !Uid::RESERVED.is_managed());
        assert!(!Uid::ROOT.is_managed() && !Uid(65_534).is_managed() && !Gid(1000).is_managed());
    }
}
