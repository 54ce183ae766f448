//! Nobody erases the audit trail.

use pam_iam_tests::Machine;

use super::seconds;

#[test]
fn a_flood_of_the_journal_leaves_a_trail_without_a_gap() {
    let machine = Machine::new().settings("[sessions]\ngrace = '1s'").booted().start();
    machine.ssh("carol", "true").succeeds();
    machine.sh("systemctl stop iam-sweep.timer; useradd -m mallory").succeeds();
    let seconds = seconds().min(30);
    // From a scope of its own, and from carol's own session.
    let flood = format!(
        "timeout {seconds} sh -c 'yes this is a line of a flood | systemd-cat -t flood; yes another line | logger -t flood'"
    );
    machine
        .sh(&format!(
            "(systemd-run --quiet --uid=mallory --scope {flood} </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1"
        ))
        .succeeds();
    machine
        .sh(&format!("(box-ssh carol \"{flood} & sleep 1; for n in 1 2 3; do sudo -n true; sleep 0.3; done; touch sudoed; wait\" </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1"))
        .succeeds();
    machine.wait_until("test -e /home/carol/sudoed");
    for _ in 0..3 {
        machine.ssh("alice", "true").succeeds();
    }
    machine.iam("iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')");
    machine.sh("iamctl flush alice; (box-ssh alice true); iamctl sessions end carol; true").succeeds();
    // What the resolver wrote is in the journal once journald has come that far.
    machine.sh("journalctl --sync").succeeds();
    let trail = machine.sh("journalctl -q -o cat -u iam-resolver.service | grep ^seq=").succeeds();
    let numbers: Vec<u64> =
        trail.lines().filter_map(|line| line.strip_prefix("seq=")?.split(' ').next()?.parse().ok()).collect();
    let whole: Vec<u64> = (1..=numbers.last().copied().unwrap_or_default()).collect();
    assert_eq!(numbers, whole, "{trail}");
    let count = |words: &str| trail.lines().filter(|line| line.contains(words)).count();
    assert!(count("event=sudo user=carol") >= 3, "{trail}");
    assert!(count("event=login user=alice") >= 4, "{trail}");
    assert!(count("event=session user=alice") >= 3, "{trail}");
    assert!(count("event=sweep user=carol") >= 1, "{trail}");
}
