//! `iamctl disable`, which the package's removal runs: it removes every line that refers to the module, and keeps the
//! administrator's own lines.

use pam_iam_tests::Machine;
use serde_json::Value;

use super::machine_with_package;

/// Asserts that no PAM stack refers to the module: such a line would keep everybody out once the module is removed.
fn assert_no_stack_has_the_module(machine: &Machine) {
    assert_eq!(machine.run(&["grep", "-r", "pam_iam.so", "/etc/pam.d"]).stdout, "");
}

/// Returns the paths of the links by which systemd starts units of pam_iam at boot.
fn enabled_units(machine: &Machine) -> String {
    let find = ["find", "/etc/systemd/system", "-path", "*.wants/iam-*"];
    machine.run(&find).succeeds()
}

#[test]
fn purge_removes_every_line_with_the_module_and_keeps_an_edited_sudo_rule() {
    let machine = machine_with_package();
    machine.iamctl("enable").succeeds();
    let rule = "%ssh-ops ALL=(root) NOPASSWD: /usr/bin/true\n";
    let sudoers = machine.file("/etc/sudoers.d/pam_iam");
    sudoers.write(rule);
    let cron = machine.file("/etc/pam.d/cron");
    machine.file("/usr/share/pam_iam/pam.d/debian/cron").copy_to("/etc/pam.d/cron");
    cron.append("account required pam_unix.so\n");
    machine.file("/etc/pam.d/su").prepend("account [success=ok default=die] pam_iam.so\n");

    let enabled = machine.iamctl("enable");
    assert_eq!(enabled.status, 0, "{enabled:?}");
    let remarks = enabled.stdout + &enabled.stderr;
    assert!(remarks.contains("/etc/sudoers.d/pam_iam is not as we ship it: kept"), "{remarks}");
    assert_eq!(sudoers.text(), rule);
    let json = machine.iamctl("--json enable").succeeds();
    let json: Value = serde_json::from_str(&json).expect("one JSON document, whatever is remarked");
    assert_eq!(json["done"], "changed");

    machine.run(&["dpkg", "--purge", "pam-iam"]).succeeds();
    assert_no_stack_has_the_module(&machine);
    assert!(cron.text().contains("pam_unix.so"));
    machine.run(&["visudo", "-c"]).succeeds();
    machine.run(&["su", "root", "-c", "true"]).succeeds();
    assert_eq!(machine.file("/etc/sudoers.d/pam_iam.disabled").text(), rule);
    assert!(!sudoers.exists());
}

#[test]
fn disable_undoes_an_installation_by_hand_and_names_users_who_stay() {
    // An installation as in docs/install-by-hand.md with imported accounts. The machine is not booted, like an image being
    // built.
    let machine = Machine::new().importer().start();
    machine.iamctl("enable").succeeds();
    assert!(enabled_units(&machine).contains("iam-resolver.socket"));
    let _session = machine.open_session("alice");

    let disabled = machine.iamctl("disable");
    assert_eq!(disabled.status, 0, "{disabled:?}");
    let remarks = disabled.stdout + &disabled.stderr;
    assert!(remarks.contains("still logged in, and no sweep ends them any more: alice"), "{remarks}");
    let accounts = remarks.lines().find(|line| line.contains("2 accounts of IAM users stay in /etc/passwd"));
    assert!(accounts.is_some_and(|line| line.contains("alice")), "{remarks}");
    assert_no_stack_has_the_module(&machine);
    assert_eq!(machine.run(&["grep", "-w", "iam", "/etc/nsswitch.conf"]).stdout, "");
    assert_eq!(enabled_units(&machine), "");
    for path in ["/etc/ssh/sshd_config.d/10-pam_iam.conf", "/etc/sudoers.d/pam_iam"] {
        assert!(!machine.file(path).exists(), "{path}");
    }
    assert!(machine.iamctl("disable").succeeds().contains("nothing is switched on"));
}
