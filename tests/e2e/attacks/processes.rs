//! A withdrawn user defends himself.

use pam_iam_tests::{Machine, repository, work};
use serde_json::json;

use super::{Bystanders, FOLDER, compile, left_of};

pub fn machine() -> Machine {
    Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").start()
}

/// Has `user` run an attack from a session, and waits for its proof.
fn attack(machine: &Machine, user: &str, attack: &str, arguments: &str, proof: &str) {
    let program = compile(machine, attack);
    machine.ssh_in_background(user, &format!("{program} {arguments}"));
    machine.wait_until(&format!("grep -qs '{proof} *[1-9]' /tmp/proof.* "));
}

/// A machine that has a local account `alice` with the uid 1500 and adopts it.
fn adopting_alice() -> Machine {
    let machine = Machine::new()
        .settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[accounts]\nadopt = ['alice']")
        .start();
    adopt_alice(&machine);
    machine
}

/// Makes a local account `alice` with the uid 1500.
pub fn adopt_alice(machine: &Machine) {
    machine.sh("echo 'alice:*:1500:1500::/home/alice:/bin/bash' >>/etc/passwd; echo alice:x:1500: >>/etc/group; install -d -o alice /home/alice").succeeds();
}

pub fn withdraw(machine: &Machine, user: &str) {
    machine.iam().python(&format!("iam.remove_user_from_group(UserName='{user}', GroupName='ssh-users')"));
}

/// An attack that runs as alice: she is withdrawn, one sweep ends everything of hers, and nobody else's.
fn ends(name: &str, proof: &str) {
    let machine = machine();
    let bystanders = Bystanders::start(&machine);
    let uid = machine.ssh("alice", "id -u").succeeds();
    attack(&machine, "alice", name, "", proof);
    withdraw(&machine, "alice");
    let said = machine.sh("timeout 60 iamctl sweep");
    assert_eq!(said.status, 0, "{}{}", said.stdout, said.stderr);
    assert_eq!(left_of(&machine, &uid), "");
    bystanders.live(&machine);
    machine.logs("authpriv", "event=sweep user=alice");
    machine.logs("authpriv", "result=ended reason=not-in-group");
}

#[test]
fn a_user_who_forks_faster_than_anybody_lists_is_ended() {
    ends("fork_loop", "forks");
}

#[test]
fn a_user_whose_only_process_is_never_the_one_that_was_listed_is_ended() {
    ends("hop_alone", "hops");
}

#[test]
fn a_user_who_stops_whatever_has_his_uid_is_ended() {
    ends("stop_loop", "stops");
}

#[test]
fn a_user_who_kills_whatever_has_his_uid_is_ended() {
    ends("kill_loop", "looks");
}

#[test]
fn a_user_who_traces_whatever_has_his_uid_is_ended_and_reads_nothing_of_roots() {
    let machine = machine();
    let uid = machine.ssh("alice", "id -u").succeeds();
    attack(&machine, "alice", "trace_loop", "", "traces");
    withdraw(&machine, "alice");
    machine.sh("SECRET_OF_ROOT=whatever-root-has timeout 60 iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, &uid), "");
    machine
        .sh("test -s /tmp/loot && ! grep -a SECRET_OF_ROOT /tmp/loot && ! grep -a AWS_SECRET /tmp/loot")
        .succeeds();
}

#[test]
fn a_daemon_that_is_deaf_to_every_signal_is_ended() {
    ends("deaf_daemon", "beats");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_ended() {
    ends("leaderless", "beats");
}

#[test]
fn root_of_a_user_namespace_of_his_own_is_ended() {
    ends("user_namespace", "beats");
}

#[test]
fn a_process_that_calls_itself_a_thread_of_the_kernel_is_ended() {
    ends("kernel_name", "beats");
}

#[test]
fn a_user_who_lowers_the_priority_of_what_has_his_uid_and_binds_it_is_ended() {
    ends("renice_pin", "looks");
}

#[test]
fn a_process_that_becomes_another_program_again_and_again_is_ended() {
    ends("exec_loop", "execs");
}

#[test]
fn a_user_who_moves_between_control_groups_is_ended() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").booted().start();
    let bystanders = Bystanders::start(&machine);
    let uid = machine.ssh("alice", "id -u").succeeds();
    attack(&machine, "alice", "cgroup_move", "", "moves");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, &uid), "");
    bystanders.live(&machine);
}

#[test]
fn a_subreaper_that_hops_to_siblings_is_ended() {
    ends("adopt", "hops");
}

