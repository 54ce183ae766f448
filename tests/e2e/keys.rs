//! Only keys of IAM open the account of an IAM user.

use pam_iam_tests::{Done, Machine};
use serde_json::json;

const DROP_IN: &str = "/etc/ssh/sshd_config.d/10-pam_iam.conf";

#[test]
fn every_active_key_opens_the_account_in_either_encoding_and_an_inactive_one_does_not() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [
            {"encoding": "SSH"}, {"encoding": "PEM", "bits": 3072}, {"status": "Inactive"}]}]}))
        .start();
    machine.ssh_with("alice", "alice", "true").succeeds();
    machine.ssh_with("alice.2", "alice", "true").succeeds();
    machine.ssh_with("alice.3", "alice", "true").fails();
    let keys = machine.authorized_keys("alice");
    assert_eq!(keys.lines().count(), 2);
    assert!(keys.lines().all(|line| line.starts_with("ssh-rsa AAAA") && line.ends_with(" alice")), "{keys}");
    let fingerprint = machine.sh("ssh-keygen -lf $BOX_KEYS/alice.2 | cut -d' ' -f2").succeeds();
    let one = machine.run(&["/usr/libexec/pam_iam/iam-authorized-keys", "alice", &fingerprint]).succeeds();
    assert_eq!(Some(&*one), keys.lines().last());
}

#[test]
fn a_key_body_smuggles_in_no_options_and_no_second_key() {
    let machine = Machine::new().start();
    machine.make_key("/root/evil");
    let evil = machine.file("/root/evil.pub").text();
    let body = machine.public_key("alice") + " x\ncommand=\"/bin/sh\" " + &evil;
    machine.iam().delete_keys("alice");
    machine.iam().upload_key("alice", &body);
    let keys = machine.authorized_keys("alice");
    assert_eq!(keys.lines().count(), 1, "{keys}");
    assert!(keys.starts_with("ssh-rsa AAAA") && keys.ends_with(" alice\n"), "{keys}");
    machine.ssh_with("/root/evil", "alice", "true").fails();
}

#[test]
fn the_key_is_recognized_on_a_host_with_another_fingerprint_hash() {
    let machine = Machine::new().start();
    machine.file("/etc/ssh/sshd_config").prepend("FingerprintHash md5\n");
    machine.reload_sshd();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
}

/// Puts the key `/root/planted` into alice's home directory.
fn plant_key(machine: &Machine) {
    machine.ssh("alice", "true").succeeds();
    machine.make_key("/root/planted");
    machine.authorize_key("alice", "/root/planted");
}

#[test]
fn a_key_in_the_home_directory_opens_no_account() {
    for machine in [Machine::new().start(), Machine::new().importer().start()] {
        plant_key(&machine);
        machine.ssh_with("/root/planted", "alice", "true").fails();
        machine.ssh("alice", "true").succeeds();
    }
}

#[test]
fn a_key_in_the_home_directory_opens_no_session_even_if_sshds_rule_for_the_group_does_not_apply() {
    let machine = Machine::new().start();
    plant_key(&machine);
    machine.remove_from_nsswitch("group");
    let said = machine.ssh_with("/root/planted", "alice", "echo in").fails();
    assert!(said.contains("not one of your active keys in IAM"), "{said}");
    machine.wait_for_log("authpriv", "origin=foreign");
    assert_eq!(machine.ssh("alice", "echo in").succeeds(), "in");
}

/// A key command that prints its first two arguments and the key /etc/also.pub, and writes its other three arguments to
/// /tmp/tokens.
const FURTHER_COMMAND: &str = "#!/bin/sh
echo \"# $1 $2\"
echo \"$3 $4 $5\" >/tmp/tokens
cat /etc/also.pub
";

/// Starts a box that runs [`FURTHER_COMMAND`] for local accounts, and adds the account `local`. The command prints the key
/// `/root/also`.
fn machine_with_further_key_command() -> Machine {
    let machine = Machine::new()
        .settings("[freshness]\nmax_age = 0\n[keys]\nalso_run_for = 'local'\nalso_run = ['/usr/local/bin/also %u %f %t %k %h']")
        .start();
    machine.file("/usr/local/bin/also").write(FURTHER_COMMAND);
    machine.file("/usr/local/bin/also").chmod("755");
    machine.make_key("/root/also");
    machine.file("/root/also.pub").copy_to("/etc/also.pub");
    machine.add_account("local", 1500);
    machine
}

