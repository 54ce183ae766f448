//! Nobody erases the audit trail.

use pam_iam_tests::Machine;

use super::seconds;

#[test]
fn a_flood_of_the_journal_leaves_a_trail_without_a_gap() {
    let machine = Machine::new().settings("[sessions]\ngrace = '1s'").booted().start();
    machine.ssh("carol", "true").succeeds();
    machine.sh("systemctl stop iam-sweep.service; useradd -m mallory").succeeds();
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
    machine.iam().remove_from_group("alice", "ssh-users");
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

/// Sends journald messages that are large and cannot be compressed: its limit counts messages, and not what they need.
const LARGE: &str = r#"
import array, fcntl, os, socket, sys
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.connect("/run/systemd/journal/socket")
for count in range(150):
    memory = os.memfd_create("message", os.MFD_ALLOW_SEALING)
    os.write(memory, b"MESSAGE=" + os.urandom(256 * 1024).hex().encode() + b"\nPRIORITY=6\n")
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    journal.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
    os.close(memory)
print("sent")
"#;

#[test]
fn a_journal_that_a_user_has_thrown_everything_away_leaves_the_trail_in_its_file() {
    let machine = Machine::new().settings("").booted().start();
    // The size by default is a share of the disk, which a test does not fill.
    machine
        .sh("mkdir -p /run/systemd/journald.conf.d; printf '[Journal]\nStorage=persistent\nSystemMaxUse=24M\n' >/run/systemd/journald.conf.d/x.conf
             mkdir -p /var/log/journal; systemctl restart systemd-journald; useradd -m mallory")
        .succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.sh("journalctl --sync; journalctl -q -o cat -u iam-resolver.service | grep '^seq=1 '").succeeds();
    machine.run(&["setpriv", "--reuid", "mallory", "--clear-groups", "python3", "-c", LARGE]).succeeds();
    machine
        .sh("journalctl --sync; ! journalctl -q -o cat -u iam-resolver.service | grep '^seq=1 '")
        .succeeds();
    machine.ssh("alice", "true").succeeds();
    let kept =
        machine.sh("stat -c '%a %U' /var/log/pam_iam/trail.log; cat /var/log/pam_iam/trail.log").succeeds();
    let mut lines = kept.lines();
    assert_eq!(lines.next(), Some("600 iam-resolver"));
    let numbers: Vec<u64> =
        lines.filter_map(|line| line.split_once("Z seq=")?.1.split(' ').next()?.parse().ok()).collect();
    assert!(numbers.len() >= 4, "{kept}");
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{kept}");
}
