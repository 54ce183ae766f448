//! The making of home directories: with planted files, on a full disk or after a kill, no file gets a wrong owner or place,
//! and no home is left incomplete.

use pam_iam_tests::Machine;

/// Shell functions that check /home. `consistent`: alice's home is complete and hers, or absent, and no file of hers is
/// elsewhere. `complete`: `consistent`, her home exists, and nothing else is in /home. `$open` runs the session phase as
/// sshd does.
const CHECKS: &str = r#"
open='pamtester -I rhost=127.0.0.1 home alice open_session'
uid=$(id -u alice)
consistent() {
    if [ -e /home/alice ]; then
        [ "$(stat -c %u:%g /home/alice)" = $uid:$uid ] || { echo "the home is $(stat -c %u /home/alice)'s"; return 1; }
        [ -z "$(find /home/alice ! -uid $uid)" ] || { echo "in it: $(find /home/alice ! -uid $uid)"; return 1; }
        diff -r --no-dereference /etc/skel /home/alice || return 1
    fi
    elsewhere=$(find /etc /srv /var/tmp /tmp -uid $uid)
    [ -z "$elsewhere" ] || { echo "elsewhere: $elsewhere"; return 1; }
}
complete() { [ -d /home/alice ] && consistent && [ "$(ls -A /home)" = alice ]; }
fail() { echo "$call $at: $1: $(ls -lA /home)"; exit 1; }
"#;

/// Starts a box with no homes, a PAM service `home` with a stack of this module alone, and a skeleton with folders and links.
fn machine_with_skeleton() -> Machine {
    let machine = Machine::new().start();
    machine.file("/etc/pam.d/home").write("account required pam_iam.so\nsession required pam_iam.so\n");
    machine.sh("rm -rf /home/*").succeeds();
    machine.run(&["mkdir", "-p", "/etc/skel/.config/deep"]).succeeds();
    machine.file("/etc/skel/.config/deep/file").write("text\n");
    machine.run(&["ln", "-s", "deep/file", "/etc/skel/.config/link"]).succeeds();
    machine.run(&["ln", "-s", "/etc/shadow", "/etc/skel/shadow"]).succeeds();
    machine
}

