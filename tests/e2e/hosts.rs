//! Applications of every kind that load our PAM module: whatever state they are in, the answer is right or a no, and they
//! go on as they were.

use pam_iam_tests::{Machine, repository};

/// A service with our module alone, and something that says yes where it has no opinion.
const STACK: &str = "printf 'account required pam_iam.so\\naccount required pam_permit.so\\nsession required pam_iam.so\\nsession required pam_permit.so\\n' >/etc/pam.d/probe";

fn probe(machine: &Machine, arguments: &[&str]) -> String {
    let script = repository().join("tests/lib/pam_probe.py");
    let script = script.to_string_lossy();
    let argv = [["timeout", "60", "python3", "-I", "-B", &script].as_slice(), arguments].concat();
    machine.run(&argv).succeeds()
}

fn machine() -> Machine {
    let machine = Machine::new().start();
    machine.sh(STACK).succeeds();
    machine
}

#[test]
fn users_that_are_none_are_refused_and_who_is_set_last_is_who_counts() {
    let machine = machine();
    assert_eq!(probe(&machine, &["user", "alice"]), "success");
    assert_eq!(probe(&machine, &["user", "bob"]), "unknown user");
    assert_eq!(probe(&machine, &["user", "root"]), "success", "local");
    for nobody in [
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
        assert_eq!(probe(&machine, &["user", nobody]), "unknown user", "{nobody:?}");
    }
    assert_eq!(probe(&machine, &["long_name"]), "unknown user");
    assert_ne!(probe(&machine, &["nobody"]), "success");
    assert_eq!(probe(&machine, &["changed", "alice", "bob"]), "('success', 'unknown user')");
    assert_eq!(probe(&machine, &["changed", "bob", "alice"]), "('unknown user', 'success')");
    // A service that nobody has a stack for gets that of `other`.
    machine.sh("cp /etc/pam.d/probe /etc/pam.d/other").succeeds();
    assert_eq!(probe(&machine, &["user", "alice", "no such service"]), "success");
    assert_eq!(probe(&machine, &["user", "bob", "no such service"]), "unknown user");
}

#[test]
fn what_the_application_says_about_the_client_forges_nothing() {
    let machine = machine();
    assert_eq!(probe(&machine, &["absurd", "alice"]), "success");
    let log = machine.log("authpriv");
    assert!(log.contains("rhost=\"evil\\x0aevent=login user=root"), "{log}");
    for line in log.lines() {
        let outside_quotes: String = line.split('"').step_by(2).collect();
        assert!(!line.starts_with("event=") && !outside_quotes.contains("user=root"), "{line}");
    }
}

#[test]
fn a_session_is_opened_by_keys_of_iam_or_by_none_that_sshd_tells_of() {
    let machine = machine();
    let key =
        |name: &str| machine.sh(&format!("ssh-keygen -yf $BOX_KEYS/{name} | cut -d' ' -f1,2")).succeeds();
    let (hers, his) = (key("alice"), key("bob"));
    let body = hers.split(' ').nth(1).unwrap_or_default();
    for (lines, wanted) in [
        (vec![], "success"),
        (vec![format!("publickey {hers}")], "success"),
        (vec!["password".to_owned(), format!("publickey {hers}")], "success"),
        (vec![format!("publickey {his}")], "session failed"),
        (vec![format!("publickey {hers}"), format!("publickey {his}")], "session failed"),
        (vec![format!("publickey ssh-rsa-cert-v01@openssh.com {body}")], "session failed"),
        (vec!["publickey".to_owned()], "session failed"),
        (vec!["publickey ssh-rsa !!!".to_owned()], "session failed"),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(probe(&machine, &[["session", "alice"].as_slice(), &lines].concat()), wanted, "{lines:?}");
    }
}

