//! The importer locks, archives or deletes the accounts of former users, and of nobody else.

use pam_iam_tests::Machine;

use super::{account_files, import, locked_accounts, machine_with_numbered_users, withdraw_first};

const ARCHIVE: &str = "/var/lib/pam_iam/archive";

#[test]
fn an_incomplete_or_empty_list_retires_nobody() {
    let machine = machine_with_numbered_users(50, "[aws]\ntotal_timeout = '1s'");
    withdraw_first(&machine, 10);
    let before = account_files(&machine);
    for (fault, reason) in [
        ("fail=throttle", "Rate exceeded"),
        ("fail=truncated", "cut off and has no marker"),
        ("fail=denied", "IAM denies it"),
        ("fail=empty&only=GetGroup", "refusing to continue: IAM returned an empty list"),
        ("fail=503", "cannot be read"),
        ("fail=reset", "cannot be read"),
    ] {
        machine.fault(fault);
        for _ in 0..3 {
            let (status, output) = import(&machine);
            assert_eq!(status, 2, "{fault}: {output}");
            assert!(output.contains("nothing done") && output.contains(reason), "{fault}: {output}");
        }
        machine.wait_for_log("authpriv", reason);
    }
    machine.fault("fail=");
    assert_eq!(account_files(&machine), before);

    // The second complete list in a row that lacks a user locks the account.
    let (status, output) = import(&machine);
    assert_eq!((status, locked_accounts(&machine).len()), (0, 0), "{output}");
    assert!(output.contains("user7 is missing for the 1. of 2 times"), "{output}");
    let (status, output) = import(&machine);
    let first_ten: Vec<String> = (0..10).map(|number| format!("user{number}")).collect();
    assert_eq!((status, locked_accounts(&machine)), (0, first_ten), "{output}");
    machine.wait_for_log("authpriv", "event=import action=lock user=user7");
}

/// Removes all five users from ssh-users and deletes the group.
const DELETE_GROUP: &str =
    "for at in range(5): iam.remove_user_from_group(UserName=f'user{at}', GroupName='ssh-users')
iam.delete_group(GroupName='ssh-users')";

#[test]
fn a_deleted_group_retires_nobody() {
    let machine = machine_with_numbered_users(5, "");
    machine.iam().python(DELETE_GROUP);
    for _ in 0..3 {
        assert_eq!(import(&machine).0, 2);
    }
    // While another group exists, accounts are created, and still nobody is retired.
    machine.config().replace("'ssh-users'", "'ssh-users', 'others'");
    machine.run(&["pkill", "-x", "iam-resolver"]).succeeds();
    machine.iam().python("iam.create_group(GroupName='others')");
    machine.iam().create_user("new", &["others"]);
    for _ in 0..3 {
        let (status, output) = import(&machine);
        assert_eq!(status, 1, "{output}");
        assert!(output.contains("the IAM group ssh-users, which does not exist"), "{output}");
    }
    assert!(machine.passwd("new").is_some());
    assert_eq!(locked_accounts(&machine), [""; 0]);
}

#[test]
fn retiring_more_than_a_fifth_at_once_needs_force() {
    let machine = machine_with_numbered_users(20, "");
    withdraw_first(&machine, 5);
    import(&machine);
    let (status, output) = import(&machine);
    assert!(status == 1 && output.contains("5 of 20 accounts would be retired"), "{output}");
    assert_eq!(locked_accounts(&machine), [""; 0]);
    machine.run(&["iam-importer", "--force"]).succeeds();
    assert_eq!(locked_accounts(&machine).len(), 5);
}

#[test]
fn a_former_user_is_locked_and_their_processes_end_and_a_returning_user_is_unlocked() {
    let machine = machine_with_numbered_users(5, "");
    machine.ssh("user0", "echo mine >notes").succeeds();
    machine.leave_running("user0", "user0", "sleep 4203");
    withdraw_first(&machine, 1);
    import(&machine);
    assert!(machine.is_running("sleep 4203"));
    assert_eq!(import(&machine).0, 0);
    // A process that has ended is listed as a zombie until its parent waits for it.
    let states = machine.run(&["ps", "-o", "stat=", "-u", "user0"]).stdout;
    assert!(states.lines().all(|state| state.starts_with('Z')), "{states}");
    assert_eq!(machine.passwd("user0").unwrap().shell, "/usr/sbin/nologin");
    machine.ssh("user0", "true").fails();

    machine.iam().add_to_group("user0", "ssh-users");
    import(&machine);
    machine.wait_until_login_succeeds("user0");
    assert_eq!(machine.ssh("user0", "cat notes").succeeds(), "mine");
}

#[test]
fn an_archived_user_leaves_only_a_file_for_root() {
    let machine = machine_with_numbered_users(5, "[importer]\nretire = 'archive'");
    let uid = machine.ssh("user0", "echo mine >notes; ln -s /etc/passwd link; id -u").succeeds();
    withdraw_first(&machine, 2);
    import(&machine);
    let (status, output) = import(&machine);
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("removed user0, with the home directory archived"), "{output}");
    for user in ["user0", "user1"] {
        assert_eq!(machine.passwd(user), None);
    }
    assert_eq!(machine.group("user0"), None);
    let homes = machine.file("/home").names();
    assert!(homes.iter().all(|name| name != "user0" && !name.starts_with(".pam_iam")), "{homes:?}");

    let archives = machine.file(ARCHIVE).names();
    assert!(matches!(&*archives, [name] if name.starts_with(&format!("user0.{uid}."))), "{archives:?}");
    let archive = format!("{ARCHIVE}/{}", archives.concat());
    assert_eq!(machine.file(&archive).stat("%a %U"), "600 root");
    assert_eq!(machine.run(&["tar", "-xzOf", &archive, "user0/notes"]).succeeds(), "mine");
    assert!(machine.file("/etc/passwd").exists(), "the target of a link in the home");
}

