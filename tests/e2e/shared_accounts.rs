//! Local accounts that IAM users share: `[shared.NAME]`.

use pam_iam_tests::Machine;
use serde_json::json;

/// Starts a box whose local account deploy is shared by alice and bob, the members of the IAM group deployers.
fn machine_with_shared_account() -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "deployers"], "users": [
            {"name": "alice", "groups": ["deployers"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users", "deployers"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "deploy", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0\n[shared.deploy]\ngroups = ['deployers']")
        .start();
    machine.add_account("deploy", 1600);
    machine
}

#[test]
fn only_members_of_its_groups_log_in_to_a_shared_account_with_their_own_keys() {
    let machine = machine_with_shared_account();
    assert_eq!(machine.ssh_with("alice", "deploy", "id -un").succeeds(), "deploy");
    assert_eq!(machine.ssh_with("bob", "deploy", "pwd").succeeds(), "/home/deploy");
    for user in ["alice", "bob"] {
        let key = machine.sh(&format!("ssh-keygen -lf $BOX_KEYS/{user} | cut -d' ' -f2")).succeeds();
        machine.wait_for_log(
            "authpriv",
            &format!("event=session user=deploy iam_name={user} key={key} origin=iam"),
        );
    }
    machine.ssh_with("carol", "deploy", "true").fails();
    machine.ssh_with("deploy", "deploy", "true").fails();
    machine.ssh_with("alice", "alice", "true").fails();

    machine.iam().remove_from_group("alice", "deployers");
    machine.ssh_with("alice", "deploy", "true").fails();
    machine.ssh_with("bob", "deploy", "true").succeeds();
}

#[test]
fn a_shared_account_keeps_its_own_sudo_rule_and_key_and_needs_no_resolver() {
    let machine = machine_with_shared_account();
    machine.file("/etc/sudoers.d/deploy").write("deploy ALL=(root) NOPASSWD: /usr/bin/id\n");
    machine.make_key("/root/ci");
    machine.authorize_key("deploy", "/root/ci");
    assert_eq!(machine.ssh_with("bob", "deploy", "sudo -n id -u").succeeds(), "0");
    machine.ssh_with("bob", "deploy", "sudo -n cat /etc/shadow").fails();
    machine.ssh_with("/root/ci", "deploy", "true").succeeds();

    machine.fault("fail=hang");
    machine.signal_resolver("STOP");
    machine.config().append("[resolver]\nmode = \"daemon\"\n");
    machine.pam("sshd", "deploy").acct_mgmt().succeeds();
    machine.ssh_with("/root/ci", "deploy", "true").succeeds();
}

#[test]
fn a_shared_name_without_a_local_account_is_no_account() {
    let machine = Machine::new().settings("[shared.alice]\ngroups = ['ssh-users']").start();
    assert_eq!(machine.passwd("alice"), None);
    machine.ssh("alice", "true").fails();
}
