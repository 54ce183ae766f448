//! Accounts that the importer makes on a host without the NSS module. The module `retire` tests the accounts of former
//! users.

mod retire;

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

fn machine() -> Machine {
    Machine::new().importer().start()
}

/// Returns fixtures with `user0`, `user1` and so on in ssh-users, all with one key.
fn numbered_users(count: usize) -> Value {
    json!({"groups": ["ssh-users", "ssh-admins"], "users": [],
        "filler": {"count": count, "prefix": "user", "groups": ["ssh-users"]}})
}

/// Starts a box that has imported `user0`, `user1` and so on.
fn machine_with_numbered_users(count: usize, settings: &str) -> Machine {
    Machine::new().importer().fixtures(numbered_users(count)).settings(settings).start()
}

/// Removes the first `count` of the numbered users from ssh-users.
fn withdraw_first(machine: &Machine, count: usize) {
    machine.iam().python(&format!(
        "for at in range({count}): iam.remove_user_from_group(UserName=f'user{{at}}', GroupName='ssh-users')"
    ));
}

/// Runs the importer. Returns its exit status and its output on both streams.
fn import(machine: &Machine) -> (i32, String) {
    let done = machine.run(&["iam-importer"]);
    (done.status, done.stdout + &done.stderr)
}

/// Returns the names of the locked accounts, sorted: those that expired on day 1 in shadow(5).
fn locked_accounts(machine: &Machine) -> Vec<String> {
    let entries = machine.run(&["getent", "shadow"]).succeeds();
    let fields = entries.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let locked = fields.filter(|fields| fields.get(7) == Some(&"1"));
    let mut names: Vec<String> =
        locked.filter_map(|fields| fields.first().map(|name| (*name).to_owned())).collect();
    names.sort();
    names
}

/// Returns the text of the files that the importer changes.
fn account_files(machine: &Machine) -> String {
    ["passwd", "shadow", "group"].map(|name| machine.file(&format!("/etc/{name}")).text()).concat()
}

#[test]
fn an_imported_account_equals_the_one_that_nss_shows() {
    let accounts = |builder: Builder| {
        let machine = builder.start();
        let entries = machine.run(&["getent", "passwd", "alice", "carol"]).succeeds();
        let groups = machine.run(&["id", "-G", "carol"]).succeeds();
        let mut groups: Vec<String> = groups.split(' ').map(str::to_owned).collect();
        groups.sort();
        (entries.replace(":x:", ":*:"), groups)
    };
    assert_eq!(accounts(Machine::new().importer()), accounts(Machine::new()));
}

#[test]
fn an_account_has_no_password_and_no_home_directory_yet() {
    let machine = machine();
    assert!(machine.run(&["getent", "shadow", "alice"]).succeeds().starts_with("alice:*:"));
    assert!(!machine.file("/home/alice").exists());
    assert_eq!(machine.passwd("bob"), None);
    machine.run(&["pwck", "-r", "-q"]).succeeds();
    machine.run(&["grpck", "-r"]).succeeds();
}

#[test]
fn five_thousand_users_cost_one_call_for_each_thousand() {
    let machine = Machine::new()
        .importer()
        .fixtures(numbered_users(5000))
        .config("[access]\nallow = ['ssh-users']")
        .start();
    machine.clear_calls();
    let (status, output) = import(&machine);
    assert!(status == 0 && output.contains("accounts=5000 created=0 changed=0"), "{output}");
    assert_eq!(machine.actions(), ["GetGroup"; 5]);
    let accounts = machine.file("/etc/passwd").text();
    assert_eq!(accounts.lines().filter(|line| line.starts_with("user")).count(), 5000);
    assert_eq!(machine.ssh("user4999", "id -un; pwd").succeeds(), "user4999\n/home/user4999");
}

#[test]
fn allow_all_costs_one_list_of_users() {
    let machine = Machine::new().importer().config("[access]\nallow = 'all'").start();
    machine.clear_calls();
    import(&machine);
    assert_eq!(machine.actions(), ["ListUsers"]);
    assert!(machine.passwd("bob").is_some());
}

#[test]
fn every_configured_group_is_read_once() {
    let machine = machine();
    machine.clear_calls();
    import(&machine);
    let calls = machine.calls();
    for group in ["ssh-users", "ssh-admins"] {
        assert_eq!(calls.iter().filter(|call| call.params["GroupName"] == group).count(), 1, "{group}");
    }
    assert_eq!(machine.actions(), ["GetGroup", "GetGroup"]);
}

#[test]
fn without_a_daemon_the_importer_asks_iam_itself() {
    let machine = Machine::new().importer().without_daemon().start();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
}

#[test]
fn a_second_import_waits_for_the_first() {
    let machine = machine_with_numbered_users(5, "");
    machine.fault("delay=1");
    machine.start_in_background("iam-importer; echo $? >/tmp/status");
    machine.wait_until("! flock -n /var/lib/pam_iam/importer.lock true");
    let (status, output) = import(&machine);
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("another import is running"), "{output}");
    machine.wait_until("test -s /tmp/status");
    assert_eq!(machine.file("/tmp/status").text(), "0\n");
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let machine = machine_with_numbered_users(5, "[importer]\nretire = 'delete'");
    withdraw_first(&machine, 1);
    import(&machine);
    machine.iam().create_user("dave", &["ssh-users"]);
    let files = || account_files(&machine) + &machine.file("/var/lib/pam_iam/importer.json").text();
    let before = files();
    let plan = machine.run(&["iam-importer", "--dry-run"]).succeeds();
    for line in [
        "would create dave with uid ",
        "would add dave to iam-users",
        "would lock user0, who has left",
        "would remove user0, with the home directory deleted",
        "dry run, nothing is changed",
    ] {
        assert!(plan.contains(line), "{line}\n--- is not in\n{plan}");
    }
    assert_eq!(files(), before);
}

