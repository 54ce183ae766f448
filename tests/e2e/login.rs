//! A login from end to end.

use pam_iam_tests::Machine;
use serde_json::json;

/// Puts the accounts of the default fixtures into /etc/passwd, as an operator does on a host without NSS module and
/// importer. The uids are those of the ids.
const ACCOUNTS_BY_HAND: &str = r#"
    sed -i 's/ iam$//' /etc/nsswitch.conf
    for group in iam-users iam-sudo; do
        groupadd -g $(/usr/libexec/pam_iam/iam-resolver uid $group) $group
    done
    for user in alice bob carol; do
        id=$($BOX_PYTHON -c "import boto3; print(boto3.client('iam').get_user(UserName='$user')['User']['UserId'])")
        useradd -M -u $(/usr/libexec/pam_iam/iam-resolver uid $id) -s /bin/bash -G iam-users $user
    done
    usermod -a -G iam-sudo carol
"#;

/// A box for either way that accounts come about.
fn either() -> [Machine; 2] {
    [Machine::new().start(), Machine::new().importer().start()]
}

/// What has to hold however accounts come about and whoever answers.
fn logins_are_right(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    machine.ssh("bob", "true").fails();
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "sudo -n true").fails();
    machine.ssh("root", "true").fails();
    machine.ssh("daemon", "true").fails();
}

#[test]
fn iam_users_log_in_with_nothing_but_iam() {
    let machine = Machine::new().start();
    logins_are_right(&machine);
    assert!(machine.ssh("bob", "true").fails().contains("Permission denied (publickey"));
}

#[test]
fn iam_users_log_in_to_imported_accounts() {
    logins_are_right(&Machine::new().importer().start());
    logins_are_right(&Machine::new().importer().without_daemon().start());
}

#[test]
fn iam_users_log_in_without_a_daemon_to_accounts_made_by_hand() {
    let machine = Machine::new().without_daemon().start();
    machine.sh(ACCOUNTS_BY_HAND).succeeds();
    logins_are_right(&machine);
    assert!(machine.ssh("carol", "id -nG").succeeds().contains("iam-sudo"));
    machine.sh("! pgrep -x iam-resolver").succeeds();
}

#[test]
fn a_uid_is_in_our_range_and_the_same_on_every_host() {
    let uid = |machine: Machine| machine.ssh("alice", "id -u").succeeds();
    let here: u32 = uid(Machine::new().start()).parse().unwrap();
    assert!((2_013_265_920..=2_147_287_039).contains(&here));
    assert_eq!(uid(Machine::new().start()), here.to_string());
}

#[test]
fn the_home_directory_is_made_on_the_first_login() {
    for machine in either() {
        machine.sh("echo welcome >/etc/skel/hello; ! test -e /home/alice").succeeds();
        assert_eq!(
            machine.ssh("alice", "pwd; cat hello; touch mine; stat -c '%U %G %a' .").succeeds(),
            "/home/alice\nwelcome\nalice alice 755"
        );
        assert_eq!(machine.ssh("alice", "ls mine").succeeds(), "mine");
        assert_eq!(machine.sh("ls -A /home | grep -e alice -e pam_iam").succeeds(), "alice");
    }
}

#[test]
fn the_log_tells_who_came_by_which_key_and_why() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
    let fingerprint = machine.sh("ssh-keygen -lf $BOX_KEYS/alice | cut -d' ' -f2").succeeds();
    let id = machine.iam().python("print(iam.get_user(UserName='alice')['User']['UserId'])");
    for line in [
        format!(
            "event=login user=alice iam_name=alice iam_id={id} key= group=ssh-users service=sshd rhost=127.0.0.1 result=allow reason=in-group"
        ),
        format!("event=session user=alice iam_name=alice key={fingerprint} origin=iam"),
        "event=home user=alice path=/home/alice result=made".to_owned(),
    ] {
        machine.logs("authpriv", &line);
    }
    machine.logs("resolver", "IAM user bob has no account here (not-in-group); iamctl explain bob says more");
}

#[test]
fn a_host_with_another_fingerprint_hash_lets_its_users_in() {
    let machine = Machine::new().start();
    machine.sh("sed -i '1i FingerprintHash md5' /etc/ssh/sshd_config && pkill -HUP -o -x sshd").succeeds();
    machine.logs("sshd", "Received SIGHUP; restarting.");
    machine.wait_until("box-ssh alice true");
    machine.ssh("bob", "true").fails();
}

#[test]
fn a_user_made_a_second_ago_logs_in_at_the_first_attempt() {
    let machine = Machine::new().start();
    machine.iam().python(
        "import os, subprocess
subprocess.run(['ssh-keygen', '-q', '-t', 'rsa', '-b', '2048', '-N', '', '-f', '/root/dave'], check=True)
iam.create_user(UserName='dave')
iam.upload_ssh_public_key(UserName='dave', SSHPublicKeyBody=open('/root/dave.pub').read())
iam.add_user_to_group(UserName='dave', GroupName='ssh-users')",
    );
    assert_eq!(machine.sh("box-ssh -i /root/dave dave 'id -un; pwd'").succeeds(), "dave\n/home/dave");
}

