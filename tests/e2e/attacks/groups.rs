//! Processes that keep a privileged group after IAM or the configuration has withdrawn it.

use pam_iam_tests::{Builder, Machine};
use serde_json::json;

use super::{PROMPT, leave_running};

/// The gid of docker on machines that have it as a local group.
const DOCKER_GID: u32 = 4998;

/// Returns a builder of a box in which alice and carol get the group docker from the IAM group ssh-docker.
fn new_machine_with_docker() -> Builder {
    let user = |name: &str| json!({"name": name, "groups": ["ssh-users", "ssh-docker"], "keys": [{}]});
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-docker"],
            "users": [user("alice"), user("carol")]}))
        .settings(&format!(
            "{PROMPT}[groups]\n'ssh-docker' = {{ group = 'docker', allow_privileged = true }}"
        ))
}

/// Faults of IAM that leave a user's groups unknown.
const FAULTS: [&str; 3] =
    ["fail=reset", "fail=throttle&only=ListGroupsForUser", "fail=denied&only=ListGroupsForUser"];

/// Asserts that sweeps during faults of IAM end no session, whether the resolver's cache is flushed before or not.
fn assert_that_faults_end_no_session(machine: &Machine) {
    for fault in FAULTS {
        for flush in [false, true] {
            machine.fault(fault);
            if flush {
                machine.iamctl("flush").succeeds();
            }
            let said = machine.iamctl("sweep").succeeds();
            assert!(
                !flush
                    || said.contains("there was no answer about 2 users, whose sessions and processes go on"),
                "{fault}: {said}"
            );
            machine.fault("fail=");
        }
    }
}

/// Asserts that a sweep ends alice's session and processes once IAM has withdrawn her group docker, and spares carol's.
fn assert_that_session_ends_with_group(machine: &Machine) {
    let [alice, carol] = ["alice", "carol"].map(|user| machine.open_session(user));
    for session in [&alice, &carol] {
        session.run("setsid -f sleep 4960 </dev/null >/dev/null 2>&1").succeeds();
        let groups = session.run("id -Gn").succeeds();
        assert!(groups.split(' ').any(|group| group == "docker"), "{groups}");
    }
    assert_that_faults_end_no_session(machine);
    assert!(alice.is_open() && carol.is_open());

    machine.iam().remove_from_group("alice", "ssh-docker");
    // After a failure the resolver does not ask IAM again for a moment.
    machine.wait_until("iamctl flush && box-ssh carol true");
    let said = machine.iamctl("sweep").succeeds();
    assert!(said.contains("ended the session of alice") && said.contains("group-withdrawn"), "{said}");
    alice.wait_until_ended();
    assert!(carol.is_open());
    assert!(machine.is_running_as("carol", "sleep 4960"));
    assert!(!machine.is_running_as("alice", "sleep 4960"), "what left the session ends too");
    assert!(!machine.login_groups("alice").contains(&"docker".to_owned()), "alice may come back without it");
}

#[test]
fn a_session_with_a_withdrawn_privileged_group_is_ended() {
    // A local group, and a group that exists only because an IAM group maps to it.
    for is_local in [true, false] {
        let machine = new_machine_with_docker().start();
        machine.sh("sed -i /^docker:/d /etc/group").succeeds();
        if is_local {
            machine.set_local_group("docker", DOCKER_GID);
        }
        machine.iamctl("write-mapped-gids").succeeds();
        assert_that_session_ends_with_group(&machine);
    }
}

/// Makes a program with the group docker and the set-group-ID bit, and starts a service of the user's own systemd.
const KEEP_GROUP: &str = "cp /bin/sleep mine && chgrp docker mine && chmod g+s mine
systemd-run --quiet --user /bin/sleep 4951";

/// Asserts that a sweep after `withdrawal` ends every process of alice that keeps the group docker, and spares others.
fn assert_that_processes_end_with_group(withdrawal: fn(&Machine)) {
    let machine = new_machine_with_docker().booted().start();
    machine.set_local_group("docker", DOCKER_GID);
    machine.iamctl("write-mapped-gids").succeeds();
    machine.iamctl("sweep").succeeds();
    // A program of the host that gives the group docker to everybody.
    machine
        .run(&["install", "-o", "root", "-g", "docker", "-m", "2755", "/bin/sleep", "/usr/local/bin/hosts"])
        .succeeds();
    machine.ssh("alice", KEEP_GROUP).succeeds();
    machine.wait_until_running("/bin/sleep 4951");
    leave_running(&machine, "alice", "sleep 4950");
    withdrawal(&machine);
    // A new session does not get the group.
    let session = machine.open_session("alice");
    session.begin("sleep 4952 & setsid -f ./mine 4953; setsid -f /usr/local/bin/hosts 4954");
    for command in ["sleep 4952", "./mine 4953", "/usr/local/bin/hosts 4954"] {
        machine.wait_until_running(command);
    }
    let said = machine.iamctl("sweep").succeeds();
    assert!(said.contains("group-withdrawn"), "{said}");
    for command in ["sleep 4950", "/bin/sleep 4951", "./mine 4953"] {
        assert!(!machine.is_running(command), "{command}");
    }
    for command in ["sleep 4952", "/usr/local/bin/hosts 4954"] {
        assert!(machine.is_running(command), "{command}");
    }
    assert!(session.is_open());
    machine.sh(&format!("! grep -l '^Groups:.*{DOCKER_GID}' /proc/[0-9]*/status")).succeeds();
}

#[test]
fn processes_with_a_withdrawn_privileged_group_are_ended_in_and_outside_sessions() {
    assert_that_processes_end_with_group(|machine| machine.iam().remove_from_group("alice", "ssh-docker"));
    assert_that_processes_end_with_group(|machine| {
        machine.config().remove_lines("[groups]");
        machine.config().remove_lines("ssh-docker");
        machine.restart_resolver();
    });
}
