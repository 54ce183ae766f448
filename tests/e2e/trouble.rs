//! When parts are missing, broken or silent: local accounts are free, and nobody gets in who should not.

use pam_iam_tests::Machine;
use serde_json::json;

fn root_logs_in(machine: &Machine) {
    assert_eq!(machine.sh("box-ssh -i /root/local root id -u").succeeds(), "0");
}

/// While IAM is out of order in one way or another, known users and local accounts log in, and nobody else.
fn known_users_and_local_accounts_log_in_while_iam(fault: &str) {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[aws]\ntotal_timeout = '2s'").start();
    machine.let_root_in();
    machine.ssh("alice", "true").succeeds();
    machine.fault(&format!("fail={fault}"));
    machine.ssh("alice", "true").succeeds();
    // Who is on the list has a name; who is not is not there.
    machine.run(&["getent", "passwd", "carol"]).succeeds();
    machine.run(&["getent", "passwd", "bob"]).fails();
    machine.ssh("carol", "true").fails();
    root_logs_in(&machine);
    machine.logs("authpriv", "source=offline");
    machine.fault("fail=");
    machine.wait_until("box-ssh carol true 2>/dev/null");
}

#[test]
fn while_iam_hangs_who_is_known_logs_in() {
    known_users_and_local_accounts_log_in_while_iam("hang");
}

#[test]
fn while_iam_cuts_connections_who_is_known_logs_in() {
    known_users_and_local_accounts_log_in_while_iam("reset");
}

#[test]
fn while_iam_is_out_of_service_who_is_known_logs_in() {
    known_users_and_local_accounts_log_in_while_iam("503");
}

#[test]
fn while_iam_throttles_who_is_known_logs_in() {
    known_users_and_local_accounts_log_in_while_iam("throttle");
}

#[test]
fn while_iam_answers_by_halves_who_is_known_logs_in() {
    known_users_and_local_accounts_log_in_while_iam("truncated");
}

#[test]
fn denied_is_an_answer_and_the_answer_is_no() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    machine.fault("fail=denied&only=ListGroupsForUser");
    machine.ssh("alice", "true").fails();
    machine.logs("resolver", "user alice: IAM denies this host to look");
}

#[test]
fn a_killed_resolver_is_started_again_and_logins_wait_for_it() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    machine.sh("pkill -9 -f 'iam-resolver serve'").succeeds();
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_resolver_that_hangs_keeps_no_local_account_out() {
    let machine = Machine::new().start();
    machine.let_root_in();
    machine.sh("pkill -STOP -f 'iam-resolver serve'").succeeds();
    root_logs_in(&machine);
    machine.run(&["sudo", "-n", "true"]).succeeds();
}

#[test]
fn a_broken_configuration_keeps_iam_users_out_and_local_accounts_in() {
    let machine = Machine::new().start();
    machine.let_root_in();
    machine.ssh("alice", "true").succeeds();
    machine.sh("sed -i s/allow/alow/ /etc/pam_iam/config.toml").succeeds();
    machine.ssh("alice", "true").fails();
    root_logs_in(&machine);
    machine.logs("authpriv", "/etc/pam_iam/config.toml:2: unknown field `alow`");
    let message =
        machine.sh("/usr/libexec/pam_iam/iam-resolver check-config /etc/pam_iam/config.toml").fails();
    assert!(
        message.contains("config.toml:2: unknown field `alow`, expected one of `allow`, `sudo`, `deny`"),
        "{message}"
    );
    machine
        .sh("sed -i s/alow/allow/ /etc/pam_iam/config.toml; chmod o+w /etc/pam_iam/config.toml")
        .succeeds();
    machine.ssh("alice", "true").fails();
    root_logs_in(&machine);
}

