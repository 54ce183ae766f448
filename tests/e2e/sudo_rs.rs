//! sudo-rs, which Ubuntu 25.10 and newer have as sudo, does with our rule and our line of PAM what sudo does.

use pam_iam_tests::{Machine, repository};

#[test]
fn sudo_rs_asks_iam_at_each_use_as_sudo_does() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let folder = repository().join("target/sudo-rs/bin");
    machine
        .sh(&format!(
            "install -m 4755 -o root {0}/sudo /usr/bin/sudo; install -m 755 {0}/visudo /usr/sbin/visudo; visudo -c -q -f /etc/sudoers.d/pam_iam",
            folder.display()
        ))
        .succeeds();
    assert!(machine.sh("sudo --version 2>&1").succeeds().contains("sudo-rs"));
    assert_eq!(machine.ssh("carol", "sudo -n id -un; sudo -n -i id -un").succeeds(), "root\nroot");
    machine.ssh("alice", "sudo -n true").fails();
    // A local account that an administrator put into the group by hand.
    machine.sh("useradd -m mallory; echo 'iam-sudo:x:990:mallory' >>/etc/group; echo '%iam-sudo ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/local").succeeds();
    machine.sh("setpriv --reuid mallory --regid mallory --init-groups sudo -n true").fails();
    machine.logs("authpriv", "user=mallory");
    machine.sh("sed -i /^iam-sudo/d /etc/group; rm /etc/sudoers.d/local").succeeds();
    let doctor = machine.sh("iamctl doctor").stdout;
    assert!(doctor.contains("lets carol use sudo without a password, and PAM is asked"), "{doctor}");
    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.ssh("carol", "sudo -n true").fails();
}
