//! `iamctl enable` on a booted machine: the layouts it handles, and its effects.

#![allow(clippy::panic, reason = "helpers of tests")]

use pam_iam_tests::Machine;
use serde_json::json;

use super::{bare_machine, configure, etc_changes, install, machine_with_package, record_etc, start_bare};

#[test]
fn enable_works_before_sshds_first_start_without_its_folder_and_keys() {
    let machine = machine_with_package();
    machine.run(&["systemctl", "stop", "ssh"]).succeeds();
    machine.run(&["rm", "-rf", "/run/sshd"]).succeeds();
    machine.sh("mkdir /root/keys && mv /etc/ssh/ssh_host_* /root/keys").succeeds();

    machine.iamctl("enable").succeeds();
    let left = machine.sh("ls -d /run/sshd /run/pam_iam-hostkey* /etc/ssh/ssh_host_* 2>/dev/null").stdout;
    assert_eq!(left, "", "the folder and key that the check needed are removed");

    machine.sh("mv /root/keys/* /etc/ssh").succeeds();
    machine.run(&["systemctl", "start", "ssh"]).succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn enable_or_disable_killed_at_any_step_leaves_a_host_that_the_next_call_finishes() {
    let machine = machine_with_package();
    machine.let_root_in();
    let configured = etc_changes(&machine);
    for verb in ["enable", "disable"] {
        let steps = kill_at_each_rename(&machine, verb);
        assert!((4..40).contains(&steps), "{verb}: {steps} steps");
    }
    assert_eq!(etc_changes(&machine), configured);
}

/// Kills `iamctl VERB` at its first rename(2), in the next run at its second, and so on until a run ends by itself. Returns
/// the number of runs. Each file is replaced by rename(2), so it is whole before and after that call.
fn kill_at_each_rename(machine: &Machine, verb: &str) -> u32 {
    for step in 1..=40 {
        if verb == "disable" {
            machine.iamctl("enable").succeeds();
        }
        let inject = format!("inject=rename:signal=KILL:when={step}");
        let strace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", &inject, "--"];
        let killed = machine.run(&[strace.as_slice(), &["iamctl", verb]].concat()).status == -9;
        machine.local_root_logs_in();
        // After every second kill the next call is `enable`, else `disable`.
        if step % 2 == 0 {
            machine.iamctl("enable").succeeds();
            machine.ssh("alice", "true").succeeds();
        }
        machine.iamctl("disable").succeeds();
        let unfinished =
            ["find", "/etc", "/var/lib/pam_iam", "-name", "*.pam_iam-new", "-o", "-name", "*.new"];
        assert_eq!(machine.run(&unfinished).stdout, "", "{verb} {step}");
        if !killed {
            return step;
        }
    }
    panic!("{verb} takes more than 40 steps");
}

#[test]
fn enable_with_su_makes_the_home_of_a_user_who_comes_by_su_or_sudo_before_the_first_login() {
    let machine = machine_with_package();
    let configured = etc_changes(&machine);
    machine.iamctl("enable --with-su").succeeds();
    assert!(!machine.iamctl("doctor").succeeds().contains("--with-su"));
    assert_eq!(machine.run(&["su", "-", "alice", "-c", "pwd"]).succeeds(), "/home/alice");
    // As Ansible's become does it.
    let become_user = ["sudo", "-H", "-u", "carol", "/bin/sh", "-c", "cd && pwd"];
    assert_eq!(machine.run(&become_user).succeeds(), "/home/carol");
    machine.file("/home/carol").remove();
    assert_eq!(machine.run(&["sudo", "-iu", "carol", "pwd"]).succeeds(), "/home/carol");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    let local = machine.run(&["su", "nobody", "-s", "/bin/sh", "-c", "id -un"]);
    assert_eq!(local.succeeds(), "nobody");

    machine.iamctl("disable").succeeds();
    assert_eq!(etc_changes(&machine), configured);
    machine.iamctl("enable").succeeds();
    assert!(machine.iamctl("doctor").succeeds().contains("iamctl enable --with-su changes that"));
}

#[test]
fn users_log_in_on_hosts_laid_out_like_debian_and_ubuntu_and_doctor_finds_nothing() {
    for lay_out in [lay_out_like_debian as fn(&Machine), lay_out_like_ubuntu] {
        let fixtures = json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "bob", "groups": [], "keys": [{}]}]});
        let machine = start_bare(Machine::new().settings("[freshness]\nmax_age = 0").fixtures(fixtures));
        lay_out(&machine);
        // As docs/limits.md says.
        machine.file("/etc/login.defs").append("LASTLOG_UID_MAX 60000\n");
        record_etc(&machine);
        install(&machine);
        configure(&machine);
        let configured = etc_changes(&machine);

        machine.iamctl("enable").succeeds();
        assert_eq!(machine.doctor_complaints(), "");
        assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
        assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
        assert_eq!(machine.run(&["su", "ubuntu", "-c", "id -un"]).succeeds(), "ubuntu");
        machine.ssh("bob", "true").fails();
        assert_eq!(machine.doctor_complaints(), "");
        machine.iamctl("disable").succeeds();
        assert_eq!(etc_changes(&machine), configured);
    }
}

