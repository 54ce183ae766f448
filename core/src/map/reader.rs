//! Looks up records in a map, which may hold any bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::format::{
    BUCKET, HEADER, Key, Layout, RECORD_MAX, decode_header, decode_record, record_id, record_length,
    record_name,
};
use super::{About, BootedAt, GroupRecord, MapError, Record};
use crate::id::Gid;
use crate::name::LinuxName;

/// The number of bytes that are first read of a record. Most records are shorter.
const FIRST_READ: usize = 256;

/// The bytes of a map.
pub trait Bytes {
    /// Fills `buffer` with the bytes from `position` on. Returns false if there are fewer.
    fn read_at(&self, position: usize, buffer: &mut [u8]) -> bool;

    /// Returns the number of bytes.
    fn length(&self) -> u64;
}

/// A file of which the reader knows the length that it had when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) file: File,
    pub(super) length: u64,
}

impl Bytes for OpenFile {
    fn read_at(&self, position: usize, buffer: &mut [u8]) -> bool {
        self.file.read_exact_at(buffer, position as u64).is_ok()
    }

    fn length(&self) -> u64 {
        self.length
    }
}

impl Bytes for Vec<u8> {
    fn read_at(&self, position: usize, buffer: &mut [u8]) -> bool {
        let bytes = position.checked_add(buffer.len()).and_then(|end| self.get(position..end));
        bytes.is_some_and(|bytes| {
            buffer.copy_from_slice(bytes);
            true
        })
    }

    fn length(&self) -> u64 {
        self.len() as u64
    }
}

/// A map whose header has been checked.
#[derive(Clone, Debug)]
pub struct Map<B> {
    bytes: B,
    layout: Layout,
    /// What the map says about itself.
    pub about: About,
}

impl<B: Bytes> Map<B> {
    /// Checks the header of a map that was written during the boot `boot`.
    ///
    /// # Errors
    /// Returns an error if the header is damaged, does not fit the length, or is of another boot.
    pub fn new(bytes: B, boot: BootedAt) -> Result<Self, MapError> {
        let mut header = [0; HEADER];
        if !bytes.read_at(0, &mut header) {
            return Err(MapError::Broken("it is too short"));
        }
        let (layout, about) = decode_header(&header, bytes.length())?;
        if !about.boot.is_same_as(boot) {
            return Err(MapError::OtherBoot);
        }
        Ok(Self { bytes, layout, about })
    }

    /// Returns the record of the account or group called `name`.
    ///
    /// # Errors
    /// Returns an error if the map is damaged.
    pub fn by_name(&self, name: &LinuxName) -> Result<Option<Record>, MapError> {
        self.find(Key::Name(name.as_str()), |record| record_name(record) == name)
    }

    /// Returns the record of the account with the uid `id`, or of the group with the gid `id`, if a lookup by its name returns
    /// the same record.
    ///
    /// # Errors
    /// Returns an error if the map is damaged.
    pub fn by_id(&self, id: u32) -> Result<Option<Record>, MapError> {
        let Some(record) = self.find(Key::Id(id), |record| record_id(record) == id)? else { return Ok(None) };
        let by_name = self.by_name(record_name(&record))?;
        Ok(by_name.filter(|by_name| record_id(by_name) == id))
    }

    fn find(&self, key: Key<'_>, is_wanted: impl Fn(&Record) -> bool) -> Result<Option<Record>, MapError> {
        let damaged = || MapError::Broken("a table or a record is damaged");
        let mut bucket = [0; BUCKET];
        if !self.bytes.read_at(key.bucket(self.layout), &mut bucket) {
            return Err(damaged());
        }
        let (slots, _) = bucket.as_chunks::<4>();
        for position in slots.iter().filter_map(|slot| key.position(u32::from_le_bytes(*slot))) {
            let record = self.record(position).ok_or_else(damaged)?;
            if is_wanted(&record) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Reads the record at `position`. None if it is damaged, or outside the part of the map that holds records.
    fn record(&self, position: usize) -> Option<Record> {
        let room = self.layout.length.checked_sub(position).filter(|_| position >= self.layout.records())?;
        let mut buffer = [0; RECORD_MAX];
        let first = FIRST_READ.min(room);
        if !self.bytes.read_at(position, buffer.get_mut(..first)?) {
            return None;
        }
        let length = record_length(buffer.get(..first)?).filter(|length| *length <= room)?;
        if length > first && !self.bytes.read_at(position + first, buffer.get_mut(first..length)?) {
            return None;
        }
        decode_record(buffer.get(..length)?)
    }

    /// Returns all bytes, for a private copy.
    ///
    /// # Errors
    /// Returns an error if there are fewer than when the map was opened, or there is no memory for them.
    pub fn copy(&self) -> Result<Map<Vec<u8>>, MapError> {
        let mut bytes = Vec::new();
        // An allocation that fails must not end the host process.
        bytes
            .try_reserve_exact(self.layout.length)
            .map_err(|_| MapError::Broken("there is no memory for it"))?;
        bytes.resize(self.layout.length, 0);
        if !self.bytes.read_at(0, &mut bytes) {
            return Err(MapError::Broken("it was truncated while it was read"));
        }
        Ok(Map { bytes, layout: self.layout, about: self.about })
    }

    /// Returns the length of the map in bytes.
    pub fn length(&self) -> usize {
        self.layout.length
    }
}

impl Record {
    /// Returns the record as a group: the private group of an account, or the group itself.
    pub fn into_group(self) -> GroupRecord {
        match self {
            Self::Account(account) => GroupRecord {
                name: account.user.name,
                gid: Gid(account.user.uid.0),
                until: account.until.exists,
            },
            Self::Group(group) => group,
        }
    }
}
