//! Accounts by import, on a host without our NSS module.

use pam_iam_tests::{Builder, Machine};
use serde_json::json;

fn machine() -> Machine {
    Machine::new().importer().start()
}

/// A host with so many imported users, all with the same key, that IAM can lose some of.
fn with_users(count: usize, settings: &str) -> Machine {
    let fixtures = json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
        "filler": {"count": count, "prefix": "user", "groups": ["ssh-users"]}});
    Machine::new().importer().fixtures(fixtures).settings(settings).start()
}

/// Takes users out of IAM: `user0` to the one before `user{count}`.
fn lose(machine: &Machine, count: usize) {
    machine.iam().python(&format!(
        "for at in range({count}): iam.remove_user_from_group(UserName=f'user{{at}}', GroupName='ssh-users')"
    ));
}

fn import(machine: &Machine) -> (i32, String) {
    let done = machine.run(&["iam-importer"]);
    (done.status, done.stdout + &done.stderr)
}

/// The names of the accounts that are locked, sorted.
fn locked(machine: &Machine) -> Vec<String> {
    let names = machine.sh("getent shadow | awk -F: '$8 == 1 {print $1}' | sort -V").succeeds();
    names.lines().map(str::to_owned).collect()
}

#[test]
fn an_account_is_what_nss_would_have_shown() {
    let entry = |builder: Builder| {
        let machine = builder.start();
        machine
            .sh("getent passwd alice carol; id -G carol | tr ' ' '\\n' | sort")
            .succeeds()
            .replace(":x:", ":*:")
    };
    assert_eq!(entry(Machine::new().importer()), entry(Machine::new()));
}

#[test]
fn an_account_has_no_password_and_no_home_directory_yet() {
    let machine = machine();
    machine.sh("getent shadow alice | grep -q '^alice:\\*:' && ! test -e /home/alice").succeeds();
    machine.run(&["getent", "passwd", "bob"]).fails();
    machine.sh("pwck -r -q && grpck -r").succeeds();
}

#[test]
fn five_thousand_users_cost_five_pages_and_nothing_more() {
    let machine = Machine::new()
        .importer()
        .fixtures(json!({"groups": ["ssh-users"], "users": [],
            "filler": {"count": 5000, "prefix": "user", "groups": ["ssh-users"]}}))
        .config("[access]\nallow = ['ssh-users']")
        .start();
    machine.clear_calls();
    let (status, said) = import(&machine);
    assert!(status == 0 && said.contains("accounts=5000 created=0 changed=0"), "{said}");
    assert_eq!(machine.actions(), ["GetGroup"; 5]);
    assert_eq!(machine.sh("getent passwd | grep -c ^user").succeeds(), "5000");
    assert_eq!(machine.ssh("user4999", "id -un; pwd").succeeds(), "user4999\n/home/user4999");
}

#[test]
fn where_all_are_allowed_the_users_are_listed_once() {
    let machine = Machine::new().importer().config("[access]\nallow = 'all'").start();
    machine.clear_calls();
    import(&machine);
    assert_eq!(machine.actions(), ["ListUsers"]);
    machine.run(&["getent", "passwd", "bob"]).succeeds();
}

#[test]
fn without_a_daemon_it_asks_for_itself() {
    let machine = Machine::new().importer().without_daemon().start();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
}

