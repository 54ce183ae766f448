//! The commands in the README's installation chapter and on the migration page, run as they stand.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use pam_iam_tests::{Machine, repository};

use super::{CONFIGURATION, alice_and_carol, bare_machine, etc_changes, install, start_bare};

/// Reads a document of the repository.
fn document(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).expect("a document")
}

/// Returns the shell blocks of a text, without the indentation of a list.
fn shell_blocks(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.map(|block| block.replace("\n   ", "\n").trim().to_owned()).collect()
}

/// Runs a shell block of a document in the repository. Fails the test if one of its commands fails.
fn follow(machine: &Machine, block: &str) -> String {
    // With another folder for crates, cargo would build everything once more.
    let crates = std::env::var("CARGO_HOME").unwrap_or_default();
    let environment =
        format!("export HOME=/root; if [ -d '{crates}/registry' ]; then export CARGO_HOME='{crates}'; fi");
    machine.sh(&format!("set -e; {environment}; cd '{}'\n{block}", repository().display())).succeeds()
}

/// Copies the file that says where the box's IAM is, which an administrator outside EC2 would write.
fn configure_endpoint(machine: &Machine) {
    machine.file(&format!("{CONFIGURATION}/environment")).copy_to("/etc/pam_iam/environment");
}

#[test]
fn the_installation_chapter_of_the_readme_works() {
    let machine = bare_machine();
    machine.run(&["mkdir", "/etc/pam_iam"]).succeeds();
    configure_endpoint(&machine);
    let readme = document("README.md");
    let chapter = readme.split("\n## ").find(|chapter| chapter.starts_with("Installation\n"));
    let blocks = shell_blocks(chapter.expect("a chapter on installation"));
    let [build, configure, enable, remove] = blocks.as_slice() else { panic!("{blocks:?}") };

    // The file system of another distribution has no compiler to build the package with.
    let skipped = if std::env::var_os("PAM_IAM_ROOT").is_some() { "packaging/build deb\n" } else { "" };
    follow(&machine, build.strip_prefix(skipped).unwrap_or(build));
    follow(&machine, configure);
    follow(&machine, enable);
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("bob", "true").fails();

    follow(&machine, remove);
    machine.ssh("alice", "true").fails();
    for user in ["alice", "carol"] {
        machine.run(&["rm", "-rf", &format!("/home/{user}")]).succeeds();
    }
    assert_eq!(etc_changes(&machine), "");
}

#[test]
fn the_migration_page_brings_over_a_host_whose_accounts_a_script_made() {
    let machine = start_bare(Machine::new().fixtures(alice_and_carol()));
    make_accounts_as_a_script_does(&machine);
    let uid_and_work = machine.ssh("alice", "id -u; cat notes").succeeds();
    machine.ssh("carol", "sudo -n true").succeeds();
    machine.ssh_with("/root/planted", "alice", "true").succeeds();

    let blocks = shell_blocks(&document("docs/migration.md"));
    let [stop, configure, dry_run, switch, clean] = blocks.as_slice() else { panic!("{blocks:?}") };
    follow(&machine, stop);
    install(&machine);
    configure_endpoint(&machine);
    follow(&machine, configure);
    assert_plan_adopts_the_accounts(&follow(&machine, dry_run));
    assert_eq!(machine.ssh("alice", "id -u; cat notes").succeeds(), uid_and_work, "by the script's keys");

    follow(&machine, switch);
    assert_eq!(machine.ssh("alice", "id -u; cat notes").succeeds(), uid_and_work);
    machine.ssh("carol", "sudo -n true").succeeds();
    machine.ssh_with("/root/planted", "alice", "true").fails();

    follow(&machine, clean);
    assert!(!machine.file("/etc/sudoers.d/carol").exists());
    let key_command = ["grep", "^AuthorizedKeysCommand", "/etc/ssh/sshd_config"];
    assert_eq!(machine.run(&key_command).stdout, "");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0", "by iam-sudo");
    assert_former_user_is_locked_and_keeps_files(&machine);
    assert_iam_decides(&machine);
}

/// Makes accounts as a script does: uids in the order of creation, a group of the script's own, a sudoers file for each
/// administrator, homes with files in them. alice has another key in her home, and dave is not in IAM.
fn make_accounts_as_a_script_does(machine: &Machine) {
    machine.run(&["groupadd", "iam-synced-users"]).succeeds();
    for user in ["alice", "carol", "dave"] {
        machine.run(&["useradd", "-m", "-s", "/bin/bash", "-G", "iam-synced-users", user]).succeeds();
        machine.file(&format!("/home/{user}/notes")).write("work\n");
    }
    machine.make_key("/root/planted");
    machine.authorize_key("alice", "/root/planted");
    machine.file("/etc/sudoers.d/carol").write("carol ALL=(ALL) NOPASSWD: ALL\n");

    machine.run(&["mkdir", "-p", "/etc/cron.d", "/opt/keys"]).succeeds();
    machine.file("/etc/cron.d/import_users").write("*/10 * * * * root /opt/import_users.sh\n");
    machine.file("/opt/import_users.sh").write("");
    for user in ["alice", "carol"] {
        machine.file(&format!("/opt/keys/{user}")).write(&machine.public_key(user));
    }
    let key_command = machine.file("/opt/authorized_keys_command.sh");
    key_command.write("#!/bin/sh\ncat \"/opt/keys/$1\"\n");
    key_command.chmod("755");
    machine
        .file("/etc/ssh/sshd_config")
        .append("AuthorizedKeysCommand /opt/authorized_keys_command.sh\nAuthorizedKeysCommandUser nobody\n");
    machine.run(&["systemctl", "reload", "ssh"]).succeeds();
}

fn assert_plan_adopts_the_accounts(plan: &str) {
    for change in [
        "would add alice to iam-users",
        "would add carol to iam-sudo",
        "dave is missing for the 1. of 2 times",
    ] {
        assert!(plan.contains(change), "{plan}");
    }
    for change in ["would create alice", "would change /etc/nsswitch.conf"] {
        assert!(!plan.contains(change), "{plan}");
    }
}

fn assert_former_user_is_locked_and_keeps_files(machine: &Machine) {
    machine.run(&["iam-importer"]).succeeds();
    let entry = machine.run(&["getent", "shadow", "dave"]).succeeds();
    assert_eq!(entry.split(':').nth(7), Some("1"), "the day on which the account expired");
    assert_eq!(machine.file("/home/dave/notes").text(), "work\n");
}

fn assert_iam_decides(machine: &Machine) {
    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.iamctl("flush").succeeds();
    machine.ssh("carol", "sudo -n true").fails();
    assert!(machine.ssh("alice", "true").fails().contains("Permission denied (publickey"));
}
