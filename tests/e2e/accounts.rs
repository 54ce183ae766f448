//! Whose account is whose: names, ids, groups, shared accounts, and accounts that were there before.

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

/// IAM users with these names in ssh-users and ssh-admins, each with a key.
fn users(names: &[&str]) -> Value {
    let user = |name: &&str| json!({"name": name, "groups": ["ssh-users", "ssh-admins"], "keys": [{}]});
    json!({"groups": ["ssh-users", "ssh-admins"], "users": names.iter().map(user).collect::<Vec<_>>()})
}

/// Two UserIds with one uid, 2019794717 (docs/uids.md has the function).
const IDS_THAT_MEET: [&str; 2] = ["AIDAEXAMPLE0000006202", "AIDAEXAMPLE0000012239"];

const EVIL: [&str; 11] = [
    "root",
    "ec2-user",
    "daemon",
    "-oProxyCommand=x",
    ".",
    "..",
    "12345",
    "x123456789012345678901234567@x",
    "a@b",
    "a.at.b",
    "Bob",
];

/// Makes a local account of a name that IAM has too, which useradd(8) would not.
const EC2_USER: &str = "echo 'ec2-user:x:1000:1000::/home/ec2-user:/bin/bash' >>/etc/passwd; echo 'ec2-user:*:20000::::::' >>/etc/shadow
    install -d -o 1000 /home/ec2-user";

/// Each is refused, in NSS, keys, PAM and sshd alike.
fn names_are_refused(machine: &Machine) {
    let names = [
        "root",
        "ec2-user",
        "daemon",
        "-oProxyCommand.equal.x",
        ".",
        "..",
        "12345",
        "x123456789012345678901234567.at.x",
        "a.at.b",
        "bob",
        "a b",
        "a/b",
        "",
    ];
    for name in names {
        let keys = machine.run(&["/usr/libexec/pam_iam/iam-authorized-keys", name]);
        assert_eq!(keys.stdout, "", "{name:?}");
        // With the key of the IAM user of the name, and with those of the others.
        machine
            .sh(&format!(
                "for key in $BOX_KEYS/*; do ! timeout 10 box-ssh -i $key -- '{name}' true || exit 1; done"
            ))
            .succeeds();
        let asked = machine.run(&["pamtester", "-I", "service=sshd", "sshd", name, "acct_mgmt"]);
        let local = ["root", "ec2-user", "daemon"].contains(&name);
        assert_eq!(
            asked.status == 0,
            local,
            "{name:?}: local accounts are the host's own, and no other is let in: {asked:?}"
        );
        let entry = machine.run(&["getent", "passwd", "--", name]).stdout;
        let ours = entry
            .split(':')
            .nth(2)
            .and_then(|uid| uid.parse::<u32>().ok())
            .is_some_and(|uid| uid >= 2_013_265_920);
        assert!(!ours, "{name:?}: {entry}");
    }
    machine.ssh("Bob", "true").succeeds();
}

#[test]
fn names_that_must_not_be_are_refused_everywhere() {
    let machine = Machine::new().fixtures(users(&EVIL)).start();
    machine.sh(EC2_USER).succeeds();
    names_are_refused(&machine);
    // The list is read anew.
    machine.end_resolver("KILL");
    for line in [
        "refused IAM user root: its name is that of a local account",
        "refused IAM user ec2-user: its name is that of a local account",
        "refused IAM user daemon: its name is that of a local account",
        "refused IAM user -oProxyCommand=x: its Linux name begins with '-' or '.'",
        "refused IAM user .: its Linux name begins with '-' or '.'",
        "refused IAM user ..: its Linux name begins with '-' or '.'",
        "refused IAM user 12345: its Linux name is all digits",
        "refused IAM user x123456789012345678901234567@x: its Linux name has 33 characters, more than 32",
        "refused IAM user a@b: a.at.b and a@b would all be called a.at.b",
        "refused IAM user a.at.b: a.at.b and a@b would all be called a.at.b",
    ] {
        machine.logs("resolver", line);
    }
}

