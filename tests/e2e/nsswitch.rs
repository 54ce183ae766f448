//! Users have their groups with a line initgroups and behind nscd, and doctor reports what is wrong there.

use pam_iam_tests::{Machine, repository};

use crate::in_force::SSHD_TAKES_NO_KEYS_FROM_HOME;

#[test]
fn a_user_has_local_and_managed_groups_with_a_line_initgroups_that_asks_both() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.file("/etc/group").append("dev:x:4000:alice\n");
    machine.file("/etc/nsswitch.conf").append("initgroups: iam [SUCCESS=continue] files\n");
    assert_eq!(machine.login_groups("alice"), ["alice", "dev", "iam-users"]);
    machine.doctor_does_not_say("initgroups");
    machine.file("/etc/nsswitch.conf").replace("iam [SUCCESS=continue] files", "files iam");
    machine.doctor_says("the line initgroups: of /etc/nsswitch.conf does not ask IAM");
}

/// Installs nscd from its package and starts it. The package's scripts do not run, since they would need an init.
fn start_nscd(machine: &Machine) {
    let packages = repository().join("target/nscd");
    machine
        .sh(&format!(
            "dpkg-deb -x {}/nscd_*.deb /tmp/nscd && install /tmp/nscd/usr/sbin/nscd /usr/sbin/ &&
             cp /tmp/nscd/etc/nscd.conf /etc/ && mkdir -p /run/nscd /var/cache/nscd && nscd",
            packages.display()
        ))
        .succeeds();
    machine.wait_until("nscd -g | grep -q 'cache is enabled'");
}

/// Prints the groups of a service that runs as alice with the primary group 100.
const GROUPS_WITH_PRIMARY_100: &str =
    "import grp, os; print([grp.getgrgid(gid).gr_name for gid in os.getgrouplist('alice', 100)])";

#[test]
fn behind_nscd_users_have_their_groups_and_doctor_says_that_it_caches() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let said = machine.run(&["python3", "-c", GROUPS_WITH_PRIMARY_100]).succeeds();
    assert_eq!(said, "['users', 'iam-users']");
    start_nscd(&machine);
    assert_eq!(machine.login_groups("alice"), ["alice", "iam-users"]);
    // nscd looks up the groups without the user's primary one, and gives that answer to every caller.
    machine.run(&["nscd", "-i", "group"]).succeeds();
    machine.run(&["nscd", "-i", "passwd"]).succeeds();
    assert_eq!(machine.groups_of("alice"), ["alice", "iam-users"]);
    let gids = machine.run(&["getent", "initgroups", "alice"]).succeeds();
    let gids: Vec<&str> = gids.split_whitespace().skip(1).collect();
    assert_eq!(gids, [machine.gid_of("iam-users").to_string()]);
    machine
        .sh("nscd -g | grep -A 25 '^group cache' | grep -q '[1-9]  current number of cached values'")
        .succeeds();
    // sshd's `Match Group iam-users` applies.
    machine.sh(SSHD_TAKES_NO_KEYS_FROM_HOME).succeeds();
    machine.doctor_says("nscd runs: it remembers accounts and groups");
}
