//! While IAM is out of reach, known users (those in the cache) and local accounts log in, and nobody else does.

use pam_iam_tests::Machine;

const FRESH: &str = "[freshness]\nmax_age = 0";

/// Asserts that during `fault` alice and the local root log in, and carol does not: alice has logged in before, carol is
/// only on the roster. bob, who is not on the roster, has no account.
#[track_caller]
fn assert_only_known_users_and_local_accounts_log_in_during(fault: &str) {
    let machine = Machine::new().settings(&format!("{FRESH}\n[aws]\ntotal_timeout = '2s'")).start();
    machine.let_root_in();
    machine.ssh("alice", "true").succeeds();
    machine.fault(&format!("fail={fault}"));
    machine.ssh("alice", "true").succeeds();
    assert!(machine.passwd("carol").is_some());
    assert!(machine.passwd("bob").is_none());
    machine.ssh("carol", "true").fails();
    machine.local_root_logs_in();
    machine.wait_for_log("authpriv", "source=offline");
    machine.fault("fail=");
    machine.wait_until_login_succeeds("carol");
}

#[test]
fn known_users_log_in_while_iam_hangs() {
    assert_only_known_users_and_local_accounts_log_in_during("hang");
}

#[test]
fn known_users_log_in_while_iam_cuts_connections() {
    assert_only_known_users_and_local_accounts_log_in_during("reset");
}

#[test]
fn known_users_log_in_while_iam_is_out_of_service() {
    assert_only_known_users_and_local_accounts_log_in_during("503");
}

#[test]
fn known_users_log_in_while_iam_throttles() {
    assert_only_known_users_and_local_accounts_log_in_during("throttle");
}

#[test]
fn known_users_log_in_while_iam_truncates_its_answers() {
    assert_only_known_users_and_local_accounts_log_in_during("truncated");
}

#[test]
fn a_denied_lookup_keeps_a_known_user_out() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.fault("fail=denied&only=ListGroupsForUser");
    machine.ssh("alice", "true").fails();
    machine.wait_for_log("resolver", "user alice: IAM denies this host to look");
}

#[test]
fn a_denied_roster_is_logged_with_the_missing_permission_and_users_log_in() {
    let machine = Machine::new().settings(FRESH).start();
    machine.fault("fail=denied&only=GetGroup");
    machine.restart_resolver_by("KILL");
    machine
        .wait_for_log("resolver", "cannot be read, since IAM denies the call; allow this host iam:GetGroup");
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
}

#[test]
fn known_users_log_in_after_a_reboot_during_an_outage() {
    let machine = Machine::new().settings(FRESH).booted().start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("carol", "sudo -n true").succeeds();
    machine.wait_until_persisted("carol");
    assert_eq!(machine.file("/var/cache/pam_iam/cache.json").stat("%a %U"), "600 iam-resolver");
    assert_eq!(machine.file("/var/cache/pam_iam").stat("%a %U"), "700 iam-resolver");
    machine.fault("fail=hang");
    machine.reboot();
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.wait_until("journalctl -q -b | grep 'event=login user=alice' | grep -q source=offline");
    machine.ssh("bob", "true").fails();
    machine.fault("fail=");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.wait_until("! box-ssh alice true 2>/dev/null");
    machine.ssh("carol", "true").succeeds();
}

#[test]
fn a_withdrawn_user_stays_out_when_the_resolver_is_killed_right_after_the_refusal() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("carol", "true").succeeds();
    machine.wait_until_persisted("alice");
    machine.wait_until_persisted("carol");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    machine.restart_resolver_by("KILL");
    machine.fault("fail=reset");
    machine.ssh("alice", "true").fails();
    machine.ssh("carol", "true").succeeds();
}
