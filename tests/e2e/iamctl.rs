//! The operator's tool: explain, status, flush, lint and completions. `iamctl doctor` has a module of its own.

#![allow(clippy::expect_used, reason = "helpers of tests")]

mod doctor;

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

/// Returns a builder of a box with a user for each reason to allow or to refuse a login.
fn users_of_every_kind() -> Builder {
    Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
        {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {"status": "Inactive"}]},
        {"name": "bob", "groups": [], "keys": [{}]},
        {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": []},
        {"name": "a@b", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "a.at.b", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "12345", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "root", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "daemon", "groups": [], "keys": [{}]}]}))
}

/// Sets fixtures whose only user is alice, about whom doctor and lint have no complaint.
fn only_alice(builder: Builder) -> Builder {
    builder.fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
        {"name": "alice", "groups": ["ssh-users"], "keys": [{}]}]}))
}

/// Runs `iamctl explain --json`. Returns its exit status and the document.
fn explain_json(machine: &Machine, arguments: &str) -> (i32, Value) {
    let done = machine.iamctl(&format!("explain --json {arguments}"));
    let json = serde_json::from_str(&done.stdout);
    assert!(json.is_ok(), "{done:?}");
    (done.status, json.unwrap_or_default())
}

/// Replaces ids, fingerprints, uids, ages and the source, which differ between users and runs, by words.
const NORMALIZE: &str = r"s/AIDA[A-Z0-9]+/AIDA/g; s/APKA[A-Z0-9]+/APKA/g; s/SHA256:[^ ]+/SHA256/g; s/(uid )[0-9]+/\1N/g; s/[0-9]+ s old/N s old/; s/(source +)(iam|cache)/\1fresh/";

/// Returns the text of `iamctl explain` about a name, normalized.
fn explain(machine: &Machine, name: &str) -> String {
    machine.sh(&format!("iamctl explain {name} | sed -E -e '{NORMALIZE}'")).succeeds()
}

/// The explanation of alice without its last line, which is the source.
const ALICE: &str = "account    alice, from IAM, uid N\n\
    groups     iam-users\n\
    candidates alice\n\
    IAM user   alice (AIDA), uid N\n  \
      in       ssh-users\n  \
      key      APKA active SHA256\n  \
      key      APKA inactive SHA256\n\
    login      allowed: in the IAM group ssh-users, which access.allow names\n\
    sudo       refused: in none of the IAM groups that access.sudo names";

const BOB_WITHOUT_GROUPS: &str = "account    bob, from IAM, not shown on this host while the login is refused, uid N\n\
    candidates bob\n\
    IAM user   bob (AIDA), uid N\n  \
      in       none\n  \
      key      APKA active SHA256\n\
    login      refused: in none of the IAM groups that access.allow names\n\
    sudo       refused: a user who may not log in may not use sudo\n\
    source     fresh, N s old";

const AMBIGUOUS_NAME: &str = "account    a.at.b, from IAM, not shown on this host while the login is refused, no uid\n\
    candidates a.at.b a@b\n\
    claimed by a.at.b and a@b\n\
    login      refused: several IAM users claim the name, so none gets it\n\
    sudo       refused: several IAM users claim the name, so none gets it\n\
    source     fresh, N s old";

const UNKNOWN_NAME: &str = "account    nobody-there, no account: IAM has no such user, no uid\n\
    candidates nobody-there\n\
    login      refused: IAM has no such user\n\
    sudo       refused: IAM has no such user\n\
    source     fresh, N s old";

#[test]
fn explain_says_whether_a_user_may_log_in_and_why() {
    let machine = users_of_every_kind().settings("[freshness]\nmax_age = 0").start();
    assert_eq!(explain(&machine, "alice"), format!("{ALICE}\nsource     fresh, N s old"));
    assert_eq!(explain(&machine, "bob"), BOB_WITHOUT_GROUPS);
    assert_eq!(explain(&machine, "a.at.b"), AMBIGUOUS_NAME);
    assert_eq!(explain(&machine, "nobody-there"), UNKNOWN_NAME);

    // In an outage explain answers about a cached user from the cache, and fails for any other.
    machine.fault("fail=reset");
    machine.iamctl("flush bob").succeeds();
    let bob = machine.iamctl("explain bob");
    assert_eq!((bob.status, bob.stdout.as_str()), (2, ""));
    assert!(bob.stderr.starts_with("iamctl: IAM cannot be reached: "), "{}", bob.stderr);
    machine.wait_until("iamctl explain alice | grep -q 'source *offline'");
    assert_eq!(explain(&machine, "alice"), format!("{ALICE}\nsource     offline, N s old"));

    machine.fault("fail=");
    machine.iamctl("flush").succeeds();
    assert_eq!(explain(&machine, "root"), "account    root, local, none of pam_iam's business, uid N");
    assert!(explain(&machine, "carol").contains("key      none: the user has uploaded no SSH public key"));
    assert!(explain(&machine, "12345").contains("is all digits"));
}

