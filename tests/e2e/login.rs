//! A login from end to end, in each of the ways in which a host can get its accounts.

use pam_iam_tests::Machine;

/// Adds the accounts of the default fixtures to `/etc/passwd`, as an operator does on a host with neither the NSS module
/// nor the importer.
fn add_accounts_by_hand(machine: &Machine) {
    machine.remove_from_nsswitch("passwd");
    machine.remove_from_nsswitch("group");
    let uid_from = |id: &str| machine.run(&["/usr/libexec/pam_iam/iam-resolver", "uid", id]).succeeds();
    for group in ["iam-users", "iam-sudo"] {
        machine.run(&["groupadd", "-g", &uid_from(group), group]).succeeds();
    }
    for user in ["alice", "bob", "carol"] {
        let uid = uid_from(&machine.iam().user_id(user));
        machine.run(&["useradd", "-M", "-u", &uid, "-s", "/bin/bash", "-G", "iam-users", user]).succeeds();
    }
    machine.run(&["usermod", "-a", "-G", "iam-sudo", "carol"]).succeeds();
}

/// Starts a box with the NSS module, and one with the importer.
fn machine_of_each_kind() -> [Machine; 2] {
    [Machine::new().start(), Machine::new().importer().start()]
}

/// Asserts that alice and carol log in, that only carol may use sudo, and that bob, root and daemon are refused.
#[track_caller]
fn assert_logins_are_right(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    machine.ssh("bob", "true").fails();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "sudo -n true").fails();
    machine.ssh("root", "true").fails();
    machine.ssh("daemon", "true").fails();
}

#[test]
fn iam_users_log_in_with_nothing_but_iam() {
    let machine = Machine::new().start();
    assert_logins_are_right(&machine);
    assert!(machine.ssh("bob", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn iam_users_log_in_to_imported_accounts() {
    assert_logins_are_right(&Machine::new().importer().start());
    assert_logins_are_right(&Machine::new().importer().without_daemon().start());
}

#[test]
fn iam_users_log_in_without_a_daemon_to_accounts_made_by_hand() {
    let machine = Machine::new().without_daemon().start();
    add_accounts_by_hand(&machine);
    assert_logins_are_right(&machine);
    assert!(machine.ssh("carol", "id -nG").succeeds().contains("iam-sudo"));
    machine.run(&["pgrep", "-x", "iam-resolver"]).fails();
}

#[test]
fn a_uid_is_in_the_managed_range_and_equal_on_every_host() {
    let [uid, other] = [(), ()].map(|()| Machine::new().start().ssh("alice", "id -u").succeeds());
    assert_eq!(uid, other);
    let uid: u32 = uid.parse().unwrap();
    assert!((2_013_265_920..=2_147_287_039).contains(&uid), "{uid}");
}

#[test]
fn the_first_login_creates_the_home_directory() {
    for machine in machine_of_each_kind() {
        machine.file("/etc/skel/hello").write("welcome\n");
        assert!(!machine.file("/home/alice").exists());
        assert_eq!(
            machine.ssh("alice", "pwd; cat hello; touch mine; stat -c '%U %G %a' .").succeeds(),
            "/home/alice\nwelcome\nalice alice 755"
        );
        assert_eq!(machine.ssh("alice", "ls mine").succeeds(), "mine");
        let mut names = machine.file("/home").names();
        names.retain(|name| name.contains("alice") || name.contains("pam_iam"));
        assert_eq!(names, ["alice"]);
    }
}

#[test]
fn a_user_created_a_second_ago_logs_in_at_the_first_attempt() {
    let machine = Machine::new().start();
    machine.iam().create_user_with_key("dave", &["ssh-users"]);
    assert_eq!(machine.ssh_with("/root/dave", "dave", "id -un; pwd").succeeds(), "dave\n/home/dave");
}

#[test]
fn local_accounts_log_in_without_a_call_even_if_an_iam_user_has_the_name() {
    for machine in machine_of_each_kind() {
        machine.let_root_in();
        machine.add_account("ec2-user", 1500);
        machine.authorize_key("ec2-user", "/root/local");
        machine.file("/etc/sudoers.d/ec2").write("ec2-user ALL=(ALL) NOPASSWD: ALL\n");
        machine.iam().create_user("ec2-user", &["ssh-admins"]);
        machine.clear_calls();
        machine.local_root_logs_in();
        assert_eq!(machine.ssh_with("/root/local", "ec2-user", "sudo -n id -u").succeeds(), "0");
        assert_eq!(machine.authorized_keys("ec2-user"), "");
        assert_eq!(machine.actions(), [""; 0]);
    }
}
