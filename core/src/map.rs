//! The map: a file that holds what NSS may tell anybody about managed accounts and groups.
//!
//! The resolver writes the map as a new file and renames it into place, so a reader sees one version or the other. Programs
//! that look up names read it, and need no connection to the resolver. The map holds names, never decisions: PAM and the key
//! command do not read it. A reader copies what it needs into its own memory and checks it there, and it never maps the file:
//! if the file were truncated, reading the mapping would raise SIGBUS in sshd or sudo.
//!
//! [`format`](self) is the layout, [`writer`] makes a map, [`reader`] looks up records, and [`file`] opens a map only if no
//! untrusted user can have written it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::id::Gid;
use crate::name::LinuxName;
use crate::wire::User;

pub mod file;
mod format;
pub mod reader;
pub mod writer;

/// A moment, in milliseconds since the boot of the machine, with the time that it slept (CLOCK_BOOTTIME). No change of the
/// wall clock moves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

impl BootTime {
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns the present moment.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let milliseconds = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default();
        Self(seconds.saturating_mul(1000).saturating_add(milliseconds))
    }

    /// Returns the moment after `span`.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(span)))
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock's time of the boot, in milliseconds since 1970. It is another one in every boot.
///
/// The kernel's boot id would be exact. But a container may show another one to its programs than to a service whose /proc is
/// protected, and reading it takes longer than a lookup in the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootedAt(pub u64);

/// How far two readings may differ: NTP moves the clock by less. If it is set by more, the resolver writes a new map.
const SAME_BOOT: u64 = 10_000;

impl BootedAt {
    /// Returns the time of this boot, as the wall clock is set now.
    pub fn now() -> Self {
        let wall = clock_gettime(ClockId::Realtime);
        let seconds = u64::try_from(wall.tv_sec).unwrap_or_default();
        let milliseconds = u64::try_from(wall.tv_nsec / 1_000_000).unwrap_or_default();
        Self((seconds * 1000 + milliseconds).saturating_sub(BootTime::now().0))
    }

    /// Returns whether `other` is a reading of the same boot.
    pub fn is_same_as(self, other: Self) -> bool {
        self.0.abs_diff(other.0) <= SAME_BOOT
    }
}

/// A record of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A managed account. Its private group has the same name and number.
    Account(AccountRecord),
    /// A group that is no private group.
    Group(GroupRecord),
}

/// A managed account and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// The account, as passwd(5) would have it.
    pub user: User,
    /// The groups that are not privileged. iam-users is not listed: the reader gives it to every managed account.
    pub groups: Vec<Gid>,
    /// The privileged groups, such as iam-sudo.
    pub privileged: Vec<Gid>,
    /// The moments until which the parts of the record may be used.
    pub until: Until,
}

/// The moments until which the parts of an account's record may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    /// The moment from which on the resolver has to be asked whether the account exists.
    pub exists: BootTime,
    /// The moment at which the answer about the account becomes older than `freshness.max_age`. From then on a login starts a
    /// revalidation.
    pub fresh: BootTime,
    /// The moment from which on `groups` may not be used.
    pub groups: BootTime,
    /// The moment from which on `privileged` may not be used.
    pub privileged: BootTime,
}

/// A group that is no private group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// The name.
    pub name: LinuxName,
    /// The gid.
    pub gid: Gid,
    /// The moment from which on the resolver has to be asked whether the group exists.
    pub until: BootTime,
}

/// What a map says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The boot during which the map was written.
    pub boot: BootedAt,
    /// The moment until which a name that the map lacks is known to be that of no managed account. 0 if the map lacks some.
    pub complete_until: BootTime,
    /// `freshness.max_age` in milliseconds: a process starts no more than one revalidation of a user in this time.
    pub max_age: u32,
    /// Whether nsswitch.conf(5) lists no service but `files` and `systemd` before ours for accounts. Then a name that reaches
    /// our module is not local.
    pub files_first: bool,
}

/// Why a map cannot be used. The caller asks the resolver instead.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// There is no map, or it cannot be opened.
    #[error("it cannot be opened: {0}")]
    Open(std::io::Error),
    /// A user other than the resolver's and root may have written the file, or it is not a regular file.
    #[error("it is not to be trusted: {0}")]
    Untrusted(&'static str),
    /// The bytes are not those of a map.
    #[error("it is broken: {0}")]
    Broken(&'static str),
    /// The map was written before the machine was started, or before its wall clock was set.
    #[error("it was written before this boot, or before the clock was set")]
    OtherBoot,
}

/// Reads any bytes as a map and as a record, for the fuzzer. Returns the number of records that were found.
///
/// A header and a checksum that are right are put before the bytes, since the fuzzer would not find them.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) -> usize {
    let boot = BootedAt::default();
    let mut found = 0;
    for bytes in [data.to_vec(), format::with_right_header(data)] {
        let Ok(map) = reader::Map::new(bytes, boot) else { continue };
        found += usize::from(matches!(map.by_id(crate::id::FIRST), Ok(Some(_))));
        if let Ok(name) = LinuxName::new("alice") {
            found += usize::from(matches!(map.by_name(&name), Ok(Some(_))));
        }
    }
    if let Some(record) = format::decode_record(&format::with_right_checksum(data)) {
        let again = format::encode_record(&record).and_then(|bytes| format::decode_record(&bytes));
        assert!(again.is_none_or(|again| again == record), "a record is read as it was written");
        found += 1;
    }
    found
}

#[cfg(test)]
mod tests;
