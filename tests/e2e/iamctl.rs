//! The operator's tool says what is so, why, and how to mend it.

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

fn explained(machine: &Machine, arguments: &str) -> (i32, Value) {
    let done = machine.sh(&format!("iamctl explain --json {arguments}"));
    let json = serde_json::from_str(&done.stdout);
    assert!(json.is_ok(), "{done:?}");
    (done.status, json.unwrap_or_default())
}

/// The text of `iamctl explain`, with what differs between users put in words.
fn told(machine: &Machine, arguments: &str) -> String {
    let script = format!(
        "iamctl explain {arguments} | sed -E -e 's/AIDA[A-Z0-9]+/AIDA/g; s/APKA[A-Z0-9]+/APKA/g; s/SHA256:[^ ]+/SHA256/g; s/(uid )[0-9]+/\\1N/g; s/[0-9]+ s old/N s old/; s/(source +)(iam|cache)/\\1fresh/'"
    );
    machine.sh(&script).stdout.trim_end().to_owned()
}

fn cast() -> Builder {
    Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
        {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {"status": "Inactive"}]},
        {"name": "bob", "groups": [], "keys": [{}]},
        {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": []},
        {"name": "a@b", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "a.at.b", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "12345", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "root", "groups": ["ssh-users"], "keys": [{}]},
        {"name": "daemon", "groups": [], "keys": [{}]}]}))
}

/// What is told of alice, but for the source.
const ALICE: &str = "account    alice, from IAM, uid N\n\
    groups     iam-users\n\
    candidates alice\n\
    IAM user   alice (AIDA), uid N\n  \
      in       ssh-users\n  \
      key      APKA active SHA256\n  \
      key      APKA inactive SHA256\n\
    login      allowed: in the IAM group ssh-users, which access.allow names\n\
    sudo       refused: in none of the IAM groups that access.sudo names";

#[test]
fn explain_says_who_may_and_why() {
    let machine = cast().settings("[freshness]\nmax_age = 0").start();
    assert_eq!(told(&machine, "alice"), format!("{ALICE}\nsource     fresh, N s old"));
    assert_eq!(
        told(&machine, "bob"),
        "account    bob, from IAM, not shown on this host while the login is refused, uid N\n\
         candidates bob\n\
         IAM user   bob (AIDA), uid N\n  \
           in       none\n  \
           key      APKA active SHA256\n\
         login      refused: in none of the IAM groups that access.allow names\n\
         sudo       refused: a user who may not log in may not use sudo\n\
         source     fresh, N s old"
    );
    assert_eq!(
        told(&machine, "a.at.b"),
        "account    a.at.b, from IAM, not shown on this host while the login is refused, no uid\n\
         candidates a.at.b a@b\n\
         claimed by a.at.b and a@b\n\
         login      refused: several IAM users claim the name, so none gets it\n\
         sudo       refused: several IAM users claim the name, so none gets it\n\
         source     fresh, N s old"
    );
    assert_eq!(
        told(&machine, "nobody-there"),
        "account    nobody-there, no account: IAM has no such user, no uid\n\
         candidates nobody-there\n\
         login      refused: IAM has no such user\n\
         sudo       refused: IAM has no such user\n\
         source     fresh, N s old"
    );
    // IAM is silent about who was known, and about who was not.
    machine.fault("fail=reset");
    machine.sh("iamctl flush bob").succeeds();
    let bob = machine.sh("iamctl explain bob");
    assert_eq!((bob.status, bob.stdout.as_str()), (2, ""));
    assert!(bob.stderr.starts_with("iamctl: IAM cannot be reached: "), "{}", bob.stderr);
    machine.wait_until("iamctl explain alice | grep -q 'source *offline'");
    assert_eq!(told(&machine, "alice"), format!("{ALICE}\nsource     offline, N s old"));
    machine.fault("fail=");
    machine.sh("iamctl flush").succeeds();
    assert_eq!(told(&machine, "root"), "account    root, local, none of pam_iam's business, uid N");
    assert!(told(&machine, "carol").contains("key      none: the user has uploaded no SSH public key"));
    assert!(told(&machine, "12345").contains("is all digits"));
}

