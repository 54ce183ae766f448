//! A user of whom not everything may be killed at once: some of it goes on, and what is to end hops away from every look.

use pam_iam_tests::Machine;
use serde_json::json;

use super::processes::{adopt_alice, let_a_directory_hang, withdraw};
use super::{Bystanders, compile};

/// A machine with many processes, so that a look takes its time, and a user who has two keys and docker.
fn machine(settings: &str) -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-docker"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-docker"], "keys": [{}, {}]}]}))
        .settings(&format!("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n{settings}"))
        .booted()
        .start();
    machine
        .sh("sed -i /^docker:/d /etc/group; echo docker:x:4998: >>/etc/group; iamctl write-mapped-gids; iamctl sweep
             for n in $(seq 400); do setsid -f sleep 3000 </dev/null >/dev/null 2>&1; done")
        .succeeds();
    machine
}

/// Succeeds if anything of the attack is at work, in one of thirty looks: what has ended may not have been waited for yet.
const LEFT: &str = "{ for n in $(seq 30); do ps -C hop_many -o stat= | grep -v '^[ZX]' && break; sleep 0.05; [ $n = 30 ] && false; done; }";

/// Succeeds if the attack still proves that it is at work: one process alone is missed by most looks.
const PROVES: &str = "{ before=$(cat /tmp/proof.*hops); for n in $(seq 60); do [ \"$(cat /tmp/proof.*hops)\" != \"$before\" ] && break; sleep 0.05; [ $n = 60 ] && false; done; }";

/// Nothing of the attack is left, however often one looks.
fn is_over(machine: &Machine) {
    machine.sh(&format!("! {LEFT}")).succeeds();
}

/// Has alice hop in a session that stays open; each process lives for `life` microseconds.
fn hop(machine: &Machine, life: &str) {
    let program = compile(machine, "hop_many");
    machine.ssh_in_background("alice", &format!("{program} {life}; exec sleep 4970"));
    machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.* && pgrep -f '^sleep 4970'");
}

#[test]
fn a_withdrawn_group_leaves_with_whoever_hops_and_the_rest_of_the_user_goes_on() {
    for life in ["1000", "3000"] {
        let machine = machine("[groups]\n'ssh-docker' = { group = 'docker', allow_privileged = true }");
        let bystanders = Bystanders::start(&machine);
        machine.ssh("alice", "id -Gn | grep -qw docker").succeeds();
        machine.iam().remove_from_group("alice", "ssh-docker");
        machine.ssh_in_background("alice", "exec sleep 4971");
        machine.wait_until("pgrep -u alice -f '^sleep 4971'");
        machine.iam().add_to_group("alice", "ssh-docker");
        hop(&machine, life);
        machine.sh("grep -ls '^Groups:.*4998' /proc/[0-9]*/status | grep -q .").succeeds();
        machine.iam().remove_from_group("alice", "ssh-docker");
        let said = machine.sh("timeout 60 iamctl sweep").succeeds();
        assert!(said.contains("group-withdrawn"), "{said}");
        is_over(&machine);
        machine.sh("! grep 'frozen 1' /sys/fs/cgroup/user.slice/*/cgroup.events && ! ls /run/pam_iam/frozen | grep .").succeeds();
        machine.sh("ps -o stat= -p $(pgrep -u alice -f '^sleep 4971') | grep ^S").succeeds();
        bystanders.live(&machine);
    }
}

/// A session of alice's by her second key.
fn log_in_by_second_key(machine: &Machine, command: &str) {
    machine
        .sh(&format!(
            "(box-ssh -i $BOX_KEYS/alice.2 alice '{command}' </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1"
        ))
        .succeeds();
}

#[test]
fn a_withdrawn_key_ends_what_hops_and_nothing_of_another_key() {
    for life in ["500", "2000"] {
        let machine = machine("");
        log_in_by_second_key(&machine, "exec sleep 4972");
        machine.wait_until("pgrep -u alice -f '^sleep 4972'");
        hop(&machine, life);
        machine.iam().python(&set_first_key("Inactive"));
        machine.sh("timeout 60 iamctl sweep").succeeds();
        is_over(&machine);
        machine
            .sh("! pgrep -f '^sleep 4970'; ps -o stat= -p $(pgrep -u alice -f '^sleep 4972') | grep ^S")
            .succeeds();
    }
}

#[test]
fn what_hops_on_from_a_login_that_is_over_ends_with_the_key_that_opened_it() {
    for life in ["100", "1000"] {
        let machine = machine("");
        let program = compile(&machine, "hop_many");
        log_in_by_second_key(&machine, "exec sleep 4976");
        machine.ssh("alice", &format!("{program} {life} 1")).succeeds();
        machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.* && pgrep -u alice -f '^sleep 4976'");
        // Each look may miss it.
        for _ in 0..3 {
            machine.sh("timeout 60 iamctl sweep").succeeds();
        }
        machine.sh(PROVES).succeeds();
        machine.iam().python(&set_first_key("Inactive"));
        machine.sh("timeout 60 iamctl sweep").succeeds();
        machine.sh(&format!("! {PROVES}")).succeeds();
        machine.sh("ps -o stat= -p $(pgrep -u alice -f '^sleep 4976') | grep ^S").succeeds();
    }
}

