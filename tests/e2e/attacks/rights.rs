//! Nobody becomes root, and no administrator is kept out.

use pam_iam_tests::{Machine, repository};

use super::compile;

/// A local administrator with a rule of his own, in the groups that mistakes used to lock out.
const LOCALS: &str = "for user in ann dan; do useradd -m -s /bin/bash $user; install -d -m 700 -o $user /home/$user/.ssh; \
    [ -e /root/local ] || ssh-keygen -q -t ed25519 -N '' -f /root/local; install -m 600 -o $user /root/local.pub /home/$user/.ssh/authorized_keys; done
    for group in sudo wheel adm docker users; do groupadd -f $group; usermod -aG $group ann; done
    echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann; useradd -m -s /bin/bash ben";

#[test]
fn whichever_line_of_the_configuration_is_broken_local_administrators_log_in_and_sudo() {
    let machine = Machine::new().start();
    machine.sh(LOCALS).succeeds();
    let example = std::fs::read_to_string(repository().join("docs/config.example.toml")).unwrap_or_default();
    let text = example
        .replace("adopt = []", "adopt = [\"ben\"]")
        .replace("adopt_group = \"\"", "adopt_group = \"synced\"")
        .replace(
            "[accounts]",
            "[groups]\n\"ssh-docker\" = { group = \"docker\", allow_privileged = true }\n\n[accounts]",
        );
    assert!(text.contains("[\"ben\"]") && text.contains("synced") && text.contains("ssh-docker"), "{text}");
    machine.sh("groupadd -f synced; useradd -m -s /bin/bash -G synced eve").succeeds();
    let lines: Vec<&str> = text.lines().collect();
    let broken = |at: usize, how: &str| -> Option<String> {
        let line = lines.get(at)?.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let other = match how {
            "quote" => line.replacen('"', "", 1),
            "key" => format!("x{line}"),
            "type" => line.split_once('=').map(|(key, _)| format!("{key}= [[1]]"))?,
            _ => format!("{line}\\"),
        };
        (other != line).then(|| {
            let all = lines
                .iter()
                .enumerate()
                .map(|(number, line)| if number == at { other.as_str() } else { line });
            all.collect::<Vec<_>>().join("\n")
        })
    };
    // pamtester asks the real stacks of sshd and sudo, some thousand times faster than a login.
    let check = |what: &str| {
        for (stack, user) in [("sshd", "ann"), ("sudo", "ann"), ("sshd", "dan"), ("sshd", "root")] {
            let done = machine.sh(&format!("pamtester -I ruser={user} {stack} {user} acct_mgmt"));
            assert_eq!(
                done.status, 0,
                "{what}: {user} is kept out of {stack}: {}{}",
                done.stdout, done.stderr
            );
        }
    };
    let mut count = 0;
    for at in 0..lines.len() {
        for how in ["quote", "key", "type", "backslash"] {
            let Some(text) = broken(at, how) else { continue };
            let quoted = text.replace('\'', "'\\''");
            machine.sh(&format!("printf '%s\n' '{quoted}' >/etc/pam_iam/config.toml")).succeeds();
            let line = lines.get(at).copied().unwrap_or_default();
            check(&format!("{how} in line {} ({line})", at + 1));
            // Who is adopted by what can still be read is refused, and so is an IAM user.
            if !line.contains("adopt")
                && machine.sh("iam-resolver check-config /etc/pam_iam/config.toml").status != 0
            {
                for user in ["ben", "eve", "alice"] {
                    let done = machine.sh(&format!("pamtester sshd {user} acct_mgmt"));
                    assert_ne!(done.status, 0, "{how} in line {} ({line}): {user} gets in", at + 1);
                }
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
    let quoted = text.replace('\'', "'\\''");
    machine
        .sh(&format!(
            "printf '%s\n' '{quoted}' >/etc/pam_iam/config.toml; chmod g+w /etc/pam_iam/config.toml"
        ))
        .succeeds();
    check("a file that its group can write");
    machine.sh("rm /etc/pam_iam/config.toml").succeeds();
    check("no file");
    machine.sh("box-ssh -i /root/local ann 'sudo -n id -u' | grep -qx 0").succeeds();
}

#[test]
fn a_local_account_in_iam_sudo_becomes_nobody_by_it_and_is_told_why() {
    let machine = Machine::new().start();
    machine.sh(LOCALS).succeeds();
    machine
        .sh("gid=$(getent group iam-sudo | cut -d: -f3); echo \"iam-sudo:x:$gid:dan\" >>/etc/group")
        .succeeds();
    let said = machine.sh("su dan -c 'sudo -n id -u'").fails();
    assert!(said.contains("gpasswd -d dan iam-sudo"), "{said}");
    machine.logs("authpriv", "event=sudo user=dan iam_name= iam_id= key= group=iam-sudo");
    machine.logs("authpriv", "reason=unmanaged-member");
    for command in ["doctor", "enable --dry-run"] {
        let done = machine.sh(&format!("iamctl {command} 2>&1"));
        assert!(done.stdout.contains("the local account dan is in iam-sudo"), "{command}: {}", done.stdout);
        assert!(done.stdout.contains("gpasswd -d dan iam-sudo"), "{command}: {}", done.stdout);
    }
    assert_eq!(machine.sh("su ann -c 'sudo -n id -u'").succeeds(), "0", "who has a rule and not the group");
    // uid 0 keeps its caller's groups with -P, and is never refused.
    assert_eq!(
        machine.ssh("carol", "sudo -n -P bash -c 'id -Gn | grep -q iam-sudo; sudo -n id -u'").succeeds(),
        "0"
    );
}

#[test]
fn the_group_of_sudo_lets_nobody_in_who_only_has_the_name_of_an_admin() {
    let machine = Machine::new().start();
    machine.ssh("carol", "true").succeeds();
    // An account of the name in another service, with a uid of its own: nsswitch asks it first.
    machine
        .sh("mkdir -p /var/lib/extrausers; echo 'carol:x:5000:5000::/:/bin/bash' >/var/lib/extrausers/passwd; echo 'carol:x:5000:' >/var/lib/extrausers/group; touch /var/lib/extrausers/shadow
             sed -i 's/^passwd:.*/passwd: files extrausers iam/; s/^group:.*/group: files extrausers iam/' /etc/nsswitch.conf")
        .succeeds();
    assert_eq!(machine.sh("id -u carol").succeeds(), "5000");
    let run = "setpriv --reuid 5000 --regid 5000 --clear-groups";
    let by_group = machine.sh(&format!("{run} sg iam-sudo -c 'id -G' </dev/null"));
    let gid = machine.sh("getent group iam-sudo | cut -d: -f3").succeeds();
    assert!(by_group.status != 0 || !by_group.stdout.contains(&gid), "{by_group:?}");
    // And with the group all the same, by whatever way.
    let with_gid = format!("setpriv --reuid 5000 --regid 5000 --groups {gid}");
    assert!(!machine.sh(&format!("{with_gid} sudo -n id -u")).stdout.starts_with('0'));
}

#[test]
fn an_account_of_another_directory_with_the_name_of_an_admin_of_iam_is_not_that_admin() {
    const OTHER: &str = "mkdir -p /var/lib/extrausers; echo 'carol:x:5000:5000::/:/bin/bash' >/var/lib/extrausers/passwd; echo 'carol:x:5000:' >/var/lib/extrausers/group; touch /var/lib/extrausers/shadow";
    for builder in [Machine::new(), Machine::new().importer()] {
        let machine = builder.start();
        // Ours is found first, as a file or as the service before the other.
        machine
            .sh(&format!(
                "{OTHER}; sed -i 's/^passwd:.*/passwd: files iam extrausers/; s/^group:.*/group: files iam extrausers/' /etc/nsswitch.conf
                 grep -q ^carol: /etc/passwd && sed -i 's/ iam / /' /etc/nsswitch.conf; true"
            ))
            .succeeds();
        assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
        let gid = machine.sh("getent group iam-sudo | cut -d: -f3").succeeds();
        for groups in ["--clear-groups", &format!("--groups {gid}")] {
            let said = machine.sh(&format!("setpriv --reuid 5000 --regid 5000 {groups} sudo -n id -u 2>&1"));
            assert!(said.status != 0 && !said.stdout.starts_with('0'), "{said:?}");
        }
        machine.logs("authpriv", "reason=uid-mismatch");
        machine.logs("authpriv", "carol: sudo was invoked by uid 5000, which is not the uid of that account");
    }
}

#[test]
fn an_account_of_another_directory_with_an_iam_users_name_keeps_its_name_and_gets_none_of_the_users_groups() {
    const DIRECTORY: &str = "mkdir -p /var/lib/extrausers; cd /var/lib/extrausers; touch shadow
        printf 'carol:x:5000:5000::/:/bin/bash\\nbob:x:5001:5001::/:/bin/bash\\n' >passwd; printf 'carol:x:5000:\\nbob:x:5001:\\n' >group
        sed -i -E 's/^(passwd|group):.*/\\1: files extrausers iam/' /etc/nsswitch.conf";
    let mapped = "[groups]\n'ssh-admins' = { group = 'disk', allow_privileged = true }\n'ssh-users' = 'dev'";
    let machine = Machine::new().settings(mapped).start();
    // A local account with a group of IAM's as its primary one is no IAM user's.
    machine.sh("useradd -m deploy; usermod -g dev deploy").succeeds();
    assert_eq!(machine.sh("id -Gn deploy").succeeds(), "dev");
    assert!(machine.sh("id -Gn carol | grep -w disk").succeeds().contains("iam-sudo"));
    let ask_for_keys = format!(
        "/usr/libexec/pam_iam/iam-authorized-keys --uid {} carol",
        machine.sh("id -u carol").succeeds()
    );
    assert!(machine.sh(&ask_for_keys).succeeds().starts_with("ssh-rsa "));
    machine.sh(DIRECTORY).succeeds();
    assert_eq!(machine.sh("id carol").succeeds(), "uid=5000(carol) gid=5000(carol) groups=5000(carol)");
    // A login that began while the directory was down, and that has the uid of IAM's carol, ends without a key.
    assert_eq!(machine.sh(&ask_for_keys).succeeds(), "");
    machine.logs("authpriv", "another account has the name than when the login began");
    let explained = machine.sh("iamctl explain carol").fails();
    assert!(explained.contains("another directory has the name"), "{explained}");
    // A right that the directory gives by name, to somebody else.
    machine.sh("echo 'docker:x:7000:alice' >>/var/lib/extrausers/group").succeeds();
    machine.ssh("alice", "true").fails();
    machine.logs("authpriv", "another directory has alice in the group docker");
    assert!(
        machine
            .sh("iamctl explain alice")
            .fails()
            .contains("another directory has alice in the group docker")
    );
    // Also by the number of a group of this host.
    machine.sh("echo docker:x:7000: >>/etc/group").succeeds();
    machine.ssh("alice", "true").fails();
    machine.sh("sed -i /^docker/d /var/lib/extrausers/group").succeeds();
    machine.ssh("alice", "true").succeeds();
    // And one of its own accounts keeps what its own group and rule give.
    machine
        .sh("cd /var/lib/extrausers; echo 'dana:*:5002:5002::/:/bin/bash' >>passwd; printf 'dana:x:5002:\\nops:x:7001:dana\\n' >>group
             echo 'dana ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/dana; sed -i \"s/'dev'/'ops'/\" /etc/pam_iam/config.toml")
        .succeeds();
    assert_eq!(machine.sh("setpriv --reuid 5002 --regid 5002 --init-groups sudo -n id -u").succeeds(), "0");
    // Also where the group is its primary one, which no list of members shows.
    machine
        .sh("sed -i s/:5002:5002:/:5002:100:/ /var/lib/extrausers/passwd; sed -i \"s/'ops'/'users'/\" /etc/pam_iam/config.toml")
        .succeeds();
    assert_eq!(machine.sh("setpriv --reuid 5002 --regid 100 --init-groups sudo -n id -u").succeeds(), "0");
    // The importer puts no account before it, though IAM lets its bob in.
    let host = Machine::new().importer().start();
    host.sh(DIRECTORY).succeeds();
    host.iam().add_to_group("bob", "ssh-users");
    host.sh("iamctl flush").succeeds();
    host.wait_until("iam-importer 2>&1 | grep -q 'its name is that of an account of another directory'");
    assert_eq!(host.sh("id -u bob").succeeds(), "5001");
}

#[test]
fn an_account_that_glibc_has_and_that_is_not_utf_8_uses_no_sudo_by_iam_sudo() {
    let machine = Machine::new().start();
    machine.sh(r"printf 'latin:x:5001:5001:M\374ller:/tmp:/bin/bash\n' >>/etc/passwd").succeeds();
    machine.sh("getent passwd 5001").succeeds();
    let gid = machine.sh("getent group iam-sudo | cut -d: -f3").succeeds();
    let done = machine.sh(&format!("setpriv --reuid 5001 --regid 5001 --groups {gid} sudo -n id -u"));
    assert!(done.status != 0 && !done.stdout.contains('0'), "{done:?}");
    machine.logs("authpriv", "user=latin iam_name= iam_id= key= group=iam-sudo");
}

#[test]
fn who_is_no_longer_adopted_keeps_no_sudo_until_the_next_import_either() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[accounts]\nadopt = ['carol']").importer().start();
    machine.sh("userdel carol 2>/dev/null; useradd -m -s /bin/bash carol; iam-importer -q; id -Gn carol | grep -qw iam-sudo").succeeds();
    assert_eq!(machine.sh("su carol -c 'sudo -n id -u'").succeeds(), "0");
    machine.sh("sed -i /^adopt/d /etc/pam_iam/config.toml").succeeds();
    assert!(machine.sh("su carol -c 'sudo -n id -u'").fails().contains("gpasswd -d carol iam-sudo"));
}

#[test]
fn the_register_and_the_sockets_folder_are_roots_whatever_a_user_or_the_resolver_tries() {
    let machine = Machine::new().start();
    let program = compile(&machine, "squat");
    machine.ssh("alice", "true").succeeds();
    assert!(machine.ssh("alice", &program).succeeds().starts_with("tried 40 worked 0"));
    // The resolver's own folder is its cache.
    let resolver = machine
        .sh(&format!("setpriv --reuid iam-resolver --regid iam-resolver --clear-groups {program}"))
        .succeeds();
    assert!(["tried 40 worked 1", "tried 40 worked 2"].contains(&resolver.as_str()), "{resolver}");
    assert_eq!(
        machine.sh("stat -c '%U %a' /run/pam_iam /run/pam_iam/sessions").succeeds(),
        "root 755\nroot 700"
    );
}

#[test]
fn a_managed_session_that_cannot_be_registered_is_refused_unless_that_is_wanted() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.let_root_in();
    machine.sh("chown iam-resolver /run/pam_iam").succeeds();
    let said = machine.ssh("alice", "echo in-it").stdout;
    assert!(said.contains("this session cannot be registered") && !said.contains("in-it"), "{said}");
    machine.logs("authpriv", "the session of alice cannot be registered");
    machine.logs("authpriv", "chown root:root /run/pam_iam");
    assert!(machine.sh("iamctl doctor").stdout.contains("/run/pam_iam can be changed by others than root"));
    machine.sh("box-ssh -i /root/local root true").succeeds();
    machine.sh("printf '[sessions]\nunregistered = \"allow\"\n' >>/etc/pam_iam/config.toml").succeeds();
    machine.end_resolver("TERM");
    assert_eq!(machine.ssh("alice", "echo in").succeeds(), "in");
}

/// Puts somebody in the resolver's place, as its user, who answers with what `answers` says: a dict of Python by what is asked.
/// No answer is a connection that is cut off.
fn lie(machine: &Machine, answers: &str) {
    machine
        .sh(&r#"mv /run/pam_iam/resolver.sock /run/pam_iam/real; install -d -o iam-resolver /run/liar
cat >/run/liar/liar.py <<'PYTHON'
import json, os, socket
s = socket.socket(socket.AF_UNIX); s.bind('/run/liar/sock'); os.chmod('/run/liar/sock', 0o666); s.listen(100)
while True:
    c, _ = s.accept()
    data = c.recv(65536)[4:]
    ask = json.loads(data)
    answer = ANSWERS.get(ask["ask"], {"answer": "not-found"})
    body = json.dumps(answer).encode()
    try: answer and c.sendall(len(body).to_bytes(4, "big") + body)
    except OSError: pass
    c.close()
PYTHON
(setpriv --reuid iam-resolver --regid iam-resolver --clear-groups python3 /run/liar/liar.py </dev/null >/run/liar/out 2>&1 &)
until test -S /run/liar/sock; do sleep 0.02; done; ln -s /run/liar/sock /run/pam_iam/resolver.sock"#
            .replace("ANSWERS", answers))
        .succeeds();
}

#[test]
fn sshd_reads_no_authorized_keys_of_a_user_whose_groups_nobody_tells() {
    let machine = Machine::new().start();
    let uid = machine.ssh("alice", "mkdir -m 700 .ssh; id -u").succeeds();
    machine
        .sh("ssh-keygen -q -t ed25519 -N '' -f /root/planted && install -m 600 -o alice /root/planted.pub /home/alice/.ssh/authorized_keys
             sed -i '/pam_iam/d' /etc/pam.d/sshd && ! grep -r pam_iam /etc/pam.d/sshd")
        .succeeds();
    let user = format!(
        r#"{{"answer": "user", "name": "alice", "uid": {uid}, "gid": {uid}, "gecos": "", "home": "/home/alice", "shell": "/bin/sh"}}"#
    );
    // As if the resolver were killed between getpwnam(3) and initgroups(3).
    lie(&machine, &format!(r#"{{"user-by-name": {user}, "user-by-uid": {user}, "groups-of": None}}"#));
    machine.sh("id alice").succeeds();
    machine.sh("box-ssh -i /root/planted alice true").fails();
}

#[test]
fn a_resolver_that_lies_gives_no_foreign_gid_no_foreign_uid_and_no_foreign_name() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    // What would make root.
    lie(
        &machine,
        r#"{
        "groups-of": {"answer": "groups", "gids": [0, 27, 4, 2121148082, 2044996577]},
        "user-by-name": {"answer": "user", "name": ask.get("name"), "gecos": "", "shell": "/bin/sh", **(
            {"uid": 0, "gid": 0, "home": "/"} if ask.get("name") == "zoe" else {"uid": 2044996577, "gid": 2044996577, "home": "/root:x"})},
        "user-by-uid": {"answer": "user", "name": "root", "uid": 0, "gid": 2044996577, "gecos": "", "home": "/", "shell": "/bin/sh"},
        "group-by-name": {"answer": "group", "name": "iam-sudo", "gid": 27, "members": ["nobody"]},
    }"#,
    );
    // The groups of an account of ours, asked as initgroups does: with a base gid of our range.
    let groups = machine
        .sh("python3 -c 'import os; print(sorted(os.getgrouplist(\"alice\", 2044996577)))'")
        .succeeds();
    // iam-users is there whatever is answered.
    assert_eq!(groups, "[2018472259, 2044996577, 2121148082]");
    machine.run(&["getent", "passwd", "zoe"]).fails();
    machine.run(&["getent", "passwd", "alice"]).fails();
    machine.run(&["getent", "passwd", "2044996577"]).fails();
    machine.run(&["getent", "group", "iam-sudo"]).fails();
    machine.sh("id root && getent passwd root").succeeds();
}

#[test]
fn the_process_that_answers_without_a_daemon_is_not_root_and_has_nothing_of_its_caller() {
    let machine = Machine::new().settings("[resolver]\nmode = 'once'").without_daemon().importer().start();
    machine.fault("fail=hang&only=GetUser");
    machine
        .sh("(SECRET=x pamtester sshd alice acct_mgmt </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1
             until pid=$(pgrep -x -u iam-resolver iam-resolver); do sleep 0.02; done
             ps -o user:32=,sid=,pid=,tty= -p $pid >/tmp/who; tr '\\0' '\\n' </proc/$pid/environ >/tmp/environ; stat -c %U /proc/$pid/environ >/tmp/owner; grep -E '^(Groups|CapEff)' /proc/$pid/status >/tmp/status")
        .succeeds();
    let who = machine.sh("cat /tmp/who").succeeds();
    let words: Vec<&str> = who.split_whitespace().collect();
    assert_eq!(words.first(), Some(&"iam-resolver"), "{who}");
    assert_eq!(words.get(1), words.get(2), "a session of its own: {who}");
    assert_eq!(words.get(3), Some(&"?"), "no terminal: {who}");
    machine.sh("! grep -q SECRET /tmp/environ && grep -qx root /tmp/owner").succeeds();
    let status = machine.sh("tr -d ' \\t' </tmp/status").succeeds();
    assert_eq!(status, "Groups:\nCapEff:0000000000000000");
    machine.fault("fail=");
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn doctor_and_enable_start_nothing_under_another_uid() {
    let machine = Machine::new().start();
    for (command, trace) in [("doctor", "/tmp/trace.doctor"), ("enable --dry-run", "/tmp/trace.enable")] {
        machine
            .sh(&format!("strace -f -qq -e trace=setuid,setreuid,setresuid,execve -o {trace} iamctl {command} >/dev/null; grep -c execve {trace}"))
            .succeeds();
        // sudo, which doctor asks for its rules, opens its own files with the effective uid 1 and the real and saved uid 0, so that
        // nobody of uid 1 can signal or trace it meanwhile.
        let changed = machine
            .sh(&format!(
                "grep -hE 'set(re|res)?uid\\(' {trace} | grep -vE -e 'uid\\((0|-1)(, (0|-1))*\\)' -e 'setresuid\\(-1, 1, -1\\)' || true"
            ))
            .succeeds();
        assert_eq!(changed, "", "{command}");
    }
}
