//! Attacks by a hostile user of the host. Programs carry them out, and each writes a proof that it did.
//!
//! The programs are in `attacks/*.c`. They are compiled in the box and run as an unprivileged user.

#[path = "attacks/budget.rs"]
mod budget;
#[path = "attacks/directories.rs"]
mod directories;
#[path = "attacks/evasion.rs"]
mod evasion;
#[path = "attacks/foreign_uids.rs"]
mod foreign_uids;
#[path = "attacks/groups.rs"]
mod groups;
#[path = "attacks/hopping.rs"]
mod hopping;
#[path = "attacks/operator.rs"]
mod operator;
#[path = "attacks/resolver.rs"]
mod resolver;
#[path = "attacks/rights.rs"]
mod rights;
#[path = "attacks/spared.rs"]
mod spared;
#[path = "attacks/trail.rs"]
mod trail;

use pam_iam_tests::{Done, Machine, repository};

/// The folder of the compiled attacks.
const FOLDER: &str = "/opt/attacks";

/// Settings with which a sweep asks IAM about each user, and kills processes one second after it has asked them to end.
const PROMPT: &str = "[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n";

fn start_machine() -> Machine {
    Machine::new().settings(PROMPT).start()
}

fn start_booted_machine() -> Machine {
    Machine::new().settings(PROMPT).booted().start()
}

/// Starts a box that has a local account `alice` with the uid 1500 and adopts it.
fn start_machine_that_adopts_alice() -> Machine {
    let machine = Machine::new().settings(&format!("{PROMPT}[accounts]\nadopt = ['alice']")).start();
    add_local_alice(&machine);
    machine
}

/// Makes a local account `alice` with the uid 1500. useradd(8) refuses to while an IAM user has the name.
fn add_local_alice(machine: &Machine) {
    machine.file("/etc/passwd").append("alice:*:1500:1500::/home/alice:/bin/bash\n");
    machine.file("/etc/group").append("alice:x:1500:\n");
    machine.run(&["install", "-d", "-o", "alice", "/home/alice"]).succeeds();
}

/// Compiles an attack in the box. Returns its path.
fn compile(machine: &Machine, attack: &str) -> String {
    let source = repository().join(format!("tests/e2e/attacks/{attack}.c"));
    let program = format!("{FOLDER}/{attack}");
    machine
        .sh(&format!(
            "mkdir -p -m 755 {FOLDER} && cc -Wall -Wextra -Werror -O1 -o {program} {} -lpthread",
            source.display()
        ))
        .succeeds();
    program
}

/// Runs an attack in a session of `user`, and waits until a proof file has the word `proof` and a positive number.
fn start_attack(machine: &Machine, user: &str, attack: &str, arguments: &str, proof: &str) {
    let program = compile(machine, attack);
    machine.ssh_in_background(user, &format!("{program} {arguments}"));
    machine.wait_until(&format!("grep -qs '{proof} *[1-9]' /tmp/proof.*"));
}

/// Returns how many seconds an attack lasts: 10, or the value of `PAM_IAM_ATTACK_SECONDS`.
fn seconds() -> u32 {
    std::env::var("PAM_IAM_ATTACK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10)
}

/// Removes a user from ssh-users, the only group that may log in.
fn withdraw(machine: &Machine, user: &str) {
    machine.iam().remove_from_group(user, "ssh-users");
}

/// Runs `iamctl sweep`. The result is a failure if the sweep takes longer than a minute.
fn sweep(machine: &Machine) -> Done {
    machine.run(&["timeout", "60", "iamctl", "sweep"])
}

/// Starts a program as `user` by SSH, for instance `sleep 4001`, that outlives the session. Returns the user's uid.
fn leave_running(machine: &Machine, user: &str, command: &str) -> u32 {
    machine.leave_running(user, user, command);
    machine.uid_of(user)
}

/// Starts 400 processes of root, so that reading all of /proc takes long.
fn slow_down_proc(machine: &Machine) {
    machine.sh("for n in $(seq 400); do setsid -f sleep 3000 </dev/null >/dev/null 2>&1; done").succeeds();
}

/// Lists the processes and threads whose real or saved uid is `uid`, or whose effective uid is while the real one is not
/// root's. Omits zombies. Does not use the product's code.
fn processes_under(machine: &Machine, uid: u32) -> String {
    machine
        .sh(&format!(
            r#"for status in /proc/[0-9]*/task/*/status; do
    awk -v uid={uid} -v file=$status '
        /^Name:/ {{ name = $0 }} /^State:/ {{ state = $2 }} /^Pid:/ {{ pid = $2 }}
        /^Uid:/ {{ if (state !~ /[ZX]/ && ($2 == uid && $3 != 0 || $2 == uid || $3 == uid && $2 != 0 || $4 == uid)) print pid, name, $0 }}
    ' $status 2>/dev/null
done; true"#
        ))
        .succeeds()
}

/// Users whose processes no test may end, and the program that each runs.
const BYSTANDERS: [(&str, &str); 5] = [
    ("nobody", "sleep 7001"),
    ("www-data", "sleep 7002"),
    ("postgres", "sleep 7003"),
    ("daemon", "sleep 7004"),
    ("root", "sleep 7005"),
];

fn start_bystanders(machine: &Machine) {
    machine.sh("id postgres >/dev/null 2>&1 || useradd --system postgres").succeeds();
    for (user, command) in BYSTANDERS {
        machine.start_as(user, command);
    }
}

fn assert_that_bystanders_live(machine: &Machine) {
    for (user, command) in BYSTANDERS {
        assert!(machine.is_running_as(user, command), "a process of {user} has ended");
    }
}
