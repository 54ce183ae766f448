//! The package on a machine that systemd has booted: installed, enabled, used, upgraded, disabled, purged.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use pam_iam_tests::{Builder, Machine, package, repository};
use serde_json::{Value, json};

/// Lists the files of the machine that are not in /etc, but for what comes and goes by itself.
const FILES: &str = "find /usr /var /opt /srv -xdev \
    ! -path '/var/log/*' \
    ! -path '/var/lib/dpkg/*' \
    ! -path '/var/cache/*' \
    ! -path '/var/lib/systemd/*' \
    ! -path '/var/tmp/*' \
    ! -path '*/__pycache__*' | sort";

/// What an rpm on Debian wants to be told, where it does.
const FORCE: &str = "$(rpm --help | grep -o -m 1 -e --force-debian)";

/// A machine before anything of ours, with what /etc was like in /root/etc.
fn machine() -> Machine {
    bare(Machine::new().settings("[freshness]\nmax_age = 0"))
}

fn bare(builder: Builder) -> Machine {
    let machine = builder.bare().start();
    machine
        .sh(&format!("mv /etc/pam_iam /root/of-the-box; cp -a /etc /root/etc; {FILES} >/root/files"))
        .succeeds();
    machine
}

/// What is different in /etc, but for the copies that shadow-utils leave of the account files.
fn etc_differs(machine: &Machine) -> String {
    machine.sh("diff -r --no-dereference -x '*-' -x .pwd.lock /root/etc /etc || test $? -eq 1").succeeds()
}

fn install(machine: &Machine) {
    machine.run(&["dpkg", "--install", &package().to_string_lossy()]).succeeds();
}

