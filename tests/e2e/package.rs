//! The package on a machine that systemd has booted: installed, enabled, used, upgraded, disabled, purged.

use pam_iam_tests::{Machine, repository};

/// The package that `packaging/build` made.
fn package() -> String {
    let folder = repository().join("target/packages");
    let mut packages: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).collect();
    packages.retain(|entry| entry.path().extension().is_some_and(|extension| extension == "deb"));
    assert_eq!(packages.len(), 1, "run packaging/build deb");
    packages.first().map(|entry| entry.path().to_string_lossy().into_owned()).unwrap_or_default()
}

/// A machine before anything of ours, with what /etc was like in /root/etc.
fn machine() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").bare().start();
    machine
        .sh("mv /etc/pam_iam /root/pam_iam; cp -a /etc /root/etc
             find /usr /var /opt /srv -xdev ! -path '/var/log/*' ! -path '/var/lib/dpkg/*' ! -path '/var/cache/*' ! -path '/var/lib/systemd/*' ! -path '/var/tmp/*' ! -path '*/__pycache__*' | sort >/root/files")
        .succeeds();
    machine
}

/// What is different in /etc, but for the copies that shadow-utils leave of the account files.
fn etc_differs(machine: &Machine) -> String {
    machine.sh("diff -r --no-dereference -x '*-' -x .pwd.lock /root/etc /etc; true").succeeds()
}

fn install(machine: &Machine) {
    machine.run(&["dpkg", "--install", &package()]).succeeds();
}

/// The local root logs in by a key of its own, and stays.
fn somebody_stays(machine: &Machine) {
    machine.sh("mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/local; cp /root/local.pub /root/.ssh/authorized_keys
        (box-ssh -i /root/local root 'sleep 4200; echo stayed' >/root/stayed 2>&1 </dev/null &) >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4200'");
}

#[test]
fn from_nothing_to_a_login_and_back_to_nothing() {
    let machine = machine();
    somebody_stays(&machine);

    install(&machine);
    let differs = etc_differs(&machine);
    for line in differs.lines().filter(|line| line.starts_with("Only in") || line.starts_with("diff ")) {
        let users = ["passwd", "group", "shadow", "gshadow"]
            .iter()
            .any(|file| line.ends_with(&format!("/etc/{file}")));
        assert!(users || line == "Only in /etc: pam_iam", "installing switches nothing on: {line}");
    }
    machine.sh("id alice").fails();
    machine.ssh("alice", "true").fails();
    assert!(machine.sh("iamctl enable").fails().contains("/etc/pam_iam/config.toml"));

    machine.sh("cp /root/pam_iam/* /etc/pam_iam").succeeds();
    let before = etc_differs(&machine);
    let dry = machine.sh("iamctl enable --dry-run").succeeds();
    assert!(
        dry.contains("would change /etc/nsswitch.conf") && dry.contains("pam_iam.so policy=sudo"),
        "{dry}"
    );
    assert_eq!(etc_differs(&machine), before);
    machine.sh("iamctl enable").succeeds();
    assert_eq!(machine.ssh("alice", "id -un; pwd").succeeds(), "alice\n/home/alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("bob", "true").fails();
    machine.sh("iamctl doctor").succeeds();
    machine.sh("systemctl is-active iam-resolver.socket iam-resolver.service iam-sweep.timer").succeeds();
    assert!(machine.sh("iamctl enable").succeeds().contains("changed units"), "twice is once");

    machine.sh("(box-ssh alice 'sleep 4201' </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4201' && grep -q alice /var/cache/pam_iam/cache.json");
    machine.fault("fail=reset");
    install(&machine);
    assert_eq!(
        machine.ssh("alice", "id -un").succeeds(),
        "alice",
        "an upgrade keeps configuration and cache"
    );
    machine.sh("pgrep -f '^sleep 4201' && pgrep -f '^sleep 4200'").succeeds();
    machine.fault("fail=");

    machine.sh("iamctl disable").succeeds();
    assert_eq!(etc_differs(&machine), before, "byte for byte");
    machine.ssh("alice", "true").fails();
    machine.sh("iamctl enable && pgrep -f '^sleep 4200'").succeeds();
    machine.ssh("alice", "true").succeeds();

    machine.sh("pkill -f '^sleep 4201'; dpkg --purge pam-iam").succeeds();
    assert_eq!(etc_differs(&machine), "");
    let left = machine.sh("find /usr /var /opt /srv -xdev ! -path '/var/log/*' ! -path '/var/lib/dpkg/*' ! -path '/var/cache/*' ! -path '/var/lib/systemd/*' ! -path '/var/tmp/*' ! -path '*/__pycache__*' | sort | diff /root/files -; ls -d /var/cache/pam_iam /run/pam_iam 2>/dev/null; true").succeeds();
    assert_eq!(left, "");
    machine
        .sh("pgrep -f '^sleep 4200' && box-ssh -i /root/local root true && sshd -t && visudo -c")
        .succeeds();
}

#[test]
fn what_cannot_be_enabled_whole_is_taken_back_whole() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/pam_iam/* /etc/pam_iam").succeeds();
    for (trouble, why, mend) in [
        (
            "echo Nonsense yes >/etc/ssh/sshd_config.d/99.conf",
            "error already",
            "rm /etc/ssh/sshd_config.d/99.conf",
        ),
        (
            "echo 'AuthorizedKeysCommand /bin/true' >/etc/ssh/sshd_config.d/00.conf; echo 'AuthorizedKeysCommandUser nobody' >>/etc/ssh/sshd_config.d/00.conf",
            "an earlier file sets another",
            "rm /etc/ssh/sshd_config.d/00.conf",
        ),
        ("mv /etc/pam.d/sshd /root/sshd", "/etc/pam.d/sshd is missing", "mv /root/sshd /etc/pam.d/sshd"),
    ] {
        machine.sh(trouble).succeeds();
        let before = etc_differs(&machine);
        let said = machine.sh("iamctl enable").fails();
        assert!(said.contains(why), "{said}");
        assert_eq!(etc_differs(&machine), before, "{why}");
        machine
            .sh("test ! -e /var/lib/pam_iam/enabled.json && ! systemctl is-enabled --quiet iam-sweep.timer")
            .succeeds();
        machine.sh(mend).succeeds();
    }
    machine.sh("iamctl enable").succeeds();
    machine.ssh("alice", "true").succeeds();
    // What somebody else changed since stays, and our lines go.
    machine
        .sh("echo '# mine' >>/etc/pam.d/sshd; echo '# mine' >>/etc/nsswitch.conf; iamctl disable")
        .succeeds();
    machine.sh("grep -q '# mine' /etc/pam.d/sshd && grep -q '# mine' /etc/nsswitch.conf && ! grep -r pam_iam /etc/pam.d && ! grep -w iam /etc/nsswitch.conf").succeeds();
}
