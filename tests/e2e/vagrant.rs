//! The Vagrant box: the steps of `vagrant up` make a machine in which IAM users log in.

use std::process::Command;

use pam_iam_tests::{Done, Machine, package, repository};

#[test]
fn the_vagrantfile_is_valid() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("vagrant").exists()) {
        eprintln!("the Vagrantfile was not validated: this distribution has no vagrant");
        return;
    }
    let validate = Command::new("vagrant")
        // The providers are not installed everywhere.
        .args(["validate", "--ignore-provider"])
        .current_dir(repository().join("vagrant"))
        .env("VAGRANT_HOME", repository().join("target/vagrant/home"))
        .env("VAGRANT_DOTFILE_PATH", repository().join("target/vagrant/dotfile"))
        .output()
        .expect("vagrant");
    assert!(validate.status.success(), "{}", String::from_utf8_lossy(&validate.stderr));
}

/// Prepares the files that `vagrant up` uploads, copies them to where it uploads them, and links the Python environment.
const UPLOAD: &str = r#"cd "$1/vagrant" && PAM_IAM_PACKAGE=$2 ./prepare && cp -r files /tmp/pam_iam || exit 1
mkdir /opt/local-iam && ln -s "$1/.venv" /opt/local-iam/venv"#;

/// Boots a machine to be provisioned, with the uploaded files.
fn machine_to_provision() -> Machine {
    let machine = Machine::new().bare().start();
    machine.file("/etc/pam_iam").remove();
    let (repository, package) = (repository(), package());
    let folders = [repository.to_string_lossy(), package.to_string_lossy()];
    machine.run(&["bash", "-c", UPLOAD, "bash", &folders[0], &folders[1]]).succeeds();
    machine
}

fn provision(machine: &Machine, variables: &str) {
    let script = repository().join("vagrant/provision");
    machine
        .sh(&format!("env -i PATH=$PATH HOME=/root {variables} '{}' /tmp/pam_iam", script.display()))
        .succeeds();
}

/// Logs in with the key that `vagrant/prepare` has made for the user.
fn log_in(machine: &Machine, user: &str, command: &str) -> Done {
    let key = repository().join("vagrant/keys").join(user);
    machine.ssh_with(&key.to_string_lossy(), user, command)
}

#[test]
fn users_of_the_local_iam_log_in_also_after_a_reboot() {
    let machine = machine_to_provision();
    // The machine's own IAM needs the addresses of the box's IAM.
    machine
        .iam()
        .python("import subprocess; subprocess.run(['pkill', '-f', 'lib/iam_server.py'], check=True)");
    provision(&machine, "PAM_IAM_ALLOW=ssh-admins");
    log_in(&machine, "alice", "true").fails();
    provision(&machine, "");
    assert_eq!(log_in(&machine, "alice", "id -un").succeeds(), "alice");
    assert_eq!(log_in(&machine, "carol", "sudo -n id -u").succeeds(), "0");
    log_in(&machine, "bob", "true").fails();

    machine.run(&["local-iam", "add_user_to_group", "UserName=bob", "GroupName=ssh-users"]).succeeds();
    machine.iamctl("flush bob").succeeds();
    assert_eq!(log_in(&machine, "bob", "id -un").succeeds(), "bob");
    machine.reboot();
    machine.wait_until("local-iam list_users | grep -q carol");
    assert_eq!(log_in(&machine, "carol", "sudo -n id -u").succeeds(), "0");
}

#[test]
fn with_aws_credentials_the_users_of_their_account_log_in() {
    let machine = machine_to_provision();
    provision(
        &machine,
        "AWS_ACCESS_KEY_ID=AKIAADMINISTRATOR000 AWS_SECRET_ACCESS_KEY=administrator-secret-of-the-box AWS_REGION=us-east-1 \
         AWS_ENDPOINT_URL=http://127.0.0.1:5000 PAM_IAM_ALLOW=ssh-admins PAM_IAM_SUDO=ssh-users",
    );
    assert!(!machine.file("/etc/systemd/system/local-iam.service").exists());
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "true").fails();
    assert_eq!(machine.file("/etc/pam_iam/environment").stat("%a %G"), "640 pam-iam");
}
