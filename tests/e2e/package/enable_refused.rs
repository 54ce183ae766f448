//! `iamctl enable` on hosts where it would not work or would let others in: it refuses, and everything stays as it was.

use pam_iam_tests::Machine;

use super::{ORIGINAL_ETC, assert_each_unit, etc_changes, machine_with_package, unit};

const SSHD_DROP_IN: &str = "/etc/ssh/sshd_config.d/00.conf";

/// A drop-in that gives sshd another key command than the package's.
const OTHER_KEY_COMMAND: &str = "AuthorizedKeysCommand /bin/true\nAuthorizedKeysCommandUser nobody\n";

/// A drop-in for sshd's unit, as some systems have it for EC2 Instance Connect.
const INSTANCE_CONNECT_UNIT: &str = r#"[Service]
ExecStart=
ExecStart=/usr/sbin/sshd -D -o "AuthorizedKeysCommand /usr/share/eic_run_authorized_keys %%u %%f" -o "AuthorizedKeysCommandUser nobody" $SSHD_OPTS
"#;

/// Breaks the host, asserts that `iamctl enable` refuses with `reason` and changes nothing, and repairs the host.
fn assert_refused(machine: &Machine, reason: &str, break_host: impl Fn(), repair: impl Fn()) {
    break_host();
    let before = etc_changes(machine);
    let complaint = machine.iamctl("enable").fails();
    assert!(complaint.contains(reason), "{complaint}");
    assert_eq!(etc_changes(machine), before, "{reason}");
    assert!(!machine.file("/var/lib/pam_iam/enabled.json").exists(), "{reason}");
    assert!(!unit(machine, "is-enabled", "iam-sweep.service"), "{reason}");
    repair();
}

/// Restores a file of /etc from the copy in [`ORIGINAL_ETC`].
fn restore(machine: &Machine, path: &str) {
    let original = path.replacen("/etc", ORIGINAL_ETC, 1);
    machine.file(&original).copy_to(path);
}

#[test]
fn a_refused_enable_changes_nothing() {
    let machine = machine_with_package();
    assert_refused_for_sshd(&machine);
    assert_refused_for_pam_and_configuration(&machine);
    assert_missing_sudo_stack_is_written(&machine);
    machine.iamctl("enable").succeeds();
    machine.ssh("alice", "true").succeeds();
    assert_disable_keeps_lines_of_others(&machine);
}

fn assert_refused_for_sshd(machine: &Machine) {
    let drop_in = machine.file(SSHD_DROP_IN);
    assert_refused(machine, "error already", || drop_in.write("Nonsense yes\n"), || drop_in.remove());
    assert_refused(
        machine,
        "another key command is in force: /bin/true",
        || drop_in.write(OTHER_KEY_COMMAND),
        || drop_in.remove(),
    );
    let unit_drop_ins = "/run/systemd/system/ssh.service.d";
    let reload_units = || machine.run(&["systemctl", "daemon-reload"]).succeeds();
    assert_refused(
        machine,
        "sshd is started with -o AuthorizedKeysCommand /usr/share/eic_run_authorized_keys %u %f, which wins over every file",
        || {
            machine.run(&["mkdir", unit_drop_ins]).succeeds();
            machine.file(&format!("{unit_drop_ins}/eic.conf")).write(INSTANCE_CONNECT_UNIT);
            reload_units();
        },
        || {
            machine.file(unit_drop_ins).remove();
            reload_units();
        },
    );
    let others_may_get_in = "PAM may let others in whom sshd refuses now";
    assert_refused(
        machine,
        others_may_get_in,
        || {
            machine.file("/etc/ssh/sshd_config").remove_lines("UsePAM yes");
            drop_in.write("UsePAM no\n");
        },
        || {
            restore(machine, "/etc/ssh/sshd_config");
            drop_in.remove();
        },
    );
    assert_refused(
        machine,
        others_may_get_in,
        || machine.file("/etc/default/ssh").write("SSHD_OPTS=\"-o UsePAM=no\"\n"),
        || restore(machine, "/etc/default/ssh"),
    );
}

fn assert_refused_for_pam_and_configuration(machine: &Machine) {
    let sudo_stacks = ["/etc/pam.d/sudo", "/etc/pam.d/sudo-i"];
    assert_refused(
        machine,
        "/etc/pam.d/sudo is missing",
        || sudo_stacks.iter().for_each(|stack| machine.file(stack).remove()),
        || sudo_stacks.iter().for_each(|stack| restore(machine, stack)),
    );
    assert_refused(
        machine,
        "iam-resolver cannot read /etc/pam_iam/config.toml, as it has to: chmod 644",
        || machine.config().chmod("600"),
        || machine.config().chmod("644"),
    );
    assert_refused(
        machine,
        "/etc/pam.d/sshd is missing",
        || machine.file("/etc/pam.d/sshd").move_to("/root/sshd"),
        || machine.file("/root/sshd").move_to("/etc/pam.d/sshd"),
    );
}

/// Asserts that enable writes a stack for sudo-i if there is none, since PAM would use the stack `other`.
fn assert_missing_sudo_stack_is_written(machine: &Machine) {
    let stack = machine.file("/etc/pam.d/sudo-i");
    stack.move_to("/root/sudo-i");
    machine.iamctl("enable").succeeds();
    assert!(stack.text().contains("pam_iam"));
    assert_eq!(machine.ssh("carol", "sudo -n -i id -u").succeeds(), "0");
    stack.remove();
    assert!(machine.iamctl("doctor").fails().contains("/etc/pam.d/sudo-i is missing"));
    machine.iamctl("disable").succeeds();
    machine.file("/root/sudo-i").move_to("/etc/pam.d/sudo-i");
}

fn assert_disable_keeps_lines_of_others(machine: &Machine) {
    let files = ["/etc/pam.d/sshd", "/etc/nsswitch.conf"].map(|path| machine.file(path));
    files.iter().for_each(|file| file.append("# mine\n"));
    machine.iamctl("disable").succeeds();
    assert!(files.iter().all(|file| file.text().contains("# mine")));
    assert_eq!(machine.run(&["grep", "-r", "pam_iam", "/etc/pam.d"]).stdout, "");
    assert_eq!(machine.run(&["grep", "-w", "iam", "/etc/nsswitch.conf"]).stdout, "");
}

#[test]
fn units_that_ran_before_a_refused_enable_still_run_after_it() {
    let machine = machine_with_package();
    let resolver = ["iam-resolver.socket", "iam-resolver.service"];
    machine.run(&[["systemctl", "enable", "--now", "--quiet"].as_slice(), &resolver].concat()).succeeds();
    machine.file(SSHD_DROP_IN).write(OTHER_KEY_COMMAND);
    assert!(machine.iamctl("enable").fails().contains("everything is as it was"));
    assert_each_unit(&machine, "is-active", "active", &resolver);
    assert_each_unit(&machine, "is-enabled", "enabled", &resolver);
    for question in ["is-enabled", "is-active"] {
        assert!(!unit(&machine, question, "iam-sweep.service"), "{question}");
    }
}
