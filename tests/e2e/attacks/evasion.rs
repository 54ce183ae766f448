//! A withdrawn user whose programs evade the sweep or resist it.

use std::time::Instant;

use pam_iam_tests::Machine;
use serde_json::json;

use super::{
    FOLDER, assert_that_bystanders_live, compile, leave_running, processes_under, start_attack,
    start_booted_machine, start_bystanders, start_machine, sweep, withdraw,
};

/// Asserts that one sweep ends an attack of the withdrawn alice and nothing of other users.
fn assert_that_sweep_ends(attack: &str, proof: &str) {
    let machine = start_machine();
    start_bystanders(&machine);
    let uid = machine.uid_of("alice");
    start_attack(&machine, "alice", attack, "", proof);
    withdraw(&machine, "alice");
    let swept = sweep(&machine);
    assert_eq!(swept.status, 0, "{}{}", swept.stdout, swept.stderr);
    assert_eq!(processes_under(&machine, uid), "");
    assert_that_bystanders_live(&machine);
    machine.wait_for_log("authpriv", "event=sweep user=alice");
    machine.wait_for_log("authpriv", "result=ended reason=not-in-group");
}

#[test]
fn a_user_who_forks_faster_than_proc_can_be_read_is_ended() {
    assert_that_sweep_ends("fork_loop", "forks");
}

#[test]
fn a_user_whose_only_process_forks_and_ends_before_it_is_found_is_ended() {
    assert_that_sweep_ends("hop_alone", "hops");
}

#[test]
fn a_user_who_stops_all_processes_of_the_uid_is_ended() {
    assert_that_sweep_ends("stop_loop", "stops");
}

#[test]
fn a_user_who_kills_all_processes_of_the_uid_is_ended() {
    assert_that_sweep_ends("kill_loop", "looks");
}

#[test]
fn a_user_who_traces_all_processes_of_the_uid_is_ended_and_reads_nothing_of_root() {
    let machine = start_machine();
    let uid = machine.uid_of("alice");
    start_attack(&machine, "alice", "trace_loop", "", "traces");
    withdraw(&machine, "alice");
    machine.run(&["env", "SECRET_OF_ROOT=a-secret", "timeout", "60", "iamctl", "sweep"]).succeeds();
    assert_eq!(processes_under(&machine, uid), "");
    machine.run(&["test", "-s", "/tmp/loot"]).succeeds();
    for secret in ["SECRET_OF_ROOT", "AWS_SECRET"] {
        machine.run(&["grep", "-a", secret, "/tmp/loot"]).fails();
    }
}

