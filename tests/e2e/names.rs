//! Names that must not become accounts, and keys that must not become more than keys.

use pam_iam_tests::Machine;
use serde_json::{Value, json};

fn machine(names: &[&str]) -> Machine {
    let users: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}))
        .collect();
    Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users})).start()
}

/// `name` exists nowhere: not for NSS, not for the key command, not for sshd.
fn is_nobody(machine: &Machine, name: &str) {
    machine.run(&["getent", "passwd", "--", name]).fails();
    let keys = machine.sh(&format!("/usr/libexec/pam_iam/iam-authorized-keys '{name}'"));
    assert_eq!(keys.stdout, "", "{name}");
    machine.sh(&format!("ssh-keygen -q -t ed25519 -N '' -f /root/any <<<y >/dev/null; box-ssh -i /root/any -- '{name}' true")).fails();
}

#[test]
fn names_that_linux_cannot_have_are_nobody() {
    let long = "x".repeat(33);
    let names = ["12345", "-oProxyCommand=x", ".", "..", &long, "a@@@@@@"];
    let machine = machine(&names);
    for name in ["12345", "-oProxyCommand.equal.x", ".", "..", &long, "a b", "a/b"] {
        is_nobody(&machine, name);
    }
    for (name, why) in [("12345", "is all digits"), (".", "begins with"), (&long, "has 33 characters")] {
        machine.logs("resolver", &format!("refused IAM user {name}: its Linux name {why}"));
    }
}

#[test]
fn a_mapped_name_logs_in() {
    let machine = machine(&["alice@example.com", "first.last"]);
    assert_eq!(machine.ssh("alice.at.example.com", "id -un").succeeds(), "alice.at.example.com");
    assert_eq!(machine.ssh("first.last", "sudo -n id -un").succeeds(), "root");
}

#[test]
fn a_name_that_two_users_claim_goes_to_neither() {
    let machine = machine(&["a@b", "a.at.b"]);
    is_nobody(&machine, "a.at.b");
    machine.logs("resolver", "a.at.b");
}

#[test]
fn a_name_of_another_case_is_another_name() {
    let machine = machine(&["Bob"]);
    assert_eq!(machine.ssh("Bob", "id -un").succeeds(), "Bob");
    is_nobody(&machine, "bob");
}

#[test]
fn an_iam_user_named_like_a_group_does_not_become_its_member() {
    let machine = machine(&["sudo", "admin", "iam-sudo", "adm"]);
    machine.sh("echo '%admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin").succeeds();
    for name in ["sudo", "admin", "iam-sudo", "adm"] {
        machine.run(&["getent", "passwd", name]).fails();
        machine.ssh(name, "true").fails();
    }
}

#[test]
fn a_key_body_smuggles_nothing_in() {
    let machine = Machine::new().start();
    machine.sh("ssh-keygen -q -t ed25519 -N '' -f /root/evil").succeeds();
    machine.iam().python(
        "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']
body = iam.get_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Encoding='SSH')['SSHPublicKey']['SSHPublicKeyBody']
iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key)
evil = open('/root/evil.pub').read()
iam.upload_ssh_public_key(UserName='alice', SSHPublicKeyBody=body.strip() + ' x\\ncommand=\"/bin/sh\" ' + evil)",
    );
    let keys = machine.sh("/usr/libexec/pam_iam/iam-authorized-keys alice").succeeds();
    assert_eq!(keys.lines().count(), 1, "{keys}");
    assert!(keys.starts_with("ssh-rsa AAAA") && keys.ends_with(" alice"), "{keys}");
    machine.sh("box-ssh -i /root/evil alice true").fails();
}
