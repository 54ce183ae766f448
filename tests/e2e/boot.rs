//! A machine that systemd has booted: logind's sessions, units and timers, and a reboot.

use pam_iam_tests::Machine;

/// A loginctl that appends its arguments to `/run/asked` and runs the real one.
const NOTING_LOGINCTL: &str = "#!/bin/sh
echo \"$*\" >>/run/asked
exec /usr/bin/loginctl \"$@\"
";

/// Replaces loginctl by [`NOTING_LOGINCTL`].
fn spy_on_loginctl(machine: &Machine) {
    machine.file("/usr/local/bin/loginctl").write(NOTING_LOGINCTL);
    machine.file("/usr/local/bin/loginctl").chmod("755");
}

/// Adds a drop-in to a unit of systemd.
fn change_unit(machine: &Machine, unit: &str, text: &str) {
    let folder = format!("/run/systemd/system/{unit}.d");
    machine.run(&["mkdir", "-p", &folder]).succeeds();
    machine.file(&format!("{folder}/test.conf")).write(text);
    machine.run(&["systemctl", "daemon-reload"]).succeeds();
}

/// The drop-in for a timer that fires at once, and then a second after each run.
const EVERY_SECOND: &str = "[Timer]
OnBootSec=
OnUnitInactiveSec=
OnUnitActiveSec=
OnActiveSec=100ms
OnUnitInactiveSec=1s
RandomizedDelaySec=0
AccuracySec=100ms
";

/// Returns the id that logind has for the login session of a user, or an empty text.
fn logind_session_of(machine: &Machine, user: &str) -> String {
    let property = |kind: &str, of: &str, name: &str| {
        machine.run(&["loginctl", kind, of, "--property", name, "--value"]).succeeds()
    };
    // Newer versions of logind count the user's manager as a session too.
    let sessions = property("show-user", user, "Sessions");
    let mut ids = sessions.split_whitespace().filter(|id| property("show-session", id, "Class") == "user");
    ids.next().unwrap_or_default().to_owned()
}

/// Returns whether logind lists a session of the user.
fn logind_lists(machine: &Machine, user: &str) -> bool {
    machine.run(&["loginctl", "list-sessions", "--no-legend"]).succeeds().contains(user)
}

#[test]
fn logind_ends_the_session_of_a_withdrawn_user_with_all_its_processes_and_no_other_session() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '5s'").booted().start();
    let (carol, alice) = (machine.open_session("carol"), machine.open_session("alice"));
    assert!(logind_lists(&machine, "carol") && logind_lists(&machine, "alice"));
    carol.begin("setsid -f sleep 4101 >/dev/null 2>&1; nohup sleep 4102 >/dev/null 2>&1 &");
    alice.begin("sleep 4103 &");
    for command in ["sleep 4101", "sleep 4102", "sleep 4103"] {
        machine.wait_until_running(command);
    }
    let (uid, id) = (machine.uid_of("carol"), logind_session_of(&machine, "carol"));

    spy_on_loginctl(&machine);
    machine.iam().remove_from_group("carol", "ssh-users");
    let sweep = "[Service]\nExecStart=\nExecStart=/usr/sbin/iamctl sweep --every 1s\n";
    change_unit(&machine, "iam-sweep.service", sweep);
    machine.run(&["systemctl", "start", "iam-sweep.service"]).succeeds();
    carol.wait_until_ended();
    machine.wait_until(&format!("! pgrep -u {uid}"));
    machine.wait_until(
        "journalctl -q | grep 'event=sweep user=carol' | grep -q 'result=ended reason=not-in-group'",
    );
    let asked = machine.file("/run/asked").text();
    assert!(asked.lines().any(|words| words == format!("terminate-session {id}")), "{id}: {asked}");
    assert!(
        asked.lines().all(|words| words.contains("terminate-session")
            || words.starts_with("show-session ") && words.contains(" --property=Leader")),
        "{asked}"
    );
    machine.wait_until("! loginctl list-sessions --no-legend | grep carol");
    assert!(machine.is_running("sleep 4103") && logind_lists(&machine, "alice"));
    machine.run(&["systemctl", "is-failed", "iam-sweep.service"]).fails();
}

#[test]
fn the_importers_timer_creates_accounts_and_retires_them_with_their_sessions() {
    let machine = Machine::new()
        .settings(
            "[freshness]\nmax_age = 0\n[sessions]\ngrace = '2s'\n[importer]\nconfirm = 2\nretire = 'lock'",
        )
        .booted()
        .start();
    spy_on_loginctl(&machine);
    // As on a host without the NSS module.
    machine.remove_from_nsswitch("passwd");
    machine.remove_from_nsswitch("group");
    assert_eq!(machine.passwd("alice"), None);
    change_unit(&machine, "iam-importer.timer", EVERY_SECOND);
    machine.run(&["systemctl", "start", "iam-importer.timer"]).succeeds();
    machine.wait_until("grep -q ^alice: /etc/passwd");
    let (alice, carol) = (machine.open_session("alice"), machine.open_session("carol"));
    let uid = machine.uid_of("carol");
    machine.iam().remove_from_group("carol", "ssh-users");
    carol.wait_until_ended();
    machine.wait_until(&format!("! pgrep -u {uid}"));
    machine.wait_until("getent shadow carol | cut -d: -f8 | grep -qx 1");
    machine.run(&["grep", "-qE", "^terminate-session c?[0-9]+$", "/run/asked"]).succeeds();
    machine.run(&["pgrep", "-u", "alice"]).succeeds();
    assert!(alice.is_open());
    machine.run(&["systemctl", "is-failed", "iam-importer.service"]).fails();
}

#[test]
fn a_machine_boots_and_the_local_root_logs_in_while_iam_hangs() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    machine.let_root_in();
    machine.run(&["systemctl", "stop", "iam-resolver.socket", "iam-resolver.service"]).succeeds();
    // The cache is empty on a host that nobody has logged in to.
    machine.sh("rm -f /var/cache/pam_iam/*").succeeds();
    machine.fault("fail=hang");
    machine.reboot();
    machine.local_root_logs_in();
    for unit in ["multi-user.target", "ssh.service", "iam-resolver.socket", "iam-resolver.service"] {
        machine.run(&["systemctl", "is-active", unit]).succeeds();
    }
    let status = machine.iamctl("--json status").succeeds();
    assert!(status.contains("\"last_answer\": null"), "{status}");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied"));
    machine.fault("fail=");
    // No service has to be restarted.
    machine.wait_until_login_succeeds("alice");
}

#[test]
fn the_resolver_is_sandboxed_and_one_that_hangs_is_replaced() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    let status = machine.file(&format!("/proc/{}/status", machine.resolver_pid())).text();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    change_unit(&machine, "iam-resolver.service", "[Service]\nWatchdogSec=1s\n");
    machine.restart_resolver();
    machine.ssh("alice", "true").succeeds();
    machine.signal_resolver("STOP");
    machine.ssh("alice", "true").succeeds();
    machine.wait_until("journalctl -q | grep -q 'iam-resolver.service: Watchdog timeout'");
    // The next client starts the resolver through its socket.
    machine.run(&["systemctl", "stop", "iam-resolver.service"]).succeeds();
    machine.run(&["pgrep", "-x", "iam-resolver"]).fails();
    machine.ssh("alice", "true").succeeds();
    machine.run(&["systemctl", "is-active", "iam-resolver.service"]).succeeds();
}
