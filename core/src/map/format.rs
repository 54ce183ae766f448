//! The layout of a map. All numbers are in the byte order of x86-64 (little endian).
//!
//! A map is a header, a table of buckets by name, a table of buckets by id, and the records. A bucket has [`SLOTS`] slots of four
//! bytes: the highest byte is a part of the key's hash, and the rest is the position of a record in units of 8 bytes. A slot of
//! 0 is empty. A reader looks at one bucket and at those records in it whose part of the hash is right, so no map can make it
//! loop. The header and each record have a checksum, which finds damage by accident. It is no proof of origin: any values may
//! stand in a record that another process has written.

use super::{About, AccountRecord, BootTime, BootedAt, GroupRecord, MapError, Record, Until};
use crate::id::{Gid, Uid};
use crate::name::LinuxName;
use crate::wire::User;

/// The first bytes of a map. The last of them is the version of the layout.
const MAGIC: [u8; 8] = *b"iam-map\x01";

/// The length of the header in bytes.
pub const HEADER: usize = 64;

/// The number of slots of a bucket.
pub const SLOTS: usize = 16;

/// The length of a bucket in bytes.
pub const BUCKET: usize = SLOTS * 4;

/// The length of the longest record in bytes. Most are shorter than 200.
pub const RECORD_MAX: usize = 4096;

/// The length of the longest map in bytes: 50,000 accounts take about 8 MB.
pub const MAP_MAX: usize = 32 * 1024 * 1024;

/// The length of a record without its texts and gids, in bytes.
const FIXED: usize = 64;

/// The length of the prefix of a record that its checksum does not cover: the record's length and the checksum.
pub const PREFIX: usize = 8;

const ACCOUNT: u32 = 1;
const GROUP: u32 = 2;
const FILES_FIRST: u32 = 1;

/// Where the parts of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The length of the map in bytes.
    pub length: usize,
    /// The number of buckets by name, and as many by id. A power of two.
    pub buckets: usize,
}

impl Layout {
    /// Returns the position of the first record.
    pub fn records(self) -> usize {
        HEADER + 2 * self.buckets * BUCKET
    }
}

/// The key of a record in one of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// A Linux name.
    Name(&'a str),
    /// A uid, or a gid that is no uid.
    Id(u32),
}

impl Key<'_> {
    fn hash(self) -> u64 {
        match self {
            Self::Name(name) => fnv(name.as_bytes()),
            Self::Id(id) => fnv(&id.to_le_bytes()),
        }
    }

    /// Returns the position of the key's bucket in bytes.
    pub fn bucket(self, layout: Layout) -> usize {
        let mask = layout.buckets - 1;
        let number = usize::try_from(self.hash() & u64::from(u32::MAX)).unwrap_or_default() & mask;
        let table = match self {
            Self::Name(_) => 0,
            Self::Id(_) => layout.buckets,
        };
        HEADER + (table + number) * BUCKET
    }

    /// Returns the slot for a record at `position`. None if no slot can say that position.
    pub fn slot(self, position: usize) -> Option<u32> {
        let unit = u32::try_from(position / 8).ok().filter(|unit| *unit < 1 << 24)?;
        Some(self.tag() << 24 | unit)
    }

    /// Returns the position of the record in `slot`, if the part of the hash is that of this key.
    pub fn position(self, slot: u32) -> Option<usize> {
        (slot != 0 && slot >> 24 == self.tag()).then_some((slot & 0x00FF_FFFF) as usize * 8)
    }

    fn tag(self) -> u32 {
        u32::try_from(self.hash() >> 56).unwrap_or_default()
    }
}

/// Returns the 64-bit FNV-1a hash of `bytes`, with its high bits mixed into the low ones.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let mixed = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