#[test]
fn it_works_twice_in_threads_after_a_fork_and_without_descriptors() {
    let machine = machine();
    assert_eq!(probe(&machine, &["twice", "alice"]), format!("[{}]", ["'success'"; 6].join(", ")));
    assert_eq!(probe(&machine, &["threads", "alice"]), "(['success'], 160)");
    assert_eq!(probe(&machine, &["forked", "alice"]), "('success', 'success', 'success')");
    assert_eq!(probe(&machine, &["closed", "alice"]), "('success', [])");
    let starved = probe(&machine, &["no_descriptors", "alice"]);
    assert!(starved.ends_with("'success')") && starved.matches("success").count() == 2, "{starved}");
    let jailed = probe(&machine, &["chroot", "alice"]);
    assert!(jailed.starts_with("('success', 'un") && !jailed.ends_with("'success')"), "{jailed}");
    assert_eq!(probe(&machine, &["many_descriptors", "alice"]), "('success', 'alice', 4000)");
    // A signal would have ended it.
    assert_eq!(probe(&machine, &["sigpipe", "alice"]), "unknown user");
}

#[test]
fn a_host_that_ignores_or_reaps_children_gets_its_answer_without_a_daemon_too() {
    let machine = Machine::new().importer().start();
    machine.sh(STACK).succeeds();
    machine.sh("sed -i '1i [resolver]\\nmode = \"once\"' /etc/pam_iam/config.toml").succeeds();
    assert_eq!(probe(&machine, &["user", "alice"]), "success");
    assert_eq!(probe(&machine, &["sigchld_ignored", "alice"]), "('success', True)");
    assert_eq!(probe(&machine, &["sigchld_reaped", "alice"]), "('success', True)");
    assert_eq!(probe(&machine, &["threads", "alice"]), "(['success'], 160)");
    assert_eq!(probe(&machine, &["closed", "alice"]), "('success', [])");
}

#[test]
fn nothing_of_the_caller_reaches_the_process_that_answers() {
    let machine = Machine::new().importer().start();
    machine
        .sh("pkill -STOP -x iam-resolver; sed -i '1i [resolver]\\nmode = \"once\"' /etc/pam_iam/config.toml")
        .succeeds();
    machine.fault("fail=hang");
    machine.sh("cd /tmp; umask 0; exec 7</etc/shadow 9>/tmp/mine
        AWS_ENDPOINT_URL=http://evil AWS_PROFILE=evil LD_LIBRARY_PATH=/tmp HTTPS_PROXY=evil TMPDIR=/tmp iam-authorized-keys alice </dev/null >/dev/null 2>&1 &").succeeds();
    // It lives for as long as IAM is waited for.
    let seen = machine
        .sh("until pid=$(pgrep -nx iam-resolver) && grep -q once /proc/$pid/cmdline && ls -l /proc/$pid/fd | grep -q eventpoll; do sleep 0.05; done
             tr '\\0' '\\n' </proc/$pid/environ; readlink /proc/$pid/cwd; ls -l /proc/$pid/fd; grep Umask /proc/$pid/status")
        .succeeds();
    assert!(seen.contains("AWS_ENDPOINT_URL=http://127.0.0.1") && seen.contains("Umask:\t0077"), "{seen}");
    for theirs in ["evil", "LD_LIBRARY_PATH", "PROXY", "/tmp", "shadow"] {
        assert!(!seen.contains(theirs), "{theirs}: {seen}");
    }
}

#[test]
fn su_asks_us_where_the_line_is_in_its_stack() {
    let machine = machine();
    machine.sh("sed -i '0,/^account\\|^@include common-account/s//account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so\\n&/' /etc/pam.d/su").succeeds();
    machine.sh("grep -q pam_iam /etc/pam.d/su && useradd -m local").succeeds();
    assert_eq!(machine.sh("su alice -c 'id -un'").succeeds(), "alice");
    assert_eq!(machine.sh("su local -c 'id -un'").succeeds(), "local");
    machine.sh("su bob -s /bin/sh -c true").fails();
}