/// Makes /etc a file system of its own, and fills it to the last byte.
const FILL_ETC: &str = "mkdir /tmp/etc && cp -a /etc/. /tmp/etc/
mount -t tmpfs -o size=$(($(du -sk /etc | cut -f1) + 200))k tmpfs /etc && cp -a /tmp/etc/. /etc/ || exit 1
cat /dev/zero >/etc/fill; true";

#[test]
fn a_full_disk_is_reported_and_nothing_changes() {
    let machine = machine_with_numbered_users(5, "");
    machine.iam().create_user("dave", &["ssh-users"]);
    machine.sh(FILL_ETC).succeeds();
    let state = || (account_files(&machine), machine.file("/etc").names());
    let before = state();
    let (status, output) = import(&machine);
    assert!(status == 2 && output.contains("No space left on device"), "{status} {output}");
    assert_eq!(state(), before);
    machine.file("/etc/fill").remove();
    assert_eq!(import(&machine).0, 0);
    assert!(machine.passwd("dave").is_some());
}

#[test]
fn nothing_is_done_for_other_users_than_root_or_with_a_wrong_option_or_configuration() {
    let machine = machine();
    let done = machine.as_user("65534").run(&["iam-importer"]);
    assert!(done.status == 2 && done.stderr.contains("must be run as root"), "{done:?}");
    assert_eq!(machine.run(&["iam-importer", "--froce"]).status, 2);
    machine.config().append("alow = 1\n");
    let (status, output) = import(&machine);
    assert!(status == 2 && output.contains("/etc/pam_iam/config.toml:"), "{output}");
}

#[test]
fn a_renamed_user_keeps_the_uid_and_a_recreated_one_does_not_get_the_account_at_once() {
    let machine = machine();
    let uid_of_alice = machine.uid_of("alice");
    machine.iam().rename_user("alice", "alicia");
    import(&machine);
    assert_eq!(machine.uid_of("alicia"), uid_of_alice);
    assert_eq!(machine.passwd("alice"), None);

    let old_uid = machine.uid_of("carol");
    machine.ssh("carol", "echo private >notes; chmod 700 .").succeeds();
    machine.iam().recreate_user("carol");
    let (status, output) = import(&machine);
    assert!(status == 1 && output.contains("belongs to an earlier IAM user of the name"), "{output}");
    assert_eq!(machine.uid_of("carol"), old_uid);
    import(&machine);
    assert_ne!(machine.uid_of("carol"), old_uid);
    let owner = machine.file("/home/carol").stat("%u");
    assert_eq!(owner, old_uid.to_string(), "the home is not given away");
}

#[test]
fn progress_is_shown_on_a_terminal_and_plain_lines_elsewhere() {
    let machine = machine();
    let plain = machine.run(&["iam-importer"]);
    assert!(!plain.stdout.contains('\u{1b}') && plain.stderr.is_empty(), "{plain:?}");
    machine.fault("delay=1");
    let on_terminal = machine.run(&["script", "-q", "-e", "-c", "iam-importer", "/dev/null"]);
    assert!(on_terminal.stdout.contains("reading the list of users from IAM"), "{on_terminal:?}");
    assert_eq!(machine.run(&["iam-importer", "--quiet"]).stdout, "");
}

#[test]
fn systemd_accepts_the_timer_and_the_cron_line_waits_less_than_two_minutes() {
    let machine = machine();
    let done = machine.run(&[
        "systemd-analyze",
        "verify",
        "/usr/lib/systemd/system/iam-importer.service",
        "/usr/lib/systemd/system/iam-importer.timer",
    ]);
    let complaints = (done.stdout + &done.stderr).to_lowercase();
    assert!(!complaints.contains("iam-importer"), "{complaints}");

    let crontab = machine.file("/usr/share/pam_iam/cron.d/iam-importer").text();
    let line = crontab.lines().find(|line| !line.starts_with('#') && !line.contains('=')).unwrap();
    // A line has five fields for the time and one for the user before its command. cron removes the backslashes before
    // percent signs, see crontab(5).
    let command = line.splitn(7, ' ').nth(6).unwrap().replace("\\%", "%");
    assert!(command.starts_with("sleep $((") && command.ends_with("iam-importer --quiet"), "{command}");
    let wait = command.split(';').next().unwrap().replace("sleep", "echo");
    let seconds: u32 = machine.sh(&wait).succeeds().parse().unwrap();
    assert!(seconds < 120);
}

#[test]
fn an_imported_group_is_withdrawn_with_the_iam_group_even_if_no_import_runs_any_more() {
    let machine = Machine::new()
        .importer()
        .settings("[freshness]\nmax_age = 0\n[groups]\n'ssh-admins' = { group = 'docker', allow_privileged = true }")
        .start();
    let has_docker = |groups: Vec<String>| groups.contains(&"docker".to_owned());
    assert!(has_docker(machine.groups_of("carol")));
    let nsswitch = ["sed", "-i", "-E", "s/^(passwd|group):.*/\\1: files iam/", "/etc/nsswitch.conf"];
    machine.run(&nsswitch).succeeds();
    assert!(has_docker(machine.login_groups("carol")));

    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.doctor_says("carol is in the group docker by an earlier import");
    machine.ssh("carol", "true").fails();
    machine.wait_for_log("authpriv", "iam-importer wrote and IAM no longer gives: gpasswd -d carol docker");
    machine.run(&["gpasswd", "-d", "carol", "docker"]).succeeds();
    machine.ssh("carol", "true").succeeds();
}