/// The local root logs in by a key of its own, and stays.
fn somebody_stays(machine: &Machine) {
    machine.let_root_in();
    machine.sh("(box-ssh -i /root/local root 'sleep 4200; echo stayed' >/root/stayed 2>&1 </dev/null &) >/dev/null 2>&1").succeeds();
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

    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    let before = etc_differs(&machine);
    let dry = machine.sh("iamctl enable --dry-run").succeeds();
    assert!(
        dry.contains("would change /etc/nsswitch.conf") && dry.contains("pam_iam.so policy=sudo"),
        "{dry}"
    );
    assert_eq!(etc_differs(&machine), before);
    assert!(machine.sh("iamctl doctor").fails().contains("nothing of pam_iam is switched on here"));
    machine.sh("iamctl enable").succeeds();
    assert_eq!(machine.ssh("alice", "id -un; pwd").succeeds(), "alice\n/home/alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("bob", "true").fails();
    machine.sh("iamctl doctor").succeeds();
    machine.sh("systemctl is-active iam-resolver.socket iam-resolver.service iam-sweep.service").succeeds();
    assert!(machine.sh("iamctl enable").succeeds().contains("nothing is to be changed"), "twice is once");

    machine.sh("(box-ssh alice 'sleep 4201' </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4201' && grep -q alice /var/cache/pam_iam/cache.json");
    machine.fault("fail=reset");
    let pid = "systemctl show --property=MainPID --value iam-resolver.service";
    let old = machine.sh(pid).succeeds();
    install(&machine);
    assert_ne!(machine.sh(pid).succeeds(), old, "what runs is the new one");
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
    let left = machine
        .sh(&format!("{FILES} | diff /root/files -; ls -d /var/cache/pam_iam /run/pam_iam 2>/dev/null; true"))
        .succeeds();
    assert_eq!(left, "");
    machine
        .sh("pgrep -f '^sleep 4200' && box-ssh -i /root/local root true && sshd -t && visudo -c")
        .succeeds();
}

/// The commands that a text of documentation gives, block by block.
fn commands_of(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.map(|block| block.replace("\n   ", "\n").trim().to_owned()).collect()
}

/// Does what a block says, as somebody in the repository would.
fn follow(machine: &Machine, commands: &str) -> String {
    // Where these tests have their crates: with another folder everything would be built once more.
    let crates = std::env::var("CARGO_HOME").unwrap_or_default();
    let home =
        format!("export HOME=/root; if [ -d '{crates}/registry' ]; then export CARGO_HOME='{crates}'; fi");
    machine.sh(&format!("set -e; {home}; cd '{}'\n{commands}", repository().display())).succeeds()
}

#[test]
fn a_host_whose_accounts_a_script_made_comes_over_by_the_migration_page_as_it_stands() {
    let machine = bare(Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
        {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]})));
    // As such a script leaves it: accounts with uids in the order of their making, in a group of its own, with sudo by a file
    // for each, a home with work in it, and a key of its own. dave has left IAM.
    machine.sh(r#"groupadd iam-synced-users; mkdir -p /etc/cron.d /opt/keys
        for user in alice carol dave; do useradd -m -s /bin/bash -G iam-synced-users $user; echo work >/home/$user/notes; done
        for user in alice carol; do ssh-keygen -y -f $BOX_KEYS/$user >/opt/keys/$user; done
        ssh-keygen -q -t ed25519 -N '' -f /root/planted; install -d -m 700 -o alice ~alice/.ssh; install -m 600 -o alice /root/planted.pub ~alice/.ssh/authorized_keys
        echo 'carol ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/carol
        echo '*/10 * * * * root /opt/import_users.sh' >/etc/cron.d/import_users; touch /opt/import_users.sh
        printf '#!/bin/sh
cat "/opt/keys/$1"
' >/opt/authorized_keys_command.sh; chmod 755 /opt/authorized_keys_command.sh
        printf 'AuthorizedKeysCommand /opt/authorized_keys_command.sh
AuthorizedKeysCommandUser nobody
' >>/etc/ssh/sshd_config
        systemctl reload ssh"#).succeeds();
    let before = machine.ssh("alice", "id -u; cat notes").succeeds();
    machine.ssh("carol", "sudo -n true").succeeds();
    machine.sh("box-ssh -i /root/planted alice true").succeeds();

    let page = std::fs::read_to_string(repository().join("docs/migration.md")).unwrap_or_default();
    let commands = commands_of(&page);
    let [stop, configure, look, switch, clean] = commands.as_slice() else { panic!("{commands:?}") };
    follow(&machine, stop);
    install(&machine);
    machine.sh("cp /root/of-the-box/environment /etc/pam_iam").succeeds();
    follow(&machine, configure);
    let would = follow(&machine, look);
    for words in [
        "would add alice to iam-users",
        "would add carol to iam-sudo",
        "dave is missing for the 1. of 2 times",
    ] {
        assert!(would.contains(words), "{would}");
    }
    assert!(
        !would.contains("would create alice") && !would.contains("would change /etc/nsswitch.conf"),
        "{would}"
    );
    assert_eq!(
        machine.ssh("alice", "id -u; cat notes").succeeds(),
        before,
        "the script's way in still works"
    );

    follow(&machine, switch);
    assert_eq!(machine.ssh("alice", "id -u; cat notes").succeeds(), before);
    machine.ssh("carol", "sudo -n true").succeeds();
    machine.sh("box-ssh -i /root/planted alice true").fails();
    follow(&machine, clean);
    machine
        .sh("test ! -e /etc/sudoers.d/carol && ! grep -q ^AuthorizedKeysCommand /etc/ssh/sshd_config")
        .succeeds();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0", "by iam-sudo");
    // Who has left is locked, and keeps the files.
    machine.sh("iam-importer").succeeds();
    assert_eq!(machine.sh("getent shadow dave | cut -d: -f8; cat /home/dave/notes").succeeds(), "1\nwork");
    // And IAM decides from now on.
    machine.iam().python("iam.remove_user_from_group(UserName='carol', GroupName='ssh-admins'); iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')");
    machine.sh("iamctl flush").succeeds();
    machine.ssh("carol", "sudo -n true").fails();
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn the_readmes_installation_chapter_works_as_it_stands() {
    let machine = machine();
    machine.sh("mkdir /etc/pam_iam && cp /root/of-the-box/environment /etc/pam_iam").succeeds();
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap_or_default();
    let chapter =
        readme.split("\n## ").find(|chapter| chapter.starts_with("Installation\n")).unwrap_or_default();
    let commands = commands_of(chapter);
    assert_eq!(commands.len(), 4, "{chapter}");
    let (on, off) = commands.split_at(3);
    for commands in on {
        // Another distribution's file system has no compiler.
        let skip = if std::env::var_os("PAM_IAM_ROOT").is_some() { "packaging/build deb\n" } else { "" };
        follow(&machine, commands.strip_prefix(skip).unwrap_or(commands));
    }
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("bob", "true").fails();
    for commands in off {
        follow(&machine, commands);
    }
    machine.ssh("alice", "true").fails();
    machine.sh("rm -rf /home/alice /home/carol").succeeds();
    assert_eq!(etc_differs(&machine), "");
}

#[test]
fn the_rpm_holds_the_same_and_its_scripts_make_users_and_take_everything_back() {
    let machine = machine();
    let folder = repository().join("target/packages");
    let rpm = format!("$(ls {}/pam-iam-*.$(uname -m).rpm)", folder.display());
    machine.sh(&format!("rpm -K {rpm}")).succeeds();
    let files = |command: &str| {
        let listed = machine.sh(command).succeeds();
        let mut files: Vec<String> = listed
            .lines()
            .map(|line| {
                line.replace("/usr/lib64/", "/LIB/")
                    .replace("/usr/lib/x86_64-linux-gnu/", "/LIB/")
                    .replace("/zsh/vendor-completions/", "/zsh/site-functions/")
            })
            .collect();
        files.sort();
        files
    };
    let of_deb = files(&format!(
        "dpkg-deb --fsys-tarfile {} | tar -t | grep -v '/$' | sed s,^.,,",
        package().display()
    ));
    let of_rpm = files(&format!("rpm --query --list --package {rpm}"));
    let missing: Vec<&String> = of_deb.iter().filter(|path| !of_rpm.contains(path)).collect();
    assert!(missing.is_empty() && of_deb.len() > 30, "{missing:?}");
    // On this distribution nothing finds the modules in /usr/lib64; the scripts run all the same.
    machine.sh(&format!("rpm --install --nodeps {FORCE} {rpm} && getent passwd iam-resolver pam-iam && test -d /var/cache/pam_iam")).succeeds();
    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    let before = etc_differs(&machine);
    machine
        .sh("iamctl enable && grep -q pam_iam.so /etc/pam.d/sshd && systemctl is-active iam-resolver.service")
        .succeeds();
    machine.sh(&format!("rpm --erase --nodeps {FORCE} pam-iam && test ! -e /usr/sbin/iamctl && test ! -e /var/cache/pam_iam && ! systemctl is-active iam-resolver.service")).succeeds();
    let after = etc_differs(&machine);
    let more: Vec<&str> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn the_man_pages_are_sound_and_name_every_command_and_option() {
    let folder = repository().join("target/packages/deb/usr/share/man");
    let sh = |script: &str| {
        let output =
            std::process::Command::new("sh").arg("-c").arg(script).current_dir(&folder).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (sound, complaints) =
        sh("for page in man*/*; do gzip -dc $page | mandoc -T lint -W warning || exit 1; done");
    assert!(sound, "{complaints}");
    for (text, words) in [
        (
            "ls man*/*",
            "pam_iam.8 iam-authorized-keys.8 iam-resolver.8 iam-importer.8 iamctl.8 pam_iam.toml.5",
        ),
        (
            "gzip -dc man8/iamctl.8.gz | mandoc -T utf8 | col -b",
            "explain doctor status sessions sweep flush lint enable disable --json --dry-run --prometheus",
        ),
        (
            "gzip -dc man5/pam_iam.toml.5.gz | mandoc -T utf8 | col -b",
            "[access] [freshness] offline_sudo total_timeout [importer] max_retire [sessions] [shared.deploy]",
        ),
    ] {
        let (_, said) = sh(text);
        for word in words.split(' ') {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn what_an_administrator_wrote_stays_and_no_line_of_ours_outlives_the_module() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam && iamctl enable").succeeds();
    // A rule of one's own for fewer rights, and a line for cron as pam.d/ has it.
    let rule = "%ssh-ops ALL=(root) NOPASSWD: /usr/bin/true";
    machine.sh(&format!("echo '{rule}' >/etc/sudoers.d/pam_iam; cp /usr/share/pam_iam/pam.d/debian/cron /etc/pam.d/cron; echo 'account required pam_unix.so' >>/etc/pam.d/cron; sed -i '1i account [success=ok default=die] pam_iam.so' /etc/pam.d/su")).succeeds();
    assert!(
        machine
            .sh("iamctl enable 2>&1")
            .succeeds()
            .contains("/etc/sudoers.d/pam_iam is not as we ship it: kept")
    );
    assert_eq!(machine.sh("cat /etc/sudoers.d/pam_iam").succeeds(), rule);
    let json: Result<Value, _> = serde_json::from_str(&machine.sh("iamctl --json enable").succeeds());
    assert_eq!(json.unwrap()["done"], "changed", "one document, whatever is remarked");
    machine.sh("dpkg --purge pam-iam").succeeds();
    machine
        .sh("! grep -r pam_iam.so /etc/pam.d && grep -q pam_unix.so /etc/pam.d/cron && visudo -c && su root -c true")
        .succeeds();
    assert_eq!(machine.sh("cat /etc/sudoers.d/pam_iam.disabled").succeeds(), rule);
    machine.sh("test ! -e /etc/sudoers.d/pam_iam").succeeds();
}

#[test]
fn what_was_switched_on_by_hand_is_taken_back_too_and_imported_accounts_are_named() {
    // docs/install-by-hand.md, with the importer's accounts. This machine is no booted one, as an image that is being made.
    let machine = Machine::new().importer().start();
    machine.sh("iamctl enable").succeeds();
    machine.sh("ls /etc/systemd/system/*.wants | grep -q iam-resolver.socket").succeeds();
    machine.open_session("alice");
    let said = machine.sh("iamctl disable 2>&1").succeeds();
    assert!(said.contains("still logged in, and no sweep ends them any more: alice"), "{said}");
    assert!(said.contains("2 accounts of IAM users stay in /etc/passwd") && said.contains("alice"), "{said}");
    machine.sh("! grep -r pam_iam.so /etc/pam.d && ! grep -w iam /etc/nsswitch.conf && ! ls /etc/systemd/system/*.wants | grep iam-").succeeds();
    machine
        .sh("test ! -e /etc/ssh/sshd_config.d/10-pam_iam.conf && test ! -e /etc/sudoers.d/pam_iam")
        .succeeds();
    assert!(machine.sh("iamctl disable").succeeds().contains("nothing is switched on"));
}

#[test]
fn for_another_architecture_it_is_said_what_is_missing() {
    let machine = machine();
    let build = repository().join("packaging/build");
    // A compiler that has no other target.
    machine.sh("mkdir /root/bin && printf '#!/bin/sh\necho /nowhere\n' >/root/bin/rustc && chmod 755 /root/bin/rustc").succeeds();
    let said = machine.sh(&format!("PATH=/root/bin:$PATH '{}' --arch arm64 deb", build.display())).fails();
    assert!(said.contains("rustup target add aarch64-unknown-linux-gnu"), "{said}");
    for (there, remedy) in [
        ("/usr/bin/aarch64-linux-gnu-gcc", "apt-get install gcc-aarch64-linux-gnu"),
        ("/usr/lib/aarch64-linux-gnu/libpam.so", "apt-get install libpam0g-dev:arm64"),
    ] {
        assert_eq!(said.contains(remedy), !std::path::Path::new(there).exists(), "{said}");
    }
    assert!(machine.sh(&format!("'{}' --arch vax deb", build.display())).fails().contains("amd64 or arm64"));
}

#[test]
fn what_is_built_needs_no_newer_c_library_than_2_34() {
    let root = repository().join("target/packages/deb");
    for file in [
        "usr/lib/x86_64-linux-gnu/security/pam_iam.so",
        "usr/lib/x86_64-linux-gnu/libnss_iam.so.2",
        "usr/libexec/pam_iam/iam-resolver",
        "usr/libexec/pam_iam/iam-authorized-keys",
        "usr/sbin/iam-importer",
        "usr/sbin/iamctl",
    ] {
        let output = std::process::Command::new("objdump").arg("-T").arg(root.join(file)).output().unwrap();
        let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
        let versions: Vec<u32> = symbols
            .split("GLIBC_2.")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .collect();
        assert!(
            !versions.is_empty() && versions.iter().all(|version| *version <= 34),
            "{file}: {:?}",
            versions.iter().max()
        );
    }
}

#[test]
fn what_cannot_be_enabled_whole_is_taken_back_whole() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    for (trouble, why, mend) in [
        (
            "echo Nonsense yes >/etc/ssh/sshd_config.d/99.conf",
            "error already",
            "rm /etc/ssh/sshd_config.d/99.conf",
        ),
        (
            "echo 'AuthorizedKeysCommand /bin/true' >/etc/ssh/sshd_config.d/00.conf; echo 'AuthorizedKeysCommandUser nobody' >>/etc/ssh/sshd_config.d/00.conf",
            "another key command is in force: /bin/true",
            "rm /etc/ssh/sshd_config.d/00.conf",
        ),
        (
            // As EC2 Instance Connect comes on some systems.
            r#"mkdir /run/systemd/system/ssh.service.d; printf '[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -o "AuthorizedKeysCommand /usr/share/eic_run_authorized_keys %%%%u %%%%f" -o "AuthorizedKeysCommandUser nobody" $SSHD_OPTS\n' >/run/systemd/system/ssh.service.d/eic.conf; systemctl daemon-reload"#,
            "sshd is started with -o AuthorizedKeysCommand /usr/share/eic_run_authorized_keys %u %f, which wins over every file",
            "rm -r /run/systemd/system/ssh.service.d; systemctl daemon-reload",
        ),
        (
            "sed -i '/^UsePAM/d' /etc/ssh/sshd_config; echo 'UsePAM no' >/etc/ssh/sshd_config.d/00.conf",
            "PAM may let others in whom sshd refuses now",
            "cp /root/etc/ssh/sshd_config /etc/ssh/; rm /etc/ssh/sshd_config.d/00.conf",
        ),
        (
            "echo 'SSHD_OPTS=\"-o UsePAM=no\"' >/etc/default/ssh",
            "PAM may let others in whom sshd refuses now",
            "cp /root/etc/default/ssh /etc/default/",
        ),
        (
            "rm /etc/pam.d/sudo; rm /etc/pam.d/sudo-i",
            "/etc/pam.d/sudo is missing",
            "cp /root/etc/pam.d/sudo* /etc/pam.d/",
        ),
        (
            "chmod 600 /etc/pam_iam/config.toml",
            "iam-resolver cannot read /etc/pam_iam/config.toml, as it has to: chmod 644",
            "chmod 644 /etc/pam_iam/config.toml",
        ),
        ("mv /etc/pam.d/sshd /root/sshd", "/etc/pam.d/sshd is missing", "mv /root/sshd /etc/pam.d/sshd"),
    ] {
        machine.sh(trouble).succeeds();
        let before = etc_differs(&machine);
        let said = machine.sh("iamctl enable").fails();
        assert!(said.contains(why), "{said}");
        assert_eq!(etc_differs(&machine), before, "{why}");
        machine
            .sh("test ! -e /var/lib/pam_iam/enabled.json && ! systemctl is-enabled --quiet iam-sweep.service")
            .succeeds();
        machine.sh(mend).succeeds();
    }
    // PAM would take the stack other for a missing one.
    machine.sh("mv /etc/pam.d/sudo-i /root/; iamctl enable; grep -q pam_iam /etc/pam.d/sudo-i").succeeds();
    assert_eq!(machine.ssh("carol", "sudo -n -i id -u").succeeds(), "0");
    machine.sh("rm /etc/pam.d/sudo-i").succeeds();
    assert!(machine.sh("iamctl doctor").fails().contains("/etc/pam.d/sudo-i is missing"));
    machine.sh("iamctl disable; mv /root/sudo-i /etc/pam.d/").succeeds();
    machine.sh("iamctl enable").succeeds();
    machine.ssh("alice", "true").succeeds();
    // What somebody else changed since stays, and our lines go.
    machine
        .sh("echo '# mine' >>/etc/pam.d/sshd; echo '# mine' >>/etc/nsswitch.conf; iamctl disable")
        .succeeds();
    machine.sh("grep -q '# mine' /etc/pam.d/sshd && grep -q '# mine' /etc/nsswitch.conf && ! grep -r pam_iam /etc/pam.d && ! grep -w iam /etc/nsswitch.conf").succeeds();
}

#[test]
fn what_ran_before_a_failing_enable_runs_after_it() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam; systemctl enable --now --quiet iam-resolver.socket iam-resolver.service").succeeds();
    machine.sh("echo 'AuthorizedKeysCommand /bin/true' >/etc/ssh/sshd_config.d/00.conf; echo 'AuthorizedKeysCommandUser nobody' >>/etc/ssh/sshd_config.d/00.conf").succeeds();
    assert!(machine.sh("iamctl enable").fails().contains("everything is as it was"));
    machine.sh("systemctl is-active iam-resolver.socket iam-resolver.service && systemctl is-enabled iam-resolver.socket iam-resolver.service").succeeds();
    machine
        .sh("! systemctl is-enabled --quiet iam-sweep.service && ! systemctl is-active --quiet iam-sweep.service")
        .succeeds();
}

#[test]
fn enable_works_before_sshds_first_start_without_its_folder_and_keys() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam; systemctl stop ssh; mv /run/sshd /run/aside; mkdir /root/keys; mv /etc/ssh/ssh_host_* /root/keys").succeeds();
    machine.sh("iamctl enable").succeeds();
    assert_eq!(
        machine.sh("ls -d /run/sshd /run/pam_iam-hostkey* /etc/ssh/ssh_host_* 2>/dev/null").stdout,
        "",
        "nothing of it stays"
    );
    machine.sh("mv /run/aside /run/sshd; mv /root/keys/* /etc/ssh; systemctl start ssh").succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_trial_that_nobody_confirms_is_taken_back_and_one_that_is_confirmed_stays() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    let before = etc_differs(&machine);
    machine.sh("iamctl enable --try 10m").succeeds();
    machine.sh("systemctl is-active iam-trial.timer && systemctl is-enabled iam-trial.timer").succeeds();
    assert!(machine.sh("iamctl enable --confirm").fails().contains("no IAM user has logged in since"));
    assert!(machine.sh("iamctl enable").fails().contains("a trial goes on for"));
    assert!(machine.sh("iamctl doctor").stdout.contains("everything is taken back in"));
    // Its time is over: as if ten minutes had passed.
    machine.sh("sed -i 's/\"until\":[0-9]*/\"until\":1/' /var/lib/pam_iam/trial.json").succeeds();
    machine.wait_until("! test -e /var/lib/pam_iam/trial.json");
    machine.wait_until("! systemctl is-enabled --quiet iam-trial.timer");
    assert_eq!(etc_differs(&machine), before);
    machine.ssh("alice", "true").fails();

    machine.sh("iamctl enable --try 10m").succeeds();
    machine.open_session("alice");
    assert!(machine.sh("iamctl enable --confirm").succeeds().contains("alice logged in by sshd"));
    machine.sh("iamctl end-trial && ! systemctl is-active --quiet iam-trial.timer").succeeds();
    machine.ssh("alice", "true").succeeds();
    assert!(machine.sh("iamctl enable --try 10m").fails().contains("it is enabled already"));
    // One that is over is taken back by whatever looks next, also where the timer does not run.
    machine.sh("iamctl disable && iamctl enable --try 10m && systemctl stop iam-trial.timer && sed -i 's/\"until\":[0-9]*/\"until\":1/' /var/lib/pam_iam/trial.json").succeeds();
    assert!(machine.sh("iamctl doctor").stdout.contains("nothing of pam_iam is switched on here"));
    assert_eq!(etc_differs(&machine), before);
}

#[test]
fn enable_and_disable_that_are_killed_at_any_step_leave_a_host_that_the_next_call_finishes() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    machine.let_root_in();
    let before = etc_differs(&machine);
    // What puts files into their places; each is whole before and after.
    let script = r#"
for verb in enable disable; do
    for at in $(seq 1 40); do
        [ $verb = enable ] || iamctl enable >/dev/null || exit 1
        strace -qq -o /dev/null -e trace=rename -e inject=rename:signal=KILL:when=$at -- iamctl $verb >/dev/null 2>&1
        killed=$?
        box-ssh -i /root/local root true || { echo "$verb $at: root is out"; exit 1; }
        # What was begun is finished, or taken back.
        if [ $((at % 2)) = 0 ]; then
            iamctl enable >/dev/null && box-ssh alice true || { echo "$verb $at: enable does not finish it"; exit 1; }
        fi
        iamctl disable >/dev/null || { echo "$verb $at: disable fails"; exit 1; }
        [ -z "$(find /etc /var/lib/pam_iam -name '*.pam_iam-new' -o -name '*.new' | head -1)" ] || { find /etc /var/lib/pam_iam -name '*new'; exit 1; }
        [ $killed = 137 ] || break
    done
    echo $verb $at
done"#;
    let said = machine.sh(script).succeeds();
    assert_eq!(etc_differs(&machine), before);
    let steps: Vec<u32> = said.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
    assert!(steps.len() == 2 && steps.iter().all(|steps| (4..40).contains(steps)), "{said}");
}

#[test]
fn whoever_comes_by_su_or_sudo_before_the_first_login_has_a_home_where_the_operator_wants_that() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
    let before = etc_differs(&machine);
    machine.sh("iamctl enable --with-su").succeeds();
    assert!(!machine.sh("iamctl doctor").succeeds().contains("--with-su"));
    assert_eq!(machine.sh("su - alice -c pwd").succeeds(), "/home/alice");
    // As Ansible's become does it.
    assert_eq!(machine.sh("sudo -H -u carol /bin/sh -c 'cd && pwd'").succeeds(), "/home/carol");
    assert_eq!(machine.sh("rm -r /home/carol; sudo -iu carol pwd").succeeds(), "/home/carol");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    assert_eq!(machine.sh("su nobody -s /bin/sh -c 'id -un'").succeeds(), "nobody");
    machine.sh("iamctl disable").succeeds();
    assert_eq!(etc_differs(&machine), before);
    machine.sh("iamctl enable").succeeds();
    assert!(machine.sh("iamctl doctor").succeeds().contains("iamctl enable --with-su changes that"));
}

