//! Many clients at once and hostile clients: everybody else is served, IAM gets no more calls than necessary, and the
//! resolver's memory does not grow.

use std::time::Instant;

use pam_iam_tests::{Done, Machine, repository};
use serde_json::json;

/// A client of the resolver's socket in Python: `connect()` returns a connection, `ask()` sends a request on it and returns
/// the answer.
const CLIENT: &str = "import socket, struct, time
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect('/run/pam_iam/resolver.sock')
    return client
def send(client, body):
    client.sendall(struct.pack('>I', len(body)) + body)
def ask(client, body):
    send(client, body)
    return client.makefile('rb').read()
ALICE = b'{\"v\":1,\"ask\":\"user-by-name\",\"name\":\"alice\"}'
";

/// Runs Python as `user`, after the definitions of [`CLIENT`].
fn run_client(machine: &Machine, user: &str, script: &str) -> Done {
    machine.as_user(user).with_gid(65534).run(&["python3", "-c", &format!("{CLIENT}{script}")])
}

/// Returns the resolver's resident memory in KiB.
fn memory(machine: &Machine) -> u64 {
    let status = machine.file(&format!("/proc/{}/status", machine.resolver_pid())).text();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or_default()
}

/// Asserts that the resolver's memory is at most `limit` KiB more than `before`.
#[track_caller]
fn assert_memory_grew_at_most(machine: &Machine, before: u64, limit: u64) {
    let after = memory(machine);
    assert!(after > 0 && before > 0 && after <= before + limit, "{before} KiB, then {after} KiB");
}

/// Returns the environment variable `variable`, which makes a test last longer, or `default`, which suits `./test`.
fn setting(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

/// Logs in 200 times at once, four times as each of 50 users. Prints the number and output of logins that failed.
const LOG_IN_200_TIMES: &str = "
for n in $(seq 0 199); do
    (box-ssh user$((n % 50)) id -un >/run/out.$n 2>&1 </dev/null || true) &
done
wait
for n in $(seq 0 199); do
    grep -qx user$((n % 50)) /run/out.$n || { echo $n; cat /run/out.$n; }
done | head -n 20";

#[test]
fn two_hundred_logins_of_fifty_users_at_once_all_succeed_and_share_their_calls() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 50, "prefix": "user", "groups": ["ssh-users"]}}))
        // The box's IAM has to share its processors with 200 sshds, and answers at most some 200 calls a second.
        .settings("[aws]\ncall_timeout = '8s'\ntotal_timeout = '8s'")
        .start();
    machine.clear_calls();
    let before = memory(&machine);
    let began = Instant::now();
    assert_eq!(machine.sh(LOG_IN_200_TIMES).succeeds(), "");
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    // The limit allows for the buffers of 200 clients that wait at once.
    assert_memory_grew_at_most(&machine, before, 24 * 1024);
    assert_eq!(machine.count_calls("GetSSHPublicKey"), 50, "one for each key, once and for all");
    // An answer serves for max_age, which is 10 s.
    let users = machine.count_calls("GetUser");
    assert!(users <= 50 * (1 + seconds / 10), "{users} in {seconds} s");
}

/// Looks alice up 625 times a second for the number of seconds in its argument. Prints the number of lookups.
const LOOK_UP: &str = "import pwd, sys, time
seconds = float(sys.argv[1])
began, done = time.monotonic(), 0
while (now := time.monotonic()) - began < seconds:
    if done > (now - began) * 625:
        time.sleep(0.002)
        continue
    assert pwd.getpwnam('alice').pw_shell == '/bin/bash'
    done += 1
print(done)
";

/// Runs [`LOOK_UP`] in eight processes at once, which makes 5,000 lookups a second. Prints the number of all lookups.
const LOOK_UP_IN_EIGHT_PROCESSES: &str = "
for n in 1 2 3 4 5 6 7 8; do
    python3 /run/look_up.py $1 >/run/done.$n & pids=\"$pids $!\"
done
for pid in $pids; do wait $pid || exit; done
cat /run/done.* | awk '{ sum += $1 } END { print sum }'";

