//! What is shipped is what works.

use std::process::Command;

use pam_iam_tests::{Machine, repository};

#[test]
fn the_shipped_files_are_what_their_readers_want() {
    let machine = Machine::new().start();
    machine.run(&["visudo", "-c", "-f", "/etc/sudoers.d/pam_iam"]).succeeds();
    machine.run(&["/usr/sbin/sshd", "-t"]).succeeds();
    let effective = machine.sh("/usr/sbin/sshd -T -C user=alice,host=h,addr=127.0.0.1").succeeds();
    for line in [
        "authorizedkeyscommand /usr/libexec/pam_iam/iam-authorized-keys --uid %U --home %h --type %t --key %k %u %f",
        "authorizedkeyscommanduser pam-iam",
        "authorizedkeysfile none",
        "usepam yes",
    ] {
        assert!(effective.contains(line), "{line}\n--- is not in\n{effective}");
    }
    let local = machine.sh("/usr/sbin/sshd -T -C user=root,host=h,addr=127.0.0.1").succeeds();
    assert!(local.contains("authorizedkeysfile .ssh/authorized_keys"), "{local}");
}

#[test]
fn the_units_are_what_systemd_wants() {
    let machine = Machine::new().start();
    machine.sh("systemd-analyze verify /usr/lib/systemd/system/iam-resolver.service /usr/lib/systemd/system/iam-resolver.socket 2>&1 | grep -i iam-resolver").fails();
    machine
        .sh("systemd-analyze verify /usr/lib/systemd/system/iam-sweep.service 2>&1 | grep -i iam-sweep")
        .fails();
}

#[test]
fn the_resolvers_unit_exposes_next_to_nothing() {
    // The threshold is in tenths.
    let machine = Machine::new().start();
    machine.sh("systemd-analyze security --offline=yes --no-pager --threshold=15 /usr/lib/systemd/system/iam-resolver.service").succeeds();
}

#[test]
fn the_resolver_runs_as_a_user_without_rights() {
    let machine = Machine::new().start();
    let who = machine.sh("ps -o user:32=,args= -C iam-resolver").succeeds();
    assert!(who.starts_with("iam-resolver "), "{who}");
}

#[test]
fn credentials_come_from_the_instance_by_version_2_of_its_metadata() {
    let machine = Machine::new().start();
    let calls = machine.calls();
    let paths: Vec<&str> = calls
        .iter()
        .filter(|call| call.action == "IMDS")
        .filter_map(|call| call.params["path"].as_str())
        .collect();
    assert_eq!(paths.first(), Some(&"/latest/api/token"), "{paths:?}");
    assert!(paths.iter().any(|path| path.ends_with("/security-credentials/pam_iam")), "{paths:?}");
}

