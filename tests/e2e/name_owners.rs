//! A name that gets a new owner. The earlier user's processes get no right of the new owner, and the new owner
//! inherits nothing from the earlier user.

use pam_iam_tests::Machine;
use serde_json::json;

/// A change after which the name alice may have another owner.
struct Change {
    what: &'static str,
    apply: fn(&Machine),
    /// Whether the uid of the first alice still has that name afterwards.
    keeps_name: bool,
}

const fn takes_name(what: &'static str, apply: fn(&Machine)) -> Change {
    Change { what, apply, keeps_name: false }
}

const fn keeps_name(what: &'static str, apply: fn(&Machine)) -> Change {
    Change { what, apply, keeps_name: true }
}

const CHANGES: &[Change] = &[
    keeps_name("nothing changes", |_| {}),
    keeps_name("only the cache knows alice", |machine| {
        machine.fault("fail=hang");
        machine.restart_resolver();
    }),
    takes_name("a local account with the name is added", add_local_alice),
    takes_name("a local account with the name is added to the group sudo", |machine| {
        add_local_alice(machine);
        machine.add_to_local_group("alice", "sudo");
    }),
    takes_name("a local group with the name is added", |machine| machine.set_local_group("alice", 5000)),
    takes_name("a privileged group lists the name", |machine| machine.add_to_local_group("alice", "adm")),
    takes_name("a unit of a package claims the name", |machine| {
        machine.file("/usr/lib/systemd/system/claim.service").write("[Service]\nUser=alice\n");
    }),
    takes_name("sysusers.d claims the name", |machine| {
        machine.file("/usr/lib/sysusers.d/claim.conf").write("u alice - x\n");
    }),
    takes_name("a dynamic user has the name", |machine| {
        machine.file("/etc/systemd/system/alice.service").write("[Service]\nDynamicUser=yes\n");
    }),
    takes_name("alice is removed from the group", |machine| {
        machine.iam().remove_from_group("alice", "ssh-users");
    }),
    takes_name("alice is denied", |machine| machine.iam().add_to_group("alice", "denied")),
    // The map outlives the resolver. PAM denies sudo without it.
    keeps_name("alice is removed from the group while the resolver cannot be reached", |machine| {
        machine.iam().remove_from_group("alice", "ssh-users");
        machine.file("/run/pam_iam/resolver.sock").move_to("/run/aside.sock");
    }),
    takes_name("alice is recreated", |machine| machine.iam().recreate_user("alice")),
    takes_name("alice is recreated and the cache is flushed", |machine| {
        machine.iam().recreate_user("alice");
        machine.iamctl("flush").succeeds();
    }),
    takes_name("alice is renamed", |machine| machine.iam().rename_user("alice", "alicia")),
    takes_name("an administrator is renamed to alice", rename_carol_to_alice),
    takes_name("an administrator is renamed to alice during an outage", |machine| {
        rename_carol_to_alice(machine);
        machine.fault("fail=hang");
        machine.passwd("alice");
        machine.fault("fail=");
    }),
    takes_name("alice is deleted", |machine| machine.iam().delete_user("alice")),
    takes_name("two IAM users map to the name", |machine| {
        machine.iam().create_user("alice@example.com", &["ssh-users"]);
        set_account_option(machine, "drop_suffix = ['@example.com']");
    }),
    takes_name("an account with the name is adopted", |machine| {
        add_local_alice(machine);
        set_account_option(machine, "adopt = ['alice']");
    }),
    takes_name("an account with the name is adopted and then no longer", |machine| {
        add_local_alice(machine);
        set_account_option(machine, "adopt = ['alice']");
        machine.run(&["id", "alice"]).succeeds();
        machine.config().remove_lines("adopt");
        machine.restart_resolver();
    }),
    takes_name("the configuration assigns another uid to alice", |machine| {
        let option = format!("uids.{} = 2147287050", machine.iam().user_id("alice"));
        set_account_option(machine, &option);
    }),
];

fn add_local_alice(machine: &Machine) {
    machine.file("/etc/passwd").append("alice:x:5000:5000::/home/alice:/bin/bash\n");
}

fn rename_carol_to_alice(machine: &Machine) {
    machine.iam().rename_user("alice", "alicia");
    machine.iam().rename_user("carol", "alice");
}

/// Adds a line to `[accounts]` of the configuration, and restarts the resolver.
fn set_account_option(machine: &Machine, option: &str) {
    machine.config().replace("shell = ", &format!("{option}\nshell = "));
    machine.restart_resolver();
}