#[test]
fn a_daemon_that_ignores_every_signal_is_ended() {
    assert_that_sweep_ends("deaf_daemon", "beats");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_ended() {
    assert_that_sweep_ends("leaderless", "beats");
}

#[test]
fn root_in_a_user_namespace_of_the_user_is_ended() {
    assert_that_sweep_ends("user_namespace", "beats");
}

#[test]
fn a_process_that_is_named_like_a_kernel_thread_is_ended() {
    assert_that_sweep_ends("kernel_name", "beats");
}

#[test]
fn a_user_who_slows_down_all_processes_of_the_uid_is_ended() {
    assert_that_sweep_ends("renice_pin", "looks");
}

#[test]
fn a_process_that_calls_execve_in_a_loop_is_ended() {
    assert_that_sweep_ends("exec_loop", "execs");
}

#[test]
fn a_user_who_moves_between_control_groups_is_ended() {
    let machine = start_booted_machine();
    start_bystanders(&machine);
    let uid = machine.ssh("alice", "id -u").succeeds().parse().unwrap();
    start_attack(&machine, "alice", "cgroup_move", "", "moves");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert_eq!(processes_under(&machine, uid), "");
    assert_that_bystanders_live(&machine);
}

#[test]
fn a_subreaper_that_replaces_itself_by_a_sibling_is_ended() {
    assert_that_sweep_ends("adopt", "hops");
}

#[test]
fn threads_that_fork_and_a_parent_that_waits_for_vfork_are_ended() {
    assert_that_sweep_ends("vfork_park", "forks");
}

/// Freezes the attack's processes under the uid $1 by version 1 of control groups, so that they cannot be killed, and
/// sweeps. Prints the sweep's status and output, `alice lives` if these processes still exist, and `carol ended` if the uid
/// $2 has none. Always thaws them, since the box could not end otherwise.
const SWEEP_WHILE_FROZEN: &str = "
mkdir /tmp/freezer && mount -t cgroup -o freezer none /tmp/freezer && mkdir /tmp/freezer/box.$$ && cd /tmp/freezer/box.$$ || exit
trap 'echo THAWED >freezer.state; until echo $$ >../cgroup.procs && rmdir $PWD 2>/dev/null; do sleep 0.1; done' EXIT
pgrep -u $1 deaf_daemon | while read -r pid; do echo $pid >cgroup.procs; done
echo FROZEN >freezer.state; until grep -q FROZEN freezer.state; do sleep 0.02; done
iamctl sweep >/tmp/said 2>&1; echo status $?
cat /tmp/said; pgrep -u $1 deaf_daemon >/dev/null && echo alice lives
pgrep -u $2 >/dev/null || echo carol ended
echo THAWED >freezer.state; while pgrep -u $1 deaf_daemon; do sleep 0.02; done";

#[test]
fn a_user_who_cannot_be_ended_does_not_delay_the_end_of_others() {
    let machine = start_machine();
    let uid = machine.uid_of("alice");
    start_attack(&machine, "alice", "deaf_daemon", "", "beats");
    // Users with a session are ended before users without one.
    machine.open_session("alice");
    let carol = leave_running(&machine, "carol", "sleep 4610");
    for user in ["alice", "carol"] {
        withdraw(&machine, user);
    }
    let (alice, carol) = (uid.to_string(), carol.to_string());
    let said = machine.run(&["bash", "-c", SWEEP_WHILE_FROZEN, "bash", &alice, &carol]).succeeds();
    for text in [
        "status 1",
        "could not end every process of the session of alice",
        "\nended what carol runs",
        "alice lives",
        "carol ended",
    ] {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }
    assert_eq!(processes_under(&machine, uid), "");
    machine.wait_for_log("authpriv", "event=sweep user=alice");
    machine.wait_for_log("authpriv", "result=fail");
}

/// The attack of one of the ten users, its argument, and the word that its proof has before a number.
struct Resistance {
    attack: &'static str,
    argument: &'static str,
    proof: &'static str,
}

const fn resistance(attack: &'static str, argument: &'static str, proof: &'static str) -> Resistance {
    Resistance { attack, argument, proof }
}

const RESISTANCES: [Resistance; 10] = [
    // With this argument it forks more slowly than in its own test, since init has to wait for each of its processes.
    resistance("fork_loop", "20000", "forks"),
    resistance("stop_loop", "", "stops"),
    resistance("trace_loop", "", "traces"),
    resistance("deaf_daemon", "", "beats"),
    resistance("leaderless", "", "beats"),
    resistance("user_namespace", "", "beats"),
    resistance("kernel_name", "", "beats"),
    resistance("renice_pin", "", "looks"),
    resistance("subordinate", "300000", "hops"),
    // This attack begins last: while it runs, every fork waits for the kernel's lock of control groups.
    resistance("cgroup_move", "", "moves"),
];

/// The published time limit: the interval of the sweep (60 s), the default grace (10 s), and five seconds.
const PUBLISHED_SECONDS: u32 = 75;

#[test]
fn ten_users_who_resist_are_ended_within_the_published_time() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 10, "prefix": "user", "groups": ["ssh-users"]}}))
        .settings("[freshness]\nmax_age = 0")
        .booted()
        .start();
    start_bystanders(&machine);
    machine.run(&["systemctl", "start", "iam-sweep.service"]).succeeds();
    for file in ["/etc/subuid", "/etc/subgid"] {
        machine.file(file).write("user8:300000:65536\n");
    }
    let uids = start_resistances(&machine);
    for number in 0..uids.len() {
        withdraw(&machine, &format!("user{number}"));
    }
    let none_runs: Vec<String> =
        uids.iter().map(|uid| format!("! ps -L -o stat= -U {uid} | grep -qv ^Z")).collect();
    let began = Instant::now();
    // Looks only five times a second, so that the test does not keep the machine busy itself.
    machine
        .sh(&format!(
            "until {}; do [ $SECONDS -lt {PUBLISHED_SECONDS} ] || exit 1; sleep 0.2; done",
            none_runs.join(" && ")
        ))
        .succeeds();
    eprintln!("ten users who resist were ended after {:.1} s", began.elapsed().as_secs_f64());
    for uid in uids.into_iter().chain([300_004, 300_006]) {
        assert_eq!(processes_under(&machine, uid), "");
    }
    assert_that_bystanders_live(&machine);
    machine.run(&["systemctl", "is-failed", "iam-sweep.service"]).fails();
}