/// `PAM_IAM_LOAD_SECONDS=60 ./test lookups` makes each of the two rounds last a minute.
#[test]
fn lookups_by_many_processes_never_fail_and_do_not_make_the_resolver_grow() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    let seconds = setting("PAM_IAM_LOAD_SECONDS", "5");
    machine.file("/run/look_up.py").write(LOOK_UP);
    let look_up = || machine.run(&["bash", "-c", LOOK_UP_IN_EIGHT_PROCESSES, "bash", &seconds]).succeeds();
    look_up();
    let before = memory(&machine);
    let sum: u64 = look_up().parse().unwrap();
    assert!(sum > 8, "{sum}");
    assert_memory_grew_at_most(&machine, before, 1024);
    println!("{sum} lookups in {seconds} s");
}

/// A name for each hostile client, and the Python that it runs on each of its 400 connections `c`, which it leaves open.
const HOSTILE: [(&str, &str); 4] = [
    ("silent", "pass"),
    ("half a frame", r#"c.sendall(b'\0\0\0\x40{"v":')"#),
    ("4 GiB", r"c.sendall(b'\xff\xff\xff\xff{')"),
    ("never reading", r#"send(c, b'{"v":1,"ask":"group-by-name","name":"iam-users"}')"#),
];

/// Starts a client that opens 400 connections, runs `send` on each, and begins anew. Waits until the first 400 are open.
#[track_caller]
fn start_hostile_client(machine: &Machine, send: &str) {
    machine.file("/run/hostile.py").write(&format!(
        "{CLIENT}
while True:
    held = [connect() for _ in range(400)]
    for c in held:
        try: {send}
        except OSError: pass
    open('/tmp/attacked', 'w').close()
"
    ));
    machine.start_in_background(
        "ulimit -n 4096; echo $$ >/run/hostile.pid
        exec setpriv --reuid nobody --regid 65534 --clear-groups python3 /run/hostile.py",
    );
    machine.wait_until("test -e /tmp/attacked");
}

#[test]
fn hostile_clients_keep_nobody_else_from_being_served_and_do_not_make_the_resolver_grow() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    let before = memory(&machine);
    for (what, send) in HOSTILE {
        start_hostile_client(&machine, send);
        machine.ssh("alice", "true").succeeds();
        assert!(machine.passwd("alice").is_some(), "{what}");
        let answer = run_client(&machine, "daemon", "print(ask(connect(), ALICE))").succeeds();
        assert!(answer.contains("\"answer\":\"user\""), "{what}: {answer}");
        machine.sh("kill $(cat /run/hostile.pid)").succeeds();
        machine.wait_until_gone("python3 /run/hostile.py");
        machine.file("/tmp/attacked").remove();
    }
    assert_memory_grew_at_most(&machine, before, 4096);
}

#[test]
fn no_answer_that_every_user_may_ask_for_grows_with_the_number_of_users() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}]}],
            "filler": {"count": 8000, "prefix": "a-name-of-so-many-letters-", "groups": ["ssh-users"]}}))
        .start();
    let status = machine.iamctl("--json status").succeeds();
    assert!(status.contains("\"roster_users\": 8001"), "{status}");
    for (ask, name) in [("group-by-name", "iam-users"), ("groups-of", "alice"), ("user-by-name", "alice")] {
        let body = json!({"v": 1, "ask": ask, "name": name});
        run_client(&machine, "nobody", &format!("assert 20 < len(ask(connect(), b'{body}')) < 1000"))
            .succeeds();
    }
}

/// Opens and closes `count` connections one after the other. Then looks alice up on a twentieth as many connections.
fn connect_many_times(machine: &Machine, count: &str) {
    run_client(machine, "nobody", &format!("for _ in range({count}): connect().close()")).succeeds();
    // There may be no room for another connection before the resolver has closed the last ones.
    run_client(machine, "nobody", "while not ask(connect(), ALICE): time.sleep(0.01)").succeeds();
    let ask = format!("for _ in range({count} // 20): assert b'user' in ask(connect(), ALICE)");
    run_client(machine, "nobody", &ask).succeeds();
}

