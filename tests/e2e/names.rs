//! Which IAM user names become accounts, and under which Linux names.

use pam_iam_tests::Machine;
use serde_json::{Value, json};

/// Starts a box whose IAM has these users, each with a key and in all groups.
fn machine_with_users(names: &[&str]) -> Machine {
    let users: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}))
        .collect();
    let machine =
        Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users})).start();
    machine.make_key("/root/any");
    machine
}

/// Asserts that NSS, the key command and sshd know no user of this name.
#[track_caller]
fn assert_no_such_user(machine: &Machine, name: &str) {
    assert_eq!(machine.passwd(name), None, "{name}");
    assert_eq!(machine.authorized_keys(name), "", "{name}");
    machine.ssh_with("/root/any", name, "true").fails();
}

#[test]
fn a_name_that_linux_cannot_have_becomes_no_account() {
    let long = "x".repeat(33);
    let machine = machine_with_users(&["12345", "-oProxyCommand=x", ".", "..", &long, "a@@@@@@"]);
    for name in ["12345", "-oProxyCommand.equal.x", ".", "..", &long, "a b", "a/b"] {
        assert_no_such_user(&machine, name);
    }
    for (name, why) in [("12345", "is all digits"), (".", "begins with"), (&long, "has 33 characters")] {
        machine.wait_for_log("resolver", &format!("refused IAM user {name}: its Linux name {why}"));
    }
}

#[test]
fn a_user_logs_in_with_the_mapped_name() {
    let machine = machine_with_users(&["alice@example.com", "first.last"]);
    assert_eq!(machine.ssh("alice.at.example.com", "id -un").succeeds(), "alice.at.example.com");
    assert_eq!(machine.ssh("first.last", "sudo -n id -un").succeeds(), "root");
}

#[test]
fn a_name_that_two_users_map_to_goes_to_neither() {
    let machine = machine_with_users(&["a@b", "a.at.b"]);
    assert_no_such_user(&machine, "a.at.b");
    machine.wait_for_log("resolver", "a.at.b");
}

#[test]
fn a_name_in_another_case_is_another_name() {
    let machine = machine_with_users(&["Bob"]);
    assert_eq!(machine.ssh("Bob", "id -un").succeeds(), "Bob");
    assert_no_such_user(&machine, "bob");
}

#[test]
fn an_iam_user_with_the_name_of_a_sudo_group_gets_no_account() {
    let names = ["sudo", "admin", "iam-sudo", "adm"];
    let machine = machine_with_users(&names);
    machine.file("/etc/sudoers.d/admin").write("%admin ALL=(ALL) NOPASSWD: ALL\n");
    for name in names {
        assert_eq!(machine.passwd(name), None, "{name}");
        machine.ssh(name, "true").fails();
    }
}
