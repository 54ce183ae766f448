//! The PAM and NSS modules, as sshd, sudo and every other program load them.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::process::Command;

use pam_iam_tests::{Machine, built, repository};

/// Runs a program on a built module, and returns its output.
fn inspect(program: &str, option: &[&str], module: &str) -> String {
    let output = Command::new(program).args(option).arg(built(module)).output().expect("a program");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a Python script of tests/lib in the box.
fn run_probe(machine: &Machine, script: &str, user: &str) -> String {
    let path = repository().join("tests/lib").join(script);
    machine.run(&["python3", "-I", &path.to_string_lossy(), user]).succeeds()
}

#[test]
fn the_modules_export_their_entry_points_and_nothing_else() {
    let exported = |module: &str| -> BTreeSet<String> {
        let symbols = inspect("nm", &["-D", "--defined-only"], module);
        symbols.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
    };
    let names = |prefix: &str, names: &[&str]| names.iter().map(|name| format!("{prefix}{name}")).collect();
    let pam = ["acct_mgmt", "authenticate", "chauthtok", "close_session", "open_session", "setcred"];
    assert_eq!(exported("libpam_iam.so"), names("pam_sm_", &pam));
    let nss = ["getgrgid_r", "getgrnam_r", "getpwnam_r", "getpwuid_r", "initgroups_dyn"];
    assert_eq!(exported("libnss_iam.so"), names("_nss_iam_", &nss));
}

#[test]
fn the_modules_need_no_library_for_tls_or_cryptography_and_are_never_unloaded() {
    for module in ["libpam_iam.so", "libnss_iam.so"] {
        let dynamic = inspect("readelf", &["-d"], module);
        for (_, name) in dynamic.lines().filter_map(|line| line.split_once("Shared library: [")) {
            let allowed = ["libc.so", "libgcc_s.so", "libpam.so", "ld-linux"];
            assert!(allowed.iter().any(|allowed| name.starts_with(allowed)), "{module} needs {name}");
        }
        assert!(dynamic.contains("NODELETE"), "{module}");
    }
}

#[test]
fn a_call_leaves_no_thread_and_no_descriptor_behind() {
    let machine = Machine::new().start();
    let report = run_probe(&machine, "host_probe.py", "alice");
    assert_eq!(report, "nss 0 0\npam 0 0", "new threads and new descriptors after the calls");
}

#[test]
fn nss_reports_a_buffer_that_is_too_small_and_uses_a_larger_one() {
    let machine = Machine::new().start();
    let report = run_probe(&machine, "buffer_probe.py", "alice");
    assert_eq!(report, "too small: ERANGE\nlarge enough: alice");
}

#[test]
fn the_pam_line_may_set_policy_and_configuration_and_unknown_arguments_are_logged() {
    let machine = Machine::new().start();
    let calls_with = |arguments: &str, user: &str| {
        machine.file("/etc/pam.d/probe").write(&format!("account required pam_iam.so {arguments}\n"));
        machine.pam("probe", user).acct_mgmt()
    };
    calls_with("nullok debug", "alice").succeeds();
    machine.wait_for_log("authpriv", "unknown argument nullok");
    calls_with("policy=sudo", "alice").fails();

    let elsewhere = "config=/etc/elsewhere.toml";
    calls_with(elsewhere, "alice").fails();
    machine.wait_for_log("authpriv", "/etc/elsewhere.toml: No such file");
    let only_admins = "[access]\nallow = [\"ssh-admins\"]\n[resolver]\nmode = \"once\"\n";
    machine.file("/etc/elsewhere.toml").write(only_admins);
    calls_with(elsewhere, "alice").fails();
    calls_with(elsewhere, "carol").succeeds();
}

/// Starts a box with modules that panic in the entry point that an environment variable names. `./test` builds these
/// modules.
fn machine_with_panicking_modules() -> Machine {
    let machine = Machine::new().start();
    let folder = repository().join("target/test-panic");
    machine
        .sh(&format!(
            "cp {0}/libpam_iam.so /usr/lib/*-linux-gnu/security/pam_iam.so && cp {0}/libnss_iam.so /usr/lib/*-linux-gnu/libnss_iam.so.2",
            folder.display()
        ))
        .succeeds();
    machine
}

#[test]
fn a_panic_in_pam_is_logged_and_denies_and_the_application_lives() {
    let machine = machine_with_panicking_modules();
    machine.pam("sshd", "alice").acct_mgmt().succeeds();
    // A stack of this module alone, so that no other module denies.
    let phases = ["auth", "account", "session", "password"];
    let stack = phases.map(|phase| format!("{phase} required pam_iam.so\n")).concat();
    machine.file("/etc/pam.d/probe").write(&stack);
    for entry in ["acct_mgmt", "open_session", "close_session", "authenticate", "setcred", "chauthtok"] {
        let panic = format!("PAM_IAM_TEST_PANIC={entry}");
        let done = machine.run(&["env", &panic, "pamtester", "probe", "alice", entry]);
        assert_eq!(done.status, 1, "{entry}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        machine.wait_for_log("authpriv", &format!("event=panic entry={entry} result=deny"));
    }
}

/// A second sshd on port 2222, whose module panics.
const PANICKING_SSHD: &str = "PAM_IAM_TEST_PANIC=acct_mgmt exec /usr/sbin/sshd -E /run/second.log -o ListenAddress=127.0.0.1 -o Port=2222 -o PidFile=/run/second.pid";

#[test]
fn a_panic_in_sshd_denies_the_login_and_sshd_lives() {
    let machine = machine_with_panicking_modules();
    machine.sh(PANICKING_SSHD).succeeds();
    machine.wait_until("grep -q listening /run/second.log");
    let login = "ssh -F none -p 2222 -i $BOX_KEYS/alice -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no alice@127.0.0.1 true";
    machine.sh(login).fails();
    machine.sh("kill -0 $(cat /run/second.pid)").succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_panic_in_nss_reads_as_unavailable_and_the_application_lives() {
    let machine = machine_with_panicking_modules();
    for (entry, command) in [
        ("getpwnam_r", "getent passwd alice"),
        ("getpwuid_r", "getent passwd 2100000000"),
        ("getgrnam_r", "getent group iam-users"),
        ("getgrgid_r", "getent group 2018472259"),
        ("initgroups_dyn", "id -G alice | grep 2018472259"),
    ] {
        let done = machine.sh(&format!("NSS_IAM_TEST_PANIC={entry} {command}"));
        assert!(done.status == 1 || done.status == 2, "{entry}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        machine.wait_for_log("authpriv", &format!("libnss_iam: {entry} panicked"));
    }
}