#[test]
fn threads_that_fork_and_a_parent_that_waits_for_vfork_are_ended() {
    ends("vfork_park", "forks");
}

#[test]
fn a_process_under_a_subordinate_uid_is_ended_and_that_of_another_users_lives() {
    let machine = machine();
    let bystanders = Bystanders::start(&machine);
    let uid = machine.ssh("alice", "id -u").succeeds();
    machine
        .sh("useradd ben; printf 'alice:300000:65536\nben:400000:65536\n' >/etc/subuid; cp /etc/subuid /etc/subgid
             setpriv --reuid 400005 --clear-groups setsid -f sleep 7444 </dev/null >/dev/null 2>&1
             (unshare --user sleep 7447 </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1; until pid=$(pgrep -f '^sleep 7447'); do sleep 0.02; done
             echo '0 0 1000000' | tee /proc/$pid/uid_map >/proc/$pid/gid_map; nsenter --user --target $pid setpriv --reuid 300200 --clear-groups setsid -f sleep 7448 </dev/null >/dev/null 2>&1; pgrep -U 300200 -f '^sleep 7448'
             useradd -u 300123 corp; setpriv --reuid corp --clear-groups setsid -f sleep 7445 </dev/null >/dev/null 2>&1")
        .succeeds();
    attack(&machine, "alice", "subordinate", "300000", "hops");
    machine.wait_until("pgrep -U 300006 subordinate");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    for uid in [uid.as_str(), "300004", "300006"] {
        assert_eq!(left_of(&machine, uid), "", "uid {uid}");
    }
    machine.sh("pgrep -U 400005 -f '^sleep 7444' && pgrep -U 300123 -f '^sleep 7445'").succeeds();
    machine.sh("pgrep -U 300200 -f '^sleep 7448'").succeeds();
    bystanders.live(&machine);
}

#[test]
fn a_process_wholly_under_a_subordinate_uid_and_outside_of_everything_ends_with_its_owner_and_never_comes_back()
 {
    // The range goes by the name, which nobody has any more once the user is deleted.
    let leave = "iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')";
    let delete = format!(
        "{leave}\nfor key in iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys']:\n    \
        iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key['SSHPublicKeyId'])\niam.delete_user(UserName='alice')"
    );
    for (withdrawal, range) in [(leave, "alice"), (&delete, "alice"), (&delete, "$(id -u alice)")] {
        let machine = machine();
        let bystanders = Bystanders::start(&machine);
        let (uid, program) = (machine.ssh("alice", "id -u").succeeds(), compile(&machine, "sub_setuid"));
        machine
            .sh(&format!(
                "useradd ben; printf '%s:300000:65536\\nben:400000:65536\\n' {range} >/etc/subuid
                 setpriv --reuid 400005 --clear-groups setsid -f sleep 7446 </dev/null >/dev/null 2>&1"
            ))
            .succeeds();
        machine.ssh("alice", &format!("{program} 300000")).succeeds();
        machine.wait_until("grep -qs 'beats [1-9]' /tmp/proof.300004.beats && ! pgrep -u alice");
        assert_ne!(left_of(&machine, "300004"), "");
        machine.iam().python(withdrawal);
        machine.sh("timeout 60 iamctl sweep; touch /tmp/come-back").succeeds();
        for uid in [uid.as_str(), "300004"] {
            assert_eq!(left_of(&machine, uid), "", "uid {uid} after {withdrawal}");
        }
        machine.sh("! test -e /tmp/proof.*.back && pgrep -U 400005 -f '^sleep 7446'").succeeds();
        bystanders.live(&machine);
    }
}

#[test]
fn a_process_that_an_accomplice_has_made_the_users_is_ended() {
    let machine = machine();
    machine.iam().add_to_group("bob", "ssh-users");
    let (alice, program) = (machine.ssh("alice", "id -u").succeeds(), compile(&machine, "lend"));
    machine.ssh("alice", &format!("cp {program} /tmp/lend && chmod 4755 /tmp/lend")).succeeds();
    machine.ssh_in_background("bob", "/tmp/lend");
    machine.wait_until(&format!("grep -qs 'effective {alice}' /tmp/proof.lend"));
    machine.ssh_in_background("bob", "sleep 4400");
    machine.wait_until("pgrep -f '^sleep 4400'");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    machine.sh("! ps -o stat= -C lend | grep -v ^Z && pgrep -f '^sleep 4400'").succeeds();
}

/// Has alice work on in one thread alone of a process of bobby's. Returns her uid.
fn work_in_a_thread_of_bobbys(machine: &Machine) -> String {
    let (alice, program) = (machine.ssh("alice", "id -u").succeeds(), compile(machine, "thread_uids"));
    machine.sh(&format!("useradd -m bobby; cp {program} /opt/attacks/lent; chown bobby /opt/attacks/lent; chmod 4755 /opt/attacks/lent")).succeeds();
    machine.ssh_in_background("alice", "/opt/attacks/lent");
    machine.wait_until("pgrep -U bobby lent && grep -qs 'beats [1-9]' /tmp/proof.thread");
    alice
}

#[test]
fn a_thread_that_alone_has_the_users_uid_is_ended() {
    let machine = machine();
    let alice = work_in_a_thread_of_bobbys(&machine);
    machine
        .sh("setpriv --reuid bobby --clear-groups setsid -f sleep 4410 </dev/null >/dev/null 2>&1")
        .succeeds();
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, &alice), "");
    machine.sh("pgrep -u bobby -f '^sleep 4410'").succeeds();
}

