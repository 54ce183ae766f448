//! Looks up records in the map: in the file, or in this process's private copy of it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use pam_iam_core::file_version::FileVersion;
use pam_iam_core::map::file;
use pam_iam_core::map::reader::{Bytes, Map};
use pam_iam_core::map::{About, BootTime, BootedAt, MapError, Record};
use pam_iam_core::name::LinuxName;
use pam_iam_core::paths;

use crate::frequency::{is_frequent, serves, try_lock};

/// The length in bytes of the longest map of which a process keeps a copy. It is enough for about 20,000 accounts.
const COPY_MAX: usize = 4 * 1024 * 1024;

/// What to look for.
#[derive(Clone, Copy)]
pub enum Key<'a> {
    /// A name.
    Name(&'a LinuxName),
    /// A uid or gid.
    Id(u32),
}

/// How old a private copy may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// A second.
    Second,
    /// Not older than the file. The groups of a login must be those of the decision before it, and sshd looks up so much that it
    /// has a private copy.
    None,
}

/// What a map says.
pub struct Seen {
    /// What the map says about itself.
    pub about: About,
    /// The record, if there is one.
    pub record: Option<Record>,
}

/// A private copy of a map.
struct Copied {
    /// None for a map that is too long.
    map: Option<Arc<Map<Vec<u8>>>>,
    version: FileVersion,
    checked: BootTime,
}

/// Looks up `key`. None if there is no map that can be used: the caller asks the resolver.
pub fn look_up(key: Key<'_>, age: Age, now: BootTime) -> Option<Seen> {
    if is_frequent()
        && let Some(map) = private_copy(age, now)
    {
        return find(&map, key).ok();
    }
    let (open, _) = file::open(Path::new(paths::MAP)).ok()?;
    find(&Map::new(open, BootedAt::now()).ok()?, key).ok()
}

fn find<B: Bytes>(map: &Map<B>, key: Key<'_>) -> Result<Seen, MapError> {
    let record = match key {
        Key::Name(name) => map.by_name(name)?,
        Key::Id(id) => map.by_id(id)?,
    };
    Ok(Seen { about: map.about, record })
}

/// Returns this process's copy of the map, which is at most `age` older than the file. None if there can be none, or other
/// threads hold it.
fn private_copy(age: Age, now: BootTime) -> Option<Arc<Map<Vec<u8>>>> {
    static COPY: Mutex<Option<Copied>> = Mutex::new(None);

    let mut copy = try_lock(&COPY)?;
    if let Some(known) = copy.as_mut() {
        if age == Age::Second && serves(known.checked, now) {
            return known.map.clone();
        }
        if FileVersion::of(Path::new(paths::MAP)).is_ok_and(|version| version == known.version) {
            known.checked = now;
            return known.map.clone();
        }
    }
    *copy = new_copy(now);
    copy.as_ref()?.map.clone()
}

fn new_copy(checked: BootTime) -> Option<Copied> {
    let (open, version) = file::open(Path::new(paths::MAP)).ok()?;
    let map = Map::new(open, BootedAt::now()).ok()?;
    let map = if map.length() <= COPY_MAX { Some(Arc::new(map.copy().ok()?)) } else { None };
    Some(Copied { map, version, checked })
}
