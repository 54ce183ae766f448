//! The map: names without the resolver, and what a reader makes of a map that no resolver of ours has written.

use std::path::PathBuf;

use pam_iam_core::id::{FIRST, Gid, Uid};
use pam_iam_core::map::{About, AccountRecord, BootTime, BootedAt, Record, Until, writer};
use pam_iam_core::name::LinuxName;
use pam_iam_core::wire::User;
use pam_iam_tests::{Machine, repository};

const MAP: &str = "/run/pam_iam/map/nss.map";

/// A uid of the managed range that no IAM user of a test has.
const FORGED: u32 = FIRST + 5;

#[test]
fn names_and_groups_stay_while_the_resolver_is_stopped() {
    let machine = Machine::new().start();
    machine.let_root_in();
    machine.ssh("carol", "touch file").succeeds();
    let (account, groups) = (machine.passwd("carol"), machine.groups_of("carol"));
    machine.signal_resolver("STOP");
    assert_eq!(machine.passwd("carol"), account);
    assert_eq!(machine.groups_of("carol"), groups);
    let listing = machine.run(&["ls", "-l", "/home/carol/file"]).succeeds();
    assert!(listing.contains(" carol carol "), "{listing}");
    assert_eq!(machine.as_user("carol").run(&["id", "-un"]).succeeds(), "carol");
    machine.local_root_logs_in();
    machine.signal_resolver("CONT");
}

#[test]
fn a_uid_has_no_name_from_the_moment_that_a_local_account_or_group_takes_the_name() {
    let machine = Machine::new().start();
    let (alice, carol) = (machine.uid_of("alice").to_string(), machine.uid_of("carol").to_string());
    // The reader alone notices: the resolver writes no map now.
    machine.signal_resolver("STOP");
    machine.file("/etc/passwd").append("alice:x:4321:4321::/home/alice:/bin/bash\n");
    machine.set_local_group("carol", 4322);
    for uid in [alice, carol] {
        machine.run(&["getent", "passwd", &uid]).fails();
        machine.run(&["getent", "group", &uid]).fails();
    }
    machine.signal_resolver("CONT");
}

#[test]
fn doctor_names_a_map_that_is_of_no_use() {
    let machine = Machine::new().start();
    machine.doctor_does_not_say("names are looked up on the socket");
    machine.file("/run/pam_iam/map").chmod("777");
    machine.doctor_says("its folder is writable by other users");
}

#[test]
fn a_name_that_a_package_claims_leaves_the_map_by_itself() {
    let machine = Machine::new().start();
    assert!(machine.passwd("alice").is_some());
    machine.file("/usr/lib/sysusers.d/alice.conf").write("u alice -\n");
    machine.wait_until("! grep -q alice /run/pam_iam/map/nss.map");
    machine.wait_until("! getent passwd alice");
}

#[test]
fn a_map_that_is_removed_or_damaged_is_written_again_and_meanwhile_the_socket_answers() {
    let machine = Machine::new().start();
    machine.let_root_in();
    let account = machine.passwd("alice");
    assert!(account.is_some());
    for damage in [
        "rm MAP",
        "head -c 3000 /dev/urandom >MAP",
        "truncate -s 100 MAP",
        "truncate -s 0 MAP",
        "truncate -s 64M MAP",
        "chown nobody MAP",
        "chmod o+w MAP",
        "ln MAP MAP.link",
        "mv MAP MAP.old; ln -s MAP.old MAP",
        "rm MAP; mkfifo MAP",
        "rm MAP; mkdir MAP",
        "printf x | dd of=MAP bs=1 seek=300 conv=notrunc status=none",
    ] {
        machine.sh(&damage.replace("MAP", MAP)).succeeds();
        assert_eq!(machine.passwd("alice"), account, "{damage}");
        let is_whole = format!("rmdir {MAP} 2>/dev/null; test -f {MAP} -a ! -h {MAP} && grep -q alice {MAP}");
        machine.wait_until(&format!("rm -f {MAP}.link; {is_whole}"));
    }
    machine.ssh("alice", "true").succeeds();
    machine.local_root_logs_in();
}

