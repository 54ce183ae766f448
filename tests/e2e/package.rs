//! The package on a machine that systemd has booted: installation, upgrade and removal. The modules below test its
//! contents, the documented steps, and `iamctl enable` and `iamctl disable` on such a machine.

mod contents;
mod disable;
mod documented_steps;
mod enable;
mod enable_refused;
mod rpm;
mod trial;
mod upgrade;

use pam_iam_tests::{Builder, Machine, package};
use serde_json::{Value, json};

/// The copy of /etc on a bare machine.
const ORIGINAL_ETC: &str = "/root/etc";

/// The folder on a bare machine with the configuration that the box has written for it.
const CONFIGURATION: &str = "/root/configuration";

/// Lists the files of the machine outside /etc, except those that the system itself adds and removes.
const FILES: &str = "find /usr /var /opt /srv -xdev \
    ! -path '/var/log/*' \
    ! -path '/var/lib/dpkg/*' \
    ! -path '/var/cache/*' \
    ! -path '/var/lib/systemd/*' \
    ! -path '/var/tmp/*' \
    ! -path '*/__pycache__*' | sort";

const SERVICES: [&str; 3] = ["iam-resolver.socket", "iam-resolver.service", "iam-sweep.service"];

/// Boots a machine without pam_iam and records its files.
fn start_bare(builder: Builder) -> Machine {
    let machine = builder.bare().start();
    machine.file("/etc/pam_iam").move_to(CONFIGURATION);
    record_etc(&machine);
    machine.sh(&format!("{FILES} >/root/files")).succeeds();
    machine
}

/// Boots a machine without pam_iam, on which the resolver will revalidate at every use.
fn bare_machine() -> Machine {
    start_bare(Machine::new().settings("[freshness]\nmax_age = 0"))
}

/// Boots a machine on which the package is installed and configured, but not enabled.
fn machine_with_package() -> Machine {
    let machine = bare_machine();
    install(&machine);
    configure(&machine);
    machine
}

