//! Processes that outlive their session end when the user or the key that started them is withdrawn.

use pam_iam_tests::Machine;
use serde_json::json;

/// Each decision asks IAM, and a process that is to end has one second before it is killed.
const SETTINGS: &str = "[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'";

#[test]
fn processes_left_behind_end_with_the_key_of_their_session_and_those_of_another_key_run_on() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}]}]}))
        .settings(SETTINGS)
        .booted()
        .start();
    // The registry keeps entries of ended sessions only on a host that has swept.
    machine.iamctl("sweep").succeeds();
    machine.leave_running("alice", "alice", "sleep 4020");
    machine.leave_running("alice.2", "alice", "sleep 4021");
    machine.wait_until("! pgrep -x sshd -u alice");
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4020") && machine.is_running("sleep 4021"));
    machine.iam().deactivate_first_key("alice");
    let plan = machine.iamctl("sweep --dry-run").succeeds();
    assert!(plan.contains("would end what alice runs without a session: key-withdrawn"), "{plan}");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4020"));
    assert!(machine.is_running("sleep 4021"));

    // A registry entry is removed after 60 sweeps that have found no process of its session.
    machine.run(&["pkill", "-f", "^sleep 4021"]).succeeds();
    machine.run(&["loginctl", "terminate-user", "alice"]).succeeds();
    machine.wait_until("! pgrep -u alice");
    for _ in 0..61 {
        machine.iamctl("sweep").succeeds();
    }
    assert_eq!(machine.file("/run/pam_iam/sessions").names(), [""; 0]);
}

#[test]
fn the_processes_of_a_deleted_user_end_although_the_roster_cannot_be_read() {
    let machine = Machine::new().settings(SETTINGS).start();
    machine.leave_running("carol", "carol", "sleep 4032");
    machine.fault("fail=denied&only=GetGroup");
    machine.sh("rm -rf /var/cache/pam_iam/*").succeeds();
    machine.restart_resolver_by("KILL");
    machine.iam().delete_user("carol");
    machine.ssh("carol", "true").fails();
    let said = machine.iamctl("sweep").succeeds();
    assert!(
        said.contains("ended what carol runs without a session (1 process ended): no-such-user"),
        "{said}"
    );
    assert!(!machine.is_running("sleep 4032"));
}

/// Starts 300 processes that are detached from the session and ignore the signals that ask them to end.
const THREE_HUNDRED_STUBBORN: &str = "for n in $(seq 300); do
    setsid -f bash -c 'trap \"\" HUP TERM; sleep 4007; sleep 4008' </dev/null >/dev/null 2>&1
done";

#[test]
fn all_processes_of_a_withdrawn_user_end_after_logout_however_many_and_stubborn() {
    let machine = Machine::new().settings(SETTINGS).start();
    machine.ssh("alice", THREE_HUNDRED_STUBBORN).succeeds();
    machine.leave_running("carol", "carol", "sleep 4009");
    let three_hundred_run = "test $(pgrep -c -f '^sleep 4007') -ge 300";
    machine.wait_until(three_hundred_run);
    machine.wait_until("iamctl sessions | grep -q '^alice .* has no session here and runs'");
    machine.iamctl("sweep").succeeds();
    machine.sh(three_hundred_run).succeeds();
    assert!(machine.is_running("sleep 4009"));

    let uid = machine.uid_of("alice");
    machine.iam().remove_from_group("alice", "ssh-users");
    let said = machine.sh("ulimit -n 64; iamctl sweep").succeeds();
    assert!(said.contains("ended what alice runs without a session ("), "{said}");
    assert!(said.contains("): not-in-group"), "{said}");
    assert!(!machine.has_processes(uid));
    assert!(machine.is_running("sleep 4009"));
}

#[test]
fn no_process_ends_while_iam_denies_the_lookup_of_its_user_or_is_out_of_reach() {
    let machine = Machine::new().settings(SETTINGS).start();
    machine.leave_running("alice", "alice", "sleep 4017");
    machine.wait_until("! pgrep -u alice sshd");
    machine.fault("fail=denied");
    machine.iamctl("flush alice").succeeds();
    for fault in ["fail=denied", "fail=reset"] {
        machine.fault(fault);
        let said = machine.iamctl("sweep").succeeds();
        assert_eq!(
            said,
            "there is nobody to end; there was no answer about 1 user, whose sessions and processes go on",
            "{fault}"
        );
        assert!(machine.is_running("sleep 4017"), "{fault}");
    }
    machine.fault("fail=");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.wait_until("iamctl sweep | grep -q 'ended what alice runs without a session'");
    assert!(!machine.is_running("sleep 4017"));
    assert_eq!(machine.iamctl("sessions end alice").succeeds(), "alice runs nothing here");
}

#[test]
fn sessions_end_spares_the_local_account_that_now_has_the_name_of_the_iam_user() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.leave_running("alice", "alice", "sleep 4991");
    let uid = machine.uid_of("alice").to_string();
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.file("/etc/passwd").append("alice:x:1500:1500::/home/local:/bin/bash\n");
    machine.file("/etc/subuid").write("alice:100000:65536\n");
    machine.start_as("1500", "sleep 4989");
    machine.start_as("100007", "sleep 4990");
    machine.run(&["timeout", "60", "iamctl", "sessions", "end", "alice"]).succeeds();
    assert!(machine.is_running("sleep 4989") && machine.is_running("sleep 4990"));
    machine.run(&["pgrep", "-U", &uid]).fails();
}