#[test]
fn a_broken_configuration_frees_no_adopted_account() {
    let machine = Machine::new().settings("[accounts]\nadopt = ['erin']").start();
    machine.sh("useradd -m -u 1600 erin; install -d -m 700 -o erin /home/erin/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/erin
        install -m 600 -o erin /root/erin.pub /home/erin/.ssh/authorized_keys; useradd -m -u 1601 ec2-user
        install -d -m 700 -o ec2-user /home/ec2-user/.ssh; install -m 600 -o ec2-user /root/erin.pub /home/ec2-user/.ssh/authorized_keys").succeeds();
    machine.sh("box-ssh -i /root/erin erin true").fails();
    machine.sh("printf '# caf\\xe9\n' >>/etc/pam_iam/config.toml").succeeds();
    machine.sh("box-ssh -i /root/erin erin true").fails();
    machine.sh("box-ssh -i /root/erin ec2-user true").succeeds();
}

#[test]
fn a_group_file_that_is_gone_gives_no_local_account_away() {
    let machine = Machine::new().settings("[accounts]\nadopt_group = 'synced'").start();
    machine
        .sh("echo 'alice:*:1777:1777::/home/alice:/bin/bash' >>/etc/passwd; install -d -o 1777 /home/alice
            echo 'synced:x:1778:' >>/etc/group")
        .succeeds();
    machine.ssh("alice", "true").fails();
    machine.sh("mv /etc/group /etc/group.gone").succeeds();
    machine.ssh("alice", "true").fails();
    machine.sh("/usr/libexec/pam_iam/iam-authorized-keys alice | grep .").fails();
    machine.sh("pamtester sshd alice acct_mgmt").fails();
}

#[test]
fn a_configuration_with_a_typo_starts_no_resolver_and_lets_nobody_in() {
    let machine = Machine::new().config("[access]\nallow = ['ssh-users']\nsuod = 'all'\n").start();
    machine.run(&["getent", "passwd", "alice"]).fails();
    machine.ssh("alice", "true").fails();
    machine.logs("resolver", "unknown field `suod`");
}

#[test]
fn what_is_not_for_everybody_is_for_root_and_the_key_command() {
    let machine = Machine::new().start();
    let ask = |user: &str, request: serde_json::Value| {
        let script = format!(
            "import socket
request = b'''{request}'''
client = socket.socket(socket.AF_UNIX)
client.connect('/run/pam_iam/resolver.sock')
client.sendall(len(request).to_bytes(4, 'big') + request)
print(client.makefile('rb').read()[4:].decode())"
        );
        machine
            .run(&[
                "setpriv",
                "--reuid",
                user,
                "--regid",
                "65534",
                "--clear-groups",
                "python3",
                "-c",
                &script,
            ])
            .succeeds()
    };
    let uid: u32 = machine.sh("id -u alice").succeeds().parse().unwrap();
    let keys = json!({"v": 1, "ask": "keys", "name": "alice", "uid": uid});
    let decide = json!({"v": 1, "ask": "decide", "name": "alice", "uid": uid, "policy": "login"});
    let user = json!({"v": 1, "ask": "user-by-name", "name": "alice"});
    assert!(ask("nobody", keys.clone()).contains("forbidden"));
    assert!(ask("nobody", decide.clone()).contains("forbidden"));
    assert!(ask("nobody", json!({"v": 1, "ask": "status"})).contains("forbidden"));
    assert!(ask("nobody", user).contains("\"answer\":\"user\""));
    assert!(ask("pam-iam", keys).contains("\"answer\":\"keys\""));
    assert!(ask("pam-iam", decide.clone()).contains("forbidden"));
    assert!(ask("root", decide).contains("\"allow\":true"));
    assert!(ask("root", json!({"v": 1, "ask": "make-coffee"})).contains("bad-request"));
    assert!(ask("root", json!({"v": 2, "ask": "status"})).contains("protocol version 2"));
}

#[test]
fn a_socket_that_somebody_else_holds_is_not_believed() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    // As if the directory had been left open for everybody.
    machine.sh("rm /run/pam_iam/resolver.sock; chown nobody /run/pam_iam").succeeds();
    let impostor = "import json, os, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind('/run/pam_iam/mine')
os.chmod('/run/pam_iam/mine', 0o666)
listener.listen(100)
os.rename('/run/pam_iam/mine', '/run/pam_iam/resolver.sock')
user = dict(answer='user', name='eve', uid=2100000000, gid=2100000000, gecos='', home='/', shell='/bin/sh')
decision = dict(answer='decision', allow=True, reason='all', source='iam', age=0)
while True:
    client = listener.accept()[0]
    asked = client.recv(65536)
    answer = json.dumps(user if b'user-by' in asked else decision).encode()
    try:
        client.sendall(len(answer).to_bytes(4, 'big') + answer)
    except OSError:
        pass";
    machine
        .sh(&format!(
            "setpriv --reuid nobody --regid 65534 --clear-groups python3 -c \"{impostor}\" >/dev/null 2>&1 &"
        ))
        .succeeds();
    machine.wait_until("test -S /run/pam_iam/resolver.sock");
    machine.run(&["getent", "passwd", "eve"]).fails();
    let uid = 2_100_000_000;
    machine.sh(&format!("echo 'alice:x:{uid}:{uid}::/home/alice:/bin/bash' >>/etc/passwd")).succeeds();
    machine.sh("pamtester sshd alice acct_mgmt").fails();
    machine.logs("authpriv", "belongs to uid 65534");
}

#[test]
fn further_key_commands_are_run_for_the_hosts_own_accounts_and_for_all_if_the_operator_says_so() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[keys]\nalso_run_for = 'local'\nalso_run = ['/usr/local/bin/also %u %f %t %k %h']").start();
    machine.sh("printf '#!/bin/sh\necho \"# $1 $2\"; cat /etc/also.pub\n' >/usr/local/bin/also; chmod 755 /usr/local/bin/also
        ssh-keygen -q -t ed25519 -N '' -f /root/also; cp /root/also.pub /etc/also.pub; useradd -m local").succeeds();
    machine.sh("box-ssh -i /root/also local true").succeeds();
    assert!(
        machine
            .sh("/usr/libexec/pam_iam/iam-authorized-keys local SHA256:x")
            .succeeds()
            .starts_with("# local SHA256:x\nssh-ed25519 ")
    );
    // What a user who offers a key is asked about.
    machine.sh("sed -i 's/^cat/echo \"$3 $4 $5\" >\\/tmp\\/tokens; cat/; s/; cat/; echo \"$3 $4 $5\" >\\/tmp\\/tokens; cat/' /usr/local/bin/also; rm -f /tmp/tokens; box-ssh -i /root/also local true").succeeds();
    let key = machine.sh("cut -d' ' -f1,2 /root/also.pub").succeeds();
    assert_eq!(machine.sh("cat /tmp/tokens").succeeds(), format!("{key} /home/local"));
    let keys = machine.sh("/usr/libexec/pam_iam/iam-authorized-keys alice").succeeds();
    assert!(keys.starts_with("ssh-rsa ") && !keys.contains("# alice"), "{keys}");
    machine.sh("box-ssh -i /root/also alice true").fails();
    machine
        .sh("sed -i \"s/also_run_for = 'local'/also_run_for = 'all'/\" /etc/pam_iam/config.toml")
        .succeeds();
    machine.end_resolver("TERM");
    let keys = machine.sh("/usr/libexec/pam_iam/iam-authorized-keys alice").succeeds();
    assert!(keys.starts_with("ssh-rsa ") && keys.contains("# alice"), "{keys}");
    machine.sh("box-ssh -i /root/also alice true").succeeds();
    machine.sh("sed -i s/allow/alow/ /etc/pam_iam/config.toml").succeeds();
    machine.sh("box-ssh -i /root/also local true").succeeds();
    machine.sh("echo 'exit 1' >>/usr/local/bin/also").succeeds();
    machine.sh("box-ssh -i /root/also local true").fails();
}

#[test]
fn a_certificate_of_ones_own_key_opens_nothing_and_the_user_is_told_what_would() {
    let machine = Machine::new().start();
    machine
        .sh("ssh-keygen -q -t ed25519 -N '' -f /root/ca; cp /root/ca.pub /etc/ssh/ca.pub; echo 'TrustedUserCAKeys /etc/ssh/ca.pub' >/etc/ssh/sshd_config.d/50-ca.conf
             install -m 600 $BOX_KEYS/alice /root/alice; ssh-keygen -y -f /root/alice >/root/alice.pub; ssh-keygen -q -s /root/ca -I alice -n alice /root/alice.pub")
        .succeeds();
    machine.reload_sshd();
    // sshd takes none for IAM users, whatever lies in their homes.
    machine.ssh("alice", "echo alice >none").succeeds();
    let said = machine.sh("box-ssh -i /root/alice alice -o PubkeyAcceptedAlgorithms=rsa-sha2-512-cert-v01@openssh.com true 2>&1");
    assert!(said.status == 255 && said.stdout.contains("Permission denied"), "{said:?}");
    // Where the drop-in is an older one, PAM refuses the session.
    machine.sh("sed -i /AuthorizedPrincipalsFile/d /etc/ssh/sshd_config.d/10-pam_iam.conf").succeeds();
    machine.reload_sshd();
    let said = machine.sh("box-ssh -i /root/alice alice -o PubkeyAcceptedAlgorithms=rsa-sha2-512-cert-v01@openssh.com true 2>&1");
    assert_ne!(said.status, 0, "{said:?}");
    assert!(said.stdout.contains("a certificate opens no account of an IAM user"), "{said:?}");
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn an_iam_user_whom_sshd_lets_in_without_a_key_gets_no_session_unless_the_operator_wants_it() {
    let machine = Machine::new().settings("[sessions]\nwithout_key = 'refuse'").start();
    // As after a ticket, or from a trusted host: there is no key in what sshd hands over.
    machine.sh("cp /etc/pam.d/sshd /root/sshd; printf 'account required pam_permit.so\\nsession requisite pam_iam.so\\nsession required pam_permit.so\\n' >/etc/pam.d/sshd").succeeds();
    machine.sh("pamtester sshd alice open_session").fails();
    machine.logs("authpriv", "event=session user=alice origin=none service=sshd result=deny");
    machine
        .sh("sed -i s/refuse/allow/ /etc/pam_iam/config.toml; pamtester sshd alice open_session")
        .succeeds();
    // su and cron have none either, and are no ssh.
    machine.sh("sed -i s/allow\\'/refuse\\'/ /etc/pam_iam/config.toml; cp /etc/pam.d/sshd /etc/pam.d/su; pamtester su alice open_session").succeeds();
}