#[test]
fn explain_tells_programs_the_same() {
    let machine = cast().start();
    let (status, alice) = explained(&machine, "alice");
    assert_eq!((status, &alice["allow"], &alice["login"]["reason"]), (0, &json!(true), &json!("in-group")));
    assert_eq!(alice["login"]["group"], "ssh-users");
    assert_eq!(alice["users"][0]["keys"].as_array().unwrap().len(), 2);
    assert_eq!(machine.sh("id -u alice").succeeds(), alice["uid"].to_string());
    assert_eq!(explained(&machine, "alice --service sudo").0, 1);
    assert_eq!(explained(&machine, "carol --service sudo").0, 0);
    for (name, reason) in [
        ("bob", "not-in-group"),
        ("a.at.b", "ambiguous"),
        ("nobody-there", "no-such-user"),
        ("root", "local"),
    ] {
        let (status, json) = explained(&machine, name);
        assert_eq!((status, &json["login"]["reason"]), (1, &json!(reason)), "{name}");
        assert_eq!(json["allow"], false);
    }
    // A key: the active one opens, the inactive one and a stranger's do not.
    for (key, status) in [("alice", 0), ("alice.2", 1), ("bob", 1)] {
        let done = machine.sh(&format!(
            "ssh-keygen -y -f $BOX_KEYS/{key} >/tmp/key.pub; iamctl explain alice --key /tmp/key.pub"
        ));
        assert_eq!(done.status, status, "{key}: {done:?}");
    }
    machine.sh("iamctl explain alice --key $(ssh-keygen -lf $BOX_KEYS/alice | cut -d' ' -f2)").succeeds();
    assert_eq!(machine.sh("iamctl explain alice --key /nonexistent").status, 2);
    machine.fault("fail=503");
    machine.sh("iamctl flush").succeeds();
    let (status, json) = explained(&machine, "alice");
    assert!(status == 2 && json["error"].as_str().unwrap().contains("IAM cannot be reached"), "{json}");
    assert_eq!(
        machine.sh("setpriv --reuid 65534 --clear-groups iamctl explain alice").status,
        2,
        "root's alone"
    );
    assert!(!machine.sh("iamctl explain root").stdout.contains('\u{1b}'), "no colours but on a terminal");
}

#[test]
fn status_counts_and_flush_forgets() {
    let machine = Machine::new().settings("[freshness]\nmax_age = '1h'").start();
    machine.ssh("alice", "true").succeeds();
    let status: Value = serde_json::from_str(&machine.sh("iamctl status --json").succeeds()).unwrap();
    assert_eq!(status["decisions"]["login in-group"], 1);
    assert!(
        status["calls"].as_u64().unwrap() >= 6 && status["errors"] == 0 && status["last_answer"].is_u64(),
        "{status}"
    );
    assert!(machine.sh("iamctl status").succeeds().contains("decisions     login in-group 1"));
    machine.sh("iamctl status --prometheus /tmp/pam_iam.prom").succeeds();
    let metrics = machine.sh("cat /tmp/pam_iam.prom; stat -c %a /tmp/pam_iam.prom").succeeds();
    assert!(
        metrics.contains("pam_iam_decisions_total{policy=\"login\",reason=\"in-group\"} 1\n")
            && metrics.ends_with("644"),
        "{metrics}"
    );

    machine.clear_calls();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), [""; 0], "remembered for an hour");
    machine.sh("iamctl flush alice").succeeds();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.actions(), ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"], "and asked again");
}

#[test]
fn without_a_daemon_status_and_flush_say_that_none_runs() {
    let machine = Machine::new().without_daemon().start();
    assert!(machine.sh("iamctl status").succeeds().contains("daemon        none runs"));
    assert_eq!(machine.sh("iamctl flush").succeeds(), "no resolver runs, so nothing is remembered");
}

#[test]
fn lint_finds_everybody_who_will_have_trouble() {
    let machine = cast().start();
    let done = machine.run(&["iamctl", "lint"]);
    assert_eq!(done.status, 1);
    for line in [
        "a@b (may log in): a.at.b and a@b would all be called a.at.b",
        "12345 (may log in): its Linux name is all digits",
        "root (may log in): its name is that of a local account",
        "carol (may log in): has no SSH public key",
        "daemon (may not log in): its name is that of a local account",
        "8 IAM users, 6 may log in, 6 findings",
    ] {
        assert!(done.stdout.contains(line), "{line}\n--- is not in\n{}", done.stdout);
    }
    let sound = Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}]}]})).start();
    assert_eq!(sound.run(&["iamctl", "lint"]).succeeds(), "1 IAM users, 1 may log in, 0 findings");
}

#[test]
fn completions_are_there_for_shells() {
    let machine = Machine::new().start();
    machine.sh("iamctl completions bash >/tmp/c && bash -n /tmp/c && grep -q explain /tmp/c").succeeds();
}

