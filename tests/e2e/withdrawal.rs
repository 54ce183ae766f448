//! A user, key or group membership that is withdrawn in IAM opens no further login. With `max_age = 0` each login asks IAM.

use pam_iam_tests::Machine;

/// Starts a box and logs alice in once.
fn machine_with_known_user() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    machine
}

#[test]
fn an_inactive_key_is_refused_until_it_is_active_again() {
    let machine = machine_with_known_user();
    machine.iam().deactivate_first_key("alice");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
    machine.iam().python(
        "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']
iam.update_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Status='Active')",
    );
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_deleted_key_is_refused() {
    let machine = machine_with_known_user();
    machine.iam().delete_keys("alice");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn a_user_removed_from_the_group_is_refused() {
    let machine = machine_with_known_user();
    machine.iam().remove_from_group("alice", "ssh-users");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn a_deleted_user_is_refused_and_has_no_account() {
    let machine = machine_with_known_user();
    machine.iam().delete_user("alice");
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.passwd("alice"), None);
}
