//! No user can make a host use up the calls to IAM that are there for the whole AWS account.

use std::time::Instant;

use pam_iam_tests::Machine;

use super::seconds;

/// Returns the number of calls that a host may make in `seconds` by docs/operations.md, if `known` users exist in IAM and
/// their entries are revalidated every `max_age` seconds.
fn budget(seconds: u64, known: u64, max_age: u64) -> u64 {
    let unknown = 30 + 30 * seconds.div_ceil(60);
    let revalidations = known * (seconds.div_ceil(max_age) + 1);
    // The roster is read every 270 s or less often, with a call for each of the two groups.
    let rosters = 2 * (seconds / 270 + 1);
    3 * (unknown + revalidations) + rosters
}

/// Loops in which two local users and a stranger ask for known, allowed, refused and unknown names: the program that runs a
/// script, and the script.
const LOOPS: [(&str, &str); 3] = [
    ("su mallory -c", "for name in alice carol bob root ghost$RANDOM; do su $name -c true </dev/null; done"),
    (
        "su oscar -c",
        "for name in alice carol bob ghost$RANDOM; do sudo -n -u $name true </dev/null; id $name; done",
    ),
    ("bash -c", "for name in alice carol bob ghost$RANDOM; do box-ssh -i /root/stranger $name true; done"),
];

/// Starts all loops for `seconds`. Each writes the number of its turns so far to `/tmp/loop.NUMBER`.
fn start_loops(machine: &Machine, seconds: u32) {
    for (number, (runner, script)) in LOOPS.iter().enumerate() {
        machine.start_in_background(&format!(
            "exec timeout {seconds} {runner} 'n=0; while :; do {script}; n=$((n+1)); echo $n >/tmp/loop.{number}; done'"
        ));
    }
    machine.wait_until("test -s /tmp/loop.0 && test -s /tmp/loop.1 && test -s /tmp/loop.2");
}

fn count_turns(machine: &Machine) -> u64 {
    (0..LOOPS.len())
        .map(|number| machine.file(&format!("/tmp/loop.{number}")).text())
        .filter_map(|turns| turns.trim().parse::<u64>().ok())
        .sum()
}

#[test]
fn loops_of_su_sudo_and_failed_logins_stay_within_the_call_budget_and_alice_logs_in() {
    let machine = Machine::new().start();
    machine.add_account("mallory", 1600);
    machine.add_account("oscar", 1601);
    machine.make_key("/root/stranger");
    machine.ssh("alice", "true").succeeds();
    machine.clear_calls();
    let began = Instant::now();
    let seconds = seconds();
    start_loops(&machine, seconds);
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice", "while the loops run");
    machine.wait_at_most(seconds, &format!("! pgrep -f '^timeout {seconds} ' >/dev/null"));
    let turns = count_turns(&machine);
    assert!(turns >= 10, "the loops hardly ran: {turns}");

    let calls = machine.actions();
    let elapsed = began.elapsed().as_secs() + 1;
    // IAM knows alice, carol and bob. An entry is revalidated after ten seconds.
    let allowed = budget(elapsed, 3, 10);
    eprintln!(
        "{} calls in {elapsed} s for {turns} turns of three loops; the budget is {allowed}",
        calls.len()
    );
    assert!(calls.len() as u64 <= allowed, "{} calls, where the budget is {allowed}: {calls:?}", calls.len());
    // A new user gets in once the loops have ended.
    machine.iam().add_to_group("bob", "ssh-users");
    machine.wait_until_login_succeeds("bob");
}

#[test]
fn a_user_who_guesses_names_leaves_lookups_for_others() {
    // With a longer max_age the map says, for as long after each read of the roster, that there is no such name.
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.add_account("mallory", 1600);
    machine.clear_calls();
    machine.as_user("mallory").sh("for n in $(seq 100); do getent passwd ghost$n; done; true").succeeds();
    let guessed = machine.count_calls("GetUser");
    assert!((1..=11).contains(&guessed), "a third of 30: {guessed}");
    let status = machine.iamctl("--json status").succeeds();
    assert!(!status.contains("\"unknown_left\": 0"), "{status}");
}
