//! What IAM withdraws is withdrawn at the next login. `max_age = 0` asks IAM each time.

use pam_iam_tests::Machine;

fn machine() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    machine
}

const KEY: &str = "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']\n";

#[test]
fn an_inactive_key_opens_no_door() {
    let machine = machine();
    machine.iam().python(&format!(
        "{KEY}iam.update_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Status='Inactive')"
    ));
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
    machine.iam().python(&format!(
        "{KEY}iam.update_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Status='Active')"
    ));
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_deleted_key_opens_no_door() {
    let machine = machine();
    machine.iam().python(&format!("{KEY}iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key)"));
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn a_user_who_left_the_group_is_out() {
    let machine = machine();
    machine.iam().remove_from_group("alice", "ssh-users");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn a_deleted_user_is_out() {
    let machine = machine();
    machine.iam().python(&format!(
        "{KEY}iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key)
iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')
iam.delete_user(UserName='alice')"
    ));
    machine.ssh("alice", "true").fails();
    machine.run(&["getent", "passwd", "alice"]).fails();
}

/// Deletes alice in IAM and makes her again, with the same name, group and key.
pub const RECREATE: &str = "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']
body = iam.get_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Encoding='SSH')['SSHPublicKey']['SSHPublicKeyBody']
iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key)
iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')
iam.delete_user(UserName='alice')
iam.create_user(UserName='alice')
iam.add_user_to_group(UserName='alice', GroupName='ssh-users')
iam.upload_ssh_public_key(UserName='alice', SSHPublicKeyBody=body)";

#[test]
fn who_takes_the_name_of_a_deleted_user_does_not_get_the_home() {
    let machine = machine();
    machine.ssh("alice", "echo private >notes; chmod 700 .").succeeds();
    machine.iam().python(RECREATE);
    // The name is shown as it was known, until this first attempt has asked IAM.
    machine.ssh("alice", "true").fails();
    assert!(machine.ssh("alice", "cat /home/alice/notes").fails().contains("belonged to an earlier user"));
    machine.logs("authpriv", "event=home user=alice path=/home/alice result=fail");
}

#[test]
fn the_home_of_an_account_that_lives_is_nobodys_to_move_aside() {
    let machine = Machine::new().settings("[home]\non_mismatch = 'aside'").start();
    // As the importer leaves an account whose IAM user was renamed.
    machine.sh("echo 'robert:*:2100000001:2100000001::/home/alice:/bin/bash' >>/etc/passwd; install -d -m 700 -o 2100000001 /home/alice").succeeds();
    machine.ssh("alice", "true").fails();
    assert_eq!(
        machine.sh("stat -c %u /home/alice; ls -d /home/alice*").succeeds(),
        "2100000001\n/home/alice"
    );
}

#[test]
fn the_home_of_a_deleted_user_is_moved_aside_where_that_is_wanted() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[home]\non_mismatch = 'aside'").start();
    let uid = machine.ssh("alice", "echo private >notes; chmod 700 .; id -u").succeeds();
    machine.iam().python(RECREATE);
    machine.ssh("alice", "true").fails();
    machine.ssh("alice", "cat notes").fails();
    machine.logs("authpriv", &format!("path=/home/alice result=made moved_to=/home/alice.{uid}"));
    assert_eq!(machine.ssh("alice", "stat -c %U .").succeeds(), "alice");
    assert_eq!(
        machine.sh(&format!("stat -c %u /home/alice.{uid}; cat /home/alice.{uid}/notes")).succeeds(),
        format!("{uid}\nprivate")
    );
}

#[test]
fn sudo_is_withdrawn_while_the_session_is_open() {
    let machine = machine();
    machine.sh("(box-ssh carol 'sudo -n true && touch first; while ! test -e go; do sleep 0.05; done; sudo -n true 2>answer; echo $? >second' >/dev/null 2>&1 &)").succeeds();
    machine.wait_until("test -e /home/carol/first");
    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.sh("touch /home/carol/go").succeeds();
    machine.wait_until("test -s /home/carol/second");
    assert_eq!(machine.sh("cat /home/carol/second").succeeds(), "1");
    assert!(
        machine.sh("cat /home/carol/answer").succeeds().contains("none of the IAM groups that may use sudo")
    );
}