#[test]
fn a_thread_in_a_process_of_a_user_who_makes_reading_slow_is_ended() {
    let machine = machine();
    let alice = work_in_a_thread_of_bobbys(&machine);
    // Newer, and so read before it.
    be_slow_to_read(&machine, "bobby", "400 500000 own");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, &alice), "");
    machine.sh("pgrep -u bobby many_groups").succeeds();
}

#[test]
fn a_daemon_that_was_started_by_sudo_outlives_the_admin_and_what_has_not_left_the_session_does_not() {
    let machine = machine();
    let bystanders = Bystanders::start(&machine);
    machine.open_session("carol");
    work(&machine, "carol", "sudo -n -u postgres setsid -f sleep 4500 >/dev/null 2>&1");
    // One that stays a child of the session, under another uid.
    work(&machine, "carol", "sudo -n -u postgres sleep 4501 >/dev/null 2>&1 &");
    machine.wait_until("pgrep -f '^sleep 4500' && pgrep -u postgres -f '^sleep 4501'");
    withdraw(&machine, "carol");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    machine.sh("pgrep -u postgres -f '^sleep 4500' && ! pgrep -f '^sleep 4501'").succeeds();
    bystanders.live(&machine);
}

#[test]
fn a_job_of_roots_beside_the_su_of_a_withdrawn_user_lives_on() {
    let machine = machine();
    machine.sh("echo 'session required pam_iam.so' >>/etc/pam.d/su").succeeds();
    machine.ssh("carol", "true").succeeds();
    // One session (setsid(2)) and one shell for both.
    machine
        .sh("(setsid bash -c 'su carol -c \"sleep 4510\" & sleep 4511 & wait' </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1")
        .succeeds();
    machine.wait_until("pgrep -u carol -f '^sleep 4510' && pgrep -f '^sleep 4511'");
    machine.sh("iamctl sessions | grep -q carol").succeeds();
    withdraw(&machine, "carol");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    machine.sh("! pgrep -f '^sleep 4510' && pgrep -f '^sleep 4511'").succeeds();
}

#[test]
fn a_container_whose_processes_have_the_number_of_an_adopted_account_outlives_it() {
    let machine = adopting_alice();
    machine.open_session("alice");
    machine.ssh("alice", "setsid -f sleep 4520 </dev/null >/dev/null 2>&1").succeeds();
    // As a container of Docker has it: a pid namespace that root has made, and a number that means nobody of the host.
    machine
        .sh("(unshare --pid --fork --mount-proc setpriv --reuid alice --clear-groups sleep 4521 </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1")
        .succeeds();
    // And the same in a namespace of her own.
    machine
        .ssh(
            "alice",
            "setsid -f unshare --user --map-root-user --pid --fork sleep 4522 </dev/null >/dev/null 2>&1",
        )
        .succeeds();
    machine.wait_until("for n in 0 1 2; do pgrep -f \"^sleep 452$n\" || exit 1; done");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    machine.sh("! pgrep -f '^sleep 4520' && ! pgrep -f '^sleep 4522' && pgrep -f '^sleep 4521'").succeeds();
}

#[test]
fn an_adopted_user_does_not_hide_in_a_sandbox_that_a_setuid_program_made() {
    let machine = adopting_alice();
    let program = compile(&machine, "sandbox");
    machine.sh(&format!("chmod 4755 {program}; grep -q pam_loginuid /etc/pam.d/sshd")).succeeds();
    machine.ssh("alice", &program).succeeds();
    machine.wait_until("grep -qs 'beats [1-9]' /tmp/proof.1500.beats");
    machine.open_session("alice");
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, "1500"), "");
}