/// Adds the first user. Everything else on the machine has Debian's layout already.
fn lay_out_like_debian(machine: &Machine) {
    machine.run(&["useradd", "--create-home", "ubuntu"]).succeeds();
}

/// Makes the differences between Ubuntu's layout and Debian's that pam_iam could notice: sshd is started by its socket,
/// cloud-init has drop-ins for sshd and sudo, sudo's stacks have their own session part, and the first user is `ubuntu`.
fn lay_out_like_ubuntu(machine: &Machine) {
    machine.file("/etc/nsswitch.conf").write(UBUNTUS_NSSWITCH);
    for name in ["50-cloud-init.conf", "60-cloudimg-settings.conf"] {
        machine.file(&format!("/etc/ssh/sshd_config.d/{name}")).write("PasswordAuthentication no\n");
    }
    for service in ["sudo", "sudo-i"] {
        machine.file(&format!("/etc/pam.d/{service}")).write(UBUNTUS_SUDO_STACK);
    }
    machine.file("/etc/sudoers").write(UBUNTUS_SUDOERS);
    machine.file("/etc/sudoers.d/90-cloud-init-users").write(UBUNTUS_USER_RULE);
    let useradd = ["useradd", "--create-home", "--shell", "/bin/bash", "--groups", "adm,sudo", "ubuntu"];
    machine.run(&useradd).succeeds();
    machine.run(&["systemctl", "disable", "--now", "ssh.service"]).succeeds();
    machine.run(&["systemctl", "enable", "--now", "ssh.socket"]).succeeds();
}

const UBUNTUS_NSSWITCH: &str = "\
passwd:         files systemd
group:          files systemd
shadow:         files systemd
gshadow:        files systemd

hosts:          files dns
";

const UBUNTUS_SUDO_STACK: &str = "\
#%PAM-1.0

# Set up user limits from /etc/security/limits.conf.
session    required   pam_limits.so

session    required   pam_env.so readenv=1 user_readenv=0

@include common-auth
@include common-account
@include common-session-noninteractive
";

const UBUNTUS_SUDOERS: &str = "\
Defaults\tenv_reset
Defaults\tmail_badpass
Defaults\tuse_pty
root\tALL=(ALL:ALL) ALL
%admin ALL=(ALL) ALL
%sudo\tALL=(ALL:ALL) ALL

@includedir /etc/sudoers.d
";

const UBUNTUS_USER_RULE: &str = "\
# User rules for ubuntu
ubuntu ALL=(ALL) NOPASSWD:ALL
";

#[test]
fn after_enable_no_job_of_a_withdrawn_user_starts_by_cron_or_at_or_systemd() {
    const SERVICES: [&str; 3] = ["cron", "atd", "systemd-user"];
    let machine = bare_machine();
    for service in SERVICES {
        let stack = machine.file(&format!("/etc/pam.d/{service}"));
        if !stack.exists() {
            stack.write("@include common-account\nsession required pam_permit.so\n");
        }
    }
    install(&machine);
    configure(&machine);
    machine.iamctl("enable").succeeds();
    let services_for = |user: &str| -> Vec<&str> {
        let starts = |service: &&str| machine.pam(service, user).acct_mgmt().status == 0;
        SERVICES.into_iter().filter(starts).collect()
    };
    assert_eq!(services_for("alice"), SERVICES);
    machine.iam().remove_from_group("alice", "ssh-users");
    assert_eq!(services_for("alice"), [""; 0]);
    assert_eq!(services_for("root"), SERVICES);
}

#[test]
fn doctor_warns_of_a_lastlog_that_grows_with_the_uids_of_iam_users() {
    let machine = machine_with_package();
    machine.iamctl("enable").succeeds();
    machine.file("/var/log/lastlog").append("");
    machine.doctor_says("/var/log/lastlog grows");
    machine.file("/etc/login.defs").append("LASTLOG_UID_MAX 60000\n");
    machine.doctor_does_not_say("/var/log/lastlog grows");
}