/// What `iamctl doctor` says that is not ok.
fn complaints(machine: &Machine) -> String {
    let said = machine.sh("iamctl doctor").stdout;
    said.lines().filter(|line| !line.starts_with("ok")).collect::<Vec<_>>().join("\n")
}

/// The differences between Ubuntu's layout and Debian's, as far as they are ours to notice: sshd starts by its socket, cloud-init
/// has drop-ins for sshd and sudo, sudo's stacks have a session part of their own, and the first user is `ubuntu`.
const LIKE_UBUNTU: &str = r#"
printf 'passwd:         files systemd\ngroup:          files systemd\nshadow:         files systemd\ngshadow:        files systemd\n\nhosts:          files dns\n' >/etc/nsswitch.conf
printf 'PasswordAuthentication no\n' >/etc/ssh/sshd_config.d/50-cloud-init.conf
printf 'PasswordAuthentication no\n' >/etc/ssh/sshd_config.d/60-cloudimg-settings.conf
for service in sudo sudo-i; do
    printf '#%%PAM-1.0\n\n# Set up user limits from /etc/security/limits.conf.\nsession    required   pam_limits.so\n\nsession    required   pam_env.so readenv=1 user_readenv=0\n\n@include common-auth\n@include common-account\n@include common-session-noninteractive\n' >/etc/pam.d/$service
