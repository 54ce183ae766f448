//! Processes that hop, so that most looks at /proc miss them: each forks a successor and ends at once. The sweep may not
//! kill all processes of the user, since those that are not withdrawn have to live on.

use pam_iam_tests::Machine;
use serde_json::json;

use super::{
    PROMPT, add_local_alice, assert_that_bystanders_live, compile, slow_down_proc, start_bystanders,
    start_machine, sweep, withdraw,
};

/// Boots a box with many processes, whose user alice has two keys and the group docker.
fn start_machine_with_many_processes(settings: &str) -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-docker"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-docker"], "keys": [{}, {}]}]}))
        .settings(&format!("{PROMPT}{settings}"))
        .booted()
        .start();
    machine.set_local_group("docker", 4998);
    machine.iamctl("write-mapped-gids").succeeds();
    machine.iamctl("sweep").succeeds();
    slow_down_proc(&machine);
    machine
}

/// Succeeds if one of thirty looks finds a hopping process. Zombies do not count: they have ended.
const HOPS: &str =
    "for n in $(seq 30); do ps -C hop_many -o stat= | grep -v '^[ZX]' && exit; sleep 0.05; done; exit 1";

/// Succeeds if the count of hops in the proof grows. Finds a single hopping process, which most looks at /proc miss.
const COUNT_GROWS: &str = "before=$(cat /tmp/proof.*hops)
for n in $(seq 60); do [ \"$(cat /tmp/proof.*hops)\" != \"$before\" ] && exit; sleep 0.05; done; exit 1";

fn assert_that_nothing_hops(machine: &Machine) {
    machine.sh(HOPS).fails();
}

/// Has alice start hopping processes, each of which lives for `life` microseconds, in a session that runs `sleep
/// 4970`.
fn start_hopping(machine: &Machine, life: &str) {
    let program = compile(machine, "hop_many");
    machine.ssh_in_background("alice", &format!("{program} {life}; exec sleep 4970"));
    machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.* && pgrep -f '^sleep 4970'");
}

/// Asserts that alice runs the program, and that it is neither stopped nor frozen.
fn assert_that_alice_runs(machine: &Machine, command: &str) {
    machine.sh(&format!("ps -o stat= -p $(pgrep -u alice -f '^{command}') | grep ^S")).succeeds();
}

#[test]
fn hopping_processes_with_a_withdrawn_group_are_ended_and_others_of_the_user_live_on() {
    for life in ["1000", "3000"] {
        let machine = start_machine_with_many_processes(
            "[groups]\n'ssh-docker' = { group = 'docker', allow_privileged = true }",
        );
        start_bystanders(&machine);
        assert!(machine.login_groups("alice").contains(&"docker".to_owned()));
        machine.iam().remove_from_group("alice", "ssh-docker");
        machine.ssh_in_background("alice", "exec sleep 4971");
        machine.wait_until("pgrep -u alice -f '^sleep 4971'");
        machine.iam().add_to_group("alice", "ssh-docker");
        start_hopping(&machine, life);
        machine.sh("grep -ls '^Groups:.*4998' /proc/[0-9]*/status | grep -q .").succeeds();

        machine.iam().remove_from_group("alice", "ssh-docker");
        let said = sweep(&machine).succeeds();
        assert!(said.contains("group-withdrawn"), "{said}");
        assert_that_nothing_hops(&machine);
        machine.sh("! grep 'frozen 1' /sys/fs/cgroup/user.slice/*/cgroup.events").succeeds();
        machine.sh("! ls /run/pam_iam/frozen | grep .").succeeds();
        assert_that_alice_runs(&machine, "sleep 4971");
        assert_that_bystanders_live(&machine);
    }
}

#[test]
fn hopping_processes_of_a_withdrawn_key_are_ended_and_those_of_another_key_live_on() {
    for life in ["500", "2000"] {
        let machine = start_machine_with_many_processes("");
        machine.ssh_with_in_background("alice.2", "alice", "exec sleep 4972");
        machine.wait_until("pgrep -u alice -f '^sleep 4972'");
        start_hopping(&machine, life);
        machine.iam().deactivate_first_key("alice");
        sweep(&machine).succeeds();
        assert_that_nothing_hops(&machine);
        assert!(!machine.is_running("sleep 4970"));
        assert_that_alice_runs(&machine, "sleep 4972");
    }
}

#[test]
fn hopping_processes_that_a_closed_session_left_are_ended_with_its_key() {
    for life in ["100", "1000"] {
        let machine = start_machine_with_many_processes("");
        let program = compile(&machine, "hop_many");
        machine.ssh_with_in_background("alice.2", "alice", "exec sleep 4976");
        machine.ssh("alice", &format!("{program} {life} 1")).succeeds();
        machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.* && pgrep -u alice -f '^sleep 4976'");
        // Each sweep may miss the hopping process.
        for _ in 0..3 {
            sweep(&machine).succeeds();
        }
        machine.sh(COUNT_GROWS).succeeds();
        machine.iam().deactivate_first_key("alice");
        sweep(&machine).succeeds();
        machine.sh(COUNT_GROWS).fails();
        assert_that_alice_runs(&machine, "sleep 4976");
    }
}

#[test]
fn processes_that_hop_under_a_subordinate_uid_are_ended_also_beside_a_silent_directory() {
    // The directory sss is not installed, so NSS gets no answer from it.
    for services in ["iam", "sss iam"] {
        let machine = start_machine_with_many_processes("");
        let program = compile(&machine, "sub_setuid");
        for file in ["/etc/subuid", "/etc/subgid"] {
            machine.file(file).write("alice:300000:65536\n");
        }
        machine.file("/tmp/hop").write("");
        machine.sh(&format!("sed -i '/^passwd:/s/iam/{services}/' /etc/nsswitch.conf")).succeeds();
        // Leaves no process under the user's own uid, not even the user's systemd.
        let leave = "</dev/null >/dev/null 2>&1; pkill -KILL -x systemd";
        let _ = machine.ssh("alice", &format!("{program} 300000 {leave}"));
        machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.300004.hops");
        withdraw(&machine, "alice");
        // The first sweep may fail, since it may find that it has missed something. The second has to succeed.
        sweep(&machine);
        sweep(&machine).succeeds();
        machine.sh(COUNT_GROWS).fails();
    }
}

/// The drop-in with which the sweep's unit sweeps every 3 s.
const SWEEP_EVERY_3_SECONDS: &str = "[Service]\nExecStart=\nExecStart=/usr/sbin/iamctl sweep --every 3s\n";

#[test]
fn a_user_who_keeps_systemd_busy_is_ended() {
    let machine = start_machine_with_many_processes("");
    let program = compile(&machine, "busy_first");
    machine.run(&["mkdir", "-p", "/run/systemd/system/iam-sweep.service.d"]).succeeds();
    machine.file("/run/systemd/system/iam-sweep.service.d/test.conf").write(SWEEP_EVERY_3_SECONDS);
    machine.run(&["systemctl", "daemon-reload"]).succeeds();
    machine.run(&["systemctl", "start", "iam-sweep.service"]).succeeds();
    let uid = machine.ssh("alice", &format!("{program} </dev/null >/dev/null 2>&1; id -u")).succeeds();
    machine.wait_until(&format!("grep -qs 'answers [1-9]' /tmp/proof.{uid}.answers"));
    // systemd no longer starts anything.
    machine.run(&["timeout", "3", "systemd-run", "--quiet", "--wait", "true"]).fails();
    withdraw(&machine, "alice");
    machine.wait_at_most(30, &format!("! pgrep -U {uid} -x busy_first"));
}

#[test]
fn hopping_processes_of_an_adopted_user_are_ended_beside_a_container_that_uses_the_uid() {
    let machine = start_machine_with_many_processes("[accounts]\nadopt = ['alice']");
    add_local_alice(&machine);
    machine.start_in_background(
        "unshare --pid --fork --mount-proc setpriv --reuid 1500 --clear-groups sleep 4974",
    );
    machine.wait_until_running("sleep 4974");
    start_hopping(&machine, "3000");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert_that_nothing_hops(&machine);
    assert!(machine.is_running("sleep 4974"), "the container");
    assert!(!machine.is_running("sleep 4970"));
}

#[test]
fn without_systemds_slices_a_sweep_that_may_have_missed_hopping_processes_fails() {
    let machine = start_machine();
    slow_down_proc(&machine);
    start_hopping(&machine, "1000");
    machine.iam().deactivate_first_key("alice");
    let swept = sweep(&machine);
    // If none of them is left, the sweep may still have failed, since it cannot be sure of that.
    if machine.sh(HOPS).status == 0 {
        assert_ne!(swept.status, 0, "{}", swept.stdout);
        assert!(
            swept.stdout.contains("could not end every process of the session of alice"),
            "{}",
            swept.stdout
        );
        machine.wait_for_log("authpriv", "processes that begin faster than they are found");
    }
}