/// Has a user make processes, with `arguments` of the attack, which take milliseconds each to read.
fn be_slow_to_read(machine: &Machine, user: &str, arguments: &str) {
    let program = compile(machine, "many_groups");
    machine
        .sh(&format!("printf '{user}:500000:65536\n' >/etc/subuid; cp /etc/subuid /etc/subgid"))
        .succeeds();
    machine.sh(&format!("su {user} -c '{program} {arguments}'")).succeeds();
    machine.wait_until("grep -qs 'processes [1-9]' /tmp/proof.groups");
    let slow = machine.sh("wc -c </proc/$(sed 's/.* //' /tmp/proof.groups)/status").succeeds();
    assert!(slow.trim().parse::<u32>().is_ok_and(|bytes| bytes > 300_000), "{slow}");
}

#[test]
fn another_user_whose_processes_are_slow_to_read_does_not_keep_a_withdrawn_one_in() {
    let machine = machine();
    let uid = machine.ssh("alice", "id -u").succeeds();
    attack(&machine, "alice", "deaf_daemon", "", "beats");
    machine.sh("useradd -m mallory").succeeds();
    be_slow_to_read(&machine, "mallory", "4000 500000");
    withdraw(&machine, "alice");
    // What the timer has before the next sweep is due.
    machine.sh("timeout 45 iamctl sweep").succeeds();
    // Told by the kernel: reading all of these takes long here, too.
    let is_at_work =
        |uid: &str| machine.sh(&format!("python3 -c 'import os; os.getpriority(os.PRIO_USER, {uid})'"));
    is_at_work(&uid).fails();
    is_at_work("500100").succeeds();
}

/// A service of nsswitch.conf that never answers a program of ours.
pub fn let_a_directory_hang(machine: &Machine) {
    let source = repository().join("tests/e2e/attacks/nss_hang.c");
    machine
        .sh(&format!(
            "folder=$(dirname $(ldconfig -p | sed -n 's/.*libc.so.6.* => //p' | head -1))
             cc -Wall -Wextra -Werror -shared -fPIC -o $folder/libnss_hang.so.2 {} && sed -i '/^passwd:/s/$/ hang/' /etc/nsswitch.conf
             ! timeout 1 bash -c 'exec -a iamctl getent passwd 777777'",
            source.display()
        ))
        .succeeds();
}

#[test]
fn a_directory_that_never_answers_does_not_keep_a_withdrawn_user_in() {
    let machine = machine();
    let uid = machine.ssh("alice", "setsid -f sleep 4620 </dev/null >/dev/null 2>&1; id -u").succeeds();
    let carol = machine.ssh("carol", "setsid -f sleep 4622 </dev/null >/dev/null 2>&1; id -u").succeeds();
    let_a_directory_hang(&machine);
    machine
        .sh("! id 777777 && (setpriv --reuid 777777 --clear-groups setsid -f sleep 4621 </dev/null >/dev/null 2>&1)")
        .succeeds();
    // A uid of the directory's may lie in alice's range: nobody tells.
    machine.sh("echo alice:777000:1000 >/etc/subuid").succeeds();
    withdraw(&machine, "alice");
    // Not everything could be told, so the sweep does not say that it is complete.
    machine.sh("timeout 45 iamctl sweep").fails();
    assert_eq!(left_of(&machine, &uid), "");
    machine.sh("pgrep -f '^sleep 4621'").succeeds();
    machine.logs("authpriv", "a service of nsswitch.conf did not tell in time whether some uids");
    // One who has no name any more.
    withdraw(&machine, "carol");
    machine.ssh("carol", "true").fails();
    machine.sh("! id carol; timeout 45 iamctl sessions end carol").succeeds();
    assert_eq!(left_of(&machine, &carol), "");
}

#[test]
fn a_forged_loginuid_makes_nobody_else_the_withdrawn_user() {
    let machine = machine();
    let uid = machine.ssh("alice", "sleep 0; id -u").succeeds();
    // Where it is unset, any process may write any uid into it.
    machine
        .sh(&format!("(setpriv --reuid www-data --clear-groups bash -c 'echo {uid} >/proc/self/loginuid; exec sleep 4600' </dev/null >/dev/null 2>&1 &)"))
        .succeeds();
    machine.wait_until("pgrep -f '^sleep 4600'");
    machine.ssh("alice", "setsid -f sleep 4601 </dev/null >/dev/null 2>&1").succeeds();
    withdraw(&machine, "alice");
    machine.sh("timeout 60 iamctl sweep").succeeds();
    machine.sh("pgrep -f '^sleep 4600' && ! pgrep -f '^sleep 4601'").succeeds();
}