#[test]
fn a_list_that_is_not_to_be_believed_retires_nobody() {
    let machine = with_users(50, "[aws]\ntotal_timeout = '1s'");
    lose(&machine, 10);
    let before = machine.sh("cat /etc/passwd /etc/shadow /etc/group").succeeds();
    for (fault, why) in [
        ("fail=throttle", "Rate exceeded"),
        ("fail=truncated", "cut off and has no marker"),
        ("fail=denied", "IAM denies it"),
        ("fail=empty&only=GetGroup", "refusing to continue: IAM returned an empty list"),
        ("fail=503", "cannot be read"),
        ("fail=reset", "cannot be read"),
    ] {
        machine.fault(fault);
        for _ in 0..3 {
            let (status, said) = import(&machine);
            assert!(
                status == 2 && said.contains("nothing done") && said.contains(why),
                "{fault}: {status} {said}"
            );
        }
        machine.logs("authpriv", why);
    }
    machine.fault("fail=");
    assert_eq!(machine.sh("cat /etc/passwd /etc/shadow /etc/group").succeeds(), before);

    let (status, said) = import(&machine);
    assert_eq!((status, locked(&machine).len()), (0, 0), "{said}");
    assert!(said.contains("user7 is missing for the 1. of 2 times"), "{said}");
    let (status, said) = import(&machine);
    let ten: Vec<String> = (0..10).map(|at| format!("user{at}")).collect();
    assert_eq!((status, locked(&machine)), (0, ten), "{said}");
    machine.logs("authpriv", "event=import action=lock user=user7");
}

#[test]
fn a_group_that_is_gone_retires_nobody() {
    let machine = with_users(5, "");
    machine.iam().python(
        "for at in range(5): iam.remove_user_from_group(UserName=f'user{at}', GroupName='ssh-users')
iam.delete_group(GroupName='ssh-users')",
    );
    for _ in 0..3 {
        assert_eq!(import(&machine).0, 2);
    }
    // Another group is still there: accounts are made, and nobody goes.
    machine
        .sh("sed -i \"s/'ssh-users'/'ssh-users', 'others'/\" /etc/pam_iam/config.toml; pkill -x iam-resolver")
        .succeeds();
    machine.iam().python("iam.create_group(GroupName='others')\niam.create_user(UserName='new')\niam.add_user_to_group(UserName='new', GroupName='others')");
    for _ in 0..3 {
        let (status, said) = import(&machine);
        assert!(status == 1 && said.contains("the IAM group ssh-users, which does not exist"), "{said}");
    }
    machine.run(&["getent", "passwd", "new"]).succeeds();
    assert_eq!(locked(&machine), [""; 0]);
}

#[test]
fn more_than_a_fifth_at_once_takes_the_operators_word() {
    let machine = with_users(20, "");
    lose(&machine, 5);
    import(&machine);
    let (status, said) = import(&machine);
    assert!(status == 1 && said.contains("5 of 20 accounts would be retired"), "{said}");
    assert_eq!(locked(&machine), [""; 0]);
    machine.run(&["iam-importer", "--force"]).succeeds();
    assert_eq!(locked(&machine).len(), 5);
}

#[test]
fn who_has_left_is_locked_and_what_ran_is_ended_and_who_comes_back_is_unlocked() {
    let machine = with_users(5, "");
    machine.ssh("user0", "echo mine >notes; nohup sleep 1000 >/dev/null 2>&1 & disown").succeeds();
    machine.wait_until("pgrep -u user0 sleep");
    lose(&machine, 1);
    import(&machine);
    machine.sh("pgrep -u user0 sleep").succeeds();
    assert_eq!(import(&machine).0, 0);
    // What has ended and nobody has waited for is still listed.
    machine.sh("ps -o stat= -u user0 | grep -qv ^Z").fails();
    assert!(machine.sh("getent passwd user0").succeeds().ends_with(":/usr/sbin/nologin"));
    machine.ssh("user0", "true").fails();
    machine.iam().add_to_group("user0", "ssh-users");
    import(&machine);
    machine.wait_until("box-ssh user0 true 2>/dev/null");
    assert_eq!(machine.ssh("user0", "cat notes").succeeds(), "mine");
}

#[test]
fn an_archived_user_leaves_a_file_for_root_and_nothing_else() {
    let machine = with_users(5, "[importer]\nretire = 'archive'");
    let uid = machine.ssh("user0", "echo mine >notes; ln -s /etc/passwd link; id -u").succeeds();
    lose(&machine, 2);
    import(&machine);
    let (status, said) = import(&machine);
    assert!(status == 0 && said.contains("removed user0, with the home directory archived"), "{said}");
    machine.sh("! getent passwd user0 && ! getent group user0 && ! getent passwd user1 && ! ls -d /home/user0 /home/.pam_iam*").succeeds();
    assert_eq!(
        machine.sh(&format!("cd /var/lib/pam_iam/archive; stat -c '%a %U' user0.{uid}.*; tar -xzOf user0.{uid}.* user0/notes; ls | wc -l")).succeeds(),
        "600 root\nmine\n1"
    );
    machine.run(&["test", "-e", "/etc/passwd"]).succeeds();
}

