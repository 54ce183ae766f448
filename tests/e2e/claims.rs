//! A user who may not log in has no account on this host, nor has a user whose name the host claims.

use std::time::Instant;

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

/// The managed range.
const MANAGED_UIDS: std::ops::RangeInclusive<u32> = 2_013_265_920..=2_147_352_575;

/// Names of IAM users that packages also give to the accounts of their daemons.
const DAEMONS: [&str; 30] = [
    "jenkins",
    "redis",
    "mysql",
    "mongodb",
    "grafana",
    "prometheus",
    "nginx",
    "haproxy",
    "consul",
    "vault",
    "nomad",
    "etcd",
    "kafka",
    "zookeeper",
    "elastic",
    "logstash",
    "kibana",
    "telegraf",
    "influxdb",
    "gitlab",
    "rabbitmq",
    "memcached",
    "cassandra",
    "solr",
    "tomcat",
    "wildfly",
    "dnsmasq",
    "unbound",
    "postfix",
    "dovecot",
];

/// Starts a box in an AWS account with 5,000 users, of whom dev0 to dev49 may log in. newbie is one of the others.
fn machine_with_five_thousand_users(builder: Builder) -> Machine {
    let mut users: Vec<Value> =
        DAEMONS.iter().map(|name| json!({"name": name, "groups": [], "keys": []})).collect();
    users.push(json!({"name": "newbie", "groups": [], "keys": [{}]}));
    users
        .extend(developers().iter().map(|name| json!({"name": name, "groups": ["ssh-users"], "keys": [{}]})));
    builder
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users,
            "filler": {"count": 4919, "prefix": "user", "groups": []}}))
        .settings("[freshness]\nmax_age = 0")
        .booted()
        .start()
}

fn developers() -> Vec<String> {
    (0..50).map(|number| format!("dev{number}")).collect()
}

/// Looks up each of the daemons' names 30 times as root. Asserts that nothing is found.
fn look_up_daemons(machine: &Machine) {
    let script = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10; do for name in {}; do getent passwd $name; getent group $name; id $name; done; done 2>/dev/null",
        DAEMONS.join(" ")
    );
    assert_eq!(machine.sh(&script).stdout, "", "no daemon has an account or a group");
}

/// Makes system accounts with names of IAM users, as the installation scripts of packages do.
fn add_system_accounts(machine: &Machine) {
    machine.run(&["adduser", "--quiet", "--system", "jenkins"]).succeeds();
    machine.run(&["useradd", "-r", "redis"]).succeeds();
    machine.run(&["mkdir", "-p", "/etc/sysusers.d"]).succeeds();
    machine.file("/etc/sysusers.d/db.conf").write("u mysql - db\n");
    machine.run(&["systemd-sysusers"]).succeeds();
    for name in ["jenkins", "redis", "mysql"] {
        assert!(machine.uid_of(name) < 1000, "{name}");
    }
}

fn assert_that_managed_user_logs_in(machine: &Machine, name: &str) {
    let said = machine.ssh(name, "id -un; id -Gn").succeeds();
    assert_eq!(said.lines().next(), Some(name));
    assert!(said.split_whitespace().any(|word| word == "iam-users"), "{name}: {said}");
}

#[test]
fn of_five_thousand_users_only_those_who_may_log_in_have_accounts_and_names() {
    let machine = machine_with_five_thousand_users(Machine::new());
    machine.clear_calls();
    let began = Instant::now();
    look_up_daemons(&machine);
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    let calls = machine.count_calls("GetUser");
    // The limit is 30 at first, and grows by one every two seconds.
    assert!(calls <= 31 + seconds / 2, "{calls} calls in {seconds} s");

    add_system_accounts(&machine);
    machine.run(&["useradd", "-r", "nginx"]).succeeds();
    let uid =
        machine.run(&["systemd-run", "-q", "--wait", "--pipe", "-p", "User=nginx", "id", "-u"]).succeeds();
    assert_eq!(uid, machine.uid_of("nginx").to_string());
    assert!(machine.uid_of("nginx") < 1000);
    let run_as_dynamic_user =
        ["systemd-run", "-q", "--wait", "--pipe", "-p", "DynamicUser=yes", "-p", "User=grafana"];
    let uid = machine.run(&[&run_as_dynamic_user[..], &["id", "-u"]].concat()).succeeds();
    assert!((61_184..=65_519).contains(&uid.parse::<u32>().unwrap()), "a dynamic user of systemd: {uid}");
    machine.iamctl("sweep").succeeds();

    for name in developers() {
        assert_that_managed_user_logs_in(&machine, &name);
    }
    machine.ssh("newbie", "true").fails();
    machine.iam().add_to_group("newbie", "ssh-users");
    assert_eq!(machine.ssh("newbie", "id -un").succeeds(), "newbie");
}