fn record(name: &str, uid: u32, home: &str, shell: &str, groups: &[u32]) -> Option<Record> {
    let user = User {
        name: LinuxName::new(name).ok()?,
        uid: Uid(uid),
        gid: Uid(uid).private_group(),
        gecos: String::new(),
        home: home.into(),
        shell: shell.into(),
    };
    let never = BootTime::NEVER;
    let until = Until { exists: never, fresh: never, groups: never, privileged: never };
    let groups = groups.iter().copied().map(Gid).collect();
    Some(Record::Account(AccountRecord { user, groups, privileged: vec![Gid(0)], until }))
}

/// Writes a map with `records`, as a compromised resolver could, into a file that the box can read.
fn forged_map(name: &str, records: &[Option<Record>]) -> Option<PathBuf> {
    let records: Vec<Record> = records.iter().cloned().collect::<Option<_>>()?;
    let about =
        About { boot: BootedAt::now(), complete_until: BootTime::NEVER, max_age: 10_000, files_first: true };
    let path = repository().join("target").join(name);
    std::fs::write(&path, writer::encode(records.iter(), &about)).ok()?;
    Some(path)
}

#[test]
fn a_compromised_resolver_gives_no_root_no_local_account_no_foreign_group_and_no_shell_of_its_own() {
    let machine = Machine::new().start();
    let forged = forged_map(
        "forged.map",
        &[
            record("forged", FORGED, "/home/forged", "/bin/bash", &[27, 0, FORGED + 1]),
            record("toor", 0, "/root", "/bin/bash", &[]),
            record("daemon", FORGED + 2, "/home/daemon", "/bin/bash", &[]),
            record("fakeshell", FORGED + 3, "/home/fakeshell", "/tmp/shell", &[]),
            record("climber", FORGED + 4, "/home/../root", "/bin/bash", &[]),
            record("local", 1000, "/home/local", "/bin/bash", &[]),
        ],
    )
    .unwrap();
    // The resolver would replace the map. Stopped, it would let lookups wait that the map does not answer.
    machine.run(&["mv", "/run/pam_iam/resolver.sock", "/run/pam_iam/away"]).succeeds();
    machine.signal_resolver("STOP");
    machine.sh(&format!("cat {} >{MAP}", forged.display())).succeeds();
    // The map is read.
    assert_eq!(machine.uid_of("forged"), FORGED);
    let gids = machine.run(&["id", "-G", "forged"]).succeeds();
    assert_eq!(gids, format!("{FORGED} {} {}", FORGED + 1, Gid::IAM_USERS), "neither 0 nor 27");
    for name in ["toor", "fakeshell", "climber", "local"] {
        machine.run(&["getent", "passwd", name]).fails();
    }
    assert_eq!(machine.uid_of("daemon"), 1);
    assert_eq!(machine.run(&["id", "-nu", "0"]).succeeds(), "root");
    let of_daemon = (FORGED + 2).to_string();
    machine.run(&["getent", "passwd", &of_daemon]).fails();
    machine.run(&["getent", "group", &of_daemon]).fails();
    machine.signal_resolver("CONT");
}

#[test]
fn a_warm_login_connects_to_the_resolver_four_times_and_a_revalidating_one_five_times() {
    let machine = Machine::new().settings("[freshness]\nmax_age = '12s'").start();
    machine.ssh("alice", "true").succeeds();
    let asked = |machine: &Machine| {
        let status: serde_json::Value =
            serde_json::from_str(&machine.iamctl("--json status").succeeds()).unwrap();
        let questions = status["questions"].as_object().unwrap().clone();
        let counted = questions.into_iter().filter(|(kind, _)| kind != "status" && kind != "record");
        counted
            .map(|(kind, count)| (kind, count.as_u64().unwrap()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let difference = |before: &std::collections::BTreeMap<String, u64>| {
        let mut after = asked(&machine);
        after.iter_mut().for_each(|(kind, count)| *count -= before.get(kind).copied().unwrap_or_default());
        after.retain(|_, count| *count > 0);
        after
    };
    let before = asked(&machine);
    machine.ssh("alice", "true").succeeds();
    let warm = difference(&before);
    assert!(warm.values().sum::<u64>() <= 4, "{warm:?}");
    machine.run(&["sleep", "12"]).succeeds();
    let before = asked(&machine);
    machine.ssh("alice", "true").succeeds();
    let stale = difference(&before);
    assert!(stale.values().sum::<u64>() <= 5 && stale["revalidate"] == 1, "{stale:?}");
}
