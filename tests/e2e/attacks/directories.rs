//! Other directories of accounts beside IAM: they have accounts with the name of an IAM user, or never answer.

use pam_iam_tests::{Machine, repository};

use super::{
    leave_running, processes_under, slow_down_proc, start_booted_machine, start_machine, sweep, withdraw,
};

/// The folder in which libnss-extrausers reads the accounts of another directory.
const DIRECTORY: &str = "/var/lib/extrausers";

/// Adds accounts (name and uid) to the other directory, and makes NSS ask `services` for accounts and groups.
pub fn add_directory(machine: &Machine, accounts: &[(&str, u32)], services: &str) {
    machine.run(&["mkdir", "-p", DIRECTORY]).succeeds();
    machine.file(&format!("{DIRECTORY}/shadow")).write("");
    for (name, uid) in accounts {
        machine.file(&format!("{DIRECTORY}/passwd")).append(&format!("{name}:x:{uid}:{uid}::/:/bin/bash\n"));
        machine.file(&format!("{DIRECTORY}/group")).append(&format!("{name}:x:{uid}:\n"));
    }
    let script = format!("sed -i -E 's/^(passwd|group):.*/\\1: {services}/' /etc/nsswitch.conf");
    machine.sh(&script).succeeds();
}

#[test]
fn an_account_of_another_directory_with_an_admins_name_gets_no_sudo_by_iam() {
    // The managed account comes first: IAM is asked before the directory, or the account is in /etc/passwd.
    for (builder, services) in
        [(Machine::new(), "files iam extrausers"), (Machine::new().importer(), "files extrausers")]
    {
        let machine = builder.start();
        add_directory(&machine, &[("carol", 5000)], services);
        assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
        let other = || machine.as_user("5000").with_gid(5000);
        let member = other().with_supplementary_group(machine.gid_of("iam-sudo"));
        for process in [other(), member] {
            let done = process.run(&["sudo", "-n", "id", "-u"]);
            assert!(done.status != 0 && !done.stdout.starts_with('0'), "{done:?}");
        }
        machine.wait_for_log("authpriv", "reason=uid-mismatch");
        machine.wait_for_log(
            "authpriv",
            "carol: sudo was invoked by uid 5000, which is not the uid of that account",
        );
    }
}

#[test]
fn an_account_of_another_directory_keeps_its_name_and_gets_no_groups_of_the_iam_user() {
    let machine = Machine::new()
        .settings("[groups]\n'ssh-admins' = { group = 'disk', allow_privileged = true }\n'ssh-users' = 'dev'")
        .start();
    assert_that_local_account_keeps_mapped_primary_group(&machine);
    let groups = machine.groups_of("carol");
    assert!(groups.contains(&"disk".to_owned()) && groups.contains(&"iam-sudo".to_owned()), "{groups:?}");
    let uid = machine.uid_of("carol");
    assert!(machine.key_command("carol", uid).succeeds().starts_with("ssh-rsa "));

    add_directory(&machine, &[("carol", 5000), ("bob", 5001)], "files extrausers iam");
    assert_eq!(
        machine.run(&["id", "carol"]).succeeds(),
        "uid=5000(carol) gid=5000(carol) groups=5000(carol)"
    );
    // A login that began while the directory was down has found the uid of IAM's carol. The key command prints no key for
    // it.
    assert_eq!(machine.key_command("carol", uid).succeeds(), "");
    machine.wait_for_log("authpriv", "another account has the name than when the login began");
    let explained = machine.iamctl("explain carol").fails();
    assert!(explained.contains("another directory has the name"), "{explained}");

    assert_that_user_in_group_of_directory_is_refused(&machine);
    assert_that_account_of_directory_keeps_its_sudo_rule(&machine);
}

fn assert_that_local_account_keeps_mapped_primary_group(machine: &Machine) {
    machine.add_account("deploy", 1600);
    machine.run(&["usermod", "-g", "dev", "deploy"]).succeeds();
    assert_eq!(machine.groups_of("deploy"), ["dev"]);
}

/// Asserts that alice is refused while the directory lists her as a member of docker, since she would get that group.
fn assert_that_user_in_group_of_directory_is_refused(machine: &Machine) {
    const REASON: &str = "another directory has alice in the group docker";
    let groups = machine.file(&format!("{DIRECTORY}/group"));
    groups.append("docker:x:7000:alice\n");
    machine.ssh("alice", "true").fails();
    machine.wait_for_log("authpriv", REASON);
    let explained = machine.iamctl("explain alice").fails();
    assert!(explained.contains(REASON), "{explained}");
    // She is also refused if a local group has the gid too.
    machine.file("/etc/group").append("docker:x:7000:\n");
    machine.ssh("alice", "true").fails();
    groups.remove_lines("docker");
    machine.ssh("alice", "true").succeeds();
}

