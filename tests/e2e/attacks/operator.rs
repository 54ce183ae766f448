//! The commands by which an operator ends sessions, and the reports of a sweep that takes too long.

use super::{PROMPT, leave_running, processes_under, start_machine};
use pam_iam_tests::Machine;

#[test]
fn sessions_end_ends_all_processes_of_a_managed_user_and_refuses_local_accounts() {
    let machine = start_machine();
    let carol = leave_running(&machine, "carol", "sleep 4900");
    machine.open_session("carol");
    let alice = machine.open_session("alice");
    machine.add_account("local", 1600);
    machine.start_as("local", "sleep 4901");
    let said = machine.iamctl("sessions end carol").succeeds();
    assert!(said.contains("ended the session of carol"), "{said}");
    assert_eq!(processes_under(&machine, carol), "");
    machine.wait_for_log("authpriv", "result=ended reason=operator");
    for user in ["local", "root"] {
        let said = machine.iamctl(&format!("sessions end {user}")).fails();
        assert!(said.contains(&format!("{user} is a local account")), "{said}");
    }
    assert!(machine.is_running("sleep 4901"));
    assert!(alice.is_open());

    // A mistake in the configuration stops the sweep, but not the operator.
    machine.config().replace("allow", "alow");
    let said = machine.iamctl("sweep").fails();
    assert!(
        said.contains("the sweep ends nobody until that is mended; to end a user now: iamctl sessions"),
        "{said}"
    );
    assert!(machine.iamctl("sessions end local").fails().contains("local is a local account"));
    machine.iamctl("sessions end alice").succeeds();
    alice.wait_until_ended();
}

#[test]
fn sessions_end_ends_a_users_sessions_in_shared_accounts() {
    let machine =
        Machine::new().settings(&format!("{PROMPT}[shared.deploy]\ngroups = ['ssh-users']")).start();
    machine.add_account("deploy", 1600);
    for (user, command) in [("alice", "sleep 4910"), ("carol", "sleep 4911")] {
        machine.ssh_with_in_background(user, "deploy", command);
        machine.wait_until_running(command);
    }
    let said = machine.iamctl("sessions end deploy").fails();
    assert!(
        said.contains("deploy is a shared account") && said.contains("iamctl sessions names them"),
        "{said}"
    );
    let said = machine.iamctl("sessions end alice").succeeds();
    assert!(said.contains("ended the session of deploy (alice, pid "), "{said}");
    machine.wait_until_gone("sleep 4910");
    assert!(machine.is_running("sleep 4911"));
    let left = machine.iamctl("--json sessions").succeeds();
    assert!(left.contains("\"carol\"") && !left.contains("\"alice\""), "{left}");
}

/// Makes the sweep's state file say that a sweep has run for 90 s, or since boot.
const RUN_FOR_90_SECONDS: &str = "now=$(cut -d. -f1 /proc/uptime)
echo \"{\\\"running_since\\\": $((now > 90 ? now - 90 : 0))}\" >/run/pam_iam/sweep.json";

#[test]
fn a_sweep_of_more_than_a_minute_is_an_error_that_status_shows() {
    let machine = start_machine();
    machine.ssh("alice", "true").succeeds();
    // A sweep that was stopped by a signal keeps this lock.
    machine.start_in_background("flock /run/pam_iam/sessions sleep 1000");
    machine.wait_until("! flock -n /run/pam_iam/sessions true");
    assert!(machine.iamctl("sweep").succeeds().contains("another sweep is running"));
    machine.sh(RUN_FOR_90_SECONDS).succeeds();
    assert!(machine.iamctl("sweep").fails().contains("another sweep has been at work for"));
    machine.wait_for_log("authpriv", "longer than the minute between two sweeps");
    assert!(machine.iamctl("status").succeeds().contains("1 took longer than a minute"));
    machine.iamctl("status --prometheus /tmp/metrics").succeeds();
    let metrics = machine.file("/tmp/metrics").text();
    assert!(metrics.contains("\npam_iam_sweep_overruns_total 1"), "{metrics}");
}
