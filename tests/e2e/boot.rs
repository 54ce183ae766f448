//! On a machine that systemd has booted: logind's sessions, our units and timers, a reboot.

use pam_iam_tests::{Machine, work};

/// Who asks logind for what is written down.
const SPY: &str = r#"printf '#!/bin/sh\necho "$*" >>/run/asked\nexec /usr/bin/loginctl "$@"\n' >/usr/local/bin/loginctl; chmod 755 /usr/local/bin/loginctl"#;

/// Has a timer of ours fire at once and again and again.
fn hurry(machine: &Machine, timer: &str) {
    machine
        .sh(&format!(
            "mkdir -p /run/systemd/system/{timer}.timer.d
             printf '[Timer]\nOnBootSec=\nOnUnitInactiveSec=\nOnUnitActiveSec=\nOnActiveSec=100ms\nOnUnitInactiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\n' >/run/systemd/system/{timer}.timer.d/test.conf
             systemctl daemon-reload; systemctl start {timer}.timer"
        ))
        .succeeds();
}

#[test]
fn a_withdrawn_session_is_ended_by_logind_with_all_that_it_left_and_no_other_is() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '5s'").booted().start();
    machine.open_session("carol");
    machine.open_session("alice");
    let carol = machine.sh("id -u carol").succeeds();
    let sessions = machine.sh("loginctl list-sessions --no-legend").succeeds();
    assert!(sessions.contains("carol") && sessions.contains("alice"), "{sessions}");
    work(&machine, "carol", "setsid -f sleep 4101 >/dev/null 2>&1; nohup sleep 4102 >/dev/null 2>&1 &");
    work(&machine, "alice", "sleep 4103 &");
    machine.wait_until("pgrep -f '^sleep 4101' && pgrep -f '^sleep 4102' && pgrep -f '^sleep 4103'");
    // Newer ones count the user's own manager as a session too.
    let id = machine.sh("for id in $(loginctl show-user carol --property=Sessions --value); do [ $(loginctl show-session $id --property=Class --value) != user ] || echo $id; done").succeeds();

    machine.sh(SPY).succeeds();
    machine.iam().remove_from_group("carol", "ssh-users");
    machine
        .sh("mkdir -p /run/systemd/system/iam-sweep.service.d
             printf '[Service]\nExecStart=\nExecStart=/usr/sbin/iamctl sweep --every 1s\n' >/run/systemd/system/iam-sweep.service.d/test.conf
             systemctl daemon-reload; systemctl start iam-sweep.service")
        .succeeds();
    machine.wait_until(&format!("test -e /tmp/carol.over && ! pgrep -u {carol}"));
    machine.wait_until(
        "journalctl -q | grep 'event=sweep user=carol' | grep -q 'result=ended reason=not-in-group'",
    );
    machine.sh(&format!("grep -x 'terminate-session {id}' /run/asked")).succeeds();
    machine.sh("! grep -v -e terminate-session -e 'show-session .* --property=Leader' /run/asked").succeeds();
    machine.wait_until("! loginctl list-sessions --no-legend | grep carol");
    machine.sh("pgrep -f '^sleep 4103' && loginctl list-sessions --no-legend | grep alice").succeeds();
    machine.sh("systemctl is-failed iam-sweep.service").fails();
}

#[test]
fn the_importers_timer_makes_accounts_and_retires_them_with_their_sessions() {
    let machine = Machine::new()
        .settings(
            "[freshness]\nmax_age = 0\n[sessions]\ngrace = '2s'\n[importer]\nconfirm = 2\nretire = 'lock'",
        )
        .booted()
        .start();
    machine.sh(SPY).succeeds();
    // As on a host without our NSS module.
    machine.sh("sed -i 's/ iam$//' /etc/nsswitch.conf").succeeds();
    machine.sh("id alice").fails();
    hurry(&machine, "iam-importer");
    machine.wait_until("grep -q ^alice: /etc/passwd");
    machine.open_session("alice");
    machine.open_session("carol");
    let carol = machine.sh("id -u carol").succeeds();
    machine.iam().remove_from_group("carol", "ssh-users");
    machine.wait_until(&format!("test -e /tmp/carol.over && ! pgrep -u {carol}"));
    machine.wait_until("getent shadow carol | cut -d: -f8 | grep -qx 1");
    machine.sh("grep -qE '^terminate-session c?[0-9]+$' /run/asked").succeeds();
    machine.sh("pgrep -u alice && test ! -e /tmp/alice.over").succeeds();
    machine.sh("systemctl is-failed iam-importer.service").fails();
}

#[test]
fn with_iam_silent_at_boot_the_machine_comes_up_whole_and_the_local_root_logs_in() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    machine.let_root_in();
    // Nobody was ever seen here.
    machine
        .sh("systemctl stop iam-resolver.socket iam-resolver.service; rm -f /var/cache/pam_iam/*")
        .succeeds();
    machine.fault("fail=hang");
    machine.reboot();
    machine.sh("box-ssh -i /root/local root true").succeeds();
    machine
        .sh("systemctl is-active multi-user.target ssh.service iam-resolver.socket iam-resolver.service")
        .succeeds();
    let status = machine.sh("iamctl --json status").succeeds();
    assert!(status.contains("\"last_answer\": null"), "{status}");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied"));
    machine.fault("fail=");
    // Without a restart of anything.
    machine.wait_until("box-ssh alice true");
}

#[test]
fn the_resolver_is_locked_in_and_one_that_is_stuck_is_replaced() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    let status = machine.sh("cat /proc/$(pgrep -x iam-resolver)/status").succeeds();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    machine.sh("mkdir /run/systemd/system/iam-resolver.service.d && printf '[Service]\nWatchdogSec=1s\n' >/run/systemd/system/iam-resolver.service.d/test.conf
        systemctl daemon-reload && systemctl restart iam-resolver").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.sh("pkill -STOP -x iam-resolver").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.wait_until("journalctl -q | grep -q 'iam-resolver.service: Watchdog timeout'");
    // It is started by who asks.
    machine.sh("systemctl stop iam-resolver.service; ! pgrep -x iam-resolver").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.sh("systemctl is-active iam-resolver.service").succeeds();
}
