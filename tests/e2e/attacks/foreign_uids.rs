//! Processes and threads of a withdrawn user of whose uids all, or all but one, are not the user's.

use pam_iam_tests::Machine;

use super::{
    FOLDER, assert_that_bystanders_live, compile, processes_under, start_attack, start_bystanders,
    start_machine, start_machine_that_adopts_alice, sweep, withdraw,
};

/// Replaces the contents of subuid(5) and subgid(5) by lines such as `alice:300000:65536`.
fn set_subordinate_ids(machine: &Machine, lines: &str) {
    for file in ["/etc/subuid", "/etc/subgid"] {
        machine.file(file).write(lines);
    }
}

/// Starts `sleep 7448` under the uid 300200 in a user namespace that root owns.
fn start_in_user_namespace_of_root(machine: &Machine) {
    machine.start_in_background("exec unshare --user sleep 7447");
    machine.wait_until_running("sleep 7447");
    let pid = machine.run(&["pgrep", "-f", "^sleep 7447"]).succeeds();
    for map in ["uid_map", "gid_map"] {
        machine.file(&format!("/proc/{pid}/{map}")).write("0 0 1000000\n");
    }
    machine
        .sh(&format!(
            "nsenter --user --target {pid} setpriv --reuid 300200 --clear-groups setsid -f sleep 7448 </dev/null >/dev/null 2>&1"
        ))
        .succeeds();
    machine.wait_until("pgrep -U 300200 -f '^sleep 7448'");
}

#[test]
fn processes_under_a_users_subordinate_uids_are_ended_and_those_of_others_live() {
    let machine = start_machine();
    start_bystanders(&machine);
    let uid = machine.uid_of("alice");
    machine.add_account("ben", 1600);
    set_subordinate_ids(&machine, "alice:300000:65536\nben:400000:65536\n");
    machine.start_as("400005", "sleep 7444");
    start_in_user_namespace_of_root(&machine);
    // An account whose uid lies in alice's range of subordinate uids.
    machine.add_account("corp", 300_123);
    machine.start_as("corp", "sleep 7445");
    start_attack(&machine, "alice", "subordinate", "300000", "hops");
    machine.wait_until("pgrep -U 300006 subordinate");

    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    for uid in [uid, 300_004, 300_006] {
        assert_eq!(processes_under(&machine, uid), "", "uid {uid}");
    }
    for (uid, command) in [("400005", "sleep 7444"), ("300123", "sleep 7445"), ("300200", "sleep 7448")] {
        assert!(machine.is_running_as(uid, command), "{command} of {uid}");
    }
    assert_that_bystanders_live(&machine);
}

/// Asserts that a sweep after `withdrawal` ends alice's process under the uid 300004, which is in the range that subuid(5)
/// gives to `range_owner`, leaves nothing that could become alice again, and spares a process in the range of another user.
fn assert_that_sweep_ends_subordinate_process(range_owner: fn(&Machine) -> String, withdrawal: fn(&Machine)) {
    let machine = start_machine();
    start_bystanders(&machine);
    let (uid, program) = (machine.uid_of("alice"), compile(&machine, "sub_setuid"));
    machine.add_account("ben", 1600);
    let ranges = format!("{}:300000:65536\nben:400000:65536\n", range_owner(&machine));
    machine.file("/etc/subuid").write(&ranges);
    machine.start_as("400005", "sleep 7446");
    machine.ssh("alice", &format!("{program} 300000")).succeeds();
    machine.wait_until("grep -qs 'beats [1-9]' /tmp/proof.300004.beats && ! pgrep -u alice");
    assert_ne!(processes_under(&machine, 300_004), "");

    withdrawal(&machine);
    sweep(&machine).succeeds();
    // If any of the attack is left, it now becomes alice again and writes a proof.
    machine.run(&["touch", "/tmp/come-back"]).succeeds();
    for uid in [uid, 300_004] {
        assert_eq!(processes_under(&machine, uid), "", "uid {uid}");
    }
    machine.sh("! test -e /tmp/proof.*.back").succeeds();
    assert!(machine.is_running_as("400005", "sleep 7446"));
    assert_that_bystanders_live(&machine);
}

#[test]
fn a_process_with_only_a_subordinate_uid_is_ended_and_cannot_come_back() {
    let alice: fn(&Machine) -> String = |_| "alice".to_owned();
    assert_that_sweep_ends_subordinate_process(alice, |machine| withdraw(machine, "alice"));
    // Once the user is deleted, the name in subuid(5) is that of no account.
    assert_that_sweep_ends_subordinate_process(alice, |machine| machine.iam().delete_user("alice"));
    let uid_of_alice = |machine: &Machine| machine.uid_of("alice").to_string();
    assert_that_sweep_ends_subordinate_process(uid_of_alice, |machine| machine.iam().delete_user("alice"));
}

