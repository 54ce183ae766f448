//! A user does not get the home directory of an earlier user of the name.

use pam_iam_tests::Machine;

#[test]
fn a_user_with_the_name_of_a_deleted_one_does_not_get_that_home() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "echo private >notes; chmod 700 .").succeeds();
    machine.iam().recreate_user("alice");
    // Until this attempt has asked IAM, NSS returns the earlier uid for the name.
    machine.ssh("alice", "true").fails();
    let said = machine.ssh("alice", "cat /home/alice/notes").fails();
    assert!(said.contains("belonged to an earlier user"), "{said}");
    machine.wait_for_log("authpriv", "event=home user=alice path=/home/alice result=fail");
}

#[test]
fn the_home_of_a_deleted_user_is_moved_aside_if_the_configuration_says_so() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[home]\non_mismatch = 'aside'").start();
    let uid = machine.ssh("alice", "echo private >notes; chmod 700 .; id -u").succeeds();
    machine.iam().recreate_user("alice");
    // Until this attempt has asked IAM, NSS returns the earlier uid for the name.
    machine.ssh("alice", "true").fails();
    machine.ssh("alice", "cat notes").fails();
    let aside = format!("/home/alice.{uid}");
    machine.wait_for_log("authpriv", &format!("path=/home/alice result=made moved_to={aside}"));
    assert_eq!(machine.ssh("alice", "stat -c %U .").succeeds(), "alice");
    assert_eq!(machine.file(&aside).stat("%u"), uid);
    assert_eq!(machine.file(&format!("{aside}/notes")).text(), "private\n");
}

#[test]
fn the_home_of_an_existing_account_is_never_moved_aside() {
    let machine = Machine::new().settings("[home]\non_mismatch = 'aside'").start();
    // The importer leaves such an account behind when its IAM user is renamed.
    machine.file("/etc/passwd").append("robert:*:2100000001:2100000001::/home/alice:/bin/bash\n");
    machine.run(&["install", "-d", "-m", "700", "-o", "2100000001", "/home/alice"]).succeeds();
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.file("/home/alice").stat("%u"), "2100000001");
    let mut names = machine.file("/home").names();
    names.retain(|name| name.starts_with("alice"));
    assert_eq!(names, ["alice"]);
}
