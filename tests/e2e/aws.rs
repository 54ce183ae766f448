//! The shipped IAM policies suffice, and no action in them is too much.

use pam_iam_tests::{Machine, repository};
use serde_json::{Value, json};

const FRESH: &str = "[freshness]\nmax_age = 0";

fn shipped(name: &str) -> Value {
    let text = std::fs::read_to_string(repository().join("aws").join(name)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The role of the instance may do this, from now on, and the resolver begins anew.
fn under(machine: &Machine, policy: &Value) {
    machine
        .run(&[
            "bash",
            "-c",
            "curl -sSf -G \"$BOX_CTL\" --data-urlencode \"policy=$1\"",
            "bash",
            &policy.to_string(),
        ])
        .succeeds();
    machine.sh("before=$(pgrep -x iam-resolver); rm -f /var/cache/pam_iam/*; kill -9 $before; until now=$(pgrep -x iam-resolver) && [ $now != $before ] && iamctl status >/dev/null; do [ $SECONDS -lt 20 ] || exit 1; sleep 0.02; done").succeeds();
}

fn machine() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "path": "/ssh/", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "path": "/ssh/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "dave", "path": "/other/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings(FRESH)
        .start()
}

/// Login, sudo, groups, import.
fn everything_works(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.wait_until("getent group iam-sudo | grep -q carol");
    machine.sh("iam-importer --dry-run | grep -q alice").succeeds();
}

#[test]
fn under_the_shipped_policy_everything_works_and_with_any_action_less_something_says_so() {
    let machine = machine();
    let policy = shipped("iam_ssh_policy.json");
    under(&machine, &policy);
    everything_works(&machine);
    assert_eq!(machine.ssh("dave", "sudo -n id -u").succeeds(), "0");

    let actions = policy["Statement"][0]["Action"].as_array().cloned().unwrap_or_default();
    assert_eq!(actions.len(), 5);
    for action in actions {
        let action = action.as_str().unwrap_or_default();
        let mut less = policy.clone();
        if let Some(list) = less["Statement"][0]["Action"].as_array_mut() {
            list.retain(|known| known != action);
        }
        under(&machine, &less);
        let doctor = machine.sh("iamctl doctor").fails();
        assert!(doctor.contains(action), "{action}: {doctor}");
        if action == "iam:GetGroup" {
            machine.logs("resolver", "give this host iam:GetGroup");
            assert!(machine.sh("iam-importer --dry-run").fails().contains("iam:GetGroup"));
        } else {
            machine.ssh("alice", "true").fails();
            machine.logs("resolver", "user alice: IAM denies this host to look, which means no");
        }
    }
}

#[test]
fn under_the_narrower_policy_just_the_users_under_its_path_get_in() {
    let machine = machine();
    under(&machine, &shipped("iam_ssh_policy_path.json"));
    everything_works(&machine);
    machine.ssh("dave", "true").fails();
    machine.logs("resolver", "user dave: IAM denies this host to look, which means no");
}

#[test]
fn listing_all_users_takes_the_third_policy() {
    let machine = Machine::new().config(&format!("[access]\nallow = 'all'\n{FRESH}")).start();
    let mut policy = shipped("iam_ssh_policy.json");
    under(&machine, &policy);
    machine.logs("resolver", "iam:ListUsers");
    assert!(machine.sh("iamctl lint").fails().contains("iam:ListUsers"));
    let more = shipped("iam_ssh_policy_all_users.json")["Statement"][0].clone();
    if let Some(statements) = policy["Statement"].as_array_mut() {
        statements.push(more);
    }
    under(&machine, &policy);
    machine.ssh("bob", "true").succeeds();
    assert!(!machine.sh("iamctl lint").stdout.contains("ListUsers"));
    machine.wait_until("getent group iam-users | grep -q bob");
}
