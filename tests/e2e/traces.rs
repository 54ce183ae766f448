//! What strace(1) shows of sshd, sudo and ls: the connections that they make to the resolver, and what they leave open.

use std::collections::BTreeMap;

use pam_iam_tests::Machine;

/// The folder of the traces, with a file for each process.
const TRACES: &str = "/run/traces";

/// The calls that open, copy or close a descriptor.
const CALLS: &str = "trace=open,openat,socket,connect,accept4,dup,dup2,dup3,fcntl,close,close_range";

/// Runs `command` while the process `pid` and the processes that it starts are traced. Returns the trace of each process.
fn traced(machine: &Machine, pid: &str, command: &str) -> Vec<String> {
    machine
        .sh(&format!(
            "rm -rf {TRACES}; mkdir {TRACES}
            strace -ff -s 200 -o {TRACES}/of -e {CALLS} -p {pid} 2>{TRACES}/messages &
            until grep -q attached {TRACES}/messages; do sleep 0.01; done
            {command}
            kill -INT $!; wait $!; true"
        ))
        .succeeds();
    traces(machine)
}

fn traces(machine: &Machine) -> Vec<String> {
    let names = machine.file(TRACES).names();
    let files = names.iter().filter(|name| name.starts_with("of."));
    files.map(|name| machine.file(&format!("{TRACES}/{name}")).text()).collect()
}

/// The descriptors of one process that are files or connections of ours.
#[derive(Default)]
struct Descriptors {
    /// What was opened, by descriptor.
    open: BTreeMap<String, String>,
    /// How many were opened in all.
    count: usize,
}

impl Descriptors {
    fn of(trace: &str) -> Self {
        let mut descriptors = Self::default();
        for line in trace.lines() {
            descriptors.read(line);
        }
        descriptors
    }

    fn read(&mut self, line: &str) {
        let Some((call, rest)) = line.split_once('(') else { return };
        let first = rest.split([',', ')']).next().unwrap_or_default().to_owned();
        let result = line.rsplit_once(" = ").map(|(_, result)| result.trim()).unwrap_or_default();
        match call {
            "open" | "openat" if rest.contains("pam_iam") && !result.starts_with('-') => {
                self.open.insert(result.to_owned(), line.to_owned());
                self.count += 1;
            }
            "connect" if rest.contains("pam_iam") && !result.starts_with('-') => {
                self.open.insert(first, line.to_owned());
                self.count += 1;
            }
            "dup" | "dup2" | "dup3" | "fcntl" if call != "fcntl" || rest.contains("F_DUPFD") => {
                if let Some(opened) = self.open.get(&first).cloned() {
                    self.open.insert(result.to_owned(), opened);
                }
            }
            "close" => {
                self.open.remove(&first);
            }
            _ => {}
        }
    }
}

/// Fails unless some descriptor of ours was opened, and all were closed.
fn assert_that_nothing_is_left_open(what: &str, traces: &[String]) {
    let all: Vec<Descriptors> = traces.iter().map(|trace| Descriptors::of(trace)).collect();
    assert!(all.iter().any(|descriptors| descriptors.count > 0), "{what}: nothing of ours was opened");
    for descriptors in &all {
        assert!(descriptors.open.is_empty(), "{what}: {:?}", descriptors.open);
    }
}

#[test]
fn sshd_sudo_and_ls_leave_no_descriptor_of_ours_open() {
    let machine = Machine::new().start();
    machine.ssh("carol", "touch file").succeeds();
    let sshd = machine.run(&["cat", "/run/sshd.pid"]).succeeds();
    let login = traced(&machine, &sshd, "box-ssh carol sudo -n id -u >/dev/null");
    assert_that_nothing_is_left_open("sshd", &login);
    for (what, command) in [
        ("ls", "ls -l /home/carol"),
        ("sudo", "-u carol sudo -n true"),
        ("sudo that refuses", "-u alice sudo -n true"),
        ("id of nobody", "id ghost"),
    ] {
        let options = format!("-ff -s 200 -o {TRACES}/of -e {CALLS}");
        machine
            .sh(&format!("rm -f {TRACES}/of.*; strace {options} {command} >/dev/null 2>&1; true"))
            .succeeds();
        assert_that_nothing_is_left_open(what, &traces(&machine));
    }
}

#[test]
fn a_login_of_a_known_user_makes_four_connections() {
    let machine = Machine::new().settings("[freshness]\nmax_age = '10m'").start();
    machine.ssh("alice", "true").succeeds();
    let accepted = traced(&machine, &machine.resolver_pid(), "box-ssh alice true");
    let accepted: Vec<&str> = accepted.iter().flat_map(|trace| trace.lines()).collect();
    let connections = accepted.iter().filter(|call| call.starts_with("accept4(") && !call.contains(" = -1"));
    assert_eq!(connections.count(), 4, "two runs of the key command, the account and the session phase");
}
