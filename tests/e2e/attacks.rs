//! Attacks: what a hostile user of the host does, as programs that really do it. Each proves that it was at work.
//!
//! The programs are in `attacks/*.c`; they are compiled in the box and run as the unprivileged user.

#[path = "attacks/budget.rs"]
mod budget;
#[path = "attacks/hopping.rs"]
mod hopping;
#[path = "attacks/processes.rs"]
mod processes;
#[path = "attacks/rights.rs"]
mod rights;
#[path = "attacks/trail.rs"]
mod trail;

use pam_iam_tests::{Machine, repository};

/// Where the compiled attacks are.
const FOLDER: &str = "/opt/attacks";

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

/// How long an attack goes on: 10 s, or what a night run has time for.
fn seconds() -> u32 {
    std::env::var("PAM_IAM_ATTACK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10)
}

/// The processes and threads that still work under a uid, by any of their uids. Read here by other means than the product's.
fn left_of(machine: &Machine, uid: &str) -> String {
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

/// Processes of others, which nothing may end.
struct Bystanders;

impl Bystanders {
    const USERS: [&'static str; 5] = ["nobody", "www-data", "postgres", "daemon", "root"];

    fn start(machine: &Machine) -> Self {
        machine.sh("id postgres >/dev/null 2>&1 || useradd --system postgres").succeeds();
        for user in Self::USERS {
            machine
                .sh(&format!(
                    "setpriv --reuid {user} --regid {user} --clear-groups setsid -f sleep 7{:03} </dev/null >/dev/null 2>&1 || \
                     setpriv --reuid {user} --clear-groups setsid -f sleep 7{:03} </dev/null >/dev/null 2>&1",
                    user.len(),
                    user.len()
                ))
                .succeeds();
        }
        Self
    }

    fn live(&self, machine: &Machine) {
        for user in Self::USERS {
            let found = machine.sh(&format!("pgrep -u {user} -f '^sleep 7{:03}'", user.len()));
            assert_eq!(found.status, 0, "a process of {user} has ended");
        }
    }
}
