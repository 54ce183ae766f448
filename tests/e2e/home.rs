//! Home directories under attack: whatever is planted, full or killed, no file gets to the wrong owner or place, and no home
//! is half-made.

use pam_iam_tests::Machine;

/// What must hold of /home at any moment: alice's is there whole and hers, or not at all; nothing of hers lies elsewhere.
const SOUND: &str = r#"
uid=$(id -u alice)
sound() {
    if [ -e /home/alice ]; then
        [ "$(stat -c %u:%g /home/alice)" = $uid:$uid ] || { echo "the home is $(stat -c %u /home/alice)'s"; return 1; }
        [ -z "$(find /home/alice ! -uid $uid)" ] || { echo "in it: $(find /home/alice ! -uid $uid)"; return 1; }
        diff -r --no-dereference /etc/skel /home/alice || return 1
    fi
    elsewhere=$(find /etc /srv /var/tmp /tmp -uid $uid)
    [ -z "$elsewhere" ] || { echo "elsewhere: $elsewhere"; return 1; }
}
whole() { [ -d /home/alice ] && sound && [ "$(ls -A /home)" = alice ]; }
"#;

/// What the session phase does, without sshd around it.
const OPEN: &str = "pamtester -I rhost=127.0.0.1 home alice open_session";

fn machine() -> Machine {
    let machine = Machine::new().start();
    // A stack of our module alone. A skeleton with a bit of everything.
    machine.sh("printf 'account required pam_iam.so\\nsession required pam_iam.so\\n' >/etc/pam.d/home
        rm -rf /home/*; mkdir -p /etc/skel/.config/deep; echo text >/etc/skel/.config/deep/file; ln -s deep/file /etc/skel/.config/link; ln -s /etc/shadow /etc/skel/shadow; echo").succeeds();
    machine
}

#[test]
fn killed_at_any_step_no_home_is_half_made_and_the_next_login_makes_it() {
    let machine = machine();
    // Every system call that changes something, or opens what is changed next.
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
        let script = format!(
            r#"{SOUND}
# What comes before the first that has to do with the home loads libraries.
strace -y -qq -o /run/trace -e trace={call} -- {OPEN} >/dev/null
first=$(grep -n -m 1 -e /home -e /etc/skel /run/trace | cut -d: -f1)
for at in $(seq $first 400); do
    rm -rf /home/* /home/.p*
    strace -qq -o /dev/null -e trace={call} -e inject={call}:signal=KILL:when=$at -- {OPEN} >/dev/null 2>&1
    # 137: killed by it.
    killed=$?
    sound || {{ echo "{call} $at"; exit 1; }}
    {OPEN} >/dev/null || {{ echo "{call} $at: the next login fails"; exit 1; }}
    whole || {{ echo "{call} $at: afterwards: $(ls -lA /home)"; exit 1; }}
    [ $killed = 137 ] || break
done
[ $at -lt 400 ] || exit 1
echo $((at - first))"#
        );
        let at = machine.sh(&script).succeeds();
        let steps = at.lines().last().and_then(|last| last.parse::<u32>().ok());
        assert!(steps.is_some_and(|steps| steps >= 1), "{call}: {at}");
    }
}

#[test]
fn an_error_at_any_step_leaves_nothing_and_is_told() {
    let machine = machine();
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
        let script = format!(
            r#"{SOUND}
for at in $(seq 60); do
    rm -rf /home/* /home/.p*
    strace -qq -o /run/trace -e trace={call} -P /home -P /home/alice -e inject={call}:error={errno}:when=$at -- {OPEN} >/run/out 2>&1
    status=$?
    grep -q INJECTED /run/trace || break
    sound || {{ echo "{call} $at"; exit 1; }}
    if [ $status = 0 ]; then whole || {{ echo "{call} $at: $(ls -lA /home)"; exit 1; }}; elif grep -q 'alice: the home directory /home/alice could not be made' /run/out; then [ -z "$(ls -A /home)" ] || {{ echo "{call} $at left $(ls -lA /home)"; exit 1; }}
    # The home was made, and then the session could not be registered.
    elif grep -q 'alice: this session cannot be registered' /run/out; then whole || {{ echo "{call} $at: $(ls -lA /home)"; exit 1; }}
    else cat /run/out; exit 1; fi
done"#
        )
        .replace("-P /home -P /home/alice ", "");
        machine.sh(&script).succeeds();
    }
}

#[test]
fn a_file_system_without_room_or_inodes_makes_no_half_home_and_the_user_is_told() {
    for options in ["size=20k", "size=1m,nr_inodes=4"] {
        let machine = machine();
        machine.sh(&format!("mount -t tmpfs -o {options},mode=755 home /home; head -c 15000 /dev/urandom >/etc/skel/large; for n in 1 2 3 4 5 6; do echo >/etc/skel/$n; done")).succeeds();
        let said = machine.ssh("alice", "true").fails();
        assert!(said.contains("alice: the home directory /home/alice could not be made"), "{said}");
        assert_eq!(machine.sh("ls -A /home").succeeds(), "");
        // With room there it is, on another file system than the skeleton.
        machine.sh("mount -o remount,size=10m,nr_inodes=100 /home").succeeds();
        assert_eq!(machine.ssh("alice", "pwd; cat .config/deep/file").succeeds(), "/home/alice\ntext");
    }
}

#[test]
fn what_somebody_planted_is_neither_used_nor_followed() {
    let machine = machine();
    machine.sh("useradd -M mallory; mkdir /srv/target; chown mallory /srv/target").succeeds();
    for (plant, why) in [
        ("mkdir /home/alice; chown mallory /home/alice", "not yours"),
        ("ln -s /srv/target /home/alice; chown -h mallory /home/alice", "could not be made"),
        ("ln -s /etc /home/alice", "not yours"),
        ("echo text >/home/alice; chown mallory /home/alice", "could not be made"),
        ("mkfifo /home/alice; chown mallory /home/alice", "could not be made"),
        ("chmod 777 /home", "could not be made"),
    ] {
        machine.sh(&format!("rm -rf /home/*; chmod 755 /home; {plant}")).succeeds();
        let before = machine
            .sh("find /home /srv/target /etc -printf '%p %u %m %s %l\\n' | sort | sha256sum")
            .succeeds();
        let said = machine.sh(OPEN);
        assert_eq!(said.status, 1, "{plant}: {said:?}");
        assert!(format!("{}{}", said.stdout, said.stderr).contains(why), "{plant}: {said:?}");
        let after = machine
            .sh("find /home /srv/target /etc -printf '%p %u %m %s %l\\n' | sort | sha256sum")
            .succeeds();
        assert_eq!(before, after, "{plant}");
    }
    // What looks half-made is removed and built anew, also when it leads elsewhere inside.
    machine.sh("rm -rf /home/*; chmod 755 /home; d=/home/.pam_iam-alice-0123456789abcdef; mkdir $d; ln -s /srv/target $d/link; ln -s /etc $d/.config; echo keep >/srv/target/keep").succeeds();
    machine
        .sh(&format!("{SOUND}\n{OPEN} && whole && grep -q keep /srv/target/keep && test -d /etc/ssh"))
        .succeeds();
}

#[test]
fn of_two_first_logins_at_once_both_work_in_one_home() {
    let machine = machine();
    machine.sh(&format!("{SOUND}
        for n in $(seq 12); do box-ssh alice 'stat -c %u .; pwd' >/run/out.$n 2>&1 & done; wait
        for n in $(seq 12); do [ \"$(tr '\\n' ' ' </run/out.$n)\" = \"$uid /home/alice \" ] || {{ cat /run/out.$n; exit 1; }}; done
        test \"$(ls -A /home)\" = alice")).succeeds();
}

#[test]
fn sftp_works_in_a_root_directory_of_ones_own_that_is_roots_as_sshd_wants_it() {
    let machine = Machine::new().start();
    machine
        .sh("printf 'Subsystem sftp internal-sftp\nMatch User alice\n    ChrootDirectory %%h\n    ForceCommand internal-sftp\n' >/etc/ssh/sshd_config.d/50-sftp.conf
             sed -i '/^Subsystem/d' /etc/ssh/sshd_config; rm -rf /home/alice; install -d -o root -g root -m 755 /home/alice")
        .succeeds();
    machine.reload_sshd();
    // A client's first message of version 3, and the server's answer: after its length the type 2 and the version.
    let talk = "import subprocess as s
sftp = s.Popen(['box-ssh', 'alice', '-s', 'sftp'], stdin=s.PIPE, stdout=s.PIPE)
sftp.stdin.write(bytes([0, 0, 0, 5, 1, 0, 0, 0, 3])); sftp.stdin.flush()
print(list(sftp.stdout.read(9))[4:])";
    assert_eq!(machine.run(&["python3", "-c", talk]).succeeds(), "[2, 0, 0, 0, 3]");
}