#[test]
fn a_user_who_cannot_be_ended_delays_the_end_of_nobody_else() {
    let machine = machine();
    let uid = machine.ssh("alice", "id -u").succeeds();
    attack(&machine, "alice", "deaf_daemon", "", "beats");
    // Who has a session comes before who has none.
    machine.open_session("alice");
    let carol = machine.ssh("carol", "setsid -f sleep 4610 </dev/null >/dev/null 2>&1; id -u").succeeds();
    for user in ["alice", "carol"] {
        withdraw(&machine, user);
    }
    // What is frozen by the first version of control groups cannot be killed. It is thawed in any case, or the box could not end.
    let said = machine
        .sh(&format!(
            "mkdir /tmp/freezer && mount -t cgroup -o freezer none /tmp/freezer && mkdir /tmp/freezer/box.$$ && cd /tmp/freezer/box.$$ || exit
             trap 'echo THAWED >freezer.state; until echo $$ >../cgroup.procs && rmdir $PWD 2>/dev/null; do sleep 0.1; done' EXIT
             pgrep -u {uid} deaf_daemon | while read -r pid; do echo $pid >cgroup.procs; done
             echo FROZEN >freezer.state; until grep -q FROZEN freezer.state; do sleep 0.02; done
             iamctl sweep >/tmp/said 2>&1; echo status $?
             cat /tmp/said; pgrep -u {uid} deaf_daemon >/dev/null && echo there
             pgrep -u {carol} >/dev/null || echo over
             echo THAWED >freezer.state; while pgrep -u {uid} deaf_daemon; do sleep 0.02; done"
        ))
        .succeeds();
    for text in
        ["status 1", "could not end all of the session of alice", "\nended what carol runs", "there", "over"]
    {
        assert!(said.contains(text), "{text:?} is not in\n{said}");
    }
    assert_eq!(left_of(&machine, &uid), "");
    machine.logs("authpriv", "event=sweep user=alice");
    machine.logs("authpriv", "result=fail");
}

/// Who does what, of ten who are withdrawn together.
const DEFENCES: [(&str, &str); 10] = [
    // Slower than alone: the machine's first process has to wait for each.
    ("fork_loop 20000", "forks"),
    ("stop_loop", "stops"),
    ("trace_loop", "traces"),
    ("deaf_daemon", "beats"),
    ("leaderless", "beats"),
    ("user_namespace", "beats"),
    ("kernel_name", "beats"),
    ("renice_pin", "looks"),
    ("subordinate 300000", "hops"),
    // The last to come: while it is at work, whatever forks waits for the kernel's lock of control groups.
    ("cgroup_move", "moves"),
];

#[test]
fn ten_who_defend_themselves_are_gone_a_minute_a_grace_and_five_seconds_after_their_withdrawal() {
    let users: Vec<String> = (0..10).map(|at| format!("user{at}")).collect();
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 10, "prefix": "user", "groups": ["ssh-users"]}}))
        .settings("[freshness]\nmax_age = 0")
        .booted()
        .start();
    let bystanders = Bystanders::start(&machine);
    machine
        .sh("systemctl start iam-sweep.service; echo user8:300000:65536 | tee /etc/subuid >/etc/subgid")
        .succeeds();
    // Before anybody keeps the machine busy.
    let names = DEFENCES.map(|(attack, _)| attack.split(' ').next().unwrap_or(attack));
    names.iter().for_each(|name| drop(compile(&machine, name)));
    let mut uids = Vec::new();
    for (user, (attack, proof)) in users.iter().zip(DEFENCES) {
        let (attack, argument) = attack.split_once(' ').unwrap_or((attack, ""));
        let program = format!("{FOLDER}/{attack}");
        let uid = machine.ssh(user, "id -u").succeeds();
        machine.ssh_in_background(user, &format!("{program} {argument}"));
        let proofs = match attack {
            "user_namespace" => "/tmp/proof.namespace.*".to_owned(),
            "subordinate" => "/tmp/proof.hop".to_owned(),
            _ => format!("/tmp/proof.{uid}.*"),
        };
        machine.wait_until(&format!("grep -qs '{proof} *[1-9]' {proofs}"));
        uids.push(uid);
    }
    for user in &users {
        withdraw(&machine, user);
    }
    // The timer's minute, the grace of 10 s, and five seconds.
    let gone = uids
        .iter()
        .map(|uid| format!("! ps -L -o stat= -U {uid} | grep -qv ^Z"))
        .collect::<Vec<_>>()
        .join(" && ");
    let began = std::time::Instant::now();
    machine.sh(&format!("until {gone}; do [ $SECONDS -lt 75 ] || exit 1; sleep 0.2; done")).succeeds();
    eprintln!("ten who defend themselves were gone after {:.1} s", began.elapsed().as_secs_f64());
    for uid in uids.iter().map(String::as_str).chain(["300004", "300006"]) {
        assert_eq!(left_of(&machine, uid), "");
    }
    bystanders.live(&machine);
    machine.sh("systemctl is-failed iam-sweep.service").fails();
}

