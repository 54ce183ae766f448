//! What is loaded into sshd, sudo and everybody else.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::collections::BTreeSet;
use std::process::Command;

use pam_iam_tests::{Machine, built, repository};

const MODULES: [&str; 2] = ["libpam_iam.so", "libnss_iam.so"];

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_modules_export_their_entry_points_and_nothing_else() {
    let exported = |module: &str| -> BTreeSet<String> {
        let symbols = output("nm", &["-D", "--defined-only", built(module).to_str().unwrap()]);
        symbols.lines().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
    };
    let names = |prefix: &str, names: &[&str]| names.iter().map(|name| format!("{prefix}{name}")).collect();
    let pam = ["acct_mgmt", "authenticate", "chauthtok", "close_session", "open_session", "setcred"];
    assert_eq!(exported("libpam_iam.so"), names("pam_sm_", &pam));
    let nss = ["getgrgid_r", "getgrnam_r", "getpwnam_r", "getpwuid_r", "initgroups_dyn"];
    assert_eq!(exported("libnss_iam.so"), names("_nss_iam_", &nss));
}

#[test]
fn the_modules_need_no_library_for_tls_or_cryptography_and_are_never_unloaded() {
    for module in MODULES {
        let dynamic = output("readelf", &["-d", built(module).to_str().unwrap()]);
        let needed =
            dynamic.lines().filter_map(|line| line.split_once("Shared library: [")).map(|(_, name)| name);
        for name in needed {
            let plain = ["libc.so", "libgcc_s.so", "libpam.so", "ld-linux"];
            assert!(plain.iter().any(|plain| name.starts_with(plain)), "{module} needs {name}");
        }
        assert!(dynamic.contains("NODELETE"), "{module}");
    }
}

#[test]
fn a_call_leaves_no_thread_and_no_descriptor_behind() {
    let machine = Machine::new().start();
    let probe = repository().join("tests/lib/host_probe.py");
    let report = machine.run(&["python3", "-I", probe.to_str().unwrap(), "alice"]).succeeds();
    assert_eq!(report, "nss 0 0\npam 0 0", "threads and descriptors more after the calls");
}

#[test]
fn a_small_buffer_is_told_and_a_larger_one_works() {
    let machine = Machine::new().start();
    let probe = repository().join("tests/lib/buffer_probe.py");
    let report = machine.run(&["python3", "-I", probe.to_str().unwrap(), "alice"]).succeeds();
    assert_eq!(report, "too small: ERANGE\nlarge enough: alice");
}

/// The box with modules that were built to panic on demand (`./test` builds them).
fn panicking() -> Machine {
    let machine = Machine::new().start();
    let modules = repository().join("target/test-panic");
    machine.sh(&format!(
        "cp {0}/libpam_iam.so /usr/lib/*-linux-gnu/security/pam_iam.so && cp {0}/libnss_iam.so /usr/lib/*-linux-gnu/libnss_iam.so.2",
        modules.display()
    )).succeeds();
    machine
}

#[test]
fn a_panic_in_pam_is_logged_and_denies_and_the_host_lives() {
    let machine = panicking();
    machine.sh("pamtester sshd alice acct_mgmt").succeeds();
    for (entry, operation) in [
        ("acct_mgmt", "acct_mgmt"),
        ("open_session", "open_session"),
        ("close_session", "close_session"),
        ("authenticate", "authenticate"),
        ("setcred", "setcred"),
        ("chauthtok", "chauthtok"),
    ] {
        // A stack of our module alone, so that nothing stands before it.
        let types = ["auth", "account", "session", "password"]
            .map(|kind| format!("{kind} required pam_iam.so\n"))
            .concat();
        machine.sh(&format!("printf '{types}' >/etc/pam.d/probe")).succeeds();
        let done = machine.sh(&format!("PAM_IAM_TEST_PANIC={entry} pamtester probe alice {operation}"));
        assert_eq!(done.status, 1, "{entry}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        machine.logs("authpriv", &format!("event=panic entry={entry} result=deny"));
    }
}

#[test]
fn a_panic_in_sshd_denies_the_login_and_sshd_lives() {
    let machine = panicking();
    machine.sh("PAM_IAM_TEST_PANIC=acct_mgmt /usr/sbin/sshd -E /run/second.log -o ListenAddress=127.0.0.1 -o Port=2222 -o PidFile=/run/second.pid").succeeds();
    machine.wait_until("grep -q listening /run/second.log");
    let login = "ssh -F none -p 2222 -i $BOX_KEYS/alice -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no alice@127.0.0.1 true";
    machine.sh(login).fails();
    machine.sh("kill -0 $(cat /run/second.pid)").succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_panic_in_nss_reads_as_unavailable_and_the_host_lives() {
    let machine = panicking();
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
        machine.logs("authpriv", &format!("libnss_iam: {entry} panicked"));
    }
}
