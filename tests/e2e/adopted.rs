//! Adopted accounts: local accounts that the IAM user of the same name may log in to, and that no failure opens to others.

use pam_iam_tests::Machine;

/// Adds a local account that has a home directory but no key and no password.
fn add_account_without_password(machine: &Machine, name: &str, uid: u32) {
    machine.file("/etc/passwd").append(&format!("{name}:*:{uid}:{uid}::/home/{name}:/bin/bash\n"));
    let uid = uid.to_string();
    machine.run(&["install", "-d", "-o", &uid, &format!("/home/{name}")]).succeeds();
}

#[test]
fn an_adopted_account_is_opened_by_its_iam_user() {
    let machine = Machine::new().settings("[accounts]\nadopt = ['bob']\nadopt_group = 'synced'").start();
    add_account_without_password(&machine, "bob", 1500);
    add_account_without_password(&machine, "alice", 1501);
    machine.file("/etc/group").append("bob:x:1500:\nalice:x:1501:\nsynced:x:1502:alice\n");
    assert!(machine.ssh("bob", "true").fails().contains("Permission denied (publickey"));
    machine.iam().add_to_group("bob", "ssh-users");
    machine.wait_until_login_succeeds("bob");
    assert_eq!(machine.ssh("bob", "id -u; pwd").succeeds(), "1500\n/home/bob");
    assert_eq!(machine.ssh("alice", "id -u").succeeds(), "1501");
}

#[test]
fn a_broken_configuration_opens_no_adopted_account_to_its_local_keys() {
    let machine = Machine::new().settings("[accounts]\nadopt = ['erin']").start();
    machine.make_key("/root/own");
    for (name, uid) in [("erin", 1600), ("ec2-user", 1601)] {
        machine.add_account(name, uid);
        machine.authorize_key(name, "/root/own");
    }
    machine.ssh_with("/root/own", "erin", "true").fails();
    // The configuration cannot be parsed: it is not UTF-8.
    machine.sh(r"printf '# caf\xe9\n' >>/etc/pam_iam/config.toml").succeeds();
    machine.ssh_with("/root/own", "erin", "true").fails();
    machine.ssh_with("/root/own", "ec2-user", "true").succeeds();
}

#[test]
fn a_missing_group_file_opens_no_account_that_might_be_adopted() {
    let machine = Machine::new().settings("[accounts]\nadopt_group = 'synced'").start();
    add_account_without_password(&machine, "alice", 1777);
    machine.file("/etc/group").append("synced:x:1778:\n");
    machine.ssh("alice", "true").fails();
    machine.file("/etc/group").move_to("/etc/group.gone");
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.authorized_keys("alice"), "");
    machine.pam("sshd", "alice").acct_mgmt().fails();
}