#[test]
fn every_active_key_opens_the_door_in_either_encoding_and_an_inactive_one_does_not() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [
            {"encoding": "SSH"}, {"encoding": "PEM", "bits": 3072}, {"status": "Inactive"}]}]}))
        .start();
    machine.ssh_with("alice", "alice", "true").succeeds();
    machine.ssh_with("alice.2", "alice", "true").succeeds();
    machine.ssh_with("alice.3", "alice", "true").fails();
    let keys = machine.sh("/usr/libexec/pam_iam/iam-authorized-keys alice").succeeds();
    assert_eq!(keys.lines().count(), 2);
    assert!(keys.lines().all(|line| line.starts_with("ssh-rsa AAAA") && line.ends_with(" alice")), "{keys}");
    let one = machine.sh(
        "/usr/libexec/pam_iam/iam-authorized-keys alice $(ssh-keygen -lf $BOX_KEYS/alice.2 | cut -d' ' -f2)",
    );
    assert_eq!(one.succeeds(), keys.lines().last().unwrap());
}

#[test]
fn a_key_that_lies_in_the_home_directory_opens_no_door() {
    for machine in either() {
        machine.ssh("alice", "mkdir -m 700 .ssh").succeeds();
        machine.sh("ssh-keygen -q -t ed25519 -N '' -f /root/planted").succeeds();
        machine
            .sh("cp /root/planted.pub /home/alice/.ssh/authorized_keys; chown -R alice: /home/alice/.ssh")
            .succeeds();
        machine.sh("box-ssh -i /root/planted alice true").fails();
        machine.ssh("alice", "true").succeeds();
    }
}

#[test]
fn a_planted_key_opens_no_session_where_sshds_rule_does_not_hold_either() {
    let machine = Machine::new().start();
    machine.ssh("alice", "mkdir -m 700 .ssh").succeeds();
    machine.sh("ssh-keygen -q -t ed25519 -N '' -f /root/planted; cp /root/planted.pub /home/alice/.ssh/authorized_keys
        chown -R alice: /home/alice/.ssh; sed -i '/^group:/s/ iam$//' /etc/nsswitch.conf").succeeds();
    assert!(
        machine
            .sh("box-ssh -i /root/planted alice echo in")
            .fails()
            .contains("not one of your active keys in IAM")
    );
    machine.logs("authpriv", "origin=foreign");
    assert_eq!(machine.ssh("alice", "echo in").succeeds(), "in");
}

#[test]
fn sudo_says_why_not_and_agrees_with_its_listing() {
    for machine in either() {
        assert!(machine.ssh("carol", "sudo -n -l").succeeds().contains("(ALL : ALL) NOPASSWD: ALL"));
        machine.ssh("alice", "sudo -n -l").fails();
        // Somebody wrote a rule for alice by hand: the account phase still asks IAM.
        machine.sh("echo 'alice ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/by-hand").succeeds();
        assert!(
            machine.ssh("alice", "sudo -n true").fails().contains("none of the IAM groups that may use sudo")
        );
        machine.logs("authpriv", "event=sudo user=alice iam_name=alice");
    }
}

#[test]
fn local_accounts_are_none_of_our_business() {
    for machine in either() {
        machine.sh("useradd -m ec2-user; ssh-keygen -q -t ed25519 -N '' -f /root/local").succeeds();
        machine.sh("for home in /root /home/ec2-user; do install -D -m 600 /root/local.pub $home/.ssh/authorized_keys; done
            chown -R ec2-user: /home/ec2-user/.ssh; chmod 700 /root/.ssh; echo 'ec2-user ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ec2").succeeds();
        machine.iam().python("iam.create_user(UserName='ec2-user')\niam.add_user_to_group(UserName='ec2-user', GroupName='ssh-admins')");
        machine.clear_calls();
        assert_eq!(machine.sh("box-ssh -i /root/local root id -u").succeeds(), "0");
        assert_eq!(machine.sh("box-ssh -i /root/local ec2-user 'sudo -n id -u'").succeeds(), "0");
        assert_eq!(machine.sh("/usr/libexec/pam_iam/iam-authorized-keys ec2-user").succeeds(), "");
        assert_eq!(machine.actions(), [""; 0], "a local login costs no call");
    }
}

#[test]
fn an_adopted_account_is_opened_by_its_iam_user() {
    let machine = Machine::new().settings("[accounts]\nadopt = ['bob']\nadopt_group = 'synced'").start();
    // They were there before pam_iam.
    machine
        .sh("echo 'bob:*:1500:1500::/home/bob:/bin/bash' >>/etc/passwd; echo 'bob:x:1500:' >>/etc/group
            echo 'alice:*:1501:1501::/home/alice:/bin/bash' >>/etc/passwd; echo 'alice:x:1501:' >>/etc/group
            echo 'synced:x:1502:alice' >>/etc/group
            install -d -o 1500 -g 1500 /home/bob; install -d -o 1501 -g 1501 /home/alice")
        .succeeds();
    assert!(machine.ssh("bob", "true").fails().contains("Permission denied (publickey"));
    machine.iam().add_to_group("bob", "ssh-users");
    machine.wait_until("box-ssh bob true 2>/dev/null");
    assert_eq!(machine.ssh("bob", "id -u; pwd").succeeds(), "1500\n/home/bob");
    assert_eq!(machine.ssh("alice", "id -u").succeeds(), "1501");
}