#[test]
fn an_accomplices_process_that_has_the_users_uid_is_ended() {
    let machine = start_machine();
    machine.iam().add_to_group("bob", "ssh-users");
    let program = compile(&machine, "lend");
    machine.ssh("alice", &format!("cp {program} /tmp/lend && chmod 4755 /tmp/lend")).succeeds();
    machine.ssh_in_background("bob", "/tmp/lend");
    machine.wait_until(&format!("grep -qs 'effective {}' /tmp/proof.lend", machine.uid_of("alice")));
    machine.ssh_in_background("bob", "sleep 4400");
    machine.wait_until_running("sleep 4400");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    machine.sh("! ps -o stat= -C lend | grep -v ^Z").succeeds();
    assert!(machine.is_running("sleep 4400"));
}

/// Starts a process of the local account bobby in which one thread has alice's uid. Returns alice's uid.
fn start_thread_of_alice_in_process_of_bobby(machine: &Machine) -> u32 {
    let lent = format!("{FOLDER}/lent");
    machine.add_account("bobby", 1600);
    machine.file(&compile(machine, "thread_uids")).copy_to(&lent);
    machine.file(&lent).chown("bobby");
    machine.file(&lent).chmod("4755");
    machine.ssh_in_background("alice", &lent);
    machine.wait_until("pgrep -U bobby lent && grep -qs 'beats [1-9]' /tmp/proof.thread");
    machine.uid_of("alice")
}

#[test]
fn a_single_thread_with_the_users_uid_is_ended() {
    let machine = start_machine();
    let alice = start_thread_of_alice_in_process_of_bobby(&machine);
    machine.start_as("bobby", "sleep 4410");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert_eq!(processes_under(&machine, alice), "");
    assert!(machine.is_running_as("bobby", "sleep 4410"));
}

/// Starts processes of a local user that take milliseconds each to read, by the attack `many_groups` with these arguments.
fn start_processes_that_are_slow_to_read(machine: &Machine, user: &str, arguments: &str) {
    let program = compile(machine, "many_groups");
    set_subordinate_ids(machine, &format!("{user}:500000:65536\n"));
    machine.run(&["su", user, "-c", &format!("{program} {arguments}")]).succeeds();
    machine.wait_until("grep -qs 'processes [1-9]' /tmp/proof.groups");
    let proof = machine.file("/tmp/proof.groups").text();
    let pid = proof.split_whitespace().last().unwrap_or_default();
    let status = machine.file(&format!("/proc/{pid}/status")).text();
    assert!(status.len() > 300_000, "{} bytes", status.len());
}

#[test]
fn a_thread_with_the_users_uid_is_ended_beside_processes_that_are_slow_to_read() {
    let machine = start_machine();
    let alice = start_thread_of_alice_in_process_of_bobby(&machine);
    // These processes are newer than the thread, so the sweep reads them first.
    start_processes_that_are_slow_to_read(&machine, "bobby", "400 500000 own");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert_eq!(processes_under(&machine, alice), "");
    machine.run(&["pgrep", "-u", "bobby", "many_groups"]).succeeds();
}

#[test]
fn another_users_processes_that_are_slow_to_read_protect_no_withdrawn_user() {
    let machine = start_machine();
    let alice = machine.uid_of("alice");
    start_attack(&machine, "alice", "deaf_daemon", "", "beats");
    machine.add_account("mallory", 1600);
    start_processes_that_are_slow_to_read(&machine, "mallory", "4000 500000");
    withdraw(&machine, "alice");
    // The sweep has to end before the next one would begin.
    machine.run(&["timeout", "45", "iamctl", "sweep"]).succeeds();
    assert!(!has_processes_by_kernel(&machine, alice));
    assert!(has_processes_by_kernel(&machine, 500_100));
}

/// Asks the kernel whether the uid has processes. Reading thousands of slow processes would take a test as long as a sweep.
fn has_processes_by_kernel(machine: &Machine, uid: u32) -> bool {
    let script = format!("import os; os.getpriority(os.PRIO_USER, {uid})");
    let done = machine.run(&["python3", "-c", &script]);
    assert!(done.status == 0 || done.stderr.contains("ProcessLookupError"), "{done:?}");
    done.status == 0
}

#[test]
fn an_adopted_user_does_not_hide_in_a_sandbox_that_a_setuid_program_made() {
    let machine = start_machine_that_adopts_alice();
    assert!(machine.file("/etc/pam.d/sshd").text().contains("pam_loginuid"));
    let program = compile(&machine, "sandbox");
    machine.file(&program).chmod("4755");
    machine.ssh("alice", &program).succeeds();
    machine.wait_until("grep -qs 'beats [1-9]' /tmp/proof.1500.beats");
    machine.open_session("alice");
    withdraw(&machine, "alice");
    sweep(&machine).succeeds();
    assert_eq!(processes_under(&machine, 1500), "");
}