#[test]
fn names_that_must_not_be_are_refused_by_the_importer_too() {
    let machine = Machine::new().fixtures(users(&EVIL)).importer().start();
    // The importer ran before there was this one.
    machine.sh(&format!("userdel ec2-user && {EC2_USER}")).succeeds();
    let before = machine.sh("grep -v ^Bob /etc/passwd").succeeds();
    let done = machine.run(&["iam-importer"]);
    assert_eq!(done.status, 1);
    assert_eq!(machine.sh("grep -v ^Bob /etc/passwd").succeeds(), before);
    names_are_refused(&machine);
    for (name, why) in [
        ("root", "its name is that of a local account"),
        ("ec2-user", "its name is that of a local account"),
        ("daemon", "its name is that of a local account"),
        ("12345", "its Linux name is all digits"),
        ("a@b", "a.at.b and a@b would all be called a.at.b"),
        ("a.at.b", "a.at.b and a@b would all be called a.at.b"),
    ] {
        assert!(done.stdout.contains(&format!("refused {name}: {why}\n")), "{name}: {}", done.stdout);
        machine.logs("authpriv", &format!("event=import action=refuse iam_name={name} reason=\"{why}\""));
    }
}

#[test]
fn a_name_that_a_second_user_claims_is_lost_to_the_account_that_was_imported_too() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "a.at.b", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .importer()
        .start();
    machine.ssh("a.at.b", "true").succeeds();
    let keys = "/usr/libexec/pam_iam/iam-authorized-keys --uid $(id -u a.at.b) a.at.b";
    assert!(machine.sh(keys).succeeds().starts_with("ssh-rsa "));
    machine.iam().python(
        "iam.create_user(UserName='a@b')\niam.add_user_to_group(UserName='a@b', GroupName='ssh-users')",
    );
    assert_eq!(machine.sh(keys).stdout, "");
    machine.sh("pamtester -I service=sshd sshd a.at.b acct_mgmt").fails();
    machine.logs("authpriv", "result=deny reason=ambiguous");
    machine.ssh("a.at.b", "true").fails();
    assert!(
        machine.sh("iam-importer").stdout.contains("refused a@b: a.at.b and a@b would all be called a.at.b")
    );
}

#[test]
fn iam_groups_that_map_to_one_linux_group_are_one_however_one_looks() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-dev", "ssh-web"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-dev"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users", "ssh-web"], "keys": [{}]}]}))
        .settings("[groups]\n'ssh-dev' = 'dev'\n'ssh-web' = 'dev'")
        .start();
    machine.sh("install -d -m 2770 -g dev /srv/dev").succeeds();
    assert_eq!(machine.sh("getent group dev | cut -d: -f1,4").succeeds(), "dev:", "NSS lists no members");
    for user in ["alice", "bob"] {
        assert_eq!(machine.ssh(user, "id -Gn | tr ' ' '\\n' | grep -x dev").succeeds(), "dev", "{user}");
        machine.ssh(user, &format!("touch /srv/dev/{user} && sg dev -c true")).succeeds();
    }
}

#[test]
fn of_two_users_with_one_uid_the_later_gets_nothing() {
    for builder in [Machine::new(), Machine::new().importer()] {
        let machine = builder
            .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
                {"name": "early", "id": IDS_THAT_MEET[0], "groups": ["ssh-users"], "keys": [{}]},
                {"name": "late", "id": IDS_THAT_MEET[1], "groups": ["ssh-users"], "keys": [{}]}]}))
            .start();
        assert_eq!(machine.ssh("early", "id -u").succeeds(), "2019794717");
        machine.ssh("late", "true").fails();
        machine.run(&["getent", "passwd", "late"]).fails();
        assert_eq!(machine.sh("/usr/libexec/pam_iam/iam-authorized-keys late").stdout, "");
        assert_eq!(machine.sh("/usr/libexec/pam_iam/iam-authorized-keys --uid 2019794717 late").stdout, "");
        assert_eq!(machine.sh("getent passwd 2019794717 | cut -d: -f1").succeeds(), "early");
        machine.logs("resolver", "refused IAM user late: it has the uid 2019794717 of early, who came first");
    }
}

const GROUPS: &str = "[access]\nallow = ['ssh-users']\nsudo = ['ssh-admins']\n[freshness]\nmax_age = 0\n[groups]\n'ssh-dev' = 'dev'\n'ssh-web' = 'webteam'\n";

