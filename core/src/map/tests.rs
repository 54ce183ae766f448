//! Tests of the map: what a writer writes, a reader finds; what another process has written cannot harm a reader.

use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::reader::Map;
use super::{
    About, AccountRecord, BootTime, BootedAt, GroupRecord, MapError, Record, Until, file, format, writer,
};
use crate::file_version::FileVersion;
use crate::id::{FIRST, Gid, Uid};
use crate::name::LinuxName;
use crate::wire::User;

const BOOT: BootedAt = BootedAt(1_000_000);

fn about() -> About {
    About { boot: BOOT, complete_until: BootTime(90), max_age: 10_000, files_first: true }
}

fn account(name: &str, number: u32) -> AccountRecord {
    let uid = Uid(FIRST + number);
    let user = User {
        name: LinuxName::new(name).unwrap(),
        uid,
        gid: uid.private_group(),
        gecos: format!("{name} at example.com"),
        home: format!("/home/{name}"),
        shell: "/bin/bash".into(),
    };
    let until =
        Until { exists: BootTime(1), fresh: BootTime(2), groups: BootTime(3), privileged: BootTime(4) };
    AccountRecord {
        user,
        groups: vec![Gid(FIRST + 7_000_000)],
        privileged: vec![Gid(27), Gid::IAM_SUDO],
        until,
    }
}

fn encoded(records: &[Record]) -> Vec<u8> {
    writer::encode(records.iter(), &about())
}

fn opened(bytes: Vec<u8>) -> Map<Vec<u8>> {
    Map::new(bytes, BOOT).unwrap()
}

fn name(text: &str) -> LinuxName {
    LinuxName::new(text).unwrap()
}

#[test]
fn a_reader_finds_what_the_writer_wrote_by_name_and_by_id() {
    let alice = Record::Account(account("alice", 1));
    let dev = Record::Group(GroupRecord { name: name("dev"), gid: Gid(FIRST + 9), until: BootTime::NEVER });
    let map = opened(encoded(&[alice.clone(), dev.clone()]));
    assert_eq!(map.about, about());
    assert_eq!(map.by_name(&name("alice")).unwrap(), Some(alice.clone()));
    assert_eq!(map.by_id(FIRST + 1).unwrap(), Some(alice));
    assert_eq!(map.by_name(&name("dev")).unwrap(), Some(dev.clone()));
    assert_eq!(map.by_id(FIRST + 9).unwrap(), Some(dev));
    assert_eq!(map.by_name(&name("bob")).unwrap(), None);
    assert_eq!(map.by_id(FIRST + 2).unwrap(), None);
}

#[test]
fn an_id_whose_name_has_another_id_is_not_found() {
    // The writer never writes two records of one name that a reader would both find, so one is forged here.
    let (one, other) = (account("alice", 1), account("bobby", 2));
    let bytes = encoded(&[Record::Account(one), Record::Account(other)]);
    let map = opened(bytes.clone());
    assert!(map.by_id(FIRST + 2).unwrap().is_some());
    let forged = opened(with_name_of_last_record(bytes, "alice"));
    assert_eq!(forged.by_id(FIRST + 2).unwrap(), None);
    assert!(forged.by_id(FIRST + 1).unwrap().is_some());
}

/// Replaces the last record of a map by the same one with another name, and leaves the tables as they are.
fn with_name_of_last_record(mut bytes: Vec<u8>, name: &str) -> Vec<u8> {
    let last = format::encode_record(&Record::Account(account("bobby", 2))).unwrap();
    let forged = format::encode_record(&Record::Account(AccountRecord {
        user: User { name: LinuxName::new(name).unwrap(), ..account("bobby", 2).user },
        ..account("bobby", 2)
    }))
    .unwrap();
    assert_eq!(last.len(), forged.len());
    let start = bytes.len() - last.len();
    bytes.splice(start.., forged);
    bytes
}

#[test]
fn a_record_too_long_for_the_map_makes_it_incomplete() {
    let mut long = account("alice", 1);
    long.user.home = "/x".repeat(format::RECORD_MAX);
    let bob = Record::Account(account("bob", 2));
    let map = opened(encoded(&[Record::Account(long), bob.clone()]));
    assert_eq!(map.by_name(&name("alice")).unwrap(), None);
    assert_eq!(map.by_name(&name("bob")).unwrap(), Some(bob));
    assert_eq!(map.about.complete_until, BootTime(0));
}

#[test]
fn fifty_thousand_accounts_fit_and_are_found() {
    let records: Vec<Record> =
        (0..50_000).map(|at| Record::Account(account(&format!("user-{at}"), at))).collect();
    let map = opened(encoded(&records));
    assert!(map.length() <= 12_000_000, "{}", map.length());
    assert_eq!(map.about.complete_until, about().complete_until, "none was left out");
    for record in records.iter().step_by(97) {
        assert_eq!(map.by_name(format::record_name(record)).unwrap().as_ref(), Some(record));
        assert_eq!(map.by_id(format::record_id(record)).unwrap().as_ref(), Some(record));
    }
}

#[test]
fn every_flipped_bit_is_noticed_or_harmless() {
    let alice = Record::Account(account("alice", 1));
    let bytes = encoded(std::slice::from_ref(&alice));
    for at in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        let Ok(map) = Map::new(damaged, BOOT) else { continue };
        // Never another record: the same one, none, or an error.
        for found in [map.by_name(&name("alice")), map.by_id(FIRST + 1)].into_iter().flatten().flatten() {
            assert_eq!(found, alice, "bit {at}");
        }
    }
}

