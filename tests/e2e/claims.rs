//! A user who may not log in does not exist on this host, and neither does one whose name the host claims.

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

use crate::withdrawal::RECREATE;

/// IAM users of programs, called as packages call the accounts of their daemons.
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

/// An AWS account with 5,000 users, of whom 50 may log in.
fn machine() -> Machine {
    with_five_thousand_users(Machine::new())
}

fn with_five_thousand_users(builder: Builder) -> Machine {
    let mut users: Vec<Value> =
        DAEMONS.iter().map(|name| json!({"name": name, "groups": [], "keys": []})).collect();
    users.push(json!({"name": "newbie", "groups": [], "keys": [{}]}));
    users.extend(
        (0..50).map(|number| json!({"name": format!("dev{number}"), "groups": ["ssh-users"], "keys": [{}]})),
    );
    builder
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users,
            "filler": {"count": 4919, "prefix": "user", "groups": []}}))
        .settings("[freshness]\nmax_age = 0")
        .booted()
        .start()
}

#[test]
fn of_five_thousand_users_the_fifty_who_may_log_in_exist_and_the_names_of_the_others_are_free() {
    let machine = machine();
    machine.clear_calls();
    let asked = "for n in 1 2 3 4 5 6 7 8 9 10; do for name in NAMES; do getent passwd $name; getent group $name; id $name; done; done 2>/dev/null
        echo $SECONDS >/root/seconds";
    let said = machine.sh(&asked.replace("NAMES", &DAEMONS.join(" "))).stdout;
    assert_eq!(said, "", "900 look-ups of root's");
    let calls = machine.actions();
    let users = calls.iter().filter(|action| *action == "GetUser").count();
    // A minute's limit, and what has come back of it meanwhile.
    let seconds: usize = machine.sh("cat /root/seconds").succeeds().parse().unwrap();
    assert!(users <= 31 + seconds / 2, "{users} calls in {seconds} s");
    for script in [
        "adduser --quiet --system jenkins && test $(id -u jenkins) -lt 1000",
        "useradd -r redis && test $(id -u redis) -lt 1000",
        "mkdir -p /etc/sysusers.d && echo 'u mysql - db' >/etc/sysusers.d/db.conf && systemd-sysusers && test $(id -u mysql) -lt 1000",
        "useradd -r nginx && systemd-run -q --wait --pipe -p User=nginx id -u | grep -x $(id -u nginx)",
        // Whether it has a name is libnss-systemd's business.
        "uid=$(systemd-run -q --wait --pipe -p DynamicUser=yes -p User=grafana id -u) && test $uid -ge 61184 && test $uid -le 65519",
        "iamctl sweep",
    ] {
        machine.sh(script).succeeds();
    }
    for number in 0..50 {
        let name = format!("dev{number}");
        assert_eq!(
            machine.ssh(&name, "id -un; id -Gn | grep -ow iam-users").succeeds(),
            format!("{name}\niam-users")
        );
    }
    machine.ssh("newbie", "true").fails();
    machine.iam().add_to_group("newbie", "ssh-users");
    assert_eq!(machine.ssh("newbie", "id -un").succeeds(), "newbie");
}

#[test]
fn on_a_host_with_the_importer_passwd_holds_the_fifty_and_the_names_of_the_others_are_free() {
    let machine = with_five_thousand_users(Machine::new().importer());
    machine.sh("iam-importer").succeeds();
    let ours = "awk -F: '$3 >= 2013265920 && $3 <= 2147352575 { print $1 }' /etc/passwd | sort";
    let mut fifty: Vec<String> = (0..50).map(|number| format!("dev{number}")).collect();
    fifty.sort();
    assert_eq!(machine.sh(ours).succeeds(), fifty.join("\n"));
    for script in [
        "adduser --quiet --system jenkins && test $(id -u jenkins) -lt 1000",
        "useradd -r redis && test $(id -u redis) -lt 1000",
        "mkdir -p /etc/sysusers.d && echo 'u mysql - db' >/etc/sysusers.d/db.conf && systemd-sysusers && test $(id -u mysql) -lt 1000",
        "iam-importer && test $(id -u jenkins) -lt 1000 && test $(id -u redis) -lt 1000",
    ] {
        machine.sh(script).succeeds();
    }
    for name in ["dev0", "dev49"] {
        assert_eq!(
            machine.ssh(name, "id -un; id -Gn | grep -ow iam-users").succeeds(),
            format!("{name}\niam-users")
        );
    }
    machine.ssh("newbie", "true").fails();
    machine.iam().add_to_group("newbie", "ssh-users");
    machine.sh("iamctl flush; iam-importer").succeeds();
    assert_eq!(machine.ssh("newbie", "id -un").succeeds(), "newbie");
}