#[test]
fn a_deleted_user_leaves_nothing_but_what_is_not_theirs() {
    let machine = with_users(5, "[importer]\nretire = 'delete'");
    for user in ["user0", "user1", "user2"] {
        machine.ssh(user, "touch notes").succeeds();
    }
    machine.sh("chown root: /home/user1; mkdir /home/user2/mount; mount -t tmpfs tmpfs /home/user2/mount; touch /home/user2/mount/precious").succeeds();
    lose(&machine, 3);
    import(&machine);
    let dry = machine.run(&["iam-importer", "--dry-run"]);
    let (status, said) = import(&machine);
    assert_eq!((status, dry.status), (1, 1), "{said}");
    for said in [&said, &(dry.stdout + &dry.stderr)] {
        assert!(said.contains("/home/user2 is a mount point or has one in it; it stays"), "{said}");
    }
    assert!(said.contains("/home/user1 belongs to somebody else; it stays"), "{said}");
    machine
        .sh("! test -e /home/user0; test -e /home/user1/notes && test -e /home/user2/mount/precious")
        .succeeds();
    assert_eq!(locked(&machine), ["user1", "user2"], "which stay locked until somebody looks at them");
    machine.sh("! getent passwd user0").succeeds();
}

#[test]
fn killed_at_any_moment_the_next_run_finishes_the_job() {
    let machine = with_users(20, "[importer]\nretire = 'archive'");
    let fill = "for at in 0 1 2; do box-ssh user$at 'mkdir d; seq 200000 >d/numbers; for f in $(seq 300); do echo $f >d/$f; done'; done";
    machine.sh(fill).succeeds();
    machine.iam().python(
        "iam.create_user(UserName='late')\niam.add_user_to_group(UserName='late', GroupName='ssh-users')",
    );
    lose(&machine, 3);
    let before = machine.sh("grep -v -e ^user -e ^late /etc/passwd").succeeds();
    // From the first millisecond to well past the end of a whole run, which is about 100 ms and the packing.
    let killed = machine.sh(
        "killed=0; for ms in $(seq 2 7 400); do
            timeout -s KILL 0.$(printf %03d $ms) iam-importer >/dev/null 2>&1; [ $? = 137 ] && killed=$((killed+1))
            getent passwd root >/dev/null && pwck -r -q >/dev/null && grpck -r >/dev/null || exit 1
        done; echo $killed",
    );
    let killed: u32 = killed.succeeds().parse().unwrap();
    assert!(killed >= 10, "{killed} of 57 runs were killed before their end");
    let (status, said) = import(&machine);
    assert_eq!(status, 0, "{said}");
    machine.sh("for at in 0 1 2; do ! getent passwd user$at || exit 1; done; getent passwd late").succeeds();
    assert_eq!(machine.sh("getent passwd | grep -c ^user").succeeds(), "17");
    assert_eq!(machine.sh("grep -v -e ^user -e ^late /etc/passwd").succeeds(), before);
    let whole = machine.sh(
        "cd /var/lib/pam_iam/archive; for at in 0 1 2; do for file in user$at.*; do tar -tzf $file | wc -l; done; done; ls -A | grep -c unfinished; ls -A /home",
    );
    let whole = whole.stdout;
    // 304: the home, d, numbers, 300 files, and what the skeleton brings is not counted in.
    assert!(whole.lines().filter_map(|line| line.parse::<u32>().ok()).any(|files| files >= 303), "{whole}");
    for user in ["user0", "user1", "user2"] {
        let most = machine.sh(&format!("cd /var/lib/pam_iam/archive; for f in {user}.*; do tar -xzOf $f {user}/d/numbers 2>/dev/null | wc -l; done | sort -n | tail -1"));
        assert_eq!(most.succeeds(), "200000", "{user}: everything is in an archive");
    }
    assert!(!whole.contains("pam_iam-retired"), "{whole}");
}

