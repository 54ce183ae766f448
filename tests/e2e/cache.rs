//! The resolver's cache file. A damaged one and one of another configuration are not used; one that still grants a withdrawn user is
//! removed if it cannot be rewritten.

use pam_iam_tests::Machine;

const ALWAYS_REVALIDATE: &str = "[freshness]\nmax_age = 0";
const CACHE: &str = "/var/cache/pam_iam/cache.json";

/// A way to damage the cache file, and the error that the resolver then logs.
type DamageCase = (fn(&Machine), &'static str);

const DAMAGES: [DamageCase; 6] = [
    (cut_off_the_end, "it is broken: its checksum is wrong"),
    (|machine| machine.file(CACHE).replace("ssh-users", "ssh-userz"), "it is broken: its checksum is wrong"),
    (|machine| machine.file(CACHE).replace("\"version\":1", "\"version\":0"), "it has the version 0"),
    (|machine| give_to_root(machine, "644"), "its owner is another uid"),
    (|machine| give_to_root(machine, "600"), "Permission denied"),
    (replace_with_directory, "it is not a regular file"),
];

fn cut_off_the_end(machine: &Machine) {
    machine.run(&["truncate", "-s", "-10", CACHE]).succeeds();
}

fn give_to_root(machine: &Machine, mode: &str) {
    machine.file(CACHE).chown("root");
    machine.file(CACHE).chmod(mode);
}

fn replace_with_directory(machine: &Machine) {
    machine.file(CACHE).remove();
    machine.run(&["install", "-d", "-o", "iam-resolver", CACHE]).succeeds();
}

#[test]
fn a_damaged_cache_is_quarantined_and_not_used() {
    for (damage, reason) in DAMAGES {
        let machine = Machine::new().settings(ALWAYS_REVALIDATE).start();
        machine.ssh("alice", "true").succeeds();
        // The resolver writes its cache on SIGTERM; on SIGKILL it cannot overwrite the damage.
        machine.restart_resolver_by("TERM");
        machine.fault("fail=reset");
        damage(&machine);
        machine.restart_resolver_by("KILL");
        machine.wait_for_log(
            "resolver",
            &format!("the cache {CACHE} is not used, and quarantined as cache.json.rejected: {reason}"),
        );
        assert!(machine.file(&format!("{CACHE}.rejected")).exists(), "{reason}");
        machine.ssh("alice", "true").fails();
        machine.fault("fail=");
        machine.wait_until_login_succeeds("alice");
    }
}

/// Mounts a small file system in the place of the cache folder, copies the cache into it, and fills the rest: cat has to fail.
const FILL_DISK: &str = "cp -a /var/cache/pam_iam /tmp/cache &&
mount -t tmpfs -o size=64k,mode=700 cache /var/cache/pam_iam && chown iam-resolver: /var/cache/pam_iam &&
cp -a /tmp/cache/. /var/cache/pam_iam && ! cat /dev/zero >/var/cache/pam_iam/full";

#[test]
fn on_a_full_disk_users_log_in_and_a_cache_that_grants_a_withdrawn_user_is_removed() {
    let machine = Machine::new().settings(ALWAYS_REVALIDATE).start();
    machine.ssh("alice", "true").succeeds();
    machine.wait_until_persisted("alice");
    machine.sh(FILL_DISK).succeeds();
    machine.ssh("carol", "true").succeeds();
    machine.wait_for_log(
        "resolver",
        "cannot be written, so answers are kept in memory only: No space left on device",
    );
    let status = machine.iamctl("status").succeeds();
    assert!(status.contains("cannot be written: No space left"), "{status}");
    assert!(machine.file(CACHE).exists());
    assert!(!machine.file(&format!("{CACHE}.new")).exists());

    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    machine.wait_until(&format!("! test -e {CACHE}"));
    machine.file("/var/cache/pam_iam/full").remove();
    // Any change makes the resolver try to write again.
    machine.iamctl("flush bob").succeeds();
    machine.wait_for_log("resolver", "is written again");
    machine.wait_until_persisted("carol");
}

#[test]
fn a_cache_is_not_used_under_another_configuration_and_used_again_under_its_own() {
    let machine = Machine::new().settings(ALWAYS_REVALIDATE).start();
    machine.ssh("alice", "true").succeeds();
    machine.restart_resolver_by("TERM");
    machine.fault("fail=reset");
    machine.config().replace("ssh-users", "ssh-userz");
    machine.restart_resolver_by("TERM");
    machine.wait_for_log("resolver", "cache.json is not used: it was written under another configuration");
    machine.ssh("alice", "true").fails();
    // The resolver knows nothing now, so it leaves the file as it is.
    machine.config().replace("ssh-userz", "ssh-users");
    machine.restart_resolver_by("TERM");
    machine.ssh("alice", "true").succeeds();
}