fn checksum(bytes: &[u8]) -> u32 {
    // Eight bytes at a time: a record is hashed in every lookup.
    let (words, rest) = bytes.as_chunks::<8>();
    let start = 0x51_7C_C1_B7_27_22_0A_95_u64 ^ bytes.len() as u64;
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let hash = words.iter().fold(start, |hash, word| step(hash, u64::from_le_bytes(*word)));
    let hash = step(rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte))), 0);
    (hash >> 32) as u32
}

/// Returns the header of a map.
pub fn encode_header(layout: Layout, about: &About) -> [u8; HEADER] {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(MAGIC);
    bytes.extend(u32::try_from(layout.length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(u32::try_from(layout.buckets).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(about.boot.0.to_le_bytes());
    bytes.extend(about.complete_until.0.to_le_bytes());
    bytes.extend(about.max_age.to_le_bytes());
    bytes.extend(if about.files_first { FILES_FIRST } else { 0 }.to_le_bytes());
    bytes.resize(HEADER - 4, 0);
    bytes.extend(checksum(&bytes).to_le_bytes());
    bytes.try_into().unwrap_or([0; HEADER])
}

/// Parses the header of a map that is `length` bytes long.
///
/// # Errors
/// Returns an error if these are not the bytes of a header, or the length is another one.
pub fn decode_header(bytes: &[u8; HEADER], length: u64) -> Result<(Layout, About), MapError> {
    let broken = || MapError::Broken("its header is damaged");
    let (covered, sum) = bytes.split_last_chunk::<4>().ok_or_else(broken)?;
    let mut fields = Fields(covered);
    if fields.take::<8>() != Some(MAGIC) {
        return Err(MapError::Broken("it is no map, or one of another version"));
    }
    if u32::from_le_bytes(*sum) != checksum(covered) {
        return Err(broken());
    }
    let read = |fields: &mut Fields<'_>| {
        let (said, buckets) = (fields.number()?, fields.number()?);
        let boot = BootedAt(fields.moment()?);
        let (complete_until, max_age, flags) =
            (BootTime(fields.moment()?), fields.number()?, fields.number()?);
        let layout = Layout { length: said as usize, buckets: buckets as usize };
        Some((layout, About { boot, complete_until, max_age, files_first: flags & FILES_FIRST != 0 }))
    };
    let (layout, about) = read(&mut fields).ok_or_else(broken)?;
    if layout.length as u64 != length {
        return Err(MapError::Broken("it has been truncated or extended"));
    }
    let fits = layout.buckets.is_power_of_two()
        && layout.buckets <= MAP_MAX / BUCKET
        && layout.length <= MAP_MAX
        && layout.records() <= layout.length;
    if fits { Ok((layout, about)) } else { Err(MapError::Broken("its tables do not fit")) }
}

/// Returns the bytes of a record, padded to a multiple of 8. None if it would be longer than [`RECORD_MAX`].
pub fn encode_record(record: &Record) -> Option<Vec<u8>> {
    let (kind, id, until, texts, lists): (_, _, _, [&str; 4], [&[Gid]; 2]) = match record {
        Record::Account(AccountRecord { user, groups, privileged, until }) => {
            let texts = [user.name.as_str(), &user.gecos, &user.home, &user.shell];
            (ACCOUNT, user.uid.0, *until, texts, [groups, privileged])
        }
        Record::Group(group) => {
            let until = Until { exists: group.until, ..Until::default() };
            (GROUP, group.gid.0, until, [group.name.as_str(), "", "", ""], [&[], &[]])
        }
    };
    let mut bytes = Vec::with_capacity(256);
    // The length and the checksum come last.
    bytes.resize(PREFIX, 0);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    for moment in [until.exists, until.fresh, until.groups, until.privileged] {
        bytes.extend(moment.0.to_le_bytes());
    }
    for length in texts.iter().map(|text| text.len()).chain(lists.iter().map(|list| list.len())) {
        bytes.extend(u16::try_from(length).ok()?.to_le_bytes());
    }
    bytes.resize(FIXED, 0);
    texts.iter().for_each(|text| bytes.extend(text.as_bytes()));
    lists.iter().flat_map(|list| list.iter()).for_each(|gid| bytes.extend(gid.0.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= RECORD_MAX)?;
    let sum = checksum(bytes.get(PREFIX..)?);
    let (prefix, _) = bytes.split_first_chunk_mut::<PREFIX>()?;
    let (first, last) = prefix.split_at_mut(length.to_le_bytes().len());
    first.copy_from_slice(&length.to_le_bytes());
    last.copy_from_slice(&sum.to_le_bytes());
    Some(bytes)
}

/// Returns the length that a record says it has, from its first bytes. None if no record has that length.
pub fn record_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    (length.is_multiple_of(8) && (FIXED..=RECORD_MAX).contains(&length)).then_some(length)
}

/// Parses a record. None if the bytes are not those of a record.
pub fn decode_record(bytes: &[u8]) -> Option<Record> {
    let (prefix, body) = bytes.split_first_chunk::<PREFIX>()?;
    let (_, sum) = prefix.split_last_chunk::<4>()?;
    if u32::from_le_bytes(*sum) != checksum(body) {
        return None;
    }
    let mut fields = Fields(body);
    let (kind, id) = (fields.number()?, fields.number()?);
    let mut moment = || fields.moment().map(BootTime);
    let until = Until { exists: moment()?, fresh: moment()?, groups: moment()?, privileged: moment()? };
    let mut lengths = [0_usize; 6];
    for length in &mut lengths {
        *length = usize::from(u16::from_le_bytes(fields.take()?));
    }
    let [name, gecos, home, shell, groups, privileged] = lengths;
    let mut rest = Fields(body.get(FIXED - PREFIX..)?);
    let name = LinuxName::new(rest.text(name)?).ok()?;
    let (gecos, home, shell) = (rest.text(gecos)?, rest.text(home)?, rest.text(shell)?);
    match kind {
        GROUP => Some(Record::Group(GroupRecord { name, gid: Gid(id), until: until.exists })),
        ACCOUNT => {
            let user = User {
                name,
                uid: Uid(id),
                gid: Uid(id).private_group(),
                gecos: gecos.to_owned(),
                home: home.to_owned(),
                shell: shell.to_owned(),
            };
            let (groups, privileged) = (rest.gids(groups)?, rest.gids(privileged)?);
            Some(Record::Account(AccountRecord { user, groups, privileged, until }))
        }
        _ => None,
    }
}

/// Returns the name of a record.
pub fn record_name(record: &Record) -> &LinuxName {
    match record {
        Record::Account(account) => &account.user.name,
        Record::Group(group) => &group.name,
    }
}

/// Returns the uid of an account's record, or the gid of a group's.
pub fn record_id(record: &Record) -> u32 {
    match record {
        Record::Account(account) => account.user.uid.0,
        Record::Group(group) => group.gid.0,
    }
}

/// Returns `body` as a map of one bucket for each table, with a header that is right.
pub fn with_right_header(body: &[u8]) -> Vec<u8> {
    let layout = Layout { length: HEADER + body.len().max(2 * BUCKET), buckets: 1 };
    let mut bytes = encode_header(layout, &About::default()).to_vec();
    bytes.extend(body);
    bytes.resize(layout.length, 0);
    bytes
}

/// Returns `body` as a record with a checksum that is right.
pub fn with_right_checksum(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(PREFIX + body.len()).unwrap_or_default();
    [&length.to_le_bytes(), &checksum(body).to_le_bytes(), body].concat()
}

/// The rest of a sequence of fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take()?))
    }

    fn moment(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self, length: usize) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn gids(&mut self, count: usize) -> Option<Vec<Gid>> {
        // Checked before anything is allocated: the count may be any number.
        if self.0.len() < count * 4 {
            return None;
        }
        (0..count).map(|_| self.number().map(Gid)).collect()
    }
}