/// What `iamctl doctor` finds wrong or doubtful.
fn complaints(machine: &Machine) -> String {
    let done = machine.run(&["iamctl", "doctor"]);
    let lines = done.stdout.lines().filter(|line| !line.starts_with("ok"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sound_host_is_found_sound() {
    for builder in [Machine::new(), Machine::new().importer()] {
        let machine = builder
            .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}]}]}))
            .start();
        let done = machine.run(&["iamctl", "doctor"]);
        assert_eq!((done.status, complaints(&machine).as_str()), (0, ""), "{}", done.stdout);
        let json: Value = serde_json::from_str(&machine.sh("iamctl doctor --json").succeeds()).unwrap();
        assert_eq!(json["ok"], true);
    }
}

/// Breaks one thing and mends it again: the doctor names that and nothing else, and then nothing at all.
#[track_caller]
fn finds(machine: &Machine, broken: &str, what: &str, mended: &str) {
    machine.sh(broken).succeeds();
    let found = found(machine);
    assert_eq!(found.len(), 1, "{broken}: {found:#?}");
    assert!(found.iter().all(|found| found.contains(what)), "{broken}: {what}\n--- is not in\n{found:#?}");
    machine.sh(mended).succeeds();
    assert_eq!(complaints(machine), "", "after {mended}");
}

/// What `iamctl doctor --json` finds that is not ok.
fn found(machine: &Machine) -> Vec<String> {
    let report: Value = serde_json::from_str(&machine.sh("iamctl doctor --json").stdout).unwrap_or_default();
    let findings = report.get("findings").and_then(Value::as_array);
    let Some(findings) = findings else { return vec!["no report".to_owned()] };
    let word = |finding: &Value, key| finding.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    findings
        .iter()
        .filter(|finding| word(finding, "state") != "ok")
        .map(|finding| {
            format!("{}: {} -> {}", word(finding, "check"), word(finding, "message"), word(finding, "fix"))
        })
        .collect()
}

fn sound() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .start()
}

#[test]
fn the_doctor_finds_what_is_wrong_with_sshd() {
    let machine = sound();
    let drop_in = "/etc/ssh/sshd_config.d";
    let aside = format!("rm {drop_in}/00-test.conf");
    for (line, what) in [
        (
            "AuthorizedKeysCommand /usr/share/ec2-instance-connect/eic_run_authorized_keys %u %f",
            "EC2 Instance Connect",
        ),
        ("AuthorizedKeysCommand /usr/bin/userdbctl ssh-authorized-keys %u", "systemd's userdb"),
        ("AuthorizedKeysCommand /bin/true", "another key command is in force"),
        ("AuthorizedKeysCommandUser nobody", "the key command runs as \"nobody\""),
        ("UsePAM no", "usepam is \"no\""),
        ("PubkeyAuthentication no", "pubkeyauthentication is \"no\""),
        ("PubkeyAcceptedAlgorithms ssh-ed25519", "sshd takes no RSA keys, and IAM has no others"),
        ("RequiredRSASize 4096", "sshd wants RSA keys of 4096 bits"),
        ("AllowGroups staff", "sshd's allowgroups is set to staff"),
        ("NoSuchKeyword yes", "Bad configuration option: NoSuchKeyword"),
    ] {
        finds(&machine, &format!("echo '{line}' >{drop_in}/00-test.conf"), what, &aside);
    }
    finds(
        &machine,
        &format!("mv {drop_in}/10-pam_iam.conf /tmp/"),
        "sshd runs no key command",
        &format!("mv /tmp/10-pam_iam.conf {drop_in}/"),
    );
    finds(
        &machine,
        &format!(
            "cp {drop_in}/10-pam_iam.conf /tmp/saved; sed -i '/^Match Group/,/AuthorizedKeysFile/d' {drop_in}/10-pam_iam.conf"
        ),
        "sshd also takes keys from .ssh/authorized_keys",
        &format!("cp /tmp/saved {drop_in}/10-pam_iam.conf"),
    );
}

