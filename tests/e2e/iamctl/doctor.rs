//! `iamctl doctor` names each fault of a host with its remedy, and nothing else.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use pam_iam_tests::Machine;
use serde_json::{Value, json};

use super::only_alice;

/// The copy of a file that a test has broken.
const SAVED: &str = "/tmp/saved";

/// Starts a box without faults, with a user who may use sudo and one who may not.
fn machine_without_faults() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .start()
}

#[track_caller]
fn assert_complains(machine: &Machine, text: &str) {
    let complaints = machine.doctor_complaints();
    assert!(complaints.contains(text), "{text}\n--- is not in\n{complaints}");
}

/// Returns the findings of `iamctl doctor --json` that are not ok, as `CHECK: MESSAGE -> FIX`.
fn findings(machine: &Machine) -> Vec<String> {
    let report: Value = serde_json::from_str(&machine.iamctl("doctor --json").stdout).expect("a report");
    let findings = report.get("findings").and_then(Value::as_array).expect("findings");
    let text = |finding: &Value, key| finding.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    findings
        .iter()
        .filter(|finding| text(finding, "state") != "ok")
        .map(|finding| {
            format!("{}: {} -> {}", text(finding, "check"), text(finding, "message"), text(finding, "fix"))
        })
        .collect()
}

/// Breaks the host, asserts that the doctor finds `fault` and nothing else, repairs the host, and asserts that the doctor
/// finds nothing.
#[track_caller]
fn assert_finds(machine: &Machine, fault: &str, break_host: impl Fn(), repair: impl Fn()) {
    break_host();
    let findings = findings(machine);
    assert_eq!(findings.len(), 1, "{fault}: {findings:#?}");
    assert!(findings.iter().all(|found| found.contains(fault)), "{fault}\n--- is not in\n{findings:#?}");
    repair();
    assert_eq!(machine.doctor_complaints(), "", "repaired: {fault}");
}

/// Calls [`assert_finds`]: `command` with `path` as its last argument breaks the host, and a copy of that file repairs it.
#[track_caller]
fn assert_finds_after(machine: &Machine, command: &[&str], path: &str, fault: &str) {
    let break_host = || {
        machine.file(path).copy_to(SAVED);
        machine.run(&[command, &[path]].concat()).succeeds();
    };
    assert_finds(machine, fault, break_host, || machine.file(SAVED).copy_to(path));
}

/// Calls [`assert_finds`]: an edit of one file by sed(1) breaks the host, and a copy of that file repairs it.
#[track_caller]
fn assert_finds_edit(machine: &Machine, path: &str, sed: &str, fault: &str) {
    assert_finds_after(machine, &["sed", "-i", sed], path, fault);
}

#[test]
fn doctor_finds_nothing_on_a_sound_host() {
    for builder in [Machine::new(), Machine::new().importer()] {
        let machine = only_alice(builder).start();
        let done = machine.iamctl("doctor");
        assert_eq!((done.status, machine.doctor_complaints().as_str()), (0, ""), "{}", done.stdout);
        let json: Value = serde_json::from_str(&machine.iamctl("doctor --json").succeeds()).expect("JSON");
        assert_eq!(json["ok"], true);
    }
}

#[test]
fn doctor_finds_faults_of_sshd() {
    let machine = machine_without_faults();
    let drop_in = machine.file("/etc/ssh/sshd_config.d/00-test.conf");
    for (line, fault) in [
        (
            "AuthorizedKeysCommand /usr/share/ec2-instance-connect/eic_run_authorized_keys %u %f",
            "EC2 Instance Connect",
        ),
        ("AuthorizedKeysCommand /usr/bin/userdbctl ssh-authorized-keys %u", "systemd's userdb"),
        ("AuthorizedKeysCommand /bin/true", "another key command is in force"),
        ("AuthorizedKeysCommandUser nobody", "the key command runs as \"nobody\""),
        ("UsePAM no", "usepam is \"no\""),
        ("PubkeyAuthentication no", "pubkeyauthentication is \"no\""),
        ("PubkeyAcceptedAlgorithms ssh-ed25519", "sshd takes no RSA keys, and IAM has no others"),
        ("RequiredRSASize 4096", "sshd wants RSA keys of 4096 bits"),
        ("AllowGroups staff", "sshd's allowgroups is set to staff"),
        ("NoSuchKeyword yes", "Bad configuration option: NoSuchKeyword"),
    ] {
        assert_finds(&machine, fault, || drop_in.write(&format!("{line}\n")), || drop_in.remove());
    }
    let shipped = "/etc/ssh/sshd_config.d/10-pam_iam.conf";
    assert_finds_after(&machine, &["rm"], shipped, "sshd runs no key command");
    let without_match = "/^Match Group/,/AuthorizedKeysFile/d";
    assert_finds_edit(&machine, shipped, without_match, "sshd also takes keys from .ssh/authorized_keys");
}