/// Kills the session phase at its first call of the system call $1, in the next run at its second, and so on until a run
/// ends by itself. Prints the number of runs that were killed.
const KILL_AT_EACH_CALL: &str = r#"
call=$1
# The calls before the first one on a home or the skeleton load libraries.
strace -y -qq -o /run/trace -e trace=$call -- $open >/dev/null
first=$(grep -n -m 1 -e /home -e /etc/skel /run/trace | cut -d: -f1)
for at in $(seq $first 400); do
    rm -rf /home/* /home/.p*
    strace -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$at -- $open >/dev/null 2>&1
    status=$?
    consistent || fail "after the kill"
    $open >/dev/null || fail "the next login fails"
    complete || fail "after the next login"
    # 137: killed.
    [ $status = 137 ] || break
done
[ $at -lt 400 ] || exit 1
echo $((at - first))"#;

#[test]
fn a_login_killed_at_any_step_leaves_no_partial_home_and_the_next_one_makes_it() {
    let machine = machine_with_skeleton();
    // The system calls by which the session phase reads and changes files.
    for call in [
        "mkdirat",
        "openat",
        "write",
        "copy_file_range",
        "fchown",
        "fchmod",
        "fchownat",
        "symlinkat",
        "fsync",
        "flock",
        "renameat2",
        "getdents64",
        "newfstatat",
    ] {
        let script = format!("{CHECKS}{KILL_AT_EACH_CALL}");
        let output = machine.run(&["bash", "-c", &script, "bash", call]).succeeds();
        let steps = output.lines().last().and_then(|last| last.parse::<u32>().ok());
        assert!(steps.is_some_and(|steps| steps >= 1), "{call}: {output}");
    }
}

/// Makes the first call of the system call $1 in the session phase fail with $2, in the next run the second, until there is
/// none.
const FAIL_AT_EACH_CALL: &str = r#"
call=$1 errno=$2
for at in $(seq 60); do
    rm -rf /home/* /home/.p*
    strace -qq -o /run/trace -e trace=$call -e inject=$call:error=$errno:when=$at -- $open >/run/out 2>&1
    status=$?
    grep -q INJECTED /run/trace || break
    consistent || fail "after the error"
    if [ $status = 0 ]; then
        complete || fail "after a success"
    elif grep -q 'alice: the home directory /home/alice could not be made' /run/out; then
        [ -z "$(ls -A /home)" ] || fail "something is left"
    # The home was made, and then the session could not be registered.
    elif grep -q 'alice: this session cannot be registered' /run/out; then
        complete || fail "after a registration that failed"
    else
        cat /run/out
        exit 1
    fi
done"#;

#[test]
fn an_error_at_any_step_leaves_no_partial_home_and_is_reported() {
    let machine = machine_with_skeleton();
    for (call, errno) in [
        ("mkdirat", "ENOSPC"),
        ("write", "ENOSPC"),
        ("copy_file_range", "ENOSPC"),
        ("symlinkat", "EDQUOT"),
        ("fchown", "EPERM"),
        ("fchmod", "EIO"),
        ("fsync", "EIO"),
        ("renameat2", "EIO"),
        ("renameat2", "EINVAL"),
    ] {
        let script = format!("{CHECKS}{FAIL_AT_EACH_CALL}");
        machine.run(&["bash", "-c", &script, "bash", call, errno]).succeeds();
    }
}

#[test]
fn a_file_system_without_room_or_inodes_gets_no_partial_home_and_the_user_is_told() {
    for options in ["size=20k", "size=1m,nr_inodes=4"] {
        let machine = machine_with_skeleton();
        let options = format!("{options},mode=755");
        machine.run(&["mount", "-t", "tmpfs", "-o", &options, "home", "/home"]).succeeds();
        machine.sh("head -c 15000 /dev/urandom >/etc/skel/large").succeeds();
        for number in 1..=6 {
            machine.file(&format!("/etc/skel/{number}")).write("\n");
        }
        let message = machine.ssh("alice", "true").fails();
        assert!(message.contains("alice: the home directory /home/alice could not be made"), "{message}");
        assert_eq!(machine.file("/home").names(), [""; 0]);
        // With room the home is made, although the skeleton is on another file system.
        machine.run(&["mount", "-o", "remount,size=10m,nr_inodes=100", "/home"]).succeeds();
        assert_eq!(machine.ssh("alice", "pwd; cat .config/deep/file").succeeds(), "/home/alice\ntext");
    }
}

/// Returns a digest of the names, owners, modes, sizes and link targets in /home, /etc and mallory's folder.
fn digest_of_files(machine: &Machine) -> String {
    let digest = "find /home /srv/target /etc -printf '%p %u %m %s %l\\n' | sort | sha256sum";
    machine.sh(digest).succeeds()
}

#[test]
fn a_planted_file_or_link_is_neither_used_nor_followed() {
    let machine = machine_with_skeleton();
    machine.run(&["useradd", "-M", "mallory"]).succeeds();
    machine.run(&["install", "-d", "-o", "mallory", "/srv/target"]).succeeds();
    for (plant, reason) in [
        ("mkdir /home/alice; chown mallory /home/alice", "not yours"),
        ("ln -s /srv/target /home/alice; chown -h mallory /home/alice", "could not be made"),
        ("ln -s /etc /home/alice", "not yours"),
        ("echo text >/home/alice; chown mallory /home/alice", "could not be made"),
        ("mkfifo /home/alice; chown mallory /home/alice", "could not be made"),
        ("chmod 777 /home", "could not be made"),
    ] {
        machine.sh(&format!("rm -rf /home/*; chmod 755 /home; {plant}")).succeeds();
        let before = digest_of_files(&machine);
        let done = machine.pam("home", "alice").item("rhost", "127.0.0.1").open_session();
        assert_eq!(done.status, 1, "{plant}: {done:?}");
        let message = done.stdout + &done.stderr;
        assert!(message.contains(reason), "{plant}: {message}");
        assert_eq!(digest_of_files(&machine), before, "{plant}");
    }
    assert_unfinished_home_with_planted_links_is_replaced(&machine);
}

/// Plants links in a folder that looks like an unfinished home. Asserts that a login removes the links but not their
/// targets, and makes the home.
fn assert_unfinished_home_with_planted_links_is_replaced(machine: &Machine) {
    let unfinished = "/home/.pam_iam-alice-0123456789abcdef";
    machine.sh("rm -rf /home/*; chmod 755 /home").succeeds();
    machine.run(&["mkdir", unfinished]).succeeds();
    machine.run(&["ln", "-s", "/srv/target", &format!("{unfinished}/link")]).succeeds();
    machine.run(&["ln", "-s", "/etc", &format!("{unfinished}/.config")]).succeeds();
    let kept = machine.file("/srv/target/keep");
    kept.write("keep\n");
    machine.sh(&format!("{CHECKS}\n$open && complete")).succeeds();
    assert_eq!(kept.text(), "keep\n");
    assert!(machine.file("/etc/ssh").exists());
}

/// Logs alice in twelve times at once. Fails if a session began elsewhere than in her home, or if /home has anything else.
const LOG_IN_TWELVE_TIMES: &str = r#"
for n in $(seq 12); do box-ssh alice 'stat -c %u .; pwd' >/run/out.$n 2>&1 & done
wait
for n in $(seq 12); do
    [ "$(tr '\n' ' ' </run/out.$n)" = "$uid /home/alice " ] || { cat /run/out.$n; exit 1; }
done
[ "$(ls -A /home)" = alice ]"#;

#[test]
fn simultaneous_first_logins_work_in_one_home() {
    let machine = machine_with_skeleton();
    machine.sh(&format!("{CHECKS}{LOG_IN_TWELVE_TIMES}")).succeeds();
}

const SFTP_IN_CHROOT: &str = "Subsystem sftp internal-sftp
Match User alice
    ChrootDirectory %h
    ForceCommand internal-sftp
";

/// Sends the first message of an SFTP client of version 3. Prints the answer's type and version, without its length.
const TALK_SFTP: &str = "import subprocess
pipe = subprocess.PIPE
sftp = subprocess.Popen(['box-ssh', 'alice', '-s', 'sftp'], stdin=pipe, stdout=pipe)
sftp.stdin.write(bytes([0, 0, 0, 5, 1, 0, 0, 0, 3]))
sftp.stdin.flush()
print(list(sftp.stdout.read(9))[4:])";

#[test]
fn sftp_works_in_a_home_that_belongs_to_root_as_a_chroot_directory_must() {
    let machine = Machine::new().start();
    machine.file("/etc/ssh/sshd_config").remove_lines("Subsystem");
    machine.file("/etc/ssh/sshd_config.d/50-sftp.conf").write(SFTP_IN_CHROOT);
    machine.run(&["rm", "-rf", "/home/alice"]).succeeds();
    machine.run(&["install", "-d", "-o", "root", "-g", "root", "-m", "755", "/home/alice"]).succeeds();
    machine.reload_sshd();
    assert_eq!(machine.run(&["python3", "-c", TALK_SFTP]).succeeds(), "[2, 0, 0, 0, 3]");
}
