//! What a login costs in calls to IAM.

use pam_iam_tests::Machine;
use serde_json::json;

#[test]
fn a_login_costs_what_is_promised() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}, {"status": "Inactive"}]}]}))
        .settings("[freshness]\nmax_age = '12s'")
        .start();
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    let cold = ["GetSSHPublicKey", "GetSSHPublicKey", "GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
    assert_eq!(machine.actions(), cold, "cold: 3 and one for each active key");

    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), [""; 0], "within max_age: none");

    machine.sh("sleep 12").succeeds();
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"], "revalidation: 3");
}

#[test]
fn a_long_list_is_paged_to_its_end() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 2500, "prefix": "user", "groups": ["ssh-users"]}}))
        .start();
    let pages = machine.calls().iter().filter(|call| call.params["GroupName"] == "ssh-users").count();
    assert_eq!(pages, 3);
    let status = machine.sh("iamctl --json status").succeeds();
    assert!(status.contains("\"roster_users\": 2500"), "{status}");
    assert_eq!(machine.ssh("user2499", "id -un").succeeds(), "user2499");
}
