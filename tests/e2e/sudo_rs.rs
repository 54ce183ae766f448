//! sudo-rs, which is the sudo of Ubuntu 25.10 and newer, decides as sudo does by the shipped rule and PAM line.

use pam_iam_tests::{Machine, repository};

fn machine_with_sudo_rs() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let folder = repository().join("target/sudo-rs/bin");
    let folder = folder.display();
    machine
        .run(&["install", "-m", "4755", "-o", "root", &format!("{folder}/sudo"), "/usr/bin/sudo"])
        .succeeds();
    machine.run(&["install", "-m", "755", &format!("{folder}/visudo"), "/usr/sbin/visudo"]).succeeds();
    machine.run(&["visudo", "-c", "-q", "-f", "/etc/sudoers.d/pam_iam"]).succeeds();
    let version = machine.run(&["sudo", "--version"]);
    let version = version.stdout + &version.stderr;
    assert!(version.contains("sudo-rs"), "{version}");
    machine
}

#[test]
fn sudo_rs_asks_iam_at_each_use_as_sudo_does() {
    let machine = machine_with_sudo_rs();
    assert_eq!(machine.ssh("carol", "sudo -n id -un; sudo -n -i id -un").succeeds(), "root\nroot");
    machine.ssh("alice", "sudo -n true").fails();
    assert_local_member_of_iam_sudo_is_refused(&machine);
    machine.doctor_says("lets carol use sudo without a password, and PAM is asked");
    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.ssh("carol", "sudo -n true").fails();
}

/// Asserts that sudo refuses a local account in a local group iam-sudo, which an administrator could make by mistake.
fn assert_local_member_of_iam_sudo_is_refused(machine: &Machine) {
    machine.add_account("mallory", 1500);
    machine.set_local_group("iam-sudo", 990);
    machine.add_to_local_group("mallory", "iam-sudo");
    let rule = machine.file("/etc/sudoers.d/local");
    rule.write("%iam-sudo ALL=(ALL) NOPASSWD: ALL\n");
    let mallory = machine.as_user("mallory").with_gid(machine.gid_of("mallory")).with_groups_of_nss();
    mallory.run(&["sudo", "-n", "true"]).fails();
    machine.wait_for_log("authpriv", "user=mallory");
    machine.file("/etc/group").remove_lines("iam-sudo:");
    rule.remove();
}
