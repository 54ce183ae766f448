//! PAM applications that call the module in unusual states: the answer is right or a refusal, and the application goes on.

use pam_iam_tests::{Machine, repository};

/// A stack of this module alone. pam_permit.so allows where this module returns PAM_IGNORE.
const STACK: &str = "account required pam_iam.so
account required pam_permit.so
session required pam_iam.so
session required pam_permit.so
";

const WITHOUT_DAEMON: &str = "[resolver]\nmode = \"once\"\n";

/// Starts a box in which the PAM service `probe` has a stack of this module alone.
fn machine_with_probe_service() -> Machine {
    let machine = Machine::new().start();
    machine.file("/etc/pam.d/probe").write(STACK);
    machine
}

/// Calls PAM in the situation of tests/lib/pam_probe.py that the first argument names. Returns the results that it prints.
fn probe(machine: &Machine, arguments: &[&str]) -> String {
    let script = repository().join("tests/lib/pam_probe.py");
    let script = script.to_string_lossy();
    let argv = [["timeout", "60", "python3", "-I", "-B", &script].as_slice(), arguments].concat();
    machine.run(&argv).succeeds()
}

#[test]
fn names_without_an_account_are_refused_and_the_user_that_was_set_last_counts() {
    let machine = machine_with_probe_service();
    assert_eq!(probe(&machine, &["user", "alice"]), "success");
    assert_eq!(probe(&machine, &["user", "bob"]), "unknown user");
    assert_eq!(probe(&machine, &["user", "root"]), "success", "local");
    for name in [
        "nosuch",
        "",
        "a b",
        "alice\\n",
        "alice\\x01",
        "\\xff\\xfe",
        "../alice",
        "alice/",
        "-x",
        "ALICE",
        " alice",
        "alice:x",
        "%s%n",
    ] {
        assert_eq!(probe(&machine, &["user", name]), "unknown user", "{name:?}");
    }
    assert_eq!(probe(&machine, &["long_name"]), "unknown user");
    assert_ne!(probe(&machine, &["nobody"]), "success", "no user is set");
    assert_eq!(probe(&machine, &["changed", "alice", "bob"]), "('success', 'unknown user')");
    assert_eq!(probe(&machine, &["changed", "bob", "alice"]), "('unknown user', 'success')");
    // PAM uses the stack `other` for a service that has none.
    machine.file("/etc/pam.d/other").write(STACK);
    assert_eq!(probe(&machine, &["user", "alice", "no such service"]), "success");
    assert_eq!(probe(&machine, &["user", "bob", "no such service"]), "unknown user");
}

#[test]
fn the_client_address_and_terminal_that_an_application_sets_forge_no_audit_line() {
    let machine = machine_with_probe_service();
    assert_eq!(probe(&machine, &["absurd", "alice"]), "success");
    let log = machine.log("authpriv");
    assert!(log.contains("rhost=\"evil\\x0aevent=login user=root"), "{log}");
    for line in log.lines() {
        let outside_quotes: String = line.split('"').step_by(2).collect();
        assert!(!line.starts_with("event=") && !outside_quotes.contains("user=root"), "{line}");
    }
}

#[test]
fn a_session_opens_only_if_every_key_that_sshd_names_is_the_users_in_iam() {
    let machine = machine_with_probe_service();
    let [alices, bobs] = ["alice", "bob"].map(|name| machine.public_key(name));
    let body = alices.split(' ').nth(1).unwrap_or_default();
    for (lines, result) in [
        (vec![], "success"),
        (vec![format!("publickey {alices}")], "success"),
        (vec!["password".to_owned(), format!("publickey {alices}")], "success"),
        (vec![format!("publickey {bobs}")], "session failed"),
        (vec![format!("publickey {alices}"), format!("publickey {bobs}")], "session failed"),
        (vec![format!("publickey ssh-rsa-cert-v01@openssh.com {body}")], "session failed"),
        (vec!["publickey".to_owned()], "session failed"),
        (vec!["publickey ssh-rsa !!!".to_owned()], "session failed"),
    ] {
        let mut arguments = vec!["session", "alice"];
        arguments.extend(lines.iter().map(String::as_str));
        assert_eq!(probe(&machine, &arguments), result, "{lines:?}");
    }
}

