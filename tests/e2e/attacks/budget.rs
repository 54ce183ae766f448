//! Nobody makes this host use up the calls to IAM that the whole AWS account has.

use std::time::Instant;

use pam_iam_tests::Machine;

use super::seconds;

/// Look-ups of unknown names and revalidations that may happen in so many seconds, and the calls that they cost: what
/// docs/operations.md publishes.
fn budget(seconds: u64, known: u64, max_age: u64) -> u64 {
    let unknown = 30 + 30 * seconds.div_ceil(60);
    let revalidations = known * (seconds.div_ceil(max_age) + 1);
    // One reading of the roster is one call for each group.
    let rosters = 2 * (seconds / 270 + 1);
    3 * (unknown + revalidations) + rosters
}

#[test]
fn loops_of_su_and_sudo_and_unauthenticated_logins_stay_within_the_budget_and_alice_logs_in() {
    let machine = Machine::new().start();
    machine.sh("for user in mallory oscar; do useradd -m -s /bin/bash $user; done; ssh-keygen -q -t ed25519 -N '' -f /root/stranger").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.clear_calls();
    let began = Instant::now();
    let seconds = seconds();
    // Known, allowed, refused and unknown names, by every way that a stranger or a local user has.
    let loops = [
        (
            "su mallory -c",
            "for name in alice carol bob root ghost$RANDOM; do su $name -c true </dev/null; done",
        ),
        (
            "su oscar -c",
            "for name in alice carol bob ghost$RANDOM; do sudo -n -u $name true </dev/null; id $name; done",
        ),
        (
            "bash -c",
            "for name in alice carol bob ghost$RANDOM; do box-ssh -i /root/stranger $name true; done",
        ),
    ];
    for (at, (who, what)) in loops.iter().enumerate() {
        let quoted = what.replace('$', "\\$");
        machine
            .sh(&format!(
                "(timeout {seconds} {who} \"n=0; while :; do {quoted}; n=\\$((n+1)); echo \\$n >/tmp/loop.{at}; done\" </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1"
            ))
            .succeeds();
    }
    machine.wait_until("test -s /tmp/loop.0 && test -s /tmp/loop.1 && test -s /tmp/loop.2");
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice", "in the middle of it");
    machine.sh(&format!("for at in $(seq {seconds}0); do pgrep -f '[t]imeout {seconds} ' >/dev/null || exit 0; sleep 0.1; done; exit 1")).succeeds();
    let proofs = machine.sh("cat /tmp/loop.*").succeeds();
    let turns: u64 = proofs.lines().filter_map(|line| line.parse::<u64>().ok()).sum();
    assert!(turns >= 10, "the loops hardly ran: {proofs}");
    let calls = u64::try_from(machine.actions().len()).unwrap_or(u64::MAX);
    let elapsed = began.elapsed().as_secs() + 1;
    // alice, carol and bob are known to IAM.
    let allowed = budget(elapsed, 3, 10);
    eprintln!("{calls} calls in {elapsed} s for {turns} turns of three loops; the budget is {allowed}");
    assert!(calls <= allowed, "{calls} calls, where the budget is {allowed}: {:?}", machine.actions());
    // Whoever is new still gets in when the guessers have stopped.
    machine.iam().add_to_group("bob", "ssh-users");
    machine.wait_until("box-ssh bob true");
}

#[test]
fn one_guesser_leaves_look_ups_for_others() {
    let machine = Machine::new().start();
    machine.sh("useradd -m mallory").succeeds();
    machine.clear_calls();
    machine.sh("for n in $(seq 100); do setpriv --reuid mallory --clear-groups getent passwd ghost$n; done; true").succeeds();
    let guessed = machine.actions().iter().filter(|action| *action == "GetUser").count();
    assert!((1..=11).contains(&guessed), "a third of 30: {guessed}");
    let left = machine.sh("iamctl --json status").succeeds();
    assert!(!left.contains("\"unknown_left\": 0"), "{left}");
}