/// Returns fixtures with alice in ssh-users, and carol in ssh-users and ssh-admins.
fn alice_and_carol() -> Value {
    json!({"groups": ["ssh-users", "ssh-admins"], "users": [
        {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]})
}

fn record_etc(machine: &Machine) {
    machine.run(&["rm", "-rf", ORIGINAL_ETC]).succeeds();
    machine.run(&["cp", "-a", "/etc", ORIGINAL_ETC]).succeeds();
}

/// Returns the differences between /etc and its copy, except the lock and the backups of account files that shadow-utils
/// leaves.
fn etc_changes(machine: &Machine) -> String {
    let diff = ["diff", "-r", "--no-dereference", "-x", "*-", "-x", ".pwd.lock", ORIGINAL_ETC, "/etc"];
    let changes = machine.run(&diff);
    assert!(changes.status <= 1, "{changes:?}");
    changes.stdout.trim_end().to_owned()
}

fn install(machine: &Machine) {
    machine.run(&["dpkg", "--install", &package().to_string_lossy()]).succeeds();
}

fn configure(machine: &Machine) {
    machine.run(&["cp", "-r", &format!("{CONFIGURATION}/."), "/etc/pam_iam"]).succeeds();
}

/// Logs the local root in with a key of its own, and keeps the session open.
fn keep_root_logged_in(machine: &Machine) {
    machine.let_root_in();
    machine.ssh_with_in_background("/root/local", "root", "sleep 4200");
    machine.wait_until_running("sleep 4200");
}

/// Asserts that `systemctl QUESTION`, such as `is-active`, prints `yes`, such as `active`, for every unit.
fn assert_each_unit(machine: &Machine, question: &str, yes: &str, units: &[&str]) {
    let argv = [["systemctl", question].as_slice(), units].concat();
    let answers = machine.run(&argv);
    assert_eq!(answers.stdout, format!("{yes}\n").repeat(units.len()), "{units:?}");
    assert_eq!(answers.status, 0, "{answers:?}");
}

/// Returns whether `systemctl QUESTION` succeeds for the unit.
fn unit(machine: &Machine, question: &str, name: &str) -> bool {
    machine.run(&["systemctl", question, "--quiet", name]).status == 0
}

#[test]
fn install_enable_upgrade_disable_and_purge_restore_the_machine() {
    let machine = bare_machine();
    keep_root_logged_in(&machine);
    install(&machine);
    assert_nothing_is_enabled(&machine);

    configure(&machine);
    let configured = etc_changes(&machine);
    assert_dry_run_shows_the_changes(&machine);
    assert_eq!(etc_changes(&machine), configured);
    machine.iamctl("enable").succeeds();
    assert_users_log_in(&machine);
    assert!(machine.iamctl("enable").succeeds().contains("nothing is to be changed"));

    upgrade_during_a_session(&machine);

    machine.iamctl("disable").succeeds();
    assert_eq!(etc_changes(&machine), configured, "byte for byte");
    machine.ssh("alice", "true").fails();
    machine.iamctl("enable").succeeds();
    assert!(machine.is_running("sleep 4200"), "root's session is open");
    machine.ssh("alice", "true").succeeds();

    machine.run(&["pkill", "-f", "^sleep 4201"]).succeeds();
    machine.run(&["dpkg", "--purge", "pam-iam"]).succeeds();
    assert_eq!(etc_changes(&machine), "");
    machine.sh(&format!("{FILES} | diff /root/files -")).succeeds();
    assert!(!machine.file("/var/cache/pam_iam").exists());
    assert!(!machine.file("/run/pam_iam").exists());
    assert!(machine.is_running("sleep 4200"), "root's session is open");
    machine.local_root_logs_in();
    machine.run(&["/usr/sbin/sshd", "-t"]).succeeds();
    machine.run(&["visudo", "-c"]).succeeds();
}

/// Asserts that the installed package has added its users and its folder in /etc, and nothing else.
fn assert_nothing_is_enabled(machine: &Machine) {
    let changes = etc_changes(machine);
    let changed = changes.lines().filter(|line| line.starts_with("Only in") || line.starts_with("diff "));
    for line in changed {
        let account_file = ["passwd", "group", "shadow", "gshadow"]
            .iter()
            .any(|file| line.ends_with(&format!("/etc/{file}")));
        assert!(account_file || line == "Only in /etc: pam_iam", "{line}");
    }
    assert_eq!(machine.passwd("alice"), None);
    machine.ssh("alice", "true").fails();
    assert!(machine.iamctl("enable").fails().contains("/etc/pam_iam/config.toml"));
}

fn assert_dry_run_shows_the_changes(machine: &Machine) {
    let dry_run = machine.iamctl("enable --dry-run").succeeds();
    for change in ["would change /etc/nsswitch.conf", "pam_iam.so policy=sudo"] {
        assert!(dry_run.contains(change), "{dry_run}");
    }
    assert!(machine.iamctl("doctor").fails().contains("nothing of pam_iam is switched on here"));
}

fn assert_users_log_in(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un; pwd").succeeds(), "alice\n/home/alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("bob", "true").fails();
    machine.iamctl("doctor").succeeds();
    assert_each_unit(machine, "is-active", "active", &SERVICES);
}

/// Upgrades while IAM is unreachable and alice is logged in: the new resolver runs, configuration and cache are kept, and
/// no session ends.
fn upgrade_during_a_session(machine: &Machine) {
    machine.ssh_in_background("alice", "sleep 4201");
    machine.wait_until_running("sleep 4201");
    machine.wait_until("grep -q alice /var/cache/pam_iam/cache.json");
    machine.fault("fail=reset");
    let pid = ["systemctl", "show", "--property=MainPID", "--value", "iam-resolver.service"];
    let old_pid = machine.run(&pid).succeeds();
    install(machine);
    assert_ne!(machine.run(&pid).succeeds(), old_pid, "the new resolver runs");
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice", "configuration and cache are kept");
    for session in ["sleep 4200", "sleep 4201"] {
        assert!(machine.is_running(session), "{session}");
    }
    machine.fault("fail=");
}

#[test]
fn purge_keeps_the_archived_homes_of_former_users_and_names_them() {
    let machine = bare_machine();
    install(&machine);
    let archived = machine.file("/var/lib/pam_iam/archive/bob.2013265999.1.tar.gz");
    let other = machine.file("/var/lib/pam_iam/other");
    machine.run(&["mkdir", "-p", "/var/lib/pam_iam/archive"]).succeeds();
    archived.write("");
    other.write("");
    assert!(machine.run(&["dpkg", "--purge", "pam-iam"]).succeeds().contains("bob.2013265999.1.tar.gz"));
    assert!(archived.exists());
    assert!(!other.exists());
}
