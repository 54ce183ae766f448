//! The sweep ends the sessions of withdrawn users and keys, and no others.

use pam_iam_tests::Machine;
use serde_json::json;

/// Each decision asks IAM, and a session that is to end has one second before it is killed.
const SETTINGS: &str = "[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'";

#[test]
fn a_withdrawn_user_loses_sudo_at_once_and_the_session_with_the_next_sweep() {
    let machine = Machine::new().settings(SETTINGS).start();
    let (carol, alice) = (machine.open_session("carol"), machine.open_session("alice"));
    carol.begin("nohup sleep 4001 >/dev/null 2>&1 &");
    alice.begin("sleep 4002 &");
    machine.wait_until_running("sleep 4001");
    machine.wait_until_running("sleep 4002");
    assert_eq!(carol.run("sudo -n id -u").succeeds(), "0");
    assert_eq!(machine.users_with_sessions(), ["alice", "carol"]);

    machine.iam().remove_from_group("carol", "ssh-admins");
    let refused = carol.run("sudo -n true");
    assert_eq!(refused.status, 1);
    assert!(refused.stdout.contains("none of the IAM groups that may use sudo"), "{refused:?}");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice", "carol"], "the loss of sudo ends no session");

    // Looked up now, since the uid has no name once carol may not log in.
    let uid = machine.uid_of("carol");
    machine.iam().remove_from_group("carol", "ssh-users");
    let said = machine.iamctl("sweep").succeeds();
    assert!(said.contains("ended the session of carol"), "{said}");
    carol.wait_until_ended();
    assert!(!machine.has_processes(uid));
    assert!(machine.is_running("sleep 4002"));
    assert_eq!(machine.users_with_sessions(), ["alice"]);
    machine.wait_for_log("authpriv", "event=sweep user=carol iam_name=carol key=SHA256:");
    machine.wait_for_log("authpriv", "result=ended reason=not-in-group");

    machine.fault("fail=hang");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice"], "an outage of IAM ends no session");
    alice.run("true").succeeds();
}

/// Starts a box in which alice has two keys and `sessions.grace` is `grace`.
fn machine_with_two_keys(grace: &str) -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}]}]}))
        .settings(&format!("[freshness]\nmax_age = 0\n[sessions]\ngrace = '{grace}'"))
        .start()
}

/// Sweeps while the sshd of alice's terminal is stopped, and lets sshd continue once her shell has ended. On a busy machine
/// sshd may not run in that time, and the terminal has to get the message nevertheless.
const SWEEP_WITH_SSHD_STOPPED: &str = "
shell=$(ps -o pid= -o tty= -u alice | awk '$2 ~ /^pts/ { print $1; exit }') && sshd=$(ps -o ppid= -p $shell) || exit
kill -STOP $sshd
iamctl sweep &
while ps -o stat= -p $shell | grep -qv Z; do sleep 0.02; done
kill -CONT $sshd
wait $!";

#[test]
fn a_session_ends_with_its_key_and_its_terminal_shows_the_reason() {
    let machine = machine_with_two_keys("20s");
    machine.start_in_background("sleep 1000 | script -qfc 'box-ssh alice' /tmp/typescript");
    machine.ssh_with_in_background("alice.2", "alice", "sleep 4003");
    machine.wait_until_running("sleep 4003");
    // sshd registers the session before the shell has its terminal.
    machine.wait_until("ps -o tty= -u alice | grep -q ^pts");
    assert_eq!(machine.sessions().len(), 2);
    machine.iam().deactivate_first_key("alice");
    let plan = machine.iamctl("sweep --dry-run").succeeds();
    assert!(plan.contains("would end the session of alice") && plan.contains("key-withdrawn"), "{plan}");
    assert_eq!(machine.sessions().len(), 2);
    let said = machine.sh(SWEEP_WITH_SSHD_STOPPED).succeeds();
    assert!(said.contains("key-withdrawn"), "{said}");
    assert_eq!(machine.sessions().len(), 1);
    assert!(machine.is_running("sleep 4003"));
    machine.wait_until("grep -q 'the key of this session no longer opens this account. This session ends now' /tmp/typescript");
}