#[test]
fn of_five_thousand_users_the_importer_adds_only_those_who_may_log_in() {
    let machine = machine_with_five_thousand_users(Machine::new().importer());
    machine.run(&["iam-importer"]).succeeds();
    assert_eq!(managed_accounts(&machine), developers());
    add_system_accounts(&machine);
    machine.run(&["iam-importer"]).succeeds();
    for name in ["jenkins", "redis"] {
        assert!(machine.uid_of(name) < 1000, "{name}");
    }
    for name in ["dev0", "dev49"] {
        assert_that_managed_user_logs_in(&machine, name);
    }
    machine.ssh("newbie", "true").fails();
    machine.iam().add_to_group("newbie", "ssh-users");
    machine.iamctl("flush").succeeds();
    machine.run(&["iam-importer"]).succeeds();
    assert_eq!(machine.ssh("newbie", "id -un").succeeds(), "newbie");
}

/// Returns the names in /etc/passwd whose uid is in the managed range, by length and then by the alphabet, so that dev2
/// precedes dev10.
fn managed_accounts(machine: &Machine) -> Vec<String> {
    let text = machine.file("/etc/passwd").text();
    let managed = text.lines().filter(|line| {
        let uid = line.split(':').nth(2).and_then(|uid| uid.parse().ok());
        uid.is_some_and(|uid| MANAGED_UIDS.contains(&uid))
    });
    let mut names: Vec<String> =
        managed.filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

#[test]
fn an_iam_user_whose_name_the_host_claims_is_refused_and_explain_and_lint_say_why() {
    let names = ["alice", "bob", "carol", "dave", "erin"];
    let users: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "groups": ["ssh-users"], "keys": [{}]})).collect();
    let machine =
        Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users})).start();
    machine.file("/usr/lib/systemd/system/app.service").write("[Service]\nUser=alice\n");
    machine.file("/usr/lib/sysusers.d/bob.conf").write("u bob - x\n");
    machine.file("/etc/systemd/system/carol.service").write("[Service]\nDynamicUser=yes\n");
    machine.add_to_local_group("dave", "adm");
    machine.file("/etc/systemd/system/own.service").write("[Service]\nUser=erin\n");
    for (name, claim) in [
        ("alice", "/usr/lib/systemd/system/app.service runs as that name"),
        ("bob", "/usr/lib/sysusers.d/bob.conf makes"),
        ("carol", "/etc/systemd/system/carol.service has systemd make a user"),
        ("dave", "is a member of the group adm"),
    ] {
        assert_eq!(machine.passwd(name), None);
        machine.ssh(name, "true").fails();
        let said = machine.iamctl(&format!("explain {name}"));
        assert!(said.status == 1 && said.stdout.contains(claim), "{said:?}");
    }
    let lint = machine.iamctl("lint").stdout;
    for name in ["alice", "bob", "carol", "dave"] {
        let line = lint.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains("this host needs its name for itself")), "{lint}");
    }
    // A unit in /etc does not claim the name, since its administrator may mean the IAM user.
    machine.ssh("erin", "true").succeeds();
}

#[test]
fn the_uid_of_a_user_who_may_not_log_in_has_no_name_and_whois_tells_whose_it_is() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let uid = machine.ssh("alice", "touch mine; id -u").succeeds();
    let file = machine.file("/home/alice/mine");
    assert_eq!(file.stat("%U"), "alice");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    assert_eq!(file.stat("%U"), "UNKNOWN");
    let whois = machine.iamctl(&format!("whois {uid}")).succeeds();
    assert!(whois.starts_with(&format!("uid {uid} is that of alice\n")), "{whois}");
    assert!(whois.contains("refused: in none of the IAM groups that access.allow names"), "{whois}");
    machine.iamctl("whois 2013265999").fails();
    assert_eq!(machine.iamctl("whois 0").succeeds(), "uid 0 is that of the local account root");

    // NSS asks files first, so a local account with the uid comes before the IAM user.
    machine.iam().add_to_group("alice", "ssh-users");
    machine.wait_until("getent passwd alice");
    machine.file("/etc/passwd").append(&format!("svc:*:{uid}:{uid}::/:/bin/sh\n"));
    assert_eq!(machine.passwd("alice"), None);
    machine.ssh("alice", "true").fails();
    assert_eq!(file.stat("%U"), "svc");
}
