//! What a login costs in calls to IAM.

use pam_iam_tests::Machine;
use serde_json::json;

#[test]
fn a_login_costs_what_is_promised() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}, {"status": "Inactive"}]}]}))
        .settings("[freshness]\nmax_age = '4s'")
        .start();
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    let cold = ["GetSSHPublicKey", "GetSSHPublicKey", "GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
    assert_eq!(machine.actions(), cold, "cold: 3 and one for each active key");

    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), [""; 0], "within max_age: none");

    machine.sh("sleep 4").succeeds();
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"], "revalidation: 3");
}

#[test]
fn the_calls_of_a_cold_login_go_side_by_side() {
    let machine = Machine::new().start();
    machine.clear_calls();
    machine.fault("delay=0.5");
    machine.run(&["getent", "passwd", "alice"]).succeeds();
    let log = machine.sh("curl -sSf \"$BOX_CTL?log\"").succeeds();
    let log: serde_json::Value = serde_json::from_str(&log).unwrap();
    let times: Vec<f64> =
        log["calls"].as_array().unwrap().iter().map(|call| call["time"].as_f64().unwrap()).collect();
    assert_eq!(times.len(), 4);
    // Each answer takes half a second: three calls that left before the first answer, and one after it.
    assert!(times[2] - times[0] < 0.5 && times[3] - times[0] >= 0.5, "{times:?}");
}

#[test]
fn a_long_list_is_paged_to_its_end() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 2500, "prefix": "user", "groups": ["ssh-users"]}}))
        .start();
    let pages = machine.calls().iter().filter(|call| call.params["GroupName"] == "ssh-users").count();
    assert_eq!(pages, 3);
    let members = machine.sh("getent group iam-users | cut -d: -f4 | tr , '\\n' | wc -l").succeeds();
    assert_eq!(members, "2500", "which needs a buffer that grows");
    assert_eq!(machine.ssh("user2499", "id -un").succeeds(), "user2499");
}