/// Starts an attack as each of user0 to user9, and waits for all proofs. Returns the users' uids.
fn start_resistances(machine: &Machine) -> Vec<u32> {
    // All attacks are compiled before one of them keeps the machine busy.
    for resistance in &RESISTANCES {
        compile(machine, resistance.attack);
    }
    let mut uids = Vec::new();
    for (number, Resistance { attack, argument, proof }) in RESISTANCES.iter().enumerate() {
        let user = format!("user{number}");
        machine.ssh(&user, "true").succeeds();
        let uid = machine.uid_of(&user);
        machine.ssh_in_background(&user, &format!("{FOLDER}/{attack} {argument}"));
        let proofs = match *attack {
            "user_namespace" => "/tmp/proof.namespace.*".to_owned(),
            "subordinate" => "/tmp/proof.hop".to_owned(),
            _ => format!("/tmp/proof.{uid}.*"),
        };
        machine.wait_until(&format!("grep -qs '{proof} *[1-9]' {proofs}"));
        uids.push(uid);
    }
    uids
}

/// Adds a unit to the user's own systemd that starts whenever this systemd does.
const RESTARTING_UNIT: &str = "folder=.config/systemd/user; mkdir -p $folder/default.target.wants
printf '[Service]\nExecStart=/bin/sleep 5200\nRestart=always\n' >$folder/back.service
ln -s ../back.service $folder/default.target.wants/";

#[test]
fn a_lingering_user_does_not_come_back_after_the_withdrawal() {
    let machine = start_booted_machine();
    machine.ssh("alice", RESTARTING_UNIT).succeeds();
    let uid = machine.uid_of("alice");
    let manager = format!("user@{uid}.service");
    machine.run(&["loginctl", "enable-linger", "alice"]).succeeds();
    machine.run(&["systemctl", "restart", &manager]).succeeds();
    machine.wait_until_running("/bin/sleep 5200");
    withdraw(&machine, "alice");
    machine.iamctl("sweep").succeeds();
    assert_eq!(processes_under(&machine, uid), "");
    // At boot, systemd starts this unit for a lingering user.
    machine.run(&["systemctl", "start", &manager]).fails();
    assert!(!machine.is_running("/bin/sleep 5200"));
}

#[test]
fn a_user_who_came_without_pam_is_listed_and_ended_when_withdrawn() {
    let machine = start_machine();
    let uid = machine.ssh("alice", "id -u").succeeds();
    // Like Run As of Session Manager, this sets uid and groups and does not use PAM.
    let alice = machine.as_user("alice").with_gid(uid.parse().unwrap()).with_groups_of_nss();
    alice.sh("setsid -f sleep 4800 </dev/null >/dev/null 2>&1").succeeds();
    machine.wait_until_running("sleep 4800");
    let listed = machine.iamctl("sessions").succeeds();
    assert!(
        listed.contains(&format!("alice (uid {uid}) has no session here and runs 1 process")),
        "{listed}"
    );
    machine.iamctl("sweep").succeeds();
    assert!(machine.is_running("sleep 4800"));
    withdraw(&machine, "alice");
    machine.iamctl("sweep").succeeds();
    assert!(!machine.is_running("sleep 4800"));
}
