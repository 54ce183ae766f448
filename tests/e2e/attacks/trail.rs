//! Nobody erases the audit trail.

use pam_iam_tests::Machine;

use super::seconds;

/// Writes to the journal as fast as two programs can.
const FLOOD: &str =
    "sh -c 'yes this is a line of a flood | systemd-cat -t flood; yes another line | logger -t flood'";

/// Floods the journal for `seconds` as mallory, in a unit, and as carol, in her session. Returns once carol has used sudo
/// three times meanwhile.
fn start_flood(machine: &Machine, seconds: u32) {
    let flood = format!("timeout {seconds} {FLOOD}");
    machine.start_in_background(&format!("systemd-run --quiet --uid=mallory --scope {flood}"));
    let sudo = "for n in 1 2 3; do sudo -n true; sleep 0.3; done; touch sudoed";
    machine.ssh_in_background("carol", &format!("{flood} & sleep 1; {sudo}; wait"));
    machine.wait_until("test -e /home/carol/sudoed");
}

/// Returns the sequence numbers in an audit trail. `field` is the text before the number in each line.
fn sequence_numbers(trail: &str, field: &str) -> Vec<u64> {
    let words = trail.lines().filter_map(|line| line.split_once(field)?.1.split(' ').next());
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_flood_of_the_journal_leaves_no_gap_in_the_audit_trail() {
    let machine = Machine::new().settings("[sessions]\ngrace = '1s'").booted().start();
    machine.ssh("carol", "true").succeeds();
    machine.run(&["systemctl", "stop", "iam-sweep.service"]).succeeds();
    machine.add_account("mallory", 1600);
    start_flood(&machine, seconds().min(30));
    for _ in 0..3 {
        machine.ssh("alice", "true").succeeds();
    }
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.iamctl("flush alice").succeeds();
    machine.ssh("alice", "true").fails();
    machine.iamctl("sessions end carol");
    // journald writes what it has received from the resolver so far.
    machine.run(&["journalctl", "--sync"]).succeeds();
    let trail = machine.sh("journalctl -q -o cat -u iam-resolver.service | grep ^seq=").succeeds();
    let numbers = sequence_numbers(&trail, "seq=");
    let last = numbers.last().copied().unwrap_or_default();
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "{trail}");
    for (event, least) in [
        ("event=sudo user=carol", 3),
        ("event=login user=alice", 4),
        ("event=session user=alice", 3),
        ("event=sweep user=carol", 1),
    ] {
        let count = trail.lines().filter(|line| line.contains(event)).count();
        assert!(count >= least, "{count} of {event} in\n{trail}");
    }
}

/// Sends journald large messages of random digits. journald's rate limit counts messages and not their size.
const SEND_LARGE_MESSAGES: &str = r#"
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

/// Returns whether the journal has the first entry of the audit trail.
fn journal_has_first_entry(machine: &Machine) -> bool {
    machine.run(&["journalctl", "--sync"]).succeeds();
    let journal = machine.run(&["journalctl", "-q", "-o", "cat", "-u", "iam-resolver.service"]).succeeds();
    journal.lines().any(|line| line.starts_with("seq=1 "))
}

#[test]
fn the_audit_trail_stays_in_its_file_when_a_user_fills_the_journal_until_it_is_rotated() {
    let machine = Machine::new().settings("").booted().start();
    // By default the journal may fill a share of the disk, which is too large for a test.
    machine.run(&["mkdir", "-p", "/run/systemd/journald.conf.d", "/var/log/journal"]).succeeds();
    machine
        .file("/run/systemd/journald.conf.d/x.conf")
        .write("[Journal]\nStorage=persistent\nSystemMaxUse=24M\n");
    machine.run(&["systemctl", "restart", "systemd-journald"]).succeeds();
    machine.add_account("mallory", 1600);
    machine.ssh("alice", "true").succeeds();
    assert!(journal_has_first_entry(&machine));
    machine.as_user("mallory").run(&["python3", "-c", SEND_LARGE_MESSAGES]).succeeds();
    assert!(!journal_has_first_entry(&machine));

    machine.ssh("alice", "true").succeeds();
    let file = machine.file("/var/log/pam_iam/trail.log");
    assert_eq!(file.stat("%a %U"), "600 iam-resolver");
    let trail = file.text();
    let numbers = sequence_numbers(&trail, "Z seq=");
    assert!(numbers.len() >= 4, "{trail}");
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{trail}");
}
