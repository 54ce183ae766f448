//! Sessions and processes in a shared account end with the membership of the user who started them. Those of the host
//! itself stay.

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

/// Returns a builder of a box whose local account deploy is shared by the members of an IAM group.
fn shared_by(group: &str) -> Builder {
    Machine::new().settings(&format!(
        "[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[shared.deploy]\ngroups = ['{group}']"
    ))
}

/// Returns fixtures with users who may log in to the shared account and to no other.
fn deployers(names: &[&str]) -> Value {
    let users: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "groups": ["deployers"], "keys": [{}]})).collect();
    json!({"groups": ["ssh-users", "ssh-admins", "deployers"], "users": users})
}

/// Starts the box and adds the account deploy.
fn start_with_account(builder: Builder) -> Machine {
    let machine = builder.start();
    machine.add_account("deploy", 1600);
    machine
}

/// Makes the key `/root/local`, and writes it into deploy's own `authorized_keys`.
fn add_local_key(machine: &Machine) {
    machine.make_key("/root/local");
    machine.authorize_key("deploy", "/root/local");
}

#[test]
fn processes_of_the_last_member_end_with_the_membership_and_a_local_one_runs_on() {
    let machine = start_with_account(shared_by("deployers").fixtures(deployers(&["alice"])).booted());
    machine.iamctl("sweep").succeeds();
    machine.start_as("deploy", "sleep 4031");
    machine.leave_running("alice", "deploy", "sleep 4030");
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4030"));
    machine.iam().remove_from_group("alice", "deployers");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4030"));
    assert!(machine.is_running("sleep 4031"));
}

#[test]
fn a_session_by_a_local_key_outlives_an_outage_of_iam() {
    let machine = start_with_account(shared_by("ssh-users"));
    add_local_key(&machine);
    machine.fault("fail=reset");
    machine.ssh_with_in_background("/root/local", "deploy", "sleep 4008");
    machine.wait_until_running("sleep 4008");
    machine.wait_for_log("authpriv", "origin=unknown");
    machine.fault("fail=");
    machine.wait_until("iamctl explain alice >/dev/null");
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4008"));
}

/// Logs in as deploy with both the local key and alice's key, since sshd requires two, and stays logged in.
const LOG_IN_WITH_TWO_KEYS: &str = "box-ssh -i /root/local deploy true
ssh -F none -i /root/local -i $BOX_KEYS/alice -o IdentitiesOnly=yes -o BatchMode=yes \
    -o UserKnownHostsFile=/run/box/known_hosts -o ConnectionAttempts=5 -l deploy 127.0.0.1 'sleep 4010'";

#[test]
fn a_session_by_a_members_key_and_a_local_key_ends_with_the_membership() {
    let machine = start_with_account(shared_by("ssh-users"));
    add_local_key(&machine);
    machine
        .file("/etc/ssh/sshd_config")
        .append("Match User deploy\n AuthenticationMethods publickey,publickey\n");
    machine.reload_sshd();
    machine.start_in_background(LOG_IN_WITH_TWO_KEYS);
    machine.wait_until_running("sleep 4010");
    let open = machine.sessions();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0]["iam_name"], "alice");
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4010"));
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4010"));
}

#[test]
fn the_session_of_a_member_who_left_ends_and_those_of_others_stay_until_the_account_is_no_longer_shared() {
    let machine = start_with_account(shared_by("deployers").fixtures(deployers(&["alice", "bob"])));
    machine.start_in_background("su deploy -c 'sleep 4006'");
    machine.ssh_with_in_background("alice", "deploy", "sleep 4004");
    machine.ssh_with_in_background("bob", "deploy", "sleep 4005");
    for command in ["sleep 4004", "sleep 4005", "sleep 4006"] {
        machine.wait_until_running(command);
    }
    machine.iam().remove_from_group("alice", "deployers");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4004"));
    assert!(machine.is_running("sleep 4005") && machine.is_running("sleep 4006"));
    let open = machine.sessions();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0]["iam_name"], "bob");

    // Now no key of IAM opens the account, and only sessions that were opened without one go on.
    machine.config().replace("[shared.deploy]\ngroups = ['deployers']\n", "");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4005"));
    assert!(machine.is_running("sleep 4006"));
}