/// Asserts that an account of the directory can use sudo by a rule of its own, even if an IAM group maps to one of its
/// groups.
fn assert_that_account_of_directory_keeps_its_sudo_rule(machine: &Machine) {
    let accounts = machine.file(&format!("{DIRECTORY}/passwd"));
    accounts.append("dana:*:5002:5002::/:/bin/bash\n");
    machine.file(&format!("{DIRECTORY}/group")).append("dana:x:5002:\nops:x:7001:dana\n");
    machine.file("/etc/sudoers.d/dana").write("dana ALL=(ALL) NOPASSWD: ALL\n");
    machine.config().replace("'dev'", "'ops'");
    let sudo = |gid| {
        let dana = machine.as_user("5002").with_gid(gid).with_groups_of_nss();
        dana.run(&["sudo", "-n", "id", "-u"]).succeeds()
    };
    assert_eq!(sudo(5002), "0");
    // Now the mapped group is the primary one, whose list of members does not have the account.
    accounts.replace(":5002:5002:", ":5002:100:");
    machine.config().replace("'ops'", "'users'");
    assert_eq!(sudo(100), "0");
}

#[test]
fn the_importer_adds_no_account_whose_name_another_directory_has() {
    let machine = Machine::new().importer().start();
    add_directory(&machine, &[("carol", 5000), ("bob", 5001)], "files extrausers iam");
    machine.iam().add_to_group("bob", "ssh-users");
    machine.iamctl("flush").succeeds();
    machine.wait_until("iam-importer 2>&1 | grep -q 'its name is that of an account of another directory'");
    assert_eq!(machine.uid_of("bob"), 5001);
}

/// Adds a service to nsswitch.conf that never answers iamctl.
fn add_directory_that_hangs(machine: &Machine) {
    let source = repository().join("tests/e2e/attacks/nss_hang.c");
    machine
        .sh(&format!(
            "folder=$(dirname $(ldconfig -p | sed -n 's/.*libc.so.6.* => //p' | head -1))
             cc -Wall -Wextra -Werror -shared -fPIC -o $folder/libnss_hang.so.2 {}",
            source.display()
        ))
        .succeeds();
    machine.run(&["sed", "-i", "/^passwd:/s/$/ hang/", "/etc/nsswitch.conf"]).succeeds();
    let done = machine.sh("timeout 1 bash -c 'exec -a iamctl getent passwd 777777'");
    assert_eq!(done.status, 124, "it hangs: {done:?}");
}

#[test]
fn a_directory_that_never_answers_protects_no_withdrawn_user() {
    let machine = start_machine();
    let alice = leave_running(&machine, "alice", "sleep 4620");
    let carol = leave_running(&machine, "carol", "sleep 4622");
    add_directory_that_hangs(&machine);
    assert_eq!(machine.passwd("777777"), None);
    machine.start_as("777777", "sleep 4621");
    // A uid in alice's range of subordinate uids may be that of an account of the directory.
    machine.file("/etc/subuid").write("alice:777000:1000\n");
    withdraw(&machine, "alice");
    // The sweep fails, since it cannot know that it is complete.
    machine.run(&["timeout", "45", "iamctl", "sweep"]).fails();
    assert_eq!(processes_under(&machine, alice), "");
    assert!(machine.is_running("sleep 4621"));
    machine.wait_for_log("authpriv", "a service of nsswitch.conf did not tell in time whether some uids");

    withdraw(&machine, "carol");
    machine.ssh("carol", "true").fails();
    assert_eq!(machine.passwd("carol"), None);
    machine.run(&["timeout", "45", "iamctl", "sessions", "end", "carol"]).succeeds();
    assert_eq!(processes_under(&machine, carol), "");
}

#[test]
fn a_unit_that_names_the_user_lives_on_while_a_directory_does_not_answer() {
    let machine = start_booted_machine();
    slow_down_proc(&machine);
    leave_running(&machine, "alice", "sleep 4981");
    machine
        .file("/etc/systemd/system/hosts.service")
        .write("[Service]\nUser=alice\nExecStart=/usr/bin/sleep 4980\n");
    machine.run(&["systemctl", "daemon-reload"]).succeeds();
    machine.run(&["systemctl", "start", "hosts.service"]).succeeds();
    machine.wait_until_running("/usr/bin/sleep 4980");
    add_directory_that_hangs(&machine);
    withdraw(&machine, "alice");
    for _ in 0..2 {
        sweep(&machine);
    }
    machine.run(&["systemctl", "is-active", "hosts.service"]).succeeds();
    assert!(!machine.is_running("sleep 4981"));
}