#[test]
fn further_key_commands_are_run_for_local_accounts_and_for_all_if_the_operator_says_so() {
    let machine = machine_with_further_key_command();
    let log_in = |user: &str| machine.ssh_with("/root/also", user, "true");
    log_in("local").succeeds();
    let key = machine.file("/root/also.pub").text();
    let key = key.rsplit_once(' ').expect("a comment").0;
    assert_eq!(machine.file("/tmp/tokens").text(), format!("{key} /home/local\n"));
    machine.file("/tmp/tokens").remove();
    let keys = machine.run(&["/usr/libexec/pam_iam/iam-authorized-keys", "local", "SHA256:x"]).succeeds();
    assert!(keys.starts_with("# local SHA256:x\nssh-ed25519 "), "{keys}");
    let keys = machine.authorized_keys("alice");
    assert!(keys.starts_with("ssh-rsa ") && !keys.contains("# alice"), "{keys}");
    log_in("alice").fails();

    machine.config().replace("also_run_for = 'local'", "also_run_for = 'all'");
    machine.restart_resolver_by("TERM");
    let keys = machine.authorized_keys("alice");
    assert!(keys.starts_with("ssh-rsa ") && keys.contains("# alice"), "{keys}");
    log_in("alice").succeeds();
    machine.config().replace("allow", "alow");
    log_in("local").succeeds();
    machine.file("/usr/local/bin/also").append("exit 1\n");
    log_in("local").fails();
}

/// Makes a certificate authority that sshd trusts, and a certificate of it for alice's own key.
const CERTIFY_ALICE: &str = "ssh-keygen -q -t ed25519 -N '' -f /root/ca && cp /root/ca.pub /etc/ssh/ca.pub &&
echo 'TrustedUserCAKeys /etc/ssh/ca.pub' >/etc/ssh/sshd_config.d/50-ca.conf &&
install -m 600 $BOX_KEYS/alice /root/alice && ssh-keygen -y -f /root/alice >/root/alice.pub &&
ssh-keygen -q -s /root/ca -I alice -n alice /root/alice.pub";

/// Logs in as alice with the certificate of [`CERTIFY_ALICE`] and nothing else.
fn ssh_with_certificate(machine: &Machine) -> Done {
    let only = "PubkeyAcceptedAlgorithms=rsa-sha2-512-cert-v01@openssh.com";
    machine.run(&["box-ssh", "-i", "/root/alice", "alice", "-o", only, "true"])
}

#[test]
fn a_certificate_opens_no_account_of_an_iam_user_and_the_refusal_says_so() {
    let machine = Machine::new().start();
    machine.sh(CERTIFY_ALICE).succeeds();
    machine.reload_sshd();
    // In a Match block, sshd would take the value `none` of AuthorizedPrincipalsFile for the name of this file.
    machine.ssh("alice", "echo alice >none").succeeds();
    let refused = ssh_with_certificate(&machine);
    assert_eq!(refused.status, 255, "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    // The drop-in of an older version lacks this line. Then PAM refuses the session.
    machine.file(DROP_IN).remove_lines("AuthorizedPrincipalsFile");
    machine.reload_sshd();
    let said = ssh_with_certificate(&machine).fails();
    assert!(said.contains("a certificate opens no account of an IAM user"), "{said}");
    machine.ssh("alice", "true").succeeds();
}

/// A PAM stack for an application that has authenticated the user itself.
const SESSION_ALONE: &str = "account required pam_permit.so
session requisite pam_iam.so
session required pam_permit.so
";

#[test]
fn sshd_opens_no_session_without_a_key_unless_the_configuration_allows_it() {
    let machine = Machine::new().settings("[sessions]\nwithout_key = 'refuse'").start();
    // Like sshd after a Kerberos ticket or a login from a trusted host, pamtester hands over no key.
    machine.file("/etc/pam.d/sshd").write(SESSION_ALONE);
    machine.pam("sshd", "alice").open_session().fails();
    machine.wait_for_log("authpriv", "event=session user=alice origin=none service=sshd result=deny");
    machine.config().replace("'refuse'", "'allow'");
    machine.pam("sshd", "alice").open_session().succeeds();
    // The setting applies to sshd alone: su and cron never have a key.
    machine.config().replace("'allow'", "'refuse'");
    machine.file("/etc/pam.d/su").write(SESSION_ALONE);
    machine.pam("su", "alice").open_session().succeeds();
}