/// A role that anybody may assume and that may ask IAM everything.
fn make_role(machine: &Machine, name: &str) {
    machine.iam().python(&format!("iam.create_role(RoleName='{name}', AssumeRolePolicyDocument=json.dumps({{'Statement': [{{'Effect': 'Allow', 'Action': 'sts:AssumeRole', 'Principal': {{'AWS': '*'}}}}]}}))
iam.put_role_policy(RoleName='{name}', PolicyName='all', PolicyDocument=json.dumps({{'Version': '2012-10-17', 'Statement': [{{'Effect': 'Allow', 'Action': 'iam:*', 'Resource': '*'}}]}}))"));
}

#[test]
fn a_role_is_taken_on_where_one_is_named() {
    let machine = Machine::new().start();
    make_role(&machine, "ssh-directory");
    machine.sh("printf '[aws]\nassume_role = \"arn:aws:iam::123456789012:role/ssh-directory\"\nexternal_id = \"x-1\"\n' >>/etc/pam_iam/config.toml").succeeds();
    machine.end_resolver("TERM");
    machine.ssh("alice", "true").succeeds();
    let calls = machine.calls();
    let assumed = calls.iter().find(|call| call.action == "AssumeRole").expect("AssumeRole");
    assert_eq!(assumed.params["RoleSessionName"], "pam_iam-box");
    assert_eq!(assumed.params["ExternalId"], "x-1");
}

#[test]
fn credentials_come_from_the_environment_a_profile_or_a_web_identity_too() {
    let machine = Machine::new().settings("[resolver]\nmode = 'once'").start();
    make_role(&machine, "host");
    // No instance any more, and so no role of it.
    machine
        .sh("ip address del 169.254.169.254/32 dev lo; pkill -x iam-resolver; id=$(id -u alice) || true")
        .succeeds();
    let uid = machine.iam().python("print(iam.get_user(UserName='alice')['User']['UserId'])");
    let uid = machine.run(&["/usr/libexec/pam_iam/iam-resolver", "uid", &uid]).succeeds();
    let keys = format!("/usr/libexec/pam_iam/iam-authorized-keys --uid {uid} alice");
    machine.sh(&keys).fails();
    machine.sh("cp /etc/pam_iam/environment /root/before
        printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY >>/etc/pam_iam/environment").succeeds();
    assert!(machine.sh(&keys).succeeds().starts_with("ssh-rsa "));
    machine.sh("cp /root/before /etc/pam_iam/environment; printf '\n[aws]\nprofile = \"ops\"\n' >>/etc/pam_iam/config.toml
        echo AWS_SHARED_CREDENTIALS_FILE=/etc/pam_iam/credentials >>/etc/pam_iam/environment
        printf '[ops]\naws_access_key_id=%s\naws_secret_access_key=%s\n' $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY >/etc/pam_iam/credentials").succeeds();
    assert!(machine.sh(&keys).succeeds().starts_with("ssh-rsa "));
    machine.sh("cp /root/before /etc/pam_iam/environment; sed -i '/^profile/d' /etc/pam_iam/config.toml; echo token >/etc/pam_iam/token
        printf 'AWS_WEB_IDENTITY_TOKEN_FILE=/etc/pam_iam/token\nAWS_ROLE_ARN=arn:aws:iam::123456789012:role/host\n' >>/etc/pam_iam/environment").succeeds();
    assert!(machine.sh(&keys).succeeds().starts_with("ssh-rsa "));
}

#[test]
fn arguments_of_the_pam_line_are_read_and_unknown_ones_are_told() {
    let machine = Machine::new().start();
    machine.sh("echo 'account required pam_iam.so nullok debug' >/etc/pam.d/probe").succeeds();
    machine.sh("pamtester probe alice acct_mgmt").succeeds();
    machine.logs("authpriv", "unknown argument nullok");
    machine.sh("echo 'account required pam_iam.so policy=sudo' >/etc/pam.d/probe").succeeds();
    machine.sh("pamtester probe alice acct_mgmt").fails();
    machine.sh("echo 'account required pam_iam.so config=/etc/elsewhere.toml' >/etc/pam.d/probe").succeeds();
    machine.sh("pamtester probe alice acct_mgmt").fails();
    machine.logs("authpriv", "/etc/elsewhere.toml: No such file");
    machine
        .sh("printf '[access]\nallow = [\"ssh-admins\"]\n[resolver]\nmode = \"once\"\n' >/etc/elsewhere.toml")
        .succeeds();
    machine.sh("pamtester probe alice acct_mgmt").fails();
    machine.sh("pamtester probe carol acct_mgmt").succeeds();
}

#[test]
fn the_stand_in_for_the_cloud_is_strict() {
    let machine = Machine::new().start();
    let metadata =
        "curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/latest/meta-data/placement/region";
    assert_eq!(machine.sh(metadata).succeeds(), "401");
    let unsigned = "curl -s -o /dev/null -w '%{http_code}' $AWS_ENDPOINT_URL -d 'Action=GetUser&Version=2010-05-08&UserName=alice'";
    assert_eq!(machine.sh(unsigned).succeeds(), "403");
    let forged = "AWS_SECRET_ACCESS_KEY=wrong $BOX_PYTHON -c \"import boto3; boto3.client('iam').get_user(UserName='alice')\"";
    assert!(machine.sh(forged).fails().contains("SignatureDoesNotMatch"));
}

#[test]
fn a_box_ends_with_its_command_and_leaves_nothing_behind() {
    let run = |arguments: &[&str]| {
        let output = Command::new(repository().join("tests/box")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounts();
    let script = "touch /etc/marker; useradd left-over; sleep 1000 & echo $(hostname) $BOX_KEYS; exit 7";
    assert_eq!(run(&["run", "--", "sh", "-c", script]), (Some(7), "box /run/box/keys\n".to_owned()));
    assert_eq!(run(&["run", "--", "/nonexistent"]).0, Some(127));
    assert_eq!(mounts(), before);
    assert!(!std::path::Path::new("/etc/marker").exists());
    assert!(!std::fs::read_to_string("/etc/passwd").unwrap().contains("left-over"));
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let text = ["docs/threat-model.md", "CONTRIBUTING.md"]
        .map(|name| std::fs::read_to_string(repository().join(name)).expect("a document"))
        .concat();
    let mut sources = String::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && ![".git", ".venv", "target"].iter().any(|skip| name == *skip) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).expect("a source");
            }
        }
    }
    let named: Vec<&str> =
        text.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2).collect();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_stated_version_of_rust_is_what_the_newest_of_the_locked_crates_asks_for() {
    let number =
        |version: &str| -> Vec<u32> { version.split('.').filter_map(|part| part.parse().ok()).collect() };
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(repository())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let version = |package: &serde_json::Value| package["rust_version"].as_str().map(number);
    let (ours, others): (Vec<_>, Vec<_>) = packages.iter().partition(|package| package["source"].is_null());
    let wanted = others.iter().filter_map(|package| version(package)).max().expect("a version");
    for package in ours {
        let mut stated = version(package).expect("rust-version");
        stated.resize(wanted.len().max(stated.len()), 0);
        assert_eq!(stated, wanted, "{}", package["name"]);
    }
}

#[test]
fn the_repository_names_no_mirror_of_packages() {
    let output = Command::new("git")
        .args(["grep", "-nE", "(deb|security|archive|ports)\\.(debian|ubuntu)\\.(org|com)/"])
        .current_dir(repository())
        .output()
        .expect("git grep");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn setup_waits_for_another_apt_and_says_so() {
    let machine = Machine::new().start();
    // An apt that is busy twice, as in the first minutes of a cloud machine; then one that works.
    machine
        .sh("mkdir /opt/apt; cat >/opt/apt/apt-get <<'SCRIPT'
#!/bin/sh
echo x >>/opt/apt/calls
if [ $(wc -l </opt/apt/calls) -lt 3 ]; then echo 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1' >&2; exit 100; fi
SCRIPT
printf '#!/bin/sh\nexit 0\n' >/opt/apt/sleep; chmod 755 /opt/apt/*")
        .succeeds();
    let apt = format!(
        "PATH=/opt/apt:$PATH; eval \"$(sed -n '/^APT_WAIT_SECONDS=/,/^}}/p' {}/tests/setup)\"; apt update",
        repository().display()
    );
    let done = machine.run(&["sh", "-c", &apt]);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stderr.contains("another apt is at work; waiting for it, at most 600 s"), "{}", done.stderr);
    assert_eq!(machine.sh("wc -l </opt/apt/calls").succeeds(), "3");
    machine.sh("printf '#!/bin/sh\necho E: something else >&2; exit 100\n' >/opt/apt/apt-get").succeeds();
    let other = machine.run(&["sh", "-c", &apt]);
    assert!(other.status == 1 && other.stderr.contains("something else"), "{other:?}");
    machine.sh("printf '#!/bin/sh\necho E: Could not get lock >&2; exit 100\n' >/opt/apt/apt-get").succeeds();
    let never = machine.run(&["sh", "-c", &apt]);
    assert!(never.status == 1 && never.stderr.contains("still holds its lock after 600 s"), "{never:?}");
}

#[test]
fn the_published_numbers_of_users_are_those_of_the_published_command() {
    let text = std::fs::read_to_string(repository().join("docs/uids.md")).expect("docs/uids.md");
    let command = text.lines().find(|line| line.starts_with("    python3 -c ")).expect("a command").trim();
    let command = command.rsplit_once(' ').expect("an id at its end").0;
    let mut count = 0;
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (id, number) = row.split_once("` | ").expect("two columns");
        let said = Command::new("sh").args(["-c", &format!("{command} {id}")]).output().expect("python3");
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), number.trim_end_matches(" |"), "{id}");
        count += 1;
    }
    assert!(count >= 20, "{count}");
}