#[test]
fn the_module_works_twice_in_threads_after_a_fork_and_without_descriptors() {
    let machine = machine_with_probe_service();
    assert_eq!(probe(&machine, &["twice", "alice"]), format!("[{}]", ["'success'"; 6].join(", ")));
    assert_eq!(probe(&machine, &["threads", "alice"]), "(['success'], 160)");
    assert_eq!(probe(&machine, &["forked", "alice"]), "('success', 'success', 'success')");
    assert_eq!(probe(&machine, &["closed", "alice"]), "('success', [])");
    let starved = probe(&machine, &["no_descriptors", "alice"]);
    assert!(starved.ends_with("'success')") && starved.matches("success").count() == 2, "{starved}");
    let jailed = probe(&machine, &["chroot", "alice"]);
    assert!(jailed.starts_with("('success', 'un") && !jailed.ends_with("'success')"), "{jailed}");
    assert_eq!(probe(&machine, &["many_descriptors", "alice"]), "('success', 'alice', 4000)");
    // An unhandled SIGPIPE would have ended the application.
    assert_eq!(probe(&machine, &["sigpipe", "alice"]), "unavailable");
}

#[test]
fn an_application_that_ignores_or_reaps_children_gets_its_answer_without_a_daemon_too() {
    let machine = Machine::new().importer().start();
    machine.file("/etc/pam.d/probe").write(STACK);
    machine.config().prepend(WITHOUT_DAEMON);
    assert_eq!(probe(&machine, &["user", "alice"]), "success");
    assert_eq!(probe(&machine, &["sigchld_ignored", "alice"]), "('success', True)");
    assert_eq!(probe(&machine, &["sigchld_reaped", "alice"]), "('success', True)");
    assert_eq!(probe(&machine, &["threads", "alice"]), "(['success'], 160)");
    assert_eq!(probe(&machine, &["closed", "alice"]), "('success', [])");
}

/// Calls the key command in an environment that a caller could have prepared.
const CALL_IN_PREPARED_ENVIRONMENT: &str = "cd /tmp; umask 0; exec 7</etc/shadow 9>/tmp/mine
AWS_ENDPOINT_URL=http://evil AWS_PROFILE=evil LD_LIBRARY_PATH=/tmp HTTPS_PROXY=evil TMPDIR=/tmp iam-authorized-keys alice";

/// Waits until the resolver for one request waits for IAM. Prints its environment, working directory, descriptors and umask.
const LOOK_AT_RESOLVER: &str = r"until pid=$(pgrep -nx iam-resolver) && grep -q once /proc/$pid/cmdline && ls -l /proc/$pid/fd | grep -q eventpoll; do
    [ $SECONDS -lt 20 ] || exit 1
    sleep 0.05
done
tr '\0' '\n' </proc/$pid/environ; readlink /proc/$pid/cwd; ls -l /proc/$pid/fd; grep Umask /proc/$pid/status";

#[test]
fn the_resolver_for_one_question_gets_nothing_of_its_callers_environment() {
    let machine = Machine::new().importer().start();
    machine.run(&["pkill", "-STOP", "-x", "iam-resolver"]).succeeds();
    machine.config().prepend(WITHOUT_DAEMON);
    // The resolver for one request lives as long as it waits for IAM.
    machine.fault("fail=hang");
    machine.start_in_background(CALL_IN_PREPARED_ENVIRONMENT);
    let seen = machine.sh(LOOK_AT_RESOLVER).succeeds();
    assert!(seen.contains("AWS_ENDPOINT_URL=http://127.0.0.1") && seen.contains("Umask:\t0077"), "{seen}");
    for callers in ["evil", "LD_LIBRARY_PATH", "PROXY", "/tmp", "shadow"] {
        assert!(!seen.contains(callers), "{callers}: {seen}");
    }
}

#[test]
fn su_asks_iam_where_the_module_is_in_its_stack() {
    let machine = machine_with_probe_service();
    machine
        .file("/etc/pam.d/su")
        .prepend("account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so\n");
    machine.run(&["useradd", "-m", "local"]).succeeds();
    for user in ["alice", "local"] {
        assert_eq!(machine.run(&["su", user, "-c", "id -un"]).succeeds(), user);
    }
    machine.run(&["su", "bob", "-s", "/bin/sh", "-c", "true"]).fails();
}
