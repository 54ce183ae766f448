//! Nobody becomes root, and no administrator is kept out.

use pam_iam_tests::{Machine, repository};

use super::directories::add_directory;

/// Adds the local administrator ann with a sudo rule, in groups that earlier mistakes locked out, and the local accounts dan
/// and ben. ann and dan log in with the key /root/local.
fn add_local_administrators(machine: &Machine) {
    machine.make_key("/root/local");
    for (user, uid) in [("ann", 1600), ("dan", 1601)] {
        machine.add_account(user, uid);
        machine.authorize_key(user, "/root/local");
    }
    for group in ["sudo", "wheel", "adm", "docker", "users"] {
        machine.run(&["groupadd", "-f", group]).succeeds();
        machine.run(&["usermod", "-aG", group, "ann"]).succeeds();
    }
    machine.file("/etc/sudoers.d/ann").write("ann ALL=(ALL) NOPASSWD: ALL\n");
    machine.add_account("ben", 1602);
}

/// Returns the example configuration with a mapped group, in which ben and the members of synced are adopted.
fn example_with_adoption() -> String {
    let example = std::fs::read_to_string(repository().join("docs/config.example.toml")).unwrap_or_default();
    let replacements = [
        ("adopt = []", "adopt = [\"ben\"]"),
        ("adopt_group = \"\"", "adopt_group = \"synced\""),
        (
            "[accounts]",
            "[groups]\n\"ssh-docker\" = { group = \"docker\", allow_privileged = true }\n\n[accounts]",
        ),
    ];
    replacements.iter().fold(example, |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replace(old, new)
    })
}

/// A configuration with one mistake: a missing quote, an unknown key, a value of another type, or a backslash at the end of
/// a line.
struct Broken {
    what: String,
    line: String,
    text: String,
}

/// Returns a [`Broken`] for each of these mistakes in each line of `text`.
fn break_each_line(text: &str) -> Vec<Broken> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let other_type = line.split_once('=').map(|(key, _)| format!("{key}= [[1]]"));
        let broken = [
            ("quote", Some(line.replacen('"', "", 1))),
            ("key", Some(format!("x{line}"))),
            ("type", other_type),
            ("backslash", Some(format!("{line}\\"))),
        ];
        for (how, broken) in broken {
            let Some(broken) = broken.filter(|broken| broken != line) else { continue };
            let what = format!("{how} in line {} ({line})", at + 1);
            all.push(Broken { what, line: line.to_owned(), text: replace_line(&lines, at, &broken) });
        }
    }
    all
}

fn replace_line(lines: &[&str], at: usize, new: &str) -> String {
    let replaced = lines.iter().enumerate().map(|(number, line)| if number == at { new } else { line });
    replaced.flat_map(|line| [line, "\n"]).collect()
}

/// Asserts that the PAM stacks of sshd and sudo admit local accounts. pamtester calls them much faster than a login does.
fn assert_that_local_accounts_are_let_in(machine: &Machine, what: &str) {
    for (service, user) in [("sshd", "ann"), ("sudo", "ann"), ("sshd", "dan"), ("sshd", "root")] {
        let done = machine.pam(service, user).item("ruser", user).acct_mgmt();
        assert_eq!(done.status, 0, "{what}: {user} is kept out of {service}: {done:?}");
    }
}

#[test]
fn a_mistake_in_any_line_of_the_configuration_keeps_no_local_account_out() {
    let machine = Machine::new().start();
    add_local_administrators(&machine);
    machine.run(&["groupadd", "-f", "synced"]).succeeds();
    machine.run(&["useradd", "-m", "-s", "/bin/bash", "-G", "synced", "eve"]).succeeds();
    let text = example_with_adoption();
    let all = break_each_line(&text);
    assert!(all.len() > 100, "{}", all.len());
    for Broken { what, line, text } in all {
        machine.config().write(&text);
        assert_that_local_accounts_are_let_in(&machine, &what);
        // Unless the mistake is in a line about adoption, it keeps adopted accounts out, as it does IAM users.
        let check = ["iam-resolver", "check-config", "/etc/pam_iam/config.toml"];
        if !line.contains("adopt") && machine.run(&check).status != 0 {
            for user in ["ben", "eve", "alice"] {
                let done = machine.pam("sshd", user).acct_mgmt();
                assert_ne!(done.status, 0, "{what}: {user} gets in");
            }
        }
    }
    machine.config().write(&text);
    machine.config().chmod("g+w");
    assert_that_local_accounts_are_let_in(&machine, "a file that its group can write");
    machine.config().remove();
    assert_that_local_accounts_are_let_in(&machine, "no file");
    assert_eq!(machine.ssh_with("/root/local", "ann", "sudo -n id -u").succeeds(), "0");
}

