//! Processes that look like a withdrawn user's and that a sweep must leave alone.

use super::{
    assert_that_bystanders_live, start_booted_machine, start_bystanders, start_machine,
    start_machine_that_adopts_alice, sweep, withdraw,
};

#[test]
fn a_daemon_that_sudo_started_lives_on_and_a_child_of_the_session_is_ended() {
    let machine = start_machine();
    start_bystanders(&machine);
    let session = machine.open_session("carol");
    session.run("sudo -n -u postgres setsid -f sleep 4500 >/dev/null 2>&1").succeeds();
    session.begin("sudo -n -u postgres sleep 4501 >/dev/null 2>&1 &");
    machine.wait_until("pgrep -f '^sleep 4500' && pgrep -u postgres -f '^sleep 4501'");
    withdraw(&machine, "carol");
    sweep(&machine).succeeds();
    assert!(machine.is_running_as("postgres", "sleep 4500"));
    assert!(!machine.is_running("sleep 4501"));
    assert_that_bystanders_live(&machine);
}

#[test]
fn a_job_of_root_beside_the_su_of_a_withdrawn_user_lives_on() {
    let machine = start_machine();
    machine.file("/etc/pam.d/su").append("session required pam_iam.so\n");
    machine.ssh("carol", "true").succeeds();
    // Both are in one session (setsid(2)) and children of one shell.
    machine.start_in_background("setsid bash -c 'su carol -c \"sleep 4510\" & sleep 4511 & wait'");
    machine.wait_until("pgrep -u carol -f '^sleep 4510' && pgrep -f '^sleep 4511'");
    assert!(machine.iamctl("sessions").succeeds().contains("carol"));
    withdraw(&machine, "carol");
    sweep(&machine).succeeds();
    assert!(!machine.is_running("sleep 4510"));
    assert!(machine.is_running("sleep 4511"));
}

#[test]
fn a_container_that_uses_the_uid_of_an_adopted_account_lives_on() {
    let machine = start_machine_that_adopts_alice();
    machine.open_session("alice");
    machine.leave_running("alice", "alice", "sleep 4520");
    // Like a container of Docker: root owns its pid namespace, and its uids stand for no user of the host.
    machine.start_in_background(
        "unshare --pid --fork --mount-proc setpriv --reuid alice --clear-groups sleep 4521",
    );
    machine.wait_until_running("sleep 4521");
    // A pid namespace that the user owns.
    machine
        .ssh(
            "alice",
            "setsid -f unshare --user --map-root-user --pid --fork sleep 4522 </dev/null >/dev/null 2>&1",
        )
        .succeeds();
    machine.wait_until_running("sleep 4522");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert!(!machine.is_running("sleep 4520"));
    assert!(machine.is_running("sleep 4521"), "the container");
    assert!(!machine.is_running("sleep 4522"));
}

#[test]
fn a_daemon_that_forged_the_loginuid_of_a_withdrawn_user_lives_on() {
    let machine = start_machine();
    let uid = machine.uid_of("alice");
    // While its loginuid is not set, a process may set it to any uid.
    machine.start_in_background(&format!(
        "exec setpriv --reuid www-data --clear-groups bash -c 'echo {uid} >/proc/self/loginuid; exec sleep 4600'"
    ));
    machine.wait_until(&format!("grep -qx {uid} /proc/$(pgrep -f '^sleep 4600')/loginuid"));
    machine.leave_running("alice", "alice", "sleep 4601");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert!(machine.is_running("sleep 4600"));
    assert!(!machine.is_running("sleep 4601"));
}

#[test]
fn a_unit_that_names_the_user_lives_on_and_units_that_anybody_could_start_are_ended() {
    let machine = start_booted_machine();
    machine.ssh("alice", "true").succeeds();
    let write_unit =
        |name: &str, text: &str| machine.file(&format!("/etc/systemd/system/{name}.service")).write(text);
    write_unit("app", "[Service]\nUser=alice\nExecStart=/bin/sleep 5101\n");
    write_unit("any@", "[Service]\nUser=%i\nExecStart=/bin/sleep 5102\n");
    write_unit("other", "[Service]\nExecStart=/bin/sleep 5105\n");
    machine.run(&["systemctl", "daemon-reload"]).succeeds();
    machine.run(&["systemctl", "start", "app", "any@alice", "other"]).succeeds();
    machine.run(&["systemd-run", "--quiet", "--uid=alice", "/bin/sleep", "5103"]).succeeds();
    machine.ssh("alice", "systemd-run --quiet --user /bin/sleep 5104 || setsid -f /bin/sleep 5104 >/dev/null 2>&1 </dev/null").succeeds();
    for number in 5101..=5105 {
        machine.wait_until_running(&format!("/bin/sleep {number}"));
    }
    withdraw(&machine, "alice");
    // The user's systemd starts processes while it ends. On a busy machine the first sweep sees them and is not sure that
    // it has found all, so it fails.
    let first = machine.iamctl("sweep");
    assert!(
        first.status == 0 || first.stdout.contains("could not end every process of what alice runs"),
        "{first:?}"
    );
    for (number, lives) in [(5101, true), (5102, false), (5103, false), (5104, false), (5105, true)] {
        assert_eq!(machine.is_running(&format!("/bin/sleep {number}")), lives, "{number}");
    }
    machine.iamctl("sweep").succeeds();
}

#[test]
fn processes_of_a_uid_whose_user_is_unknown_live_on_and_are_reported() {
    let machine = start_machine();
    // The first uid may be that of another directory. The second is in the host's record of uids that IAM users have had.
    machine.start_as("2100000123", "sleep 4700");
    machine.start_as("2100000124", "sleep 4701");
    machine.run(&["mkdir", "-p", "-m", "700", "/var/lib/pam_iam/served"]).succeeds();
    machine.file("/var/lib/pam_iam/served/2100000124").write("dave");
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4700"));
    assert!(!machine.is_running("sleep 4701"));
    let status = machine.iamctl("status").succeeds();
    assert!(status.contains("left alone, since nobody knows whose they are: uid 2100000123"), "{status}");
    machine.wait_for_log("authpriv", "uid 2100000123 is in the managed range");
    machine.doctor_says("uid 2100000123 runs processes");
}