done
printf 'Defaults\tenv_reset\nDefaults\tmail_badpass\nDefaults\tuse_pty\nroot\tALL=(ALL:ALL) ALL\n%%admin ALL=(ALL) ALL\n%%sudo\tALL=(ALL:ALL) ALL\n\n@includedir /etc/sudoers.d\n' >/etc/sudoers
printf '# User rules for ubuntu\nubuntu ALL=(ALL) NOPASSWD:ALL\n' >/etc/sudoers.d/90-cloud-init-users
useradd --create-home --shell /bin/bash --groups adm,sudo ubuntu
systemctl disable --now ssh.service
systemctl enable --now ssh.socket
"#;

#[test]
fn on_a_host_laid_out_like_debians_and_ubuntus_users_log_in_and_doctor_finds_nothing() {
    for layout in ["useradd --create-home ubuntu", LIKE_UBUNTU] {
        let users = json!([
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "bob", "groups": [], "keys": [{}]}]);
        let fixtures = json!({"groups": ["ssh-users", "ssh-admins"], "users": users});
        let machine = bare(Machine::new().settings("[freshness]\nmax_age = 0").fixtures(fixtures));
        machine.sh(layout).succeeds();
        // As README's limits say.
        machine.sh("echo 'LASTLOG_UID_MAX 60000' >>/etc/login.defs").succeeds();
        machine.sh("rm -r /root/etc; cp -a /etc /root/etc").succeeds();
        install(&machine);
        machine.sh("cp /root/of-the-box/* /etc/pam_iam").succeeds();
        let before = etc_differs(&machine);
        machine.sh("iamctl enable").succeeds();
        assert_eq!(complaints(&machine), "");
        assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
        assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
        assert_eq!(machine.sh("su ubuntu -c 'id -un'").succeeds(), "ubuntu");
        machine.ssh("bob", "true").fails();
        assert_eq!(complaints(&machine), "");
        machine.sh("iamctl disable").succeeds();
        assert_eq!(etc_differs(&machine), before);
    }
}

