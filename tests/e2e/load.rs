//! Many at once, and those who mean harm: everybody else is served, IAM is asked no more than it must be, nothing grows.

use pam_iam_tests::Machine;
use serde_json::json;

/// What a client of the resolver's socket is made of, in Python: `connect()` gives a connection.
const CLIENT: &str = "import socket, struct
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect('/run/pam_iam/resolver.sock')
    return client
def ask(client, body):
    client.sendall(struct.pack('>I', len(body)) + body)
    return client.makefile('rb').read()
";

/// Does `what` as `user`, with what [`CLIENT`] has.
fn client(machine: &Machine, user: &str, what: &str) -> pam_iam_tests::Done {
    let script = format!("{CLIENT}{what}");
    machine.run(&["setpriv", "--reuid", user, "--regid", "65534", "--clear-groups", "python3", "-c", &script])
}

/// The resolver's resident memory in KiB.
fn memory(machine: &Machine) -> u64 {
    let status = machine.sh("grep VmRSS /proc/$(pgrep -x iam-resolver)/status | tr -dc 0-9").succeeds();
    status.parse().unwrap_or_default()
}

#[test]
fn two_hundred_logins_of_fifty_users_at_once_all_succeed_and_share_their_calls() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
            "filler": {"count": 50, "prefix": "user", "groups": ["ssh-users"]}}))
        // The box's IAM shares its processors with 200 sshds, and answers some 200 calls a second at best.
        .settings("[aws]\ncall_timeout = '8s'\ntotal_timeout = '8s'")
        .start();
    machine.clear_calls();
    let before = memory(&machine);
    let began = machine.sh("date +%s").succeeds().parse::<u64>().unwrap_or_default();
    let failed = machine
        .sh("for n in $(seq 0 199); do (box-ssh user$((n % 50)) id -un >/run/out.$n 2>&1 </dev/null || true) & done; wait
             for n in $(seq 0 199); do grep -qx user$((n % 50)) /run/out.$n || { echo $n; cat /run/out.$n; }; done | head -n 20")
        .succeeds();
    assert_eq!(failed, "");
    let seconds = machine.sh("date +%s").succeeds().parse::<u64>().unwrap_or_default() - began;
    // 200 who wait at once, each with its buffers.
    assert!(memory(&machine) <= before + 24 * 1024, "{before} KiB, then {} KiB", memory(&machine));
    let calls = machine.calls();
    let of = |action: &str| calls.iter().filter(|call| call.action == action).count() as u64;
    assert_eq!(of("GetSSHPublicKey"), 50, "once for each key, ever");
    // An answer serves for max_age, 10 s.
    assert!(of("GetUser") <= 50 * (1 + seconds / 10), "{} in {seconds} s", of("GetUser"));
}

#[test]
fn many_look_ups_from_many_processes_make_no_error_and_nothing_grow() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    // `PAM_IAM_LOAD_SECONDS=60 ./test look_ups` is a minute of it. 8 processes at 625 a second are 5,000.
    let seconds = std::env::var("PAM_IAM_LOAD_SECONDS").unwrap_or_else(|_| "5".to_owned());
    let look_up = format!(
        "import pwd, grp, time
began, done = time.monotonic(), 0
while (now := time.monotonic()) - began < {seconds}:
    if done > (now - began) * 625:
        time.sleep(0.002)
        continue
    assert pwd.getpwnam('alice').pw_shell == '/bin/bash'
    done += 1
print(done)"
    );
    let eight = |machine: &Machine| {
        machine.sh(&format!("cat >/run/look_up.py <<'E'\n{look_up}\nE\nfor n in 1 2 3 4 5 6 7 8; do python3 /run/look_up.py >/run/done.$n & pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || exit; done; cat /run/done.* | awk '{{ sum += $1 }} END {{ print sum }}'"))
    };
    eight(&machine).succeeds();
    let before = memory(&machine);
    let sum: u64 = eight(&machine).succeeds().parse().unwrap_or_default();
    assert!(sum > 8, "{sum}");
    let after = memory(&machine);
    assert!(after <= before + 1024, "{before} KiB, then {after} KiB");
    println!("{sum} look-ups in {seconds} s");
}