#[test]
fn the_doctor_finds_what_is_wrong_with_pam_nss_sudo_and_owners() {
    let machine = sound();
    let copy = |file: &str| format!("cp -p {file} /tmp/saved");
    let back = |file: &str| format!("cp -p /tmp/saved {file}");
    for (file, change, what) in [
        ("/etc/pam.d/sshd", "sed -i '/^account.*pam_iam/d'", "sshd: pam_iam.so is not in the account phase"),
        ("/etc/pam.d/sshd", "sed -i '/^session.*pam_iam/d'", "sshd: pam_iam.so is not in the session phase"),
        (
            "/etc/pam.d/sshd",
            "sed -i '1i account sufficient pam_permit.so'",
            "sshd: pam_iam.so is not always asked, because of `sufficient pam_permit.so`",
        ),
        (
            "/etc/pam.d/sshd",
            "sed -i 's/^account.*pam_iam.so/account optional pam_iam.so/'",
            "the control of `optional pam_iam.so` does not heed a denial",
        ),
        ("/etc/pam.d/sudo", "sed -i '/pam_iam/d'", "sudo: pam_iam.so is not in the account phase"),
        ("/etc/pam.d/sudo", "sed -i 's/policy=sudo//'", "sudo: pam_iam.so lacks policy=sudo"),
        ("/etc/nsswitch.conf", "sed -i '/^passwd:/s/ iam//'", "does not ask IAM for accounts"),
        ("/etc/nsswitch.conf", "sed -i '/^group:/s/ iam//'", "does not ask IAM for groups"),
        ("/etc/nsswitch.conf", "sed -i 's/ iam$//'", "IAM users have no accounts on this host"),
        ("/etc/sudoers.d/pam_iam", "rm -f", "/etc/sudoers.d/pam_iam is missing"),
        ("/etc/sudoers.d/pam_iam", "chmod 666", "sudo does not read /etc/sudoers.d/pam_iam"),
        ("/etc/sudoers.d/pam_iam", "sed -i 's/ALL/ALL ALL ALL (/'", "sudoers: "),
        (
            "/etc/nsswitch.conf",
            "sed -i '$a initgroups: files'",
            "the line initgroups: of /etc/nsswitch.conf does not ask IAM",
        ),
        ("/etc/sudoers", "sed -i '/includedir/d'", "sudo has no rule for carol, who may use it"),
        ("/etc/sudoers", "sed -i '$a %iam-sudo ALL=(ALL) ALL'", "sudo asks carol for a password"),
        (
            "/etc/sudoers",
            "sed -i '1i Defaults !pam_acct_mgmt'",
            "sudo does not ask PAM whether an account may be used",
        ),
        (
            "/usr/libexec/pam_iam/iam-authorized-keys",
            "chmod g+w",
            "/usr/libexec/pam_iam/iam-authorized-keys can be changed by others than root",
        ),
    ] {
        finds(&machine, &format!("{}; {change} {file}", copy(file)), what, &back(file));
    }
    for (broken, what, mended) in [
        (
            "touch /usr/bin/amazon-ssm-agent",
            "with Run As, Session Manager starts a shell",
            "rm /usr/bin/amazon-ssm-agent",
        ),
        ("mkdir -p /run/nscd; touch /run/nscd/socket", "nscd runs", "rm /run/nscd/socket"),
        ("chmod g+w /home", "/home can be changed by others than root", "chmod g-w /home"),
        ("chown 4242 /home", "/home can be changed by others than root", "chown root /home"),
        (
            "mkdir -p /run/pam_iam/sessions; chmod g+w /run/pam_iam",
            "/run/pam_iam can be changed by others than root",
            "chmod g-w /run/pam_iam",
        ),
        (
            "install -m 600 /dev/null /root/ca.pem; echo AWS_CA_BUNDLE=/root/ca.pem >>/etc/pam_iam/environment",
            "AWS_CA_BUNDLE in /etc/pam_iam/environment is /root/ca.pem, which iam-resolver cannot read",
            "sed -i /AWS_CA_BUNDLE/d /etc/pam_iam/environment",
        ),
    ] {
        finds(&machine, broken, what, mended);
    }
    for service in ["cron", "atd", "systemd-user"] {
        finds(
            &machine,
            &format!(
                "cd /etc/pam.d; rm -f /tmp/saved; cp -p {service} /tmp/saved; echo @include common-account >{service}"
            ),
            &format!("{service}: pam_iam.so is not in the account phase"),
            &format!("cd /etc/pam.d; rm {service}; [ ! -e /tmp/saved ] || mv /tmp/saved {service}"),
        );
    }
    finds(
        &machine,
        "chown nobody /usr/libexec/pam_iam/iam-resolver",
        "/usr/libexec/pam_iam/iam-resolver can be changed by others than root",
        "chown root /usr/libexec/pam_iam/iam-resolver",
    );
    finds(
        &machine,
        "for dir in /usr/lib64 /usr/lib/*-linux-gnu; do mv $dir/security/pam_iam.so /tmp/ 2>/dev/null && echo $dir >/tmp/dir; done; true",
        "pam_iam.so is missing",
        "mv /tmp/pam_iam.so $(cat /tmp/dir)/security/",
    );
    finds(
        &machine,
        "cp -p /etc/nsswitch.conf /tmp/saved; sed -i '/^passwd:/s/ iam/ [NOTFOUND=return] iam/' /etc/nsswitch.conf",
        "does not ask IAM for accounts",
        "cp -p /tmp/saved /etc/nsswitch.conf",
    );
    finds(
        &machine,
        "cp -p /etc/pam_iam/config.toml /tmp/saved; touch /etc/pam_iam/config.toml",
        "the daemon is older than the configuration",
        "cp -p /tmp/saved /etc/pam_iam/config.toml",
    );
    finds(
        &machine,
        "chmod 600 /etc/pam_iam/config.toml",
        "iam-resolver cannot read /etc/pam_iam/config.toml",
        "chmod 644 /etc/pam_iam/config.toml",
    );
    finds(
        &machine,
        "chmod g+w /usr/libexec",
        "/usr/libexec can be changed by others than root",
        "chmod g-w /usr/libexec",
    );
    finds(
        &machine,
        "cp -p /etc/pam_iam/config.toml /tmp/saved; echo 'alow = 1' >>/etc/pam_iam/config.toml",
        "unknown field `alow`",
        "cp -p /tmp/saved /etc/pam_iam/config.toml",
    );
}