#[test]
fn a_local_account_in_iam_sudo_gets_no_sudo_by_it_and_is_told_why() {
    const REMEDY: &str = "gpasswd -d dan iam-sudo";
    let machine = Machine::new().start();
    add_local_administrators(&machine);
    let gid = machine.gid_of("iam-sudo");
    machine.file("/etc/group").append(&format!("iam-sudo:x:{gid}:dan\n"));
    let said = machine.run(&["su", "dan", "-c", "sudo -n id -u"]).fails();
    assert!(said.contains(REMEDY), "{said}");
    machine.wait_for_log("authpriv", "event=sudo user=dan iam_name= iam_id= key= group=iam-sudo");
    machine.wait_for_log("authpriv", "reason=unmanaged-member");
    for command in ["doctor", "enable --dry-run"] {
        let done = machine.iamctl(command);
        let said = done.stdout + &done.stderr;
        assert!(said.contains("the local account dan is in iam-sudo"), "{command}: {said}");
        assert!(said.contains(REMEDY), "{command}: {said}");
    }
    let said = machine.run(&["su", "ann", "-c", "sudo -n id -u"]).succeeds();
    assert_eq!(said, "0", "ann has a rule and is not in iam-sudo");
    // With -P, root keeps carol's groups, iam-sudo among them. pam_iam must not refuse sudo to root.
    let nested = "sudo -n -P bash -c 'id -Gn | grep -q iam-sudo; sudo -n id -u'";
    assert_eq!(machine.ssh("carol", nested).succeeds(), "0");
}

#[test]
fn an_account_that_only_has_an_admins_name_gets_no_sudo_by_iam_sudo() {
    let machine = Machine::new().start();
    machine.ssh("carol", "true").succeeds();
    // NSS finds an account of another directory before that of the IAM user.
    add_directory(&machine, &[("carol", 5000)], "files extrausers iam");
    assert_eq!(machine.uid_of("carol"), 5000);
    let gid = machine.gid_of("iam-sudo");
    let other = || machine.as_user("5000").with_gid(5000);
    let by_group = other().run(&["sg", "iam-sudo", "-c", "id -G"]);
    assert!(by_group.status != 0 || !by_group.stdout.contains(&gid.to_string()), "{by_group:?}");
    let sudo = other().with_supplementary_group(gid).run(&["sudo", "-n", "id", "-u"]);
    assert!(!sudo.stdout.starts_with('0'), "{sudo:?}");
}

#[test]
fn an_account_whose_entry_is_not_utf_8_gets_no_sudo_by_iam_sudo() {
    let machine = Machine::new().start();
    machine.sh(r"printf 'latin:x:5001:5001:M\374ller:/tmp:/bin/bash\n' >>/etc/passwd").succeeds();
    assert_eq!(machine.uid_of("latin"), 5001);
    let latin = machine.as_user("5001").with_gid(5001).with_supplementary_group(machine.gid_of("iam-sudo"));
    let done = latin.run(&["sudo", "-n", "id", "-u"]);
    assert!(done.status != 0 && !done.stdout.contains('0'), "{done:?}");
    machine.wait_for_log("authpriv", "user=latin iam_name= iam_id= key= group=iam-sudo");
}

#[test]
fn an_account_that_is_no_longer_adopted_loses_sudo_before_the_next_import() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[accounts]\nadopt = ['carol']").importer().start();
    machine.sh("userdel carol 2>/dev/null; true").succeeds();
    machine.add_account("carol", 1600);
    // The importer fails, since it refuses the IAM users root and daemon.
    machine.run(&["iam-importer", "-q"]);
    assert!(machine.groups_of("carol").contains(&"iam-sudo".to_owned()));
    let sudo = ["su", "carol", "-c", "sudo -n id -u"];
    assert_eq!(machine.run(&sudo).succeeds(), "0");
    machine.config().remove_lines("adopt");
    assert!(machine.run(&sudo).fails().contains("gpasswd -d carol iam-sudo"));
}

#[test]
fn doctor_and_enable_start_no_program_under_another_uid() {
    let machine = Machine::new().start();
    for (command, trace) in [("doctor", "/tmp/trace.doctor"), ("enable --dry-run", "/tmp/trace.enable")] {
        let calls = "trace=setuid,setreuid,setresuid,execve";
        machine.sh(&format!("strace -f -qq -e {calls} -o {trace} iamctl {command}"));
        assert!(machine.file(trace).text().contains("execve"), "{command} was traced");
        // doctor runs sudo to list its rules. sudo opens its files with the effective uid 1 and the real and saved uid 0, so
        // that no process of uid 1 can signal or trace it.
        let changes = machine
            .sh(&format!(
                "grep -hE 'set(re|res)?uid\\(' {trace} | grep -vE -e 'uid\\((0|-1)(, (0|-1))*\\)' -e 'setresuid\\(-1, 1, -1\\)'"
            ))
            .stdout;
        assert_eq!(changes, "", "{command}");
    }
}