#[test]
fn a_withdrawn_user_who_hops_under_a_subordinate_uid_is_ended_also_beside_a_directory_that_tells_nothing() {
    for directory in ["", "sss"] {
        let machine = machine("");
        let program = compile(&machine, "sub_setuid");
        machine
            .sh(&format!(
                "echo alice:300000:65536 >/etc/subuid; cp /etc/subuid /etc/subgid; touch /tmp/hop
                 sed -i '/^passwd:/s/iam/{directory} iam/' /etc/nsswitch.conf"
            ))
            .succeeds();
        // Nothing of the user's own uid stays, not even the user's own systemd.
        let leave = "</dev/null >/dev/null 2>&1; pkill -KILL -x systemd";
        let _ = machine.ssh("alice", &format!("{program} 300000 {leave}"));
        machine.wait_until("grep -qs 'hops [1-9]' /tmp/proof.300004.hops");
        withdraw(&machine, "alice");
        machine.sh("timeout 60 iamctl sweep; timeout 60 iamctl sweep").succeeds();
        machine.sh(&format!("! {PROVES}")).succeeds();
    }
}

#[test]
fn a_directory_that_does_not_answer_makes_no_service_of_the_hosts_the_withdrawn_users() {
    let machine = machine("");
    let uid = machine.ssh("alice", "setsid -f sleep 4981 </dev/null >/dev/null 2>&1; id -u").succeeds();
    machine
        .sh("printf '[Service]\nUser=alice\nExecStart=/usr/bin/sleep 4980\n' >/etc/systemd/system/hosts.service
             systemctl daemon-reload; systemctl start hosts.service")
        .succeeds();
    machine
        .wait_until(&format!("pgrep -U {uid} -f '^/usr/bin/sleep 4980' && pgrep -U {uid} -f '^sleep 4981'"));
    let_a_directory_hang(&machine);
    withdraw(&machine, "alice");
    let _ = machine.sh("timeout 60 iamctl sweep; timeout 60 iamctl sweep");
    machine.sh("systemctl is-active hosts.service && ! pgrep -f '^sleep 4981'").succeeds();
}

#[test]
fn a_user_who_keeps_systemds_first_process_busy_is_ended_all_the_same() {
    let machine = machine("");
    let program = compile(&machine, "busy_first");
    machine
        .sh("mkdir -p /run/systemd/system/iam-sweep.service.d
             printf '[Service]\nExecStart=\nExecStart=/usr/sbin/iamctl sweep --every 3s\n' >/run/systemd/system/iam-sweep.service.d/test.conf
             systemctl daemon-reload; systemctl start iam-sweep.service")
        .succeeds();
    let uid = machine.ssh("alice", &format!("{program} </dev/null >/dev/null 2>&1; id -u")).succeeds();
    machine.wait_until(&format!("grep -qs 'answers [1-9]' /tmp/proof.{uid}.answers"));
    // It starts nothing any more.
    machine.sh("! timeout 3 systemd-run --quiet --wait true").succeeds();
    withdraw(&machine, "alice");
    machine
        .sh(&format!(
            "until ! pgrep -U {uid} -x busy_first; do [ $SECONDS -lt 30 ] || exit 1; sleep 0.2; done"
        ))
        .succeeds();
}

fn set_first_key(state: &str) -> String {
    format!(
        "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']
iam.update_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Status='{state}')"
    )
}

#[test]
fn an_adopted_user_who_hops_beside_a_container_with_the_same_number_is_ended_and_the_container_is_not() {
    let machine = machine("[accounts]\nadopt = ['alice']");
    adopt_alice(&machine);
    machine
        .sh("(unshare --pid --fork --mount-proc setpriv --reuid 1500 --clear-groups sleep 4974 </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1")
        .succeeds();
    machine.wait_until("pgrep -f '^sleep 4974'");
    hop(&machine, "3000");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    is_over(&machine);
    machine.sh("pgrep -f '^sleep 4974' && ! pgrep -f '^sleep 4970'").succeeds();
}

#[test]
fn where_nothing_can_be_held_still_a_sweep_does_not_say_that_it_has_ended_what_may_hop_on() {
    let machine = super::processes::machine();
    machine.sh("for n in $(seq 400); do setsid -f sleep 3000 </dev/null >/dev/null 2>&1; done").succeeds();
    hop(&machine, "1000");
    machine.iam().python(&set_first_key("Inactive"));
    let swept = machine.sh("timeout 60 iamctl sweep");
    // It may have ended all of it, and not be sure.
    if machine.sh(LEFT).status == 0 {
        assert_ne!(swept.status, 0, "{}", swept.stdout);
        assert!(swept.stdout.contains("could not end all of the session of alice"), "{}", swept.stdout);
        machine.logs("authpriv", "processes that begin faster than they are found");
    }
}