#[test]
fn the_doctor_finds_what_is_wrong_with_iam_and_the_resolver() {
    let machine = sound();
    machine.ssh("alice", "true").succeeds();
    for (fault, what) in [
        ("fail=denied&only=GetGroup", "IAM denies iam:GetGroup"),
        ("fail=denied&only=GetUser", "IAM denies iam:GetUser"),
        ("fail=denied&only=ListGroupsForUser", "IAM denies iam:ListGroupsForUser"),
        ("fail=denied&only=ListSSHPublicKeys", "IAM denies iam:ListSSHPublicKeys"),
        ("fail=denied&only=GetSSHPublicKey", "IAM denies iam:GetSSHPublicKey"),
        ("fail=503", "with an error of its own"),
        ("fail=skew", "IAM refuses our clock"),
        ("fail=credentials", "give the instance a role"),
        ("fail=hang&only=IMDS", "the hop limit is too low"),
        ("fail=denied&only=IMDS", "the instance metadata service refuses a token"),
    ] {
        finds(&machine, &format!("curl -sSf \"$BOX_CTL?{fault}\""), what, "curl -sSf \"$BOX_CTL?fail=\"");
    }
    machine.iam().python(
        "iam.create_user(UserName='daemon')\niam.add_user_to_group(UserName='daemon', GroupName='ssh-users')",
    );
    assert!(
        complaints(&machine).contains(
            "the IAM user daemon may log in and gets no account: its name is that of a local account"
        )
    );
    machine.iam().python("iam.remove_user_from_group(UserName='daemon', GroupName='ssh-users')\niam.delete_user(UserName='daemon')");
    machine.sh("sed -i \"s/'ssh-users'/'ssh-users', 'ssh-typo'/\" /etc/pam_iam/config.toml").succeeds();
    machine.end_resolver("TERM");
    assert!(complaints(&machine).contains("access names the IAM group ssh-typo, which does not exist"));
    machine.sh("sed -i \"s/, 'ssh-typo'//\" /etc/pam_iam/config.toml").succeeds();
    machine.end_resolver("TERM");
    assert_eq!(complaints(&machine), "");
    // Somebody else at the socket, and nobody.
    machine.sh("mv /run/pam_iam/resolver.sock /run/pam_iam/real; (setpriv --reuid 65534 --clear-groups python3 -c '
import socket, time
s = socket.socket(socket.AF_UNIX); s.bind(\"/tmp/squat\"); s.listen(); time.sleep(1000)' >/dev/null 2>&1 &)").succeeds();
    machine.wait_until("test -S /tmp/squat");
    machine.sh("ln -s /tmp/squat /run/pam_iam/resolver.sock").succeeds();
    assert!(complaints(&machine).contains("belongs to uid 65534"));
    machine.sh("rm /run/pam_iam/resolver.sock").succeeds();
    assert!(complaints(&machine).contains("no daemon: a process for each question, and NSS shows nobody"));
}