#[test]
fn a_service_that_the_host_runs_as_the_user_lives_and_one_that_anybody_could_start_does_not() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").booted().start();
    machine.ssh("alice", "true").succeeds();
    machine
        .sh("printf '[Service]\nUser=alice\nExecStart=/bin/sleep 5101\n' >/etc/systemd/system/app.service
             printf '[Service]\nUser=%%i\nExecStart=/bin/sleep 5102\n' >/etc/systemd/system/any@.service
             printf '[Service]\nExecStart=/bin/sleep 5105\n' >/etc/systemd/system/other.service
             systemctl daemon-reload; systemctl start app any@alice other; systemd-run --quiet --uid=alice /bin/sleep 5103")
        .succeeds();
    machine
        .ssh(
            "alice",
            "systemd-run --quiet --user /bin/sleep 5104 || setsid -f sleep 5104 >/dev/null 2>&1 </dev/null",
        )
        .succeeds();
    machine.wait_until("for n in 1 2 3 4 5; do pgrep -f \"[s]leep 510$n\" >/dev/null || exit 1; done");
    withdraw(&machine, "alice");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("pgrep -f '[s]leep 5101' && pgrep -f '[s]leep 5105'").succeeds();
    machine
        .sh("! pgrep -f '[s]leep 5102' && ! pgrep -f '[s]leep 5103' && ! pgrep -f '[s]leep 5104'")
        .succeeds();
}

#[test]
fn a_lingering_user_does_not_come_back_after_the_withdrawal() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").booted().start();
    let uid = machine.ssh("alice", "mkdir -p .config/systemd/user/default.target.wants; printf '[Service]\nExecStart=/bin/sleep 5200\nRestart=always\n' >.config/systemd/user/back.service; ln -s ../back.service .config/systemd/user/default.target.wants/; id -u").succeeds();
    machine.sh(&format!("loginctl enable-linger alice; systemctl restart user@{uid}.service")).succeeds();
    machine.wait_until("pgrep -f '[s]leep 5200'");
    withdraw(&machine, "alice");
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(left_of(&machine, &uid), "");
    // As at the next boot.
    machine.sh(&format!("systemctl start user@{uid}.service")).fails();
    machine.sh("pgrep -f '[s]leep 5200'").fails();
}

#[test]
fn a_uid_of_which_nobody_knows_whose_it_is_is_left_alone_and_named() {
    let machine = machine();
    // Another directory's account, and a user of ours whom nobody remembers but the host's own list.
    machine
        .sh("setpriv --reuid 2100000123 --clear-groups setsid -f sleep 4700 </dev/null >/dev/null 2>&1")
        .succeeds();
    machine.sh("setpriv --reuid 2100000124 --clear-groups setsid -f sleep 4701 </dev/null >/dev/null 2>&1; mkdir -p -m 700 /var/lib/pam_iam/served; printf dave >/var/lib/pam_iam/served/2100000124").succeeds();
    machine.sh("iamctl sweep").succeeds();
    machine.sh("pgrep -f '^sleep 4700' && ! pgrep -f '^sleep 4701'").succeeds();
    assert!(
        machine
            .sh("iamctl status")
            .succeeds()
            .contains("left alone, since nobody knows whose they are: uid 2100000123")
    );
    machine.logs("authpriv", "uid 2100000123 is in the range of IAM users");
    assert!(machine.sh("iamctl doctor").stdout.contains("uid 2100000123 runs processes"));
}

#[test]
fn a_user_who_came_without_pam_is_listed_and_ends_with_the_withdrawal() {
    let machine = machine();
    let uid = machine.ssh("alice", "id -u").succeeds();
    // As Session Manager's Run As does it: uid and groups, and no PAM.
    machine.sh("setpriv --reuid alice --regid alice --init-groups setsid -f sleep 4800 </dev/null >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4800'");
    let listed = machine.sh("iamctl sessions").succeeds();
    assert!(
        listed.contains(&format!("alice (uid {uid}) has no session here and runs 1 process")),
        "{listed}"
    );
    machine.sh("iamctl sweep && pgrep -f '^sleep 4800'").succeeds();
    withdraw(&machine, "alice");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("pgrep -f '^sleep 4800'").fails();
}

