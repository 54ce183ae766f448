//! The audit trail has the user, the key, the group and the reason of each event, and no client can forge an event.

use pam_iam_tests::Machine;

#[test]
fn a_login_leaves_the_user_the_key_the_group_and_the_reason() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
    let fingerprint = machine.sh("ssh-keygen -lf $BOX_KEYS/alice | cut -d' ' -f2").succeeds();
    let id = machine.iam().user_id("alice");
    machine.wait_for_log("authpriv", &format!("event=login user=alice iam_name=alice iam_id={id} key= group=ssh-users service=sshd rhost=127.0.0.1 result=allow reason=in-group"));
    machine.wait_for_log(
        "authpriv",
        &format!("event=session user=alice iam_name=alice key={fingerprint} origin=iam"),
    );
    machine.wait_for_log("authpriv", "event=home user=alice path=/home/alice result=made");
    machine.wait_for_log(
        "resolver",
        "IAM user bob has no account here (not-in-group); iamctl explain bob says more",
    );
}

/// Values that would end a field or a line, if they were not quoted or escaped.
const FORGERIES: [&str; 4] =
    ["x result=allow", "x\nevent=login user=alice result=allow", "\"x\" reason=in-group", "a\\x0ab"];

/// Sends sshd a version string that contains fields of an event.
const SEND_FORGED_VERSION: &str = r"printf 'SSH-2.0-evil result=allow event=login user=root\r\n' |
    timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; cat >&3; cat <&3' >/dev/null
true";

#[test]
fn nothing_that_a_user_chooses_forges_a_line_or_a_field() {
    let machine = Machine::new().start();
    for forgery in FORGERIES {
        machine.ssh_with("alice", forgery, "true").fails();
        machine.pam("sshd", "alice").item("rhost", forgery).item("service", "sshd").acct_mgmt();
    }
    machine.sh(SEND_FORGED_VERSION).succeeds();
    machine.wait_for_log("authpriv", "rhost=\"x result=allow\" result=allow");
    let log = machine.log("authpriv");
    for line in log.lines().filter(|line| line.contains("pam_iam(")) {
        let fields = line.split("event=").nth(1).unwrap_or_default();
        let unquoted: String = fields.split('"').step_by(2).collect();
        for field in [" result=", " reason=", " rhost="] {
            assert!(unquoted.matches(field).count() <= 1, "{field}: {line}");
        }
        assert!(!unquoted.contains("user=root"), "{line}");
    }
    assert!(!log.lines().any(|line| line.starts_with("event=")), "{log}");
}

/// Appends each message that journald's socket receives to `/tmp/journal`.
const JOURNALD: &str = r#"import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("/run/systemd/journal/socket")
os.chmod("/run/systemd/journal/socket", 0o666)
while True:
    with open("/tmp/journal", "ab") as f: f.write(s.recv(65536) + b"--\n")
"#;

#[test]
fn journald_gets_every_field_of_its_own() {
    let machine = Machine::new().start();
    machine.file("/tmp/journald.py").write(JOURNALD);
    machine.start_in_background("mkdir -p /run/systemd/journal; python3 /tmp/journald.py");
    machine.wait_until("test -S /run/systemd/journal/socket");
    machine.ssh("alice", "true").succeeds();
    machine.wait_until("grep -q PAM_IAM_EVENT=session /tmp/journal");
    let journal = machine.file("/tmp/journal").text();
    for field in [
        "PAM_IAM_EVENT=login\n",
        "PAM_IAM_USER=alice\n",
        "PAM_IAM_RESULT=allow\n",
        "SYSLOG_FACILITY=10\n",
        "SYSLOG_IDENTIFIER=sshd\n",
        "MESSAGE=pam_iam(sshd:account): event=login user=alice",
    ] {
        assert!(journal.contains(field), "{field}\n--- is not in\n{journal}");
    }
}