#[test]
fn doctor_finds_faults_of_pam_nss_sudo_and_owners() {
    let machine = machine_without_faults();
    find_faults_of_pam(&machine);
    find_faults_of_nss(&machine);
    find_faults_of_sudo(&machine);
    find_faults_of_owners_and_modes(&machine);
    find_faults_of_the_configuration(&machine);
    find_other_software(&machine);
}

fn find_faults_of_pam(machine: &Machine) {
    let (sshd, sudo) = ("/etc/pam.d/sshd", "/etc/pam.d/sudo");
    for (stack, sed, fault) in [
        (sshd, "/^account.*pam_iam/d", "sshd: pam_iam.so is not in the account phase"),
        (sshd, "/^session.*pam_iam/d", "sshd: pam_iam.so is not in the session phase"),
        (
            sshd,
            "1i account sufficient pam_permit.so",
            "sshd: pam_iam.so is not always asked, because of `sufficient pam_permit.so`",
        ),
        (
            sshd,
            "s/^account.*pam_iam.so/account optional pam_iam.so/",
            "the control of `optional pam_iam.so` does not heed a denial",
        ),
        (sudo, "/pam_iam/d", "sudo: pam_iam.so is not in the account phase"),
        (sudo, "s/policy=sudo//", "sudo: pam_iam.so lacks policy=sudo"),
    ] {
        assert_finds_edit(machine, stack, sed, fault);
    }
    for service in ["cron", "atd", "systemd-user"] {
        let stack = machine.file(&format!("/etc/pam.d/{service}"));
        let existed = stack.exists();
        assert_finds(
            machine,
            &format!("{service}: pam_iam.so is not in the account phase"),
            || {
                if existed {
                    stack.move_to(SAVED);
                }
                stack.write("@include common-account\n");
            },
            || {
                stack.remove();
                if existed {
                    machine.file(SAVED).move_to(&format!("/etc/pam.d/{service}"));
                }
            },
        );
    }
    let module = machine.sh("ls /usr/lib64/security/pam_iam.so /usr/lib/*-linux-gnu/security/pam_iam.so");
    assert_finds_after(machine, &["rm"], module.stdout.trim(), "pam_iam.so is missing");
}

fn find_faults_of_nss(machine: &Machine) {
    for (sed, fault) in [
        ("/^passwd:/s/ iam//", "does not ask IAM for accounts"),
        ("/^passwd:/s/ iam/ [NOTFOUND=return] iam/", "does not ask IAM for accounts"),
        ("/^group:/s/ iam//", "does not ask IAM for groups"),
        ("s/ iam$//", "IAM users have no accounts on this host"),
        ("$a initgroups: files", "the line initgroups: of /etc/nsswitch.conf does not ask IAM"),
    ] {
        assert_finds_edit(machine, "/etc/nsswitch.conf", sed, fault);
    }
}

fn find_faults_of_sudo(machine: &Machine) {
    let rule = "/etc/sudoers.d/pam_iam";
    assert_finds_after(machine, &["rm"], rule, "/etc/sudoers.d/pam_iam is missing");
    assert_finds_after(machine, &["chmod", "666"], rule, "sudo does not read /etc/sudoers.d/pam_iam");
    assert_finds_edit(machine, rule, "s/ALL/ALL ALL ALL (/", "sudoers: ");
    for (sed, fault) in [
        ("/includedir/d", "sudo has no rule for carol, who may use it"),
        ("$a %iam-sudo ALL=(ALL) ALL", "sudo asks carol for a password"),
        ("1i Defaults !pam_acct_mgmt", "sudo does not ask PAM whether an account may be used"),
    ] {
        assert_finds_edit(machine, "/etc/sudoers", sed, fault);
    }
}

fn find_faults_of_owners_and_modes(machine: &Machine) {
    machine.run(&["mkdir", "-p", "/run/pam_iam/sessions"]).succeeds();
    for path in ["/usr/libexec/pam_iam/iam-authorized-keys", "/usr/libexec", "/home", "/run/pam_iam"] {
        let file = machine.file(path);
        let fault = format!("{path} can be changed by others than root");
        assert_finds(machine, &fault, || file.chmod("g+w"), || file.chmod("g-w"));
    }
    for (path, owner) in [("/usr/libexec/pam_iam/iam-resolver", "nobody"), ("/home", "4242")] {
        let file = machine.file(path);
        let fault = format!("{path} can be changed by others than root");
        assert_finds(machine, &fault, || file.chown(owner), || file.chown("root"));
    }
}