#[test]
fn a_map_of_another_boot_or_length_is_refused() {
    let bytes = encoded(&[Record::Account(account("alice", 1))]);
    assert!(matches!(Map::new(bytes.clone(), BootedAt(1_010_001)), Err(MapError::OtherBoot)));
    for length in 0..bytes.len() {
        assert!(matches!(Map::new(bytes[..length].to_vec(), BOOT), Err(MapError::Broken(_))), "{length}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(Map::new(longer, BOOT), Err(MapError::Broken(_))));
}

#[test]
fn a_file_is_read_only_if_no_other_user_can_have_written_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("map");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("nss.map");
    let bytes = encoded(&[Record::Account(account("alice", 1))]);
    let refusal = |path: &Path| file::open(path).unwrap_err().to_string();
    assert!(matches!(file::open(&path), Err(MapError::Open(_))));
    file::write(&path, &bytes).unwrap();
    let (open, version) = file::open(&path).unwrap();
    assert!(Map::new(open, BOOT).unwrap().by_name(&name("alice")).unwrap().is_some());
    assert_eq!(version, FileVersion::of(&path).unwrap());

    set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert!(refusal(&path).contains("writable by other users"));
    set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    std::fs::hard_link(&path, folder.join("another")).unwrap();
    assert!(refusal(&path).contains("several names"));
    std::fs::remove_file(folder.join("another")).unwrap();
    set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&path).contains("folder is writable"));
    set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();

    let link = folder.join("link");
    symlink(&path, &link).unwrap();
    assert!(matches!(file::open(&link), Err(MapError::Open(_))));
    let fifo = folder.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    assert!(refusal(&fifo).contains("not a regular file"), "without waiting for a writer");
    assert!(refusal(&folder).contains("not a regular file"));
    std::fs::write(&path, b"short").unwrap();
    assert!(refusal(&path).contains("too short"));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nss.map");
    let records: Vec<Record> = (0..100).map(|at| Record::Account(account(&format!("u{at}"), at))).collect();
    file::write(&path, &encoded(&records)).unwrap();
    let (open, _) = file::open(&path).unwrap();
    let map = Map::new(open, BOOT).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(map.by_name(&name("u7")).is_err());
    assert!(map.copy().is_err());
}

#[test]
fn a_clock_that_is_adjusted_is_of_the_same_boot() {
    let now = BootedAt::now();
    assert!(now.0 > 0 && now.is_same_as(BootedAt(now.0 + 9_000)));
    assert!(!now.is_same_as(BootedAt(now.0 + 60_000)));
}

fn any_account() -> impl Strategy<Value = AccountRecord> {
    let gids = || prop::collection::vec(any::<u32>().prop_map(Gid), 0..12);
    let until = any::<[u64; 4]>().prop_map(|[exists, fresh, groups, privileged]| Until {
        exists: BootTime(exists),
        fresh: BootTime(fresh),
        groups: BootTime(groups),
        privileged: BootTime(privileged),
    });
    ("[a-z][a-z0-9._-]{0,31}", any::<u32>(), ".{0,40}", ".{0,300}", gids(), gids(), until).prop_filter_map(
        "a valid name",
        |(name, number, gecos, home, groups, privileged, until)| {
            let name = LinuxName::new(&name).ok()?;
            let uid = Uid(number);
            let (gid, shell) = (uid.private_group(), "/bin/sh".to_owned());
            let user = User { name, uid, gid, gecos, home, shell };
            Some(AccountRecord { user, groups, privileged, until })
        },
    )
}

#[test]
fn the_seeds_of_the_fuzzer_are_a_record_and_a_map_of_the_present_layout() {
    assert_eq!(super::fuzz(include_bytes!("../../../fuzz/seeds/map/record")), 1);
    assert_eq!(super::fuzz(include_bytes!("../../../fuzz/seeds/map/map")), 2, "by name and by id");
}

proptest! {
    #[test]
    fn any_records_are_found_as_they_were_written(accounts in prop::collection::vec(any_account(), 0..40)) {
        let records: Vec<Record> = accounts.into_iter().map(Record::Account).collect();
        let map = opened(encoded(&records));
        // Of two records with one name the first counts.
        let mut first = BTreeMap::new();
        for record in &records {
            first.entry(format::record_name(record).clone()).or_insert(record);
        }
        for (name, record) in first {
            let found = map.by_name(&name).unwrap();
            let found = found.expect("it is there");
            prop_assert_eq!(&found, record);
            // A lookup by its id returns it, or the first record with that id.
            let by_id = map.by_id(format::record_id(record)).unwrap();
            prop_assert!(by_id.is_none_or(|by_id| format::record_id(&by_id) == format::record_id(record)));
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), id in any::<u32>()) {
        let _ = Map::new(bytes.clone(), BOOT).map(|map| map.by_id(id));
        // With a header that is right, so that the tables and records are read.
        let buckets = 1;
        let layout = format::Layout { length: bytes.len(), buckets };
        if bytes.len() > layout.records() {
            bytes[..format::HEADER].copy_from_slice(&format::encode_header(layout, &about()));
            let map = Map::new(bytes, BOOT).unwrap();
            let _ = map.by_name(&name("alice"));
            let _ = map.by_id(id);
            prop_assert!(map.copy().is_ok());
        }
    }
}