#[test]
fn deleting_a_user_spares_a_home_that_is_another_users_or_has_a_mount_in_it() {
    let machine = machine_with_numbered_users(5, "[importer]\nretire = 'delete'");
    for user in ["user0", "user1", "user2"] {
        machine.ssh(user, "touch notes").succeeds();
    }
    machine.file("/home/user1").chown("root:");
    machine.run(&["mkdir", "/home/user2/mount"]).succeeds();
    machine.run(&["mount", "-t", "tmpfs", "tmpfs", "/home/user2/mount"]).succeeds();
    machine.file("/home/user2/mount/precious").write("");
    withdraw_first(&machine, 3);
    import(&machine);

    let plan = machine.run(&["iam-importer", "--dry-run"]);
    let (status, output) = import(&machine);
    assert_eq!((status, plan.status), (1, 1), "{output}");
    for text in [&output, &(plan.stdout + &plan.stderr)] {
        assert!(text.contains("/home/user2 is a mount point or has one in it; it stays"), "{text}");
    }
    assert!(output.contains("/home/user1 belongs to somebody else; it stays"), "{output}");
    assert!(!machine.file("/home/user0").exists());
    for path in ["/home/user1/notes", "/home/user2/mount/precious"] {
        assert!(machine.file(path).exists(), "{path}");
    }
    assert_eq!(machine.passwd("user0"), None);
    assert_eq!(locked_accounts(&machine), ["user1", "user2"], "until an administrator looks at the homes");
}

/// The first three users, with at least 303 files each in their homes: the home, d, numbers and 300 more.
const WITH_FILES: [&str; 3] = ["user0", "user1", "user2"];
const MAKE_FILES: &str = "mkdir d; seq 200000 >d/numbers; for f in $(seq 300); do echo $f >d/$f; done";

#[test]
fn a_run_killed_at_any_moment_is_finished_by_the_next() {
    let machine = machine_with_numbered_users(20, "[importer]\nretire = 'archive'");
    for user in WITH_FILES {
        machine.ssh(user, MAKE_FILES).succeeds();
    }
    machine.iam().create_user("late", &["ssh-users"]);
    withdraw_first(&machine, 3);
    let before = other_accounts(&machine);
    let killed = kill_runs_at_every_moment(&machine);
    assert!(killed >= 10, "{killed} of 57 runs were killed before their end");

    let (status, output) = import(&machine);
    assert_eq!(status, 0, "{output}");
    for user in WITH_FILES {
        assert_eq!(machine.passwd(user), None);
    }
    assert!(machine.passwd("late").is_some());
    let accounts = machine.file("/etc/passwd").text();
    assert_eq!(accounts.lines().filter(|line| line.starts_with("user")).count(), 17);
    assert_eq!(other_accounts(&machine), before);
    assert_archives_are_complete(&machine);
    let homes = machine.file("/home").names();
    assert!(homes.iter().all(|name| !name.contains("pam_iam-retired")), "{homes:?}");
}

/// Returns the entries of /etc/passwd that no import changes.
fn other_accounts(machine: &Machine) -> String {
    let accounts = machine.file("/etc/passwd").text();
    let others = accounts.lines().filter(|line| !line.starts_with("user") && !line.starts_with("late"));
    others.collect::<Vec<_>>().join("\n")
}

/// Kills imports after 2 ms, after 9 ms and so on up to 400 ms. A complete import takes about 100 ms plus the packing of
/// homes. Asserts that the account files are valid each time. Returns how many imports were killed before their end.
fn kill_runs_at_every_moment(machine: &Machine) -> usize {
    let mut killed = 0;
    for milliseconds in (2..=400).step_by(7) {
        let limit = format!("0.{milliseconds:03}");
        let done = machine.run(&["timeout", "-s", "KILL", &limit, "iam-importer"]);
        // timeout(1) kills its own process group, and so itself.
        killed += usize::from(done.status == -9);
        assert!(machine.passwd("root").is_some());
        machine.run(&["pwck", "-r", "-q"]).succeeds();
        machine.run(&["grpck", "-r"]).succeeds();
    }
    killed
}

/// Asserts that each user's large file is complete in one of the archives, and that one archive has all files.
fn assert_archives_are_complete(machine: &Machine) {
    let archives = machine.file(ARCHIVE).names();
    let mut files = 0;
    for user in WITH_FILES {
        let mut lines = 0;
        for name in archives.iter().filter(|name| name.starts_with(&format!("{user}."))) {
            let archive = format!("{ARCHIVE}/{name}");
            let count = |script: String| machine.sh(&script).succeeds().parse::<u32>().unwrap_or_default();
            files = files.max(count(format!("tar -tzf {archive} | wc -l")));
            lines = lines.max(count(format!("tar -xzOf {archive} {user}/d/numbers 2>/dev/null | wc -l")));
        }
        assert_eq!(lines, 200_000, "{user}: {archives:?}");
    }
    assert!(files >= 303, "{files} files: {archives:?}");
}