#[test]
fn a_uid_in_use_gets_no_name_and_no_right_of_the_next_owner_of_its_name() {
    // Each change has a box of its own. Two boxes run at a time.
    std::thread::scope(|scope| {
        for changes in CHANGES.chunks(CHANGES.len().div_ceil(2)) {
            scope.spawn(|| changes.iter().for_each(assert_that_uid_gains_nothing_by));
        }
    });
}

fn assert_that_uid_gains_nothing_by(change: &Change) {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "denied"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("deny = ['denied']\n[accounts]\nshell = '/bin/bash'\n[freshness]\nmax_age = 0")
        .booted()
        .start();
    // A rule for a local account called alice.
    machine.file("/etc/sudoers.d/local").write("alice ALL=(ALL:ALL) NOPASSWD: ALL\n");
    machine.ssh("alice", "true").succeeds();
    let gid = machine.uid_of("alice");
    let uid = gid.to_string();
    let what = change.what;
    (change.apply)(&machine);
    // The login lets the resolver find out about the change. Its result does not matter.
    let _ = machine.ssh("alice", "true");
    let name = machine.passwd(&uid).map(|entry| entry.name);
    assert_eq!(name.as_deref(), change.keeps_name.then_some("alice"), "{what}");

    let process = machine.as_user(&uid).with_gid(gid);
    let sudo = process.run(&["timeout", "20", "sudo", "-n", "id", "-u"]);
    assert_ne!(sudo.status, 0, "{what}: {sudo:?}");
    for group in ["sudo", "iam-sudo", "adm"] {
        let done = process.run(&["sg", group, "-c", "id -u"]);
        assert_ne!(done.status, 0, "{what}: {group}");
    }
}

#[test]
fn a_recreated_user_is_refused_while_a_sudo_rule_of_the_earlier_user_is_there() {
    const RULE: &str = "alice ALL=(ALL) NOPASSWD: /usr/bin/true\n";
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let rule = machine.file("/etc/sudoers.d/app");
    rule.write(RULE);
    // A rule that is there before the first owner of the name counts as meant for that user.
    machine
        .doctor_says("alice may log in, has not yet done so, and will get: /etc/sudoers.d/app names alice");
    machine.ssh("alice", "true").succeeds();
    machine.wait_for_log(
        "authpriv",
        "is the first to have this name here, and gets: /etc/sudoers.d/app names alice",
    );
    machine.doctor_does_not_say("/etc/sudoers.d/app");

    machine.iam().recreate_user("alice");
    machine.iamctl("flush").succeeds();
    machine.file("/home/alice").remove();
    machine.wait_until("! box-ssh alice true; grep -q reason=name-inherited $BOX_LOG/authpriv.log");
    let said = machine.iamctl("lint").fails();
    assert!(
        said.contains(
            "alice is refused: another user had the name alice before, and this one would inherit: /etc/sudoers.d/app names alice"
        ),
        "{said}"
    );
    rule.remove();
    machine.ssh("alice", "true").succeeds();
    // A rule that is added after that login counts as meant for the new owner.
    rule.write(RULE);
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_recreated_user_is_refused_until_the_earlier_users_group_and_home_are_cleared() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let first = machine.ssh("alice", "id -u").succeeds();
    machine.file("/etc/group").append("devs:x:900:alice\n");
    machine.ssh("alice", "true").succeeds();
    machine.iam().recreate_user("alice");
    machine.iamctl("flush").succeeds();
    // A home that root owns, as sshd's ChrootDirectory requires it.
    machine.file("/home/alice").remove();
    machine.run(&["install", "-d", "/home/alice"]).succeeds();
    machine.run(&["install", "-d", "-o", &first, "/home/alice/files"]).succeeds();
    // A sweep that finds the new user's process before any login does not make the new user the owner of the name.
    machine.wait_until(&format!("id -u alice && ! id -u alice | grep -qx {first}"));
    machine.start_as("alice", "sleep 4300");
    machine.iamctl("sweep").succeeds();
    machine.run(&["pkill", "-f", "^sleep 4300"]).succeeds();
    machine.ssh("alice", "true").fails();
    machine.wait_for_log("authpriv", "would inherit: /etc/group has alice in devs; take it out");
    let explained = machine.iamctl("explain alice").fails();
    assert!(explained.contains("another user had the name alice before"), "{explained}");

    machine.file("/etc/group").remove_lines("devs:");
    let said = machine.ssh("alice", "true").fails();
    assert!(said.contains("/home/alice belonged to an earlier user of this name"), "{said}");
    let remedy = format!(
        "install -d -m 700 /var/lib/pam_iam/owners && echo {} >/var/lib/pam_iam/owners/alice",
        machine.uid_of("alice")
    );
    machine.wait_for_log("authpriv", &format!("if it holds none: {remedy}"));
    machine.sh(&remedy).succeeds();
    machine.ssh("alice", "true").succeeds();
}
