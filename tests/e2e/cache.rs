//! The cache on disk: one that cannot be trusted or brought up to date lets nobody in.

use pam_iam_tests::Machine;

const FRESH: &str = "[freshness]\nmax_age = 0";
const CACHE: &str = "/var/cache/pam_iam/cache.json";

/// A way to damage the cache, and the reason that the resolver logs.
type Damage = (fn(&Machine), &'static str);

const DAMAGES: [Damage; 6] = [
    (cut_off_the_end, "it is broken: its checksum is wrong"),
    (|machine| machine.file(CACHE).replace("ssh-users", "ssh-userz"), "it is broken: its checksum is wrong"),
    (|machine| machine.file(CACHE).replace("\"version\":1", "\"version\":0"), "it has the version 0"),
    (|machine| give_to_root(machine, "644"), "it belongs to another user"),
    (|machine| give_to_root(machine, "600"), "Permission denied"),
    (replace_by_a_folder, "it is no file"),
];

fn cut_off_the_end(machine: &Machine) {
    machine.run(&["truncate", "-s", "-10", CACHE]).succeeds();
}

fn give_to_root(machine: &Machine, mode: &str) {
    machine.file(CACHE).chown("root");
    machine.file(CACHE).chmod(mode);
}

fn replace_by_a_folder(machine: &Machine) {
    machine.file(CACHE).remove();
    machine.run(&["install", "-d", "-o", "iam-resolver", CACHE]).succeeds();
}

#[test]
fn a_damaged_cache_is_moved_aside_and_lets_nobody_in() {
    for (damage, reason) in DAMAGES {
        let machine = Machine::new().settings(FRESH).start();
        machine.ssh("alice", "true").succeeds();
        // On SIGTERM the resolver writes its cache.
        machine.end_resolver("TERM");
        machine.fault("fail=reset");
        damage(&machine);
        machine.end_resolver("KILL");
        machine.logs("resolver", &format!("the cache {CACHE} is not used and put aside: {reason}"));
        assert!(machine.file(&format!("{CACHE}.rejected")).exists(), "{reason}");
        machine.ssh("alice", "true").fails();
        machine.fault("fail=");
        machine.wait_until_login_succeeds("alice");
    }
}

/// Copies the cache to a disk of its own, which it then fills.
const FILL_DISK: &str = "cp -a /var/cache/pam_iam /tmp/cache &&
mount -t tmpfs -o size=64k,mode=700 cache /var/cache/pam_iam && chown iam-resolver: /var/cache/pam_iam &&
cp -a /tmp/cache/. /var/cache/pam_iam && ! cat /dev/zero >/var/cache/pam_iam/full";

#[test]
fn on_a_full_disk_answers_come_from_memory_and_an_outdated_cache_is_removed() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.wait_until_persisted("alice");
    machine.sh(FILL_DISK).succeeds();
    machine.ssh("carol", "true").succeeds();
    machine.logs("resolver", "cannot be written, so answers are in memory alone: No space left on device");
    let status = machine.iamctl("status").succeeds();
    assert!(status.contains("cannot be written: No space left"), "{status}");
    assert!(machine.file(CACHE).exists());
    assert!(!machine.file(&format!("{CACHE}.new")).exists());

    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    machine.wait_until(&format!("! test -e {CACHE}"));
    machine.file("/var/cache/pam_iam/full").remove();
    machine.iamctl("flush bob").succeeds();
    machine.logs("resolver", "is written again");
    machine.wait_until_persisted("carol");
}

#[test]
fn a_cache_of_another_configuration_is_not_used_until_that_configuration_is_back() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.end_resolver("TERM");
    machine.fault("fail=reset");
    machine.config().replace("ssh-users", "ssh-userz");
    machine.end_resolver("TERM");
    machine.logs("resolver", "cache.json is not used: it was written under another configuration");
    machine.ssh("alice", "true").fails();
    machine.config().replace("ssh-userz", "ssh-users");
    machine.end_resolver("TERM");
    machine.ssh("alice", "true").succeeds();
}