#[test]
fn a_second_run_waits_for_the_first() {
    let machine = with_users(5, "");
    machine.fault("delay=1");
    let both = machine.sh("iam-importer >/tmp/one 2>&1 & one=$!; sleep 0.2; iam-importer >/tmp/two 2>&1; two=$?; wait $one; echo $? $two; cat /tmp/two");
    let said = both.succeeds();
    assert!(said.starts_with("0 0\n") && said.contains("another import is running"), "{said}");
}

#[test]
fn a_dry_run_tells_everything_and_changes_nothing() {
    let machine = with_users(5, "[importer]\nretire = 'delete'");
    lose(&machine, 1);
    import(&machine);
    machine.iam().python(
        "iam.create_user(UserName='dave')\niam.add_user_to_group(UserName='dave', GroupName='ssh-users')",
    );
    let files = "cat /etc/passwd /etc/shadow /etc/group /var/lib/pam_iam/importer.json";
    let before = machine.sh(files).succeeds();
    let done = machine.run(&["iam-importer", "--dry-run"]);
    for line in [
        "would create dave with uid ",
        "would add dave to iam-users",
        "would lock user0, who has left",
        "would remove user0, with the home directory deleted",
        "dry run, nothing is changed",
    ] {
        assert!(done.stdout.contains(line), "{line}\n--- is not in\n{}", done.stdout);
    }
    assert_eq!(done.status, 0);
    assert_eq!(machine.sh(files).succeeds(), before);
}

#[test]
fn on_a_full_disk_nothing_changes_and_it_says_so() {
    let machine = with_users(5, "");
    machine.iam().python(
        "iam.create_user(UserName='dave')\niam.add_user_to_group(UserName='dave', GroupName='ssh-users')",
    );
    // /etc as a file system of its own, which is then filled to the last byte.
    machine.sh("mkdir /tmp/etc && cp -a /etc/. /tmp/etc/ && mount -t tmpfs -o size=$(($(du -sk /etc | cut -f1) + 200))k tmpfs /etc && cp -a /tmp/etc/. /etc/ && cat /dev/zero >/etc/fill; true").succeeds();
    let before = machine.sh("cat /etc/passwd /etc/group /etc/shadow; ls -A /etc").succeeds();
    let (status, said) = import(&machine);
    assert!(status == 2 && said.contains("No space left on device"), "{status} {said}");
    assert_eq!(machine.sh("cat /etc/passwd /etc/group /etc/shadow; ls -A /etc").succeeds(), before);
    machine.sh("rm /etc/fill").succeeds();
    assert_eq!(import(&machine).0, 0);
    machine.run(&["getent", "passwd", "dave"]).succeeds();
}

#[test]
fn whoever_is_not_root_and_a_wrong_option_get_nothing_done() {
    let machine = machine();
    let done = machine.sh("setpriv --reuid 65534 --clear-groups iam-importer");
    assert!(done.status == 2 && done.stderr.contains("must be run as root"), "{done:?}");
    assert_eq!(machine.run(&["iam-importer", "--froce"]).status, 2);
    machine.sh("echo 'alow = 1' >>/etc/pam_iam/config.toml").succeeds();
    let (status, said) = import(&machine);
    assert!(status == 2 && said.contains("/etc/pam_iam/config.toml:"), "{said}");
}

