//! The calls to IAM that a login, the roster and unknown names cost.

use std::time::Instant;

use pam_iam_tests::Machine;
use serde_json::json;

#[test]
fn a_login_makes_the_documented_calls_and_no_others() {
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

    // Waits until the entry is stale.
    machine.run(&["sleep", "12"]).succeeds();
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"], "revalidation: 3");
}

#[test]
fn a_long_roster_is_read_page_by_page_to_its_end() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 2500, "prefix": "user", "groups": ["ssh-users"]}}))
        .start();
    let pages = machine.calls().iter().filter(|call| call.params["GroupName"] == "ssh-users").count();
    assert_eq!(pages, 3);
    let status = machine.iamctl("--json status").succeeds();
    assert!(status.contains("\"roster_users\": 2500"), "{status}");
    assert_eq!(machine.ssh("user2499", "id -un").succeeds(), "user2499");
}

/// Looks up 10,000 names that no user has. Fails if one exists.
const GUESS_NAMES: &str = "import pwd, random, string
for _ in range(10000):
    name = ''.join(random.choices(string.ascii_lowercase, k=12))
    try:
        pwd.getpwnam(name)
        raise SystemExit(name)
    except KeyError:
        pass";

#[test]
fn guessed_names_make_no_more_calls_than_the_rate_limit_and_a_new_user_logs_in() {
    let machine = Machine::new().settings("[freshness]\nunknown_per_minute = 10").start();
    machine.clear_calls();
    let began = Instant::now();
    machine.run(&["python3", "-c", GUESS_NAMES]).succeeds();
    let minutes = usize::try_from(began.elapsed().as_secs().div_ceil(60)).unwrap();
    // The lookup of an unknown name calls GetUser once. The limit allows ten lookups at first, and ten more each minute.
    let users = machine.count_calls("GetUser");
    assert!(users <= 10 + 10 * minutes, "{users}");
    // The roster consists of two groups, and is read at most every 30 s.
    let rosters = machine.count_calls("GetGroup");
    assert!(rosters <= 2 * 2 * (1 + minutes), "{rosters}");
    machine.iam().create_user_with_key("newcomer", &["ssh-users"]);
    machine.wait_until("box-ssh -i /root/newcomer newcomer true 2>/dev/null");
}
