//! Linux groups that IAM groups map to, and the groups that an instance tag lets in.

use pam_iam_tests::{Builder, Machine};
use serde_json::{Value, json};

#[test]
fn two_iam_groups_that_map_to_one_linux_group_both_give_it() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-dev", "ssh-web"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-dev"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users", "ssh-web"], "keys": [{}]}]}))
        .settings("[groups]\n'ssh-dev' = 'dev'\n'ssh-web' = 'dev'")
        .start();
    machine.run(&["install", "-d", "-m", "2770", "-g", "dev", "/srv/dev"]).succeeds();
    assert!(machine.group("dev").unwrap().members.is_empty(), "NSS lists no members");
    for user in ["alice", "bob"] {
        assert!(machine.login_groups(user).contains(&"dev".to_owned()), "{user}");
        machine.ssh(user, &format!("touch /srv/dev/{user} && sg dev -c true")).succeeds();
    }
}

/// Starts a box in which ssh-dev maps to a group that no file has, and ssh-web to the local group webteam. alice is in both
/// IAM groups, bob in neither.
fn machine_with_mapped_groups(builder: Builder) -> Machine {
    let machine = builder
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-dev", "ssh-web"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-dev", "ssh-web"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0\n[groups]\n'ssh-dev' = 'dev'\n'ssh-web' = 'webteam'")
        .start();
    machine.set_local_group("webteam", 2000);
    machine.iamctl("write-mapped-gids").succeeds();
    machine
}

#[test]
fn login_nss_sg_newgrp_and_files_agree_about_mapped_groups() {
    let machine = machine_with_mapped_groups(Machine::new());
    assert_that_all_agree_about_groups(&machine);
    for group in ["dev", "iam-users"] {
        assert!(machine.group(group).unwrap().members.is_empty(), "NSS lists no members of {group}");
    }
    machine.iam().remove_from_group("alice", "ssh-dev");
    machine.ssh("alice", "touch /srv/dev/b").fails();
}

#[test]
fn login_nss_sg_newgrp_and_files_agree_about_imported_groups() {
    let machine = machine_with_mapped_groups(Machine::new().importer());
    machine.run(&["iam-importer", "-q"]).succeeds();
    assert_that_all_agree_about_groups(&machine);
    assert_eq!(machine.group("dev").unwrap().members, ["alice"]);
    assert_eq!(machine.group("iam-users").unwrap().members, ["alice", "bob"]);
    machine.iam().remove_from_group("alice", "ssh-dev");
    machine.run(&["iam-importer", "-q"]).succeeds();
    machine.ssh("alice", "touch /srv/dev/b").fails();
}

/// Asserts that every program finds alice in the groups dev and webteam, and bob in neither.
fn assert_that_all_agree_about_groups(machine: &Machine) {
    machine.run(&["install", "-d", "-m", "2770", "-g", "dev", "/srv/dev"]).succeeds();
    machine.run(&["install", "-d", "-m", "2770", "-g", "webteam", "/srv/web"]).succeeds();
    let expected = ["alice", "dev", "iam-users", "webteam"];
    assert_eq!(machine.login_groups("alice"), expected);
    let mut found = machine.groups_of("alice");
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(machine.gid_of("webteam"), 2000);
    assert_eq!(machine.group(&machine.gid_of("dev").to_string()), machine.group("dev"));

    machine.ssh("alice", "touch /srv/dev/a /srv/web/a").succeeds();
    assert_eq!(machine.file("/srv/dev/a").stat("%G"), "dev");
    assert_eq!(machine.file("/srv/web/a").stat("%G"), "webteam");
    for group in ["dev", "webteam"] {
        assert_eq!(machine.ssh("alice", &format!("sg {group} -c 'id -gn'")).succeeds(), group);
        assert_eq!(machine.ssh("alice", &format!("echo id -gn | newgrp {group}")).succeeds(), group);
        machine.ssh("bob", &format!("sg {group} -c true </dev/null")).fails();
    }
    machine.ssh("bob", "touch /srv/dev/b").fails();
}

#[test]
fn a_privileged_group_needs_the_operators_consent_and_the_group_root_is_never_given() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-disk"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-disk"], "keys": [{}]}]}))
        .settings("[groups]\n'ssh-disk' = { group = 'disk', allow_privileged = true }")
        .start();
    assert!(machine.login_groups("alice").contains(&"disk".to_owned()));
    for (target, why) in [
        ("'disk'", "as good as root"),
        ("'root'", "no IAM group maps to the group root"),
        ("{ group = 'root', allow_privileged = true }", "no IAM group maps"),
    ] {
        machine.file("/tmp/c.toml").write(&format!("[access]\nallow = ['a']\n[groups]\n'x' = {target}\n"));
        let message = machine.run(&["iam-resolver", "check-config", "/tmp/c.toml"]).fails();
        assert!(message.contains(why), "{target}: {message}");
    }
    // Gives the gid 0 to a group that is not called root.
    machine.file("/etc/group").replace("disk:x:6:", "disk:x:0:");
    let gids = machine.ssh("alice", "id -G").succeeds();
    assert!(!gids.split(' ').any(|gid| gid == "0"), "{gids}");
}

const ACCESS_BY_TAGS: &str = "[access]
allow = { tag = 'ssh-groups', within = ['prod-*'] }
sudo = { tag = 'ssh-sudo', within = ['prod-admins'] }
[resolver]
mode = 'once'
";

fn machine_with_instance_tags(tags: Value) -> Machine {
    let fixtures = json!({"instance": {"tags": tags}, "groups": ["prod-users", "prod-admins", "others"], "users": [
        {"name": "alice", "groups": ["prod-users"], "keys": [{}]},
        {"name": "bob", "groups": ["others"], "keys": [{}]},
        {"name": "carol", "groups": ["prod-users", "prod-admins"], "keys": [{}]}]});
    Machine::new().fixtures(fixtures).config(ACCESS_BY_TAGS).without_daemon().importer().start()
}

#[test]
fn an_instance_tag_lets_in_only_groups_that_the_configuration_allows() {
    let machine =
        machine_with_instance_tags(json!({"ssh-groups": "prod-users, others", "ssh-sudo": "prod-admins"}));
    machine.ssh("alice", "true").succeeds();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    assert_eq!(machine.passwd("bob"), None);
    machine.wait_for_log(
        "authpriv",
        "the instance tag ssh-groups names others, which access.allow does not let it name",
    );
    // Somebody who can write tags tries to become root.
    machine.fault("tag=ssh-sudo&value=prod-users,all,root");
    for user in ["alice", "carol"] {
        machine.ssh(user, "sudo -n true").fails();
    }
    // Without the tag nobody logs in, but no account is removed.
    machine.fault("tag=ssh-groups");
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
    machine.wait_for_log("authpriv", "which this instance does not have, or does not show in its metadata");
    let done = machine.run(&["iam-importer"]);
    assert!(done.status == 2 && done.stderr.contains("instance tag ssh-groups"), "{done:?}");
}