#[test]
fn a_renamed_user_keeps_uid_and_a_recreated_one_does_not_get_the_account_at_once() {
    let machine = machine();
    let uid = machine.sh("id -u alice").succeeds();
    machine.iam().rename_user("alice", "alicia");
    import(&machine);
    assert_eq!(machine.sh("id -u alicia").succeeds(), uid);
    machine.run(&["getent", "passwd", "alice"]).fails();

    let carol = machine.sh("id -u carol").succeeds();
    machine.ssh("carol", "echo private >notes; chmod 700 .").succeeds();
    machine.iam().python("for group in ('ssh-users', 'ssh-admins'): iam.remove_user_from_group(UserName='carol', GroupName=group)
for key in iam.list_ssh_public_keys(UserName='carol')['SSHPublicKeys']: iam.delete_ssh_public_key(UserName='carol', SSHPublicKeyId=key['SSHPublicKeyId'])
iam.delete_user(UserName='carol')
iam.create_user(UserName='carol')
iam.add_user_to_group(UserName='carol', GroupName='ssh-users')");
    let (status, said) = import(&machine);
    assert!(status == 1 && said.contains("belongs to an earlier IAM user of the name"), "{said}");
    assert_eq!(machine.sh("id -u carol").succeeds(), carol);
    import(&machine);
    assert_ne!(machine.sh("id -u carol").succeeds(), carol);
    assert_eq!(
        machine.sh("stat -c %u /home/carol").succeeds(),
        carol,
        "the home is nobody's until somebody looks at it"
    );
}

#[test]
fn plain_lines_without_a_terminal_and_a_bar_on_one() {
    let machine = machine();
    let plain = machine.run(&["iam-importer"]);
    assert!(!plain.stdout.contains('\u{1b}') && plain.stderr.is_empty(), "{plain:?}");
    machine.fault("delay=1");
    let terminal = machine.sh("script -q -e -c iam-importer /dev/null </dev/null; true");
    assert!(terminal.stdout.contains("reading the list of users from IAM"), "{terminal:?}");
    assert_eq!(machine.run(&["iam-importer", "--quiet"]).stdout, "");
}

#[test]
fn the_timer_and_the_cron_line_are_as_their_readers_want() {
    let machine = machine();
    machine.sh("systemd-analyze verify /usr/lib/systemd/system/iam-importer.service /usr/lib/systemd/system/iam-importer.timer 2>&1 | grep -i iam-importer").fails();
    // What cron would run, with its backslashes taken away as crontab(5) says, and without the wait.
    let line = machine.sh("grep -v -e '^#' -e = /usr/share/pam_iam/cron.d/iam-importer | cut -d' ' -f7- | sed 's/\\\\%/%/g'").succeeds();
    assert!(line.starts_with("sleep $((") && line.ends_with("iam-importer --quiet"), "{line}");
    let wait = line.split(';').next().unwrap().replace("sleep", "echo");
    let seconds: u32 = machine.sh(&wait).succeeds().parse().unwrap();
    assert!(seconds < 120);
}

fn calls_named(machine: &Machine, name: &str) -> usize {
    machine
        .calls()
        .iter()
        .filter(|call| call.params.get("GroupName").is_some_and(|known| known == name))
        .count()
}

#[test]
fn every_named_group_is_read_once() {
    let machine = machine();
    machine.clear_calls();
    import(&machine);
    assert_eq!((calls_named(&machine, "ssh-users"), calls_named(&machine, "ssh-admins")), (1, 1));
    assert_eq!(machine.actions(), ["GetGroup", "GetGroup"]);
}

#[test]
fn a_group_that_an_import_gave_counts_no_longer_when_iam_takes_it_back_though_no_import_runs_any_more() {
    let machine = Machine::new()
        .importer()
        .settings("[freshness]\nmax_age = 0\n[groups]\n'ssh-admins' = { group = 'docker', allow_privileged = true }")
        .start();
    machine.sh("id -Gn carol | grep -w docker").succeeds();
    machine.sh("sed -i -E 's/^(passwd|group):.*/\\1: files iam/' /etc/nsswitch.conf").succeeds();
    machine.ssh("carol", "id -Gn | grep -w docker").succeeds();
    machine.iam().remove_from_group("carol", "ssh-admins");
    let doctor = machine.run(&["iamctl", "doctor"]).stdout;
    assert!(doctor.contains("carol is in the group docker by an earlier import"), "{doctor}");
    machine.ssh("carol", "true").fails();
    machine.logs("authpriv", "iam-importer wrote and IAM no longer gives: gpasswd -d carol docker");
    machine.sh("gpasswd -d carol docker").succeeds();
    machine.ssh("carol", "true").succeeds();
}