fn with_groups(builder: Builder) -> Machine {
    let machine = builder
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-dev", "ssh-web"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-dev", "ssh-web"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users"], "keys": [{}]}]}))
        .config(GROUPS)
        .start();
    // A group of this host, from before.
    machine
        .sh("sed -i /^webteam:/d /etc/group; echo 'webteam:x:2000:' >>/etc/group; iamctl write-mapped-gids")
        .succeeds();
    machine
}

#[test]
fn groups_are_the_same_however_one_looks() {
    for (builder, imported) in [(Machine::new(), false), (Machine::new().importer(), true)] {
        let machine = with_groups(builder);
        if imported {
            machine.sh("iam-importer -q").succeeds();
        }
        machine.sh("install -d -m 2770 -g dev /srv/dev; install -d -m 2770 -g webteam /srv/web").succeeds();
        let groups = machine.ssh("alice", "id -Gn | tr ' ' '\\n' | sort | tr '\\n' ' '").succeeds();
        assert_eq!(groups.trim(), "alice dev iam-users webteam");
        assert_eq!(machine.sh("id -Gn alice | tr ' ' '\\n' | sort | tr '\\n' ' '").succeeds(), groups);
        assert_eq!(
            machine.sh("getent group dev iam-users | cut -d: -f1,4").succeeds(),
            if imported { "dev:alice\niam-users:alice,bob" } else { "dev:\niam-users:" }
        );
        assert_eq!(machine.sh("getent group webteam | cut -d: -f3").succeeds(), "2000");
        let gid = machine.sh("getent group dev | cut -d: -f3").succeeds();
        assert_eq!(machine.sh(&format!("getent group {gid} | cut -d: -f1")).succeeds(), "dev");
        assert_eq!(
            machine.ssh("alice", "touch /srv/dev/a /srv/web/a; stat -c %G /srv/dev/a /srv/web/a").succeeds(),
            "dev\nwebteam"
        );
        for group in ["dev", "webteam"] {
            assert_eq!(machine.ssh("alice", &format!("sg {group} -c 'id -gn'")).succeeds(), group);
            assert_eq!(machine.ssh("alice", &format!("echo id -gn | newgrp {group}")).succeeds(), group);
            machine.ssh("bob", &format!("sg {group} -c true </dev/null")).fails();
        }
        machine.ssh("bob", "touch /srv/dev/b").fails();

        machine.iam().remove_from_group("alice", "ssh-dev");
        if imported {
            machine.sh("iam-importer -q").succeeds();
        }
        machine.ssh("alice", "touch /srv/dev/b").fails();
    }
}

#[test]
fn groups_that_are_as_good_as_root_take_the_operators_word() {
    let fixtures = json!({"groups": ["ssh-users", "ssh-admins", "ssh-disk"], "users": [
        {"name": "alice", "groups": ["ssh-users", "ssh-disk"], "keys": [{}]}]});
    let machine = Machine::new()
        .fixtures(fixtures)
        .settings("[groups]\n'ssh-disk' = { group = 'disk', allow_privileged = true }")
        .start();
    assert!(machine.ssh("alice", "id -Gn").succeeds().contains("disk"));
    for (target, why) in [
        ("'disk'", "as good as root"),
        ("'root'", "no IAM group maps to the group root"),
        ("{ group = 'root', allow_privileged = true }", "no IAM group maps"),
    ] {
        let script = format!(
            "printf \"[access]\\nallow = ['a']\\n[groups]\\n'x' = {target}\\n\" >/tmp/c.toml; iam-resolver check-config /tmp/c.toml"
        );
        assert!(machine.sh(&script).fails().contains(why), "{target}");
    }
    // A group of another name with gid 0 is never given either.
    machine.sh("sed -i 's/^disk:x:6:/disk:x:0:/' /etc/group").succeeds();
    assert!(!machine.ssh("alice", "id -G").succeeds().split(' ').any(|gid| gid == "0"));
}