#[test]
fn explain_has_a_json_document_and_an_exit_status_for_programs() {
    let machine = users_of_every_kind().start();
    let (status, alice) = explain_json(&machine, "alice");
    assert_eq!((status, &alice["allow"], &alice["login"]["reason"]), (0, &json!(true), &json!("in-group")));
    assert_eq!(alice["login"]["group"], "ssh-users");
    assert_eq!(alice["users"][0]["keys"].as_array().expect("keys").len(), 2);
    assert_eq!(alice["uid"], machine.uid_of("alice"));
    assert_eq!(explain_json(&machine, "alice --service sudo").0, 1);
    assert_eq!(explain_json(&machine, "carol --service sudo").0, 0);
    for (name, reason) in [
        ("bob", "not-in-group"),
        ("a.at.b", "ambiguous"),
        ("nobody-there", "no-such-user"),
        ("root", "local"),
    ] {
        let (status, json) = explain_json(&machine, name);
        assert_eq!((status, &json["login"]["reason"]), (1, &json!(reason)), "{name}");
        assert_eq!(json["allow"], false);
    }
    assert_explain_decides_about_keys(&machine);
    let by_nobody = machine.as_user("65534").run(&["iamctl", "explain", "alice"]);
    assert_eq!(by_nobody.status, 2, "only root may ask");
    let plain = machine.iamctl("explain root").stdout;
    assert!(!plain.contains('\u{1b}'), "there are no colours where the output is not a terminal");

    machine.fault("fail=503");
    machine.iamctl("flush").succeeds();
    let (status, json) = explain_json(&machine, "alice");
    let error = json["error"].as_str().expect("an error");
    assert!(status == 2 && error.contains("IAM cannot be reached"), "{json}");
}

/// Asserts that the exit status is 0 for alice's active key, 1 for her inactive key and for another user's key, and 2 if the
/// key file does not exist.
fn assert_explain_decides_about_keys(machine: &Machine) {
    for (key, status) in [("alice", 0), ("alice.2", 1), ("bob", 1)] {
        machine.file("/tmp/key.pub").write(&machine.public_key(key));
        let done = machine.iamctl("explain alice --key /tmp/key.pub");
        assert_eq!(done.status, status, "{key}: {done:?}");
    }
    let listed = machine.sh("ssh-keygen -lf $BOX_KEYS/alice").succeeds();
    let fingerprint = listed.split(' ').nth(1).expect("a fingerprint");
    machine.iamctl(&format!("explain alice --key {fingerprint}")).succeeds();
    assert_eq!(machine.iamctl("explain alice --key /nonexistent").status, 2);
}

#[test]
fn status_counts_and_flush_forgets() {
    let machine = Machine::new().settings("[freshness]\nmax_age = '1h'").start();
    machine.ssh("alice", "true").succeeds();
    let status: Value = serde_json::from_str(&machine.iamctl("status --json").succeeds()).expect("JSON");
    assert_eq!(status["decisions"]["login in-group"], 1);
    assert!(status["calls"].as_u64().is_some_and(|calls| calls >= 6), "{status}");
    assert!(status["errors"] == 0 && status["last_answer"].is_u64(), "{status}");
    assert!(machine.iamctl("status").succeeds().contains("decisions     login in-group 1"));

    machine.iamctl("status --prometheus /tmp/pam_iam.prom").succeeds();
    let metrics = machine.file("/tmp/pam_iam.prom");
    let text = metrics.text();
    assert!(text.contains("pam_iam_decisions_total{policy=\"login\",reason=\"in-group\"} 1\n"), "{text}");
    assert_eq!(metrics.stat("%a"), "644");

    assert_flush_forgets_a_user(&machine);
}

/// Asserts that within `max_age` a login makes calls to IAM only after a flush.
fn assert_flush_forgets_a_user(machine: &Machine) {
    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), [""; 0]);
    machine.iamctl("flush alice").succeeds();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"]);
}

#[test]
fn without_a_daemon_status_and_flush_say_that_none_runs() {
    let machine = Machine::new().without_daemon().start();
    assert!(machine.iamctl("status").succeeds().contains("daemon        none runs"));
    assert_eq!(machine.iamctl("flush").succeeds(), "no resolver runs, so nothing is remembered");
}

#[test]
fn lint_names_every_user_who_will_have_trouble() {
    let machine = users_of_every_kind().start();
    let done = machine.iamctl("lint");
    assert_eq!(done.status, 1);
    for line in [
        "a@b (may log in): a.at.b and a@b would all be called a.at.b",
        "12345 (may log in): its Linux name is all digits",
        "root (may log in): its name is that of a local account",
        "carol (may log in): has no SSH public key",
        "daemon (may not log in): its name is that of a local account",
        "8 IAM users, 6 may log in, 6 findings",
    ] {
        assert!(done.stdout.contains(line), "{line}\n--- is not in\n{}", done.stdout);
    }
    let machine = only_alice(Machine::new()).start();
    assert_eq!(machine.iamctl("lint").succeeds(), "1 IAM users, 1 may log in, 0 findings");
}

#[test]
fn completions_for_bash_are_valid_and_know_the_commands() {
    let machine = Machine::new().start();
    let completions = machine.iamctl("completions bash").succeeds();
    assert!(completions.contains("explain"));
    machine.file("/tmp/completions").write(&completions);
    machine.run(&["bash", "-n", "/tmp/completions"]).succeeds();
}
