//! Makes a map of records.

use super::format::{
    BUCKET, Key, Layout, MAP_MAX, SLOTS, encode_header, encode_record, record_id, record_name,
};
use super::{About, BootTime, Record};

/// The average number of records in a bucket of a new map. With [`SLOTS`] slots, a bucket of random records overflows about
/// once in a million.
const AVERAGE: usize = 4;

/// How often the tables are made twice as large if a bucket overflows. Only names that were chosen to collide overflow one
/// again and again.
const DOUBLINGS: usize = 4;

/// Returns the bytes of a map with `records`. If a record does not fit, it is left out, and the map does not count as complete.
/// Of two records with one name, lookups find the first.
pub fn encode<'a>(records: impl Iterator<Item = &'a Record> + Clone, about: &About) -> Vec<u8> {
    let smallest = records.clone().count().div_ceil(AVERAGE).max(1).next_power_of_two();
    let (mut best, mut left_out) = attempt(records.clone(), about, smallest);
    for times in 1..=DOUBLINGS {
        if left_out == 0 {
            break;
        }
        let (bytes, left_out_now) = attempt(records.clone(), about, smallest << times);
        if left_out_now < left_out {
            (best, left_out) = (bytes, left_out_now);
        }
    }
    best
}

/// Returns the bytes of a map whose tables have `buckets` buckets, and the number of records that are left out.
fn attempt<'a>(records: impl Iterator<Item = &'a Record>, about: &About, buckets: usize) -> (Vec<u8>, usize) {
    let mut layout = Layout { length: 0, buckets };
    let mut bytes = vec![0; layout.records()];
    let mut left_out = 0;
    for record in records {
        left_out += usize::from(add(&mut bytes, layout, record).is_none());
    }
    layout.length = bytes.len();
    let complete_until = if left_out == 0 { about.complete_until } else { BootTime::default() };
    let header = encode_header(layout, &About { complete_until, ..*about });
    if let Some(start) = bytes.first_chunk_mut() {
        *start = header;
    }
    (bytes, left_out)
}

/// Adds a record at the end of the map, and to both tables. None if it does not fit.
fn add(bytes: &mut Vec<u8>, layout: Layout, record: &Record) -> Option<()> {
    let encoded = encode_record(record)?;
    let position = bytes.len();
    if position + encoded.len() > MAP_MAX {
        return None;
    }
    let keys = [Key::Name(record_name(record).as_str()), Key::Id(record_id(record))];
    let slots = [free_slot(bytes, keys[0].bucket(layout))?, free_slot(bytes, keys[1].bucket(layout))?];
    for (key, slot) in keys.into_iter().zip(slots) {
        bytes.get_mut(slot..slot + 4)?.copy_from_slice(&key.slot(position)?.to_le_bytes());
    }
    bytes.extend(encoded);
    Some(())
}

/// Returns the position of the first empty slot of the bucket at `bucket`.
fn free_slot(bytes: &[u8], bucket: usize) -> Option<usize> {
    let (slots, _) = bytes.get(bucket..bucket + BUCKET)?.as_chunks::<4>();
    let free = slots.iter().take(SLOTS).position(|slot| *slot == [0; 4])?;
    Some(bucket + free * 4)
}