#[test]
fn an_operator_ends_everything_of_a_user_at_once_and_of_no_local_account() {
    let machine = machine();
    let uid = machine.ssh("carol", "setsid -f sleep 4900 </dev/null >/dev/null 2>&1; id -u").succeeds();
    machine.open_session("carol");
    machine.open_session("alice");
    machine.sh("useradd local; setpriv --reuid local --clear-groups setsid -f sleep 4901 </dev/null >/dev/null 2>&1").succeeds();
    let said = machine.sh("iamctl sessions end carol").succeeds();
    assert!(said.contains("ended the session of carol"), "{said}");
    assert_eq!(left_of(&machine, &uid), "");
    machine.logs("authpriv", "result=ended reason=operator");
    assert!(machine.sh("iamctl sessions end local").fails().contains("local is a local account"));
    assert!(machine.sh("iamctl sessions end root").fails().contains("root is a local account"));
    machine.sh("pgrep -f '^sleep 4901' && ! test -e /tmp/alice.over").succeeds();
    // Whatever is wrong with the configuration.
    machine.sh("sed -i s/allow/alow/ /etc/pam_iam/config.toml").succeeds();
    let said = machine.sh("iamctl sweep").fails();
    assert!(
        said.contains("the sweep ends nobody until that is mended; to end a user now: iamctl sessions"),
        "{said}"
    );
    assert!(machine.sh("iamctl sessions end local").fails().contains("local is a local account"));
    machine.sh("iamctl sessions end alice").succeeds();
    machine.wait_until("test -e /tmp/alice.over");
}

#[test]
fn an_operator_ends_the_sessions_that_a_user_has_in_shared_accounts() {
    let machine = Machine::new()
        .settings(
            "[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[shared.deploy]\ngroups = ['ssh-users']",
        )
        .start();
    machine
        .sh("useradd -m -s /bin/bash deploy
             for user in alice carol; do box-ssh -i $BOX_KEYS/$user deploy \"sleep 490\" </dev/null >/tmp/$user.out 2>&1 & done
             until [ $(pgrep -c -f '^sleep 490$') = 2 ]; do [ $SECONDS -lt 20 ] || exit 1; sleep 0.05; done")
        .succeeds();
    let said = machine.sh("iamctl sessions end deploy").fails();
    assert!(
        said.contains("deploy is a shared account") && said.contains("iamctl sessions names them"),
        "{said}"
    );
    let said = machine.sh("iamctl sessions end alice").succeeds();
    assert!(said.contains("ended the session of deploy (alice, pid "), "{said}");
    machine.wait_until("[ $(pgrep -c -f '^sleep 490$') = 1 ]");
    let left = machine.sh("iamctl --json sessions").succeeds();
    assert!(left.contains("\"carol\"") && !left.contains("\"alice\""), "{left}");
}

#[test]
fn a_session_ends_with_a_privileged_group_that_iam_no_longer_gives() {
    // A group of the host's own, and one that is there by IAM alone.
    for local in
        ["sed -i /^docker:/d /etc/group; echo docker:x:4998: >>/etc/group", "sed -i /^docker:/d /etc/group"]
    {
        let machine = Machine::new()
            .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-docker"], "users": [
                {"name": "alice", "groups": ["ssh-users", "ssh-docker"], "keys": [{}]},
                {"name": "carol", "groups": ["ssh-users", "ssh-docker"], "keys": [{}]}]}))
            .settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[groups]\n'ssh-docker' = { group = 'docker', allow_privileged = true }")
            .start();
        machine.sh(&format!("{local}; iamctl write-mapped-gids")).succeeds();
        for user in ["alice", "carol"] {
            machine.open_session(user);
            work(&machine, user, "setsid -f sleep 4960 </dev/null >/dev/null 2>&1; id -Gn >groups");
            machine.wait_until(&format!("grep -qw docker /home/{user}/groups"));
        }
        // Nobody loses a group because IAM says nothing, or half of it.
        for fault in
            ["fail=reset", "fail=throttle&only=ListGroupsForUser", "fail=denied&only=ListGroupsForUser"]
        {
            for flush in ["true", "iamctl flush"] {
                machine.fault(fault);
                let said = machine.sh(&format!("{flush}; iamctl sweep")).succeeds();
                assert!(
                    flush == "true" || said.contains("IAM gave no answer about 2 users, who go on"),
                    "{fault}: {said}"
                );
                machine.sh("! test -e /tmp/alice.over && ! test -e /tmp/carol.over").succeeds();
                machine.fault("fail=");
            }
        }
        machine.iam().remove_from_group("alice", "ssh-docker");
        // A failure is remembered for a moment.
        machine
            .sh("until iamctl flush && box-ssh carol true; do [ $SECONDS -lt 20 ] || exit 1; done")
            .succeeds();
        let said = machine.sh("iamctl sweep").succeeds();
        assert!(said.contains("ended the session of alice") && said.contains("group-withdrawn"), "{said}");
        machine.wait_until("test -e /tmp/alice.over");
        // What has left the session ends with it.
        machine.sh("! test -e /tmp/carol.over && pgrep -u carol -f '^sleep 4960' && ! pgrep -u alice -f '^sleep 4960'").succeeds();
        assert!(
            !machine.ssh("alice", "id -Gn").succeeds().contains("docker"),
            "and she may come back without it"
        );
    }
}