fn find_faults_of_the_configuration(machine: &Machine) {
    let path = "/etc/pam_iam/config.toml";
    assert_finds_after(machine, &["touch"], path, "the daemon is older than the configuration");
    assert_finds_after(machine, &["chmod", "600"], path, &format!("iam-resolver cannot read {path}"));
    assert_finds_edit(machine, path, "$a alow = 1", "unknown field `alow`");
    let environment = machine.file("/etc/pam_iam/environment");
    assert_finds(
        machine,
        "AWS_CA_BUNDLE in /etc/pam_iam/environment is /root/ca.pem, which iam-resolver cannot read",
        || {
            machine.file("/root/ca.pem").write("");
            machine.file("/root/ca.pem").chmod("600");
            environment.append("AWS_CA_BUNDLE=/root/ca.pem\n");
        },
        || environment.remove_lines("AWS_CA_BUNDLE"),
    );
}

fn find_other_software(machine: &Machine) {
    machine.run(&["mkdir", "-p", "/run/nscd"]).succeeds();
    for (path, fault) in [
        ("/usr/bin/amazon-ssm-agent", "with Run As, Session Manager starts a shell"),
        ("/run/nscd/socket", "nscd runs"),
    ] {
        let file = machine.file(path);
        assert_finds(machine, fault, || file.write(""), || file.remove());
    }
}

#[test]
fn doctor_finds_faults_of_iam_and_the_resolver() {
    let machine = machine_without_faults();
    machine.ssh("alice", "true").succeeds();
    for (fault, finding) in [
        ("fail=denied&only=GetGroup", "IAM denies iam:GetGroup"),
        ("fail=denied&only=GetUser", "IAM denies iam:GetUser"),
        ("fail=denied&only=ListGroupsForUser", "IAM denies iam:ListGroupsForUser"),
        ("fail=denied&only=ListSSHPublicKeys", "IAM denies iam:ListSSHPublicKeys"),
        ("fail=denied&only=GetSSHPublicKey", "IAM denies iam:GetSSHPublicKey"),
        ("fail=503", "with an error of its own"),
        ("fail=skew", "IAM refuses our clock"),
        ("fail=credentials", "give the instance a role"),
        ("fail=hang&only=IMDS", "the hop limit is too low"),
        ("fail=denied&only=IMDS", "the instance metadata service refuses a token"),
    ] {
        assert_finds(&machine, finding, || machine.fault(fault), || machine.fault("fail="));
    }
    find_users_and_groups_that_cannot_work(&machine);
    find_who_listens_at_the_socket(&machine);
}

fn find_users_and_groups_that_cannot_work(machine: &Machine) {
    machine.iam().create_user("daemon", &["ssh-users"]);
    assert_complains(
        machine,
        "the IAM user daemon may log in and gets no account: its name is that of a local account",
    );
    machine.iam().delete_user("daemon");
    machine.config().replace("'ssh-users'", "'ssh-users', 'ssh-typo'");
    machine.restart_resolver_by("TERM");
    assert_complains(machine, "access names the IAM group ssh-typo, which does not exist");
    machine.config().replace(", 'ssh-typo'", "");
    machine.restart_resolver_by("TERM");
    assert_eq!(machine.doctor_complaints(), "");
}

/// Listens on the socket /tmp/squat and answers nothing.
const SQUATTER: &str = "import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind('/tmp/squat')
listener.listen()
time.sleep(1000)";

/// Asserts that doctor reports a socket of another user in the place of the resolver's, and a socket that is missing.
fn find_who_listens_at_the_socket(machine: &Machine) {
    let socket = machine.file("/run/pam_iam/resolver.sock");
    socket.move_to("/run/pam_iam/real");
    machine.file("/tmp/squatter").write(SQUATTER);
    machine.start_as("65534", "python3 /tmp/squatter");
    machine.wait_until("test -S /tmp/squat");
    machine.run(&["ln", "-s", "/tmp/squat", "/run/pam_iam/resolver.sock"]).succeeds();
    assert_complains(machine, "belongs to uid 65534");
    socket.remove();
    assert_complains(machine, "no daemon: a process for each question, and NSS shows nobody");
}

#[test]
fn doctor_names_a_resolver_that_hangs_and_asks_it_no_more() {
    let machine = Machine::new().start();
    machine.signal_resolver("STOP");
    let said = machine.iamctl("doctor").stdout;
    assert_eq!(said.matches("the resolver did not answer in time").count(), 1, "{said}");
    machine.signal_resolver("CONT");
}