/// `PAM_IAM_CONNECTIONS=1000000 ./test connections` makes a million connections.
#[test]
fn many_short_connections_are_served_and_leave_neither_descriptors_nor_memory_behind() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    connect_many_times(&machine, "2000");
    let before = memory(&machine);
    let descriptors = format!("/proc/{}/fd", machine.resolver_pid());
    let count = machine.file(&descriptors).names().len();
    connect_many_times(&machine, &setting("PAM_IAM_CONNECTIONS", "20000"));
    machine.wait_until(&format!("test $(ls {descriptors} | wc -l) -le {count}"));
    assert_memory_grew_at_most(&machine, before, 1024);
}

/// Kills the resolver five times a second, as often as its argument says, for at most 200 s. Meanwhile logs in as alice
/// again and again, and prints "in" if that succeeds or else "out". At the end prints the number of kills that were not
/// made.
const LOG_IN_WHILE_KILLING: &str = "
(left=$1
while [ $left -gt 0 ] && [ $SECONDS -lt 200 ]; do
    pkill -9 -x iam-resolver && left=$((left - 1))
    sleep 0.2
done
echo $left >/run/killed) &
until [ -e /run/killed ]; do box-ssh alice true && echo in || echo out; done
wait
cat /run/killed";

/// `PAM_IAM_KILLS=300 ./test killed_repeatedly` makes this test last a minute.
#[test]
fn all_logins_succeed_while_the_resolver_is_killed_repeatedly() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    let kills = setting("PAM_IAM_KILLS", "60");
    let said = machine.run(&["bash", "-c", LOG_IN_WHILE_KILLING, "bash", &kills]).succeeds();
    let mut lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.pop(), Some("0"), "{said}");
    assert!(lines.len() >= 3 && lines.iter().all(|line| *line == "in"), "{said}");
}

/// Replaces the map 1000 times by a copy of it, and then ends.
const REPLACE_MAP: &str = "import os, pwd
path = '/run/pam_iam/map/nss.map'
content, owner = open(path, 'rb').read(), pwd.getpwnam('iam-resolver').pw_uid
for _ in range(1000):
    with open(path + '.new', 'wb') as file:
        file.write(content)
    os.chown(path + '.new', owner, owner)
    os.rename(path + '.new', path)
open('/run/replaced', 'w')";

#[test]
fn a_million_lookups_in_32_threads_are_right_while_the_map_is_replaced_and_leave_nothing_behind() {
    let program = repository().join("target/nss_load");
    let source = repository().join("tests/lib/nss_bench.c");
    let compile = ["-O2", "-o", &program.to_string_lossy(), &source.to_string_lossy(), "-ldl", "-lpthread"];
    assert!(std::process::Command::new("cc").args(compile).status().is_ok_and(|status| status.success()));

    let machine = Machine::new().start();
    machine.signal_resolver("STOP");
    machine.start_in_background(&format!("python3 -c \"{REPLACE_MAP}\""));
    let look_up = |threads: u32, lookups: u32| {
        let library = "/usr/lib/*/libnss_iam.so.2";
        let said =
            machine.sh(&format!("{} {library} iam passwd alice 0 {lookups} {threads}", program.display()));
        let words: Vec<i64> = said.succeeds().split(' ').filter_map(|word| word.parse().ok()).collect();
        words.get(1 + threads as usize..).map(<[i64]>::to_vec).unwrap_or_default()
    };
    let many = look_up(32, 31_250);
    let few = look_up(32, 10);
    // The status of success, no other result, and the three standard descriptors.
    assert_eq!(
        (many.get(..3), few.get(..3)),
        (Some(&[1, 0, 3][..]), Some(&[1, 0, 3][..])),
        "{many:?} {few:?}"
    );
    let grown = many.last().unwrap() - few.last().unwrap();
    assert!(grown < 4096, "{grown} KiB more than after ten lookups");
    machine.wait_until("test -e /run/replaced");
    machine.signal_resolver("CONT");
}
