//! Lines of PAM and NSS and settings of sshd that must be in force: the effect on a host that loses one, and the report to
//! its operator.

use pam_iam_tests::Machine;
use serde_json::{Value, json};

const DROP_IN: &str = "/etc/ssh/sshd_config.d/10-pam_iam.conf";

/// The drop-in of the package ec2-instance-connect. Its setting takes the place of pam_iam's key command.
const EIC: &str = "/etc/ssh/sshd_config.d/00-eic.conf";
const EIC_SETTING: &str =
    "AuthorizedKeysCommand /usr/share/ec2-instance-connect/eic_run_authorized_keys %u %f\n";

/// Succeeds if sshd takes no keys from the home directory at a login of alice.
pub const SSHD_TAKES_NO_KEYS_FROM_HOME: &str = "sshd -T -C user=alice,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22 | grep -qx 'authorizedkeysfile none'";

/// Starts a box in which alice is in a group that may log in, and bob, who also has a key, is in none. Logs alice in once.
fn machine_with_member_and_outsider() -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]}, {"name": "bob", "groups": [], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .start();
    machine.ssh("alice", "true").succeeds();
    machine
}

/// Sweeps. Returns the lines and settings that the sweep has found not to be in force.
fn not_in_force(machine: &Machine) -> Vec<String> {
    machine.iamctl("sweep").succeeds();
    let status = machine.iamctl("status --json").succeeds();
    let status: Value = serde_json::from_str(&status).unwrap_or_default();
    let found = status.pointer("/sweep/not_in_force").and_then(Value::as_array);
    let Some(found) = found else { return vec!["no report".to_owned()] };
    found.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Asserts that the metrics have this line.
#[track_caller]
fn assert_metric(machine: &Machine, line: &str) {
    machine.iamctl("status --prometheus /tmp/metrics").succeeds();
    let metrics = machine.file("/tmp/metrics").text();
    assert!(metrics.lines().any(|found| found == line), "{line}\n--- is not in\n{metrics}");
}

/// A file, a change to it that puts a line or setting out of force, and the sweep's report of that.
type Break = (&'static str, fn(&Machine), &'static str);

const BREAKS: [Break; 5] = [
    (EIC, |machine| machine.file(EIC).write(EIC_SETTING), "EC2 Instance Connect"),
    (
        "/etc/pam.d/sshd",
        |machine| machine.file("/etc/pam.d/sshd").remove_lines("default=die]    pam_iam.so"),
        "sshd: pam_iam.so is not in the account phase",
    ),
    (
        "/etc/pam.d/sudo",
        |machine| machine.file("/etc/pam.d/sudo").prepend("account sufficient pam_permit.so\n"),
        "sudo: pam_iam.so is not always asked, because of `sufficient pam_permit.so`",
    ),
    (
        "/etc/nsswitch.conf",
        |machine| machine.remove_from_nsswitch("passwd"),
        "/etc/nsswitch.conf does not ask IAM for accounts",
    ),
    // To find this, the sweep asks sshd for the settings of an IAM user, although nobody is logged in.
    (
        DROP_IN,
        |machine| machine.file(DROP_IN).remove_lines("AuthorizedKeysFile"),
        "sshd also takes keys from .ssh/authorized_keys",
    ),
];

#[test]
fn a_sweep_says_which_line_of_pam_or_setting_of_sshd_is_not_in_force() {
    let machine = machine_with_member_and_outsider();
    assert_eq!(not_in_force(&machine), [""; 0]);
    for (path, change, finding) in BREAKS {
        let file = machine.file(path);
        let before = file.exists().then(|| file.text());
        change(&machine);
        let found = not_in_force(&machine);
        assert!(found.len() == 1 && found[0].contains(finding), "{finding}: {found:?}");
        machine.wait_for_log("authpriv", &format!("not in force on this host: {}", found[0]));
        assert_metric(&machine, "pam_iam_not_in_force 1");
        match before {
            Some(text) => file.write(&text),
            None => file.remove(),
        }
        assert_eq!(not_in_force(&machine), [""; 0], "{path} is as before");
    }
    assert_metric(&machine, "pam_iam_not_in_force_sweeps_total 5");
}

/// Adds a database of accounts that never answers, and changes sshd's files, so that the next sweep asks sshd again.
const ADD_HANGING_DATABASE: &str = "mkdir -p /var/lib/extrausers; mkfifo /var/lib/extrausers/passwd
sed -i -E 's/^passwd:.*/passwd: files extrausers iam/' /etc/nsswitch.conf
touch /etc/ssh/sshd_config.d/99.conf";

#[test]
fn a_finding_stands_while_a_database_of_accounts_does_not_answer() {
    let machine = machine_with_member_and_outsider();
    machine.file(DROP_IN).remove_lines("AuthorizedKeysFile");
    let found = not_in_force(&machine);
    assert!(found.len() == 1 && found[0].contains("sshd also takes keys"), "{found:?}");
    machine.sh(ADD_HANGING_DATABASE).succeeds();
    assert_eq!(not_in_force(&machine), found);
}

#[test]
fn without_pam_iam_in_pam_sshd_gives_no_session_sftp_or_forwarding_to_a_user_in_no_group() {
    let machine = machine_with_member_and_outsider();
    machine.file("/etc/pam.d/sshd").remove_lines("pam_iam");
    machine.run(&["box-ssh", "alice", "-s", "sftp"]).succeeds();
    let forward = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", "12345:localhost:22", "-f"];
    for arguments in [&["true"][..], &["-s", "sftp"], &forward] {
        let said = machine.run(&[&["box-ssh", "bob"], arguments].concat()).fails();
        assert!(said.contains("Permission denied (publickey"), "{arguments:?}: {said}");
    }
    let found = not_in_force(&machine);
    assert!(
        found.iter().any(|finding| finding.contains("sshd: pam_iam.so is not in the account phase")),
        "{found:?}"
    );
}

#[test]
fn reading_sshds_settings_for_a_user_makes_no_call_to_iam() {
    let machine = machine_with_member_and_outsider();
    // Repeated, since the login may have begun calls in the background that have not ended.
    machine.wait_until(&format!(
        "curl -sSf \"$BOX_CTL?clear\" >/dev/null; PAM_IAM_LOOK_ONLY=1; export PAM_IAM_LOOK_ONLY; {SSHD_TAKES_NO_KEYS_FROM_HOME} && ! curl -sSf \"$BOX_CTL?log\" | grep -q GetUser"
    ));
    // Without the variable, the same command makes calls.
    machine.sh(SSHD_TAKES_NO_KEYS_FROM_HOME).succeeds();
    machine.wait_until("curl -sSf \"$BOX_CTL?log\" | grep -q GetUser");
}