#[test]
fn purge_keeps_the_packed_homes_of_users_who_left_and_names_them() {
    let machine = machine();
    install(&machine);
    machine.sh("mkdir -p /var/lib/pam_iam/archive; touch /var/lib/pam_iam/archive/bob.2013265999.1.tar.gz /var/lib/pam_iam/other").succeeds();
    assert!(machine.sh("dpkg --purge pam-iam").succeeds().contains("bob.2013265999.1.tar.gz"));
    machine
        .sh("test -e /var/lib/pam_iam/archive/bob.2013265999.1.tar.gz && test ! -e /var/lib/pam_iam/other")
        .succeeds();
}

#[test]
fn after_enable_no_job_of_a_withdrawn_user_starts_by_cron_or_at_or_systemd() {
    let machine = machine();
    machine
        .sh("for service in cron atd systemd-user; do [ -e /etc/pam.d/$service ] || printf '@include common-account\nsession required pam_permit.so\n' >/etc/pam.d/$service; done")
        .succeeds();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam && iamctl enable").succeeds();
    let starts = |user: &str| -> Vec<&str> {
        let mut services = vec!["cron", "atd", "systemd-user"];
        services.retain(|service| machine.sh(&format!("pamtester {service} {user} acct_mgmt")).status == 0);
        services
    };
    assert_eq!(starts("alice"), ["cron", "atd", "systemd-user"]);
    machine.iam().remove_from_group("alice", "ssh-users");
    assert_eq!(starts("alice"), [""; 0]);
    assert_eq!(starts("root"), ["cron", "atd", "systemd-user"]);
}

#[test]
fn doctor_warns_of_a_lastlog_that_grows_with_the_uids_of_iam_users() {
    let machine = machine();
    install(&machine);
    machine.sh("cp /root/of-the-box/* /etc/pam_iam && iamctl enable; touch /var/log/lastlog").succeeds();
    let warns = || machine.sh("iamctl doctor").stdout.contains("/var/log/lastlog grows");
    assert!(warns());
    machine.sh("echo 'LASTLOG_UID_MAX 60000' >>/etc/login.defs").succeeds();
    assert!(!warns(), "what it says to do helps");
}