#[test]
fn a_withdrawn_privileged_group_leaves_with_whatever_holds_it_session_or_not() {
    for withdrawal in ["in IAM", "in the configuration"] {
        let machine = Machine::new()
            .fixtures(json!({"groups": ["ssh-users", "ssh-docker"], "users": [
                {"name": "alice", "groups": ["ssh-users", "ssh-docker"], "keys": [{}]}]}))
            .settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[groups]\n'ssh-docker' = { group = 'docker', allow_privileged = true }")
            .booted()
            .start();
        machine
            .sh("sed -i /^docker:/d /etc/group; echo docker:x:4998: >>/etc/group; iamctl write-mapped-gids; iamctl sweep
                 install -o root -g docker -m 2755 /bin/sleep /usr/local/bin/hosts")
            .succeeds();
        machine
            .ssh("alice", "setsid -f sleep 4950 </dev/null >/dev/null 2>&1; cp /bin/sleep mine; chgrp docker mine; chmod g+s mine
                 systemd-run --quiet --user /bin/sleep 4951")
            .succeeds();
        machine.wait_until("pgrep -f '^sleep 4950' && pgrep -f '[s]leep 4951'");
        match withdrawal {
            "in IAM" => machine.iam().remove_from_group("alice", "ssh-docker"),
            _ => drop(machine.sh("sed -i '/^.groups/d; /^.ssh-docker/d' /etc/pam_iam/config.toml; systemctl restart iam-resolver").succeeds()),
        }
        // Who comes anew comes without it, and keeps what she begins.
        machine.open_session("alice");
        work(&machine, "alice", "sleep 4952 & setsid -f ./mine 4953; setsid -f /usr/local/bin/hosts 4954");
        machine.wait_until("pgrep -f '^sleep 4952' && pgrep -f '^./mine 4953' && pgrep -f 'hosts 4954'");
        let said = machine.sh("iamctl sweep").succeeds();
        assert!(said.contains("group-withdrawn"), "{withdrawal}: {said}");
        machine
            .sh("! pgrep -f '^sleep 4950' && ! pgrep -f '[s]leep 4951' && ! pgrep -f '^./mine 4953'
                 pgrep -f '^sleep 4952' && pgrep -f 'hosts 4954' && ! test -e /tmp/alice.over")
            .succeeds();
        machine.sh("! grep -l '^Groups:.*4998' /proc/[0-9]*/status").succeeds();
    }
}

#[test]
fn a_sweep_that_works_for_longer_than_a_minute_is_an_error_that_status_shows() {
    let machine = machine();
    machine.ssh("alice", "true").succeeds();
    // As one that was stopped a while ago holds the lock.
    machine
        .sh("(flock /run/pam_iam/sessions sleep 1000 </dev/null >/dev/null 2>&1 &)
             until ! flock -n /run/pam_iam/sessions true; do sleep 0.02; done")
        .succeeds();
    assert!(machine.sh("iamctl sweep").succeeds().contains("another sweep is running"));
    machine.sh("now=$(cut -d. -f1 /proc/uptime); echo \"{\\\"running_since\\\": $((now > 90 ? now - 90 : 0))}\" >/run/pam_iam/sweep.json").succeeds();
    assert!(machine.sh("iamctl sweep").fails().contains("another sweep has been at work for"));
    machine.logs("authpriv", "longer than the minute between two sweeps");
    assert!(machine.sh("iamctl status").succeeds().contains("1 took longer than a minute"));
    machine.sh("iamctl status --prometheus /tmp/metrics && grep -q '^pam_iam_sweep_overruns_total 1' /tmp/metrics").succeeds();
}