#[test]
fn with_sweep_login_only_withdrawn_users_lose_their_sessions_and_with_sweep_off_nobody_does() {
    let machine = Machine::new().settings(&format!("{SETTINGS}\nsweep = 'login'")).start();
    machine.open_session("alice");
    machine.iam().delete_keys("alice");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice"], "the key does not matter");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.config().replace("'login'", "'off'");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice"], "the sweep is off");
    machine.config().replace("'off'", "'login'");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), [""; 0]);
}

/// Ignores SIGHUP and SIGTERM. In the home directory it makes the file `waits` when it runs, and `asked` when it gets
/// SIGTERM.
const STUBBORN: &str = "exec >/dev/null 2>&1
trap 'touch asked' TERM
trap '' HUP
touch waits
while :; do sleep 0.1; done
";

#[test]
fn a_login_with_another_key_during_the_sweep_outlives_the_session_of_the_withdrawn_key() {
    let machine = machine_with_two_keys("8s");
    machine.file("/tmp/stubborn").write(STUBBORN);
    machine.ssh_with_in_background("alice", "alice", "setsid --wait bash /tmp/stubborn");
    machine.wait_until("test -e /home/alice/waits");
    machine.iam().deactivate_first_key("alice");
    machine.start_in_background("iamctl sweep >/tmp/said 2>&1; touch /tmp/swept");
    machine.wait_until("test -e /home/alice/asked");
    machine.ssh_with_in_background("alice.2", "alice", "sleep 4007");
    machine.wait_until_running("sleep 4007");
    assert!(!machine.file("/tmp/swept").exists(), "the login was during the sweep");
    machine.wait_until("test -e /tmp/swept");
    assert!(machine.file("/tmp/said").text().contains("key-withdrawn"));
    assert!(machine.is_running("sleep 4007"));
    machine.run(&["pgrep", "-f", "/tmp/stubborn"]).fails();
    assert_eq!(machine.users_with_sessions(), ["alice"]);
}

/// Makes alice's session look as if it had been confirmed four minutes ago. The modification time of a registry entry is in
/// seconds since boot.
const LAST_CONFIRMED_FOUR_MINUTES_AGO: &str = "at=$(($(cut -d. -f1 /proc/uptime) - 240))
entry=$(grep -l '\"alice\"' /run/pam_iam/sessions/*) && touch -d @$at $entry";

#[test]
fn a_session_that_was_not_confirmed_for_the_time_offline_ends() {
    let machine = Machine::new()
        .settings("[freshness]\nmax_age = 0\noffline = '3m'\noffline_sudo = '1m'\n[sessions]\ngrace = '1s'")
        .start();
    let alice = machine.open_session("alice");
    machine.open_session("carol");
    machine.fault("fail=reset");
    machine.iamctl("flush").succeeds();
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice", "carol"]);
    machine.sh(LAST_CONFIRMED_FOUR_MINUTES_AGO).succeeds();
    machine.iamctl("sweep").succeeds();
    alice.wait_until_ended();
    machine.wait_for_log("authpriv", "result=ended reason=offline");
    assert_eq!(machine.users_with_sessions(), ["carol"]);
}

#[test]
fn the_timer_ends_the_session_of_a_withdrawn_user() {
    let machine = Machine::new().settings(SETTINGS).sweeping().start();
    let (carol, alice) = (machine.open_session("carol"), machine.open_session("alice"));
    machine.iam().remove_from_group("carol", "ssh-users");
    carol.wait_until_ended();
    assert!(alice.is_open());
    assert_eq!(machine.users_with_sessions(), ["alice"]);
}

#[test]
fn a_denied_lookup_ends_no_session_and_lets_nobody_in() {
    let machine = Machine::new().settings(SETTINGS).start();
    machine.open_session("alice");
    machine.fault("fail=denied");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.users_with_sessions(), ["alice"]);
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn a_sweep_without_sessions_makes_no_calls_and_removes_entries_without_a_session() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    // The last process of the session may end a moment after the login.
    machine.wait_until(
        "iamctl sessions | grep -q 'no IAM user is logged in' && ! ps -o stat= -u alice | grep -qv ^Z",
    );
    machine.clear_calls();
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.actions(), [""; 0]);
    // A crash can leave such entries behind.
    machine.file("/run/pam_iam/sessions/77").write("{}\n");
    machine.file("/run/pam_iam/sessions/78").write("nonsense\n");
    machine.iamctl("sweep").succeeds();
    assert_eq!(machine.file("/run/pam_iam/sessions").names(), [""; 0]);
    assert_eq!(machine.actions(), [""; 0]);
}