fn shared() -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "deployers"], "users": [
            {"name": "alice", "groups": ["deployers"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users", "deployers"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "deploy", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0\n[shared.deploy]\ngroups = ['deployers']")
        .start();
    machine.sh("useradd -m -s /bin/bash deploy").succeeds();
    machine
}

#[test]
fn members_log_in_to_a_shared_account_with_their_own_keys() {
    let machine = shared();
    assert_eq!(machine.ssh_with("alice", "deploy", "id -un").succeeds(), "deploy");
    assert_eq!(machine.ssh_with("bob", "deploy", "pwd").succeeds(), "/home/deploy");
    for user in ["alice", "bob"] {
        let key = machine.sh(&format!("ssh-keygen -lf $BOX_KEYS/{user} | cut -d' ' -f2")).succeeds();
        machine.logs("authpriv", &format!("event=session user=deploy iam_name={user} key={key} origin=iam"));
    }
    machine.ssh_with("carol", "deploy", "true").fails();
    machine.ssh_with("deploy", "deploy", "true").fails();
    machine.ssh_with("alice", "alice", "true").fails();

    machine.iam().remove_from_group("alice", "deployers");
    machine.ssh_with("alice", "deploy", "true").fails();
    machine.ssh_with("bob", "deploy", "true").succeeds();
}

#[test]
fn a_shared_account_is_still_the_hosts_own() {
    let machine = shared();
    machine.sh("echo 'deploy ALL=(root) NOPASSWD: /usr/bin/id' >/etc/sudoers.d/deploy; ssh-keygen -q -t ed25519 -N '' -f /root/ci
        install -D -o deploy -m 600 /root/ci.pub /home/deploy/.ssh/authorized_keys; chown -R deploy: /home/deploy; chmod 700 /home/deploy/.ssh").succeeds();
    assert_eq!(machine.ssh_with("bob", "deploy", "'sudo -n id -u'").succeeds(), "0");
    machine.ssh_with("bob", "deploy", "'sudo -n cat /etc/shadow'").fails();
    // With IAM and the resolver gone, what the host has set up itself goes on.
    machine.fault("fail=hang");
    machine
        .sh("pkill -STOP -x iam-resolver; echo '[resolver]\nmode = \"daemon\"' >>/etc/pam_iam/config.toml")
        .succeeds();
    assert_eq!(machine.sh("pamtester sshd deploy acct_mgmt").status, 0);
}

#[test]
fn a_name_that_is_shared_and_is_no_local_account_is_nobodys() {
    let machine = Machine::new().settings("[shared.alice]\ngroups = ['ssh-users']").start();
    machine.run(&["getent", "passwd", "alice"]).fails();
    machine.ssh("alice", "true").fails();
}

fn tagged(tags: Value) -> Machine {
    let fixtures = json!({"instance": {"tags": tags}, "groups": ["prod-users", "prod-admins", "others"], "users": [
        {"name": "alice", "groups": ["prod-users"], "keys": [{}]},
        {"name": "bob", "groups": ["others"], "keys": [{}]},
        {"name": "carol", "groups": ["prod-users", "prod-admins"], "keys": [{}]}]});
    Machine::new()
        .fixtures(fixtures)
        .config("[access]\nallow = { tag = 'ssh-groups', within = ['prod-*'] }\nsudo = { tag = 'ssh-sudo', within = ['prod-admins'] }\n[resolver]\nmode = 'once'\n")
        .without_daemon()
        .importer()
        .start()
}

#[test]
fn an_instance_tag_says_who_may_log_in_within_what_the_host_allows() {
    let machine = tagged(json!({"ssh-groups": "prod-users, others", "ssh-sudo": "prod-admins"}));
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.run(&["getent", "passwd", "bob"]).fails();
    machine.logs(
        "authpriv",
        "the instance tag ssh-groups names others, which access.allow does not let it name",
    );
    // Whoever can write tags tries to become root.
    machine.fault("tag=ssh-sudo&value=prod-users,all,root");
    machine.ssh("alice", "sudo -n true").fails();
    machine.ssh("carol", "sudo -n true").fails();
    // A tag that is gone lets nobody in, and retires nobody.
    machine.fault("tag=ssh-groups");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
    machine.logs("authpriv", "which this instance does not have, or does not show in its metadata");
    let done = machine.run(&["iam-importer"]);
    assert!(done.status == 2 && done.stderr.contains("instance tag ssh-groups"), "{done:?}");
}
