//! Upgrades with a session open. `PAM_IAM_FORMER_PACKAGE` is the path of the package to upgrade from. By default it is the
//! present package.

use std::path::PathBuf;

use pam_iam_tests::package;

use super::{bare_machine, configure, etc_changes, install};

/// Returns the package to upgrade from.
fn former_package() -> PathBuf {
    std::env::var_os("PAM_IAM_FORMER_PACKAGE").map_or_else(package, PathBuf::from)
}

#[test]
fn a_session_stays_open_over_an_upgrade_and_ends_when_it_is_withdrawn() {
    let machine = bare_machine();
    machine.run(&["dpkg", "--install", &former_package().to_string_lossy()]).succeeds();
    configure(&machine);
    machine.iamctl("enable").succeeds();
    let alice = machine.open_session("alice");

    install(&machine);
    assert_eq!(alice.run("id -un").succeeds(), "alice");
    assert_eq!(machine.users_with_sessions(), ["alice"]);
    machine.iamctl("sweep").succeeds();
    assert!(alice.is_open());
    machine.ssh("bob", "true").fails();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");

    machine.iam().remove_from_group("alice", "ssh-users");
    machine.iamctl("sweep").succeeds();
    alice.wait_until_ended();
    machine.ssh("alice", "true").fails();

    machine.iamctl("disable").succeeds();
    let changes = etc_changes(&machine);
    for file in ["nsswitch.conf", "pam.d", "sshd_config.d", "sudoers.d"] {
        assert!(!changes.contains(file), "{file} is as before: {changes}");
    }
}
