//! The Vagrant box: what `vagrant up` runs in it makes a machine in which IAM users log in.

use std::process::Command;

use pam_iam_tests::{Machine, package, repository};

#[test]
fn the_vagrantfile_is_valid() {
    if std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .all(|folder| !folder.join("vagrant").exists())
    {
        eprintln!("the Vagrantfile was not validated: this distribution has no vagrant");
        return;
    }
    // Its providers may be missing here.
    let validate = Command::new("vagrant")
        .args(["validate", "--ignore-provider"])
        .current_dir(repository().join("vagrant"))
        .env("VAGRANT_HOME", repository().join("target/vagrant/home"))
        .env("VAGRANT_DOTFILE_PATH", repository().join("target/vagrant/dotfile"))
        .output()
        .expect("vagrant");
    assert!(validate.status.success(), "{}", String::from_utf8_lossy(&validate.stderr));
}

/// A machine to be provisioned, with what `vagrant up` uploads at hand.
fn machine() -> Machine {
    let machine = Machine::new().bare().start();
    let repository = repository();
    let repository = repository.display();
    machine
        .sh(&format!(
            "rm -r /etc/pam_iam; cd '{repository}/vagrant' && PAM_IAM_PACKAGE={} ./prepare && cp -r files /tmp/pam_iam
             mkdir /opt/local-iam && ln -s '{repository}/.venv' /opt/local-iam/venv",
            package().display()
        ))
        .succeeds();
    machine
}

fn log_in(machine: &Machine, user: &str, command: &str) -> pam_iam_tests::Done {
    let keys = repository().join("vagrant/keys");
    machine.sh(&format!("box-ssh -i '{}/{user}' {user} {command}", keys.display()))
}

fn provision(machine: &Machine, variables: &str) -> String {
    let script = repository().join("vagrant/provision");
    machine
        .sh(&format!("env -i PATH=$PATH HOME=/root {variables} '{}' /tmp/pam_iam", script.display()))
        .succeeds()
}

#[test]
fn the_box_has_an_iam_of_its_own_with_users_who_log_in_also_after_a_reboot() {
    let machine = machine();
    // The one beside it has its addresses.
    machine
        .iam()
        .python("import subprocess; subprocess.run(['pkill', '-f', 'lib/iam_server.py'], check=True)");
    provision(&machine, "PAM_IAM_ALLOW=ssh-admins");
    log_in(&machine, "alice", "true").fails();
    provision(&machine, "");
    assert_eq!(log_in(&machine, "alice", "id -un").succeeds(), "alice");
    assert_eq!(log_in(&machine, "carol", "sudo -n id -u").succeeds(), "0");
    log_in(&machine, "bob", "true").fails();
    machine.sh("local-iam add_user_to_group UserName=bob GroupName=ssh-users && iamctl flush bob").succeeds();
    assert_eq!(log_in(&machine, "bob", "id -un").succeeds(), "bob");
    machine.reboot();
    machine.wait_until("local-iam list_users | grep -q carol");
    assert_eq!(log_in(&machine, "carol", "sudo -n id -u").succeeds(), "0");
}

#[test]
fn with_aws_credentials_the_users_are_those_of_their_account() {
    let machine = machine();
    provision(
        &machine,
        "AWS_ACCESS_KEY_ID=AKIAADMINISTRATOR000 AWS_SECRET_ACCESS_KEY=administrator-secret-of-the-box AWS_REGION=us-east-1 \
         AWS_ENDPOINT_URL=http://127.0.0.1:5000 PAM_IAM_ALLOW=ssh-admins PAM_IAM_SUDO=ssh-users",
    );
    machine.sh("test ! -e /etc/systemd/system/local-iam.service").succeeds();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.sh("stat -c '%a %G' /etc/pam_iam/environment").succeeds(), "640 pam-iam");
}