#[test]
fn clients_that_say_nothing_half_or_too_much_and_never_read_keep_nobody_from_being_served() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    let before = memory(&machine);
    for (what, many) in [
        ("silent", "held = [connect() for _ in range(400)]"),
        (
            "half a frame",
            "held = [connect() for _ in range(400)]\nfor c in held:\n    try: c.sendall(b'\\0\\0\\0\\x40{\"v\":')\n    except OSError: pass",
        ),
        (
            "4 GiB",
            "held = [connect() for _ in range(400)]\nfor c in held:\n    try: c.sendall(b'\\xff\\xff\\xff\\xff{')\n    except OSError: pass",
        ),
        (
            "never reading",
            "held = [connect() for _ in range(400)]\nbody = b'{\"v\":1,\"ask\":\"group-by-name\",\"name\":\"iam-users\"}'\nfor c in held:\n    try: c.sendall(struct.pack('>I', len(body)) + body)\n    except OSError: pass",
        ),
    ] {
        // Again and again, as fast as they are put out.
        let script = format!(
            "{CLIENT}while True:\n    {}\n    open('/tmp/attacked', 'w').close()\n",
            many.replace('\n', "\n    ")
        );
        machine.sh("rm -f /tmp/attacked").succeeds();
        machine.run(&["bash", "-c", "ulimit -n 4096; setpriv --reuid nobody --regid 65534 --clear-groups python3 -c \"$1\" </dev/null >/dev/null 2>&1 & echo $! >/run/attacker", "bash", &script]).succeeds();
        machine.wait_until("test -e /tmp/attacked");
        machine.ssh("alice", "true").succeeds();
        machine.run(&["getent", "passwd", "alice"]).succeeds();
        let other = client(
            &machine,
            "daemon",
            "print(ask(connect(), b'{\"v\":1,\"ask\":\"user-by-name\",\"name\":\"alice\"}'))",
        );
        assert!(other.succeeds().contains("\"answer\":\"user\""), "another user, {what}");
        machine.sh("kill $(cat /run/attacker); rm -f /tmp/attacked").succeeds();
    }
    assert!(memory(&machine) <= before + 4096, "{before} KiB, then {} KiB", memory(&machine));
}

#[test]
fn no_answer_that_everybody_may_ask_for_grows_with_the_number_of_users() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}]}],
            "filler": {"count": 8000, "prefix": "a-name-of-so-many-letters-", "groups": ["ssh-users"]}}))
        .start();
    let status = machine.sh("iamctl --json status").succeeds();
    assert!(status.contains("\"roster_users\": 8001"), "{status}");
    for ask in ["group-by-name", "groups-of", "user-by-name"] {
        let name = if ask == "group-by-name" { "iam-users" } else { "alice" };
        let body = json!({"v": 1, "ask": ask, "name": name});
        client(&machine, "nobody", &format!("assert 20 < len(ask(connect(), b'{body}')) < 1000")).succeeds();
    }
}

#[test]
fn connections_without_number_one_after_the_other_are_served_and_leave_nothing() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    let count = std::env::var("PAM_IAM_CONNECTIONS").unwrap_or_else(|_| "20000".to_owned());
    let hammer = |count: &str| {
        client(&machine, "nobody", &format!("for _ in range({count}): connect().close()")).succeeds();
        // While the last of those are still being put out, there may be no room for another.
        client(&machine, "nobody", "import time\nwhile not ask(connect(), b'{\"v\":1,\"ask\":\"user-by-name\",\"name\":\"alice\"}'): time.sleep(0.01)").succeeds();
        client(&machine, "nobody", &format!("for _ in range(int({count}) // 20): assert b'user' in ask(connect(), b'{{\"v\":1,\"ask\":\"user-by-name\",\"name\":\"alice\"}}')")).succeeds();
    };
    hammer("2000");
    let (before, descriptors) =
        (memory(&machine), machine.sh("ls /proc/$(pgrep -x iam-resolver)/fd | wc -l").succeeds());
    hammer(&count);
    machine.wait_until(&format!("test $(ls /proc/$(pgrep -x iam-resolver)/fd | wc -l) -le {descriptors}"));
    assert!(memory(&machine) <= before + 1024, "{before} KiB, then {} KiB", memory(&machine));
}

#[test]
fn while_the_resolver_is_killed_again_and_again_all_logins_succeed() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    // `PAM_IAM_KILLS=300 ./test again_and_again` is a minute of it.
    let kills = std::env::var("PAM_IAM_KILLS").unwrap_or_else(|_| "60".to_owned());
    let done = machine.sh(&format!(
        "(left={kills}; while [ $left -gt 0 ] && [ $SECONDS -lt 200 ]; do pkill -9 -x iam-resolver && left=$((left - 1)); sleep 0.2; done; echo $left >/run/killed) &
         until [ -e /run/killed ]; do box-ssh alice true && echo in || echo out; done; wait; cat /run/killed"
    ));
    let said = done.succeeds() + "\n";
    assert!(!said.contains("out") && said.matches("in\n").count() >= 3 && said.ends_with("\n0\n"), "{said}");
}