#[test]
fn a_name_that_the_host_claims_goes_to_no_iam_user_and_explain_says_what_claims_it() {
    let names = ["alice", "bob", "carol", "dave", "erin"];
    let users: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "groups": ["ssh-users"], "keys": [{}]})).collect();
    let machine =
        Machine::new().fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": users})).start();
    machine
        .sh("printf '[Service]\nUser=alice\n' >/usr/lib/systemd/system/app.service
             echo 'u bob - x' >/usr/lib/sysusers.d/bob.conf
             printf '[Service]\nDynamicUser=yes\n' >/etc/systemd/system/carol.service
             gpasswd -q -a dave adm 2>/dev/null || sed -i '/^adm:/s/$/,dave/' /etc/group
             printf '[Service]\nUser=erin\n' >/etc/systemd/system/own.service")
        .succeeds();
    for (name, claim) in [
        ("alice", "/usr/lib/systemd/system/app.service runs as that name"),
        ("bob", "/usr/lib/sysusers.d/bob.conf makes"),
        ("carol", "/etc/systemd/system/carol.service has systemd make a user"),
        ("dave", "is a member of the group adm"),
    ] {
        machine.run(&["getent", "passwd", name]).fails();
        machine.ssh(name, "true").fails();
        let said = machine.run(&["iamctl", "explain", name]);
        assert!(said.status == 1 && said.stdout.contains(claim), "{said:?}");
    }
    let lint = machine.run(&["iamctl", "lint"]).stdout;
    for name in ["alice", "bob", "carol", "dave"] {
        let line = lint.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains("this host needs its name for itself")), "{lint}");
    }
    // An administrator's own unit may be meant for that user.
    machine.ssh("erin", "true").succeeds();
}

#[test]
fn a_uid_has_no_name_when_its_user_may_not_log_in_and_whois_tells_whose_it_is() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let uid = machine.ssh("alice", "touch mine; id -u").succeeds();
    assert_eq!(machine.sh("stat -c %U /home/alice/mine").succeeds(), "alice");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.sh("stat -c %U /home/alice/mine").succeeds(), "UNKNOWN");
    let whois = machine.sh(&format!("iamctl whois {uid}")).succeeds();
    assert!(whois.starts_with(&format!("uid {uid} is that of alice\n")), "{whois}");
    assert!(whois.contains("refused: in none of the IAM groups that access.allow names"), "{whois}");
    machine.sh("iamctl whois 2013265999").fails();
    let local = machine.sh("iamctl whois 0").succeeds();
    assert_eq!(local, "uid 0 is that of the local account root");
    // A local account of another name has the uid: files come first.
    machine.iam().add_to_group("alice", "ssh-users");
    machine.wait_until("getent passwd alice");
    machine.sh(&format!("echo 'svc:*:{uid}:{uid}::/:/bin/sh' >>/etc/passwd")).succeeds();
    machine.run(&["getent", "passwd", "alice"]).fails();
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.sh("stat -c %U /home/alice/mine").succeeds(), "svc");
}

#[test]
fn a_user_made_anew_gets_nothing_that_the_host_set_up_for_the_one_before() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.sh("echo 'alice ALL=(ALL) NOPASSWD: /usr/bin/true' >/etc/sudoers.d/app").succeeds();
    // The first owner of the name: it is probably meant for her.
    let doctor = machine.sh("iamctl doctor").stdout;
    assert!(
        doctor
            .contains("alice may log in, has not yet done so, and will get: /etc/sudoers.d/app names alice"),
        "{doctor}"
    );
    machine.ssh("alice", "true").succeeds();
    machine.logs("authpriv", "is the first to have this name here, and gets: /etc/sudoers.d/app names alice");
    assert!(!machine.sh("iamctl doctor").stdout.contains("/etc/sudoers.d/app"));
    machine.iam().python(RECREATE);
    machine.sh("iamctl flush; rm -rf /home/alice").succeeds();
    machine.wait_until("! box-ssh alice true; grep -q reason=name-inherited $BOX_LOG/authpriv.log");
    let said = machine.sh("iamctl lint").stdout;
    assert!(
        said.contains(
            "alice is refused: another user had the name alice before, and this one would inherit: /etc/sudoers.d/app names alice"
        ),
        "{said}"
    );
    machine.sh("rm /etc/sudoers.d/app").succeeds();
    machine.ssh("alice", "true").succeeds();
    // What is set up for the new owner is meant.
    machine.sh("echo 'alice ALL=(ALL) NOPASSWD: /usr/bin/true' >/etc/sudoers.d/app").succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_group_and_a_confined_home_of_an_earlier_user_keep_the_next_one_of_the_name_out_until_they_are_cleared() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let first = machine.ssh("alice", "id -u").succeeds();
    // A group of the host's own, and a home that root owns, as sshd's ChrootDirectory wants it.
    machine.sh("echo 'devs:x:900:alice' >>/etc/group").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.iam().python(RECREATE);
    machine.sh("iamctl flush; rm -rf /home/alice").succeeds();
    machine.sh(&format!("install -d /home/alice && install -d -o {first} /home/alice/files")).succeeds();
    // A sweep that sees the new user before any login makes her no owner of the name.
    machine.wait_until(&format!("id -u alice && ! id -u alice | grep -qx {first}"));
    machine.sh("setpriv --reuid=$(id -u alice) --clear-groups sleep 60 & iamctl sweep; kill %1").succeeds();
    machine.ssh("alice", "true").fails();
    machine.logs("authpriv", "would inherit: /etc/group has alice in devs; take it out");
    let explained = machine.sh("iamctl explain alice").fails();
    assert!(explained.contains("another user had the name alice before"), "{explained}");
    machine.sh("sed -i /^devs:/d /etc/group").succeeds();
    let said = machine.ssh("alice", "true").fails();
    assert!(said.contains("/home/alice belonged to an earlier user of this name"), "{said}");
    let next = machine.sh("id -u alice").succeeds();
    let mend =
        format!("install -d -m 700 /var/lib/pam_iam/owners && echo {next} >/var/lib/pam_iam/owners/alice");
    machine.logs("authpriv", &format!("if it holds none: {mend}"));
    machine.sh(&mend).succeeds();
    machine.ssh("alice", "true").succeeds();
}
