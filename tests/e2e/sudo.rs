//! sudo asks IAM at each use, also in a session that is open already.

use pam_iam_tests::{Done, Machine};
use serde_json::json;

const FRESH: &str = "[freshness]\nmax_age = 0";

#[test]
fn a_refusal_says_why_and_the_listing_agrees_with_it() {
    for machine in [Machine::new().start(), Machine::new().importer().start()] {
        assert!(machine.ssh("carol", "sudo -n -l").succeeds().contains("(ALL : ALL) NOPASSWD: ALL"));
        machine.ssh("alice", "sudo -n -l").fails();
        // The account phase asks IAM even if a rule names alice.
        machine.file("/etc/sudoers.d/by-hand").write("alice ALL=(ALL) NOPASSWD: ALL\n");
        let said = machine.ssh("alice", "sudo -n true").fails();
        assert!(said.contains("none of the IAM groups that may use sudo"), "{said}");
        machine.wait_for_log("authpriv", "event=sudo user=alice iam_name=alice");
    }
}

#[test]
fn a_user_removed_from_the_sudo_group_cannot_sudo_in_an_open_session() {
    let machine = Machine::new().settings(FRESH).start();
    let carol = machine.open_session("carol");
    carol.run("sudo -n true").succeeds();
    machine.iam().remove_from_group("carol", "ssh-admins");
    let refused = carol.run("sudo -n true");
    assert_eq!(refused.status, 1);
    assert!(refused.stdout.contains("none of the IAM groups that may use sudo"), "{refused:?}");
}

/// Starts a box in which sudo lets ssh-ops run id, and ssh-admins everything.
fn machine_with_two_rules() -> Machine {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-ops"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-ops"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-ops", "ssh-admins"], "keys": [{}]},
            {"name": "first.last", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .config(
            "[access]\nallow = ['ssh-users']\nsudo = ['ssh-admins', 'ssh-ops']
[groups]\n'ssh-ops' = 'ssh-ops'\n'ssh-admins' = 'ssh-admins'
[freshness]\nmax_age = 0",
        )
        .start();
    // As docs/sudo.md says: the rule for iam-sudo is replaced by two others.
    let rules = machine.file("/etc/sudoers.d/pam_iam");
    rules.write(
        "%ssh-admins ALL=(ALL) NOPASSWD: ALL
%ssh-ops ALL=(root) NOPASSWD: /usr/bin/id\n",
    );
    rules.chmod("440");
    machine.run(&["visudo", "-c"]).succeeds();
    machine
}

#[test]
fn mapped_groups_have_rules_of_their_own_and_a_withdrawn_group_refuses_sudo_in_an_open_session() {
    let machine = machine_with_two_rules();
    assert_eq!(machine.ssh("alice", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "sudo -n cat /etc/shadow").fails();
    assert!(machine.ssh("alice", "sudo -n -l").succeeds().contains("(root) NOPASSWD: /usr/bin/id"));
    machine.ssh("first.last", "sudo -n cat /etc/shadow").succeeds();

    // An open session keeps the Linux group, whose sudo rule would allow everything.
    let carol = machine.open_session("carol");
    machine.iam().remove_from_group("carol", "ssh-admins");
    let said = carol.run("sudo -n cat /etc/shadow").fails();
    assert!(
        said.contains("IAM no longer gives you the group") && said.contains("; log in again to use sudo"),
        "{said}"
    );
    machine.wait_for_log("authpriv", "event=sudo user=carol iam_name= iam_id= key= group=");
    machine.wait_for_log("authpriv", "reason=group-withdrawn");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("carol", "sudo -n cat /etc/shadow").fails();
}

/// Logs carol in with an agent that holds one fixture key, or none, and runs `sudo id -u`.
fn sudo_with_agent(machine: &Machine, key: Option<&str>) -> Done {
    let add = key.map_or_else(String::new, |key| format!("ssh-add -q $BOX_KEYS/{key}"));
    machine.sh(&format!(
        "eval $(ssh-agent) >/dev/null
{add}
ssh -F none -A -i $BOX_KEYS/carol -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=/run/box/known_hosts \
    -o StrictHostKeyChecking=yes -l carol 127.0.0.1 'echo | sudo -S id -u'
status=$?
ssh-agent -k >/dev/null
exit $status"
    ))
}

#[test]
fn with_pam_ssh_agent_auth_sudo_wants_the_users_own_key_in_the_forwarded_agent() {
    let machine = Machine::new().settings(FRESH).start();
    // As docs/sudo.md says under "Proof by the forwarded SSH agent".
    machine.file("/etc/sudoers.d/pam_iam").write(
        "Defaults:%iam-sudo env_keep += \"SSH_AUTH_SOCK\"
%iam-sudo ALL=(ALL:ALL) ALL
Defaults passwd_tries=1\n",
    );
    machine.run(&["visudo", "-c"]).succeeds();
    machine.file("/etc/pam.d/sudo").prepend(
        "auth sufficient pam_ssh_agent_auth.so authorized_keys_command=/usr/libexec/pam_iam/iam-authorized-keys authorized_keys_command_user=pam-iam\n",
    );
    assert_eq!(sudo_with_agent(&machine, Some("carol")).succeeds(), "0");
    sudo_with_agent(&machine, None).fails();
    sudo_with_agent(&machine, Some("alice")).fails();
    machine.iam().remove_from_group("carol", "ssh-admins");
    sudo_with_agent(&machine, Some("carol")).fails();
}

#[test]
fn without_access_sudo_nobody_may_sudo_and_a_local_account_may_while_the_resolver_hangs() {
    let machine = Machine::new().config("[access]\nallow = ['ssh-users']\n").start();
    let said = machine.ssh("carol", "sudo -n true").fails();
    assert!(said.contains("a password is required"), "{said}");
    machine.add_account("local", 1500);
    machine.file("/etc/sudoers.d/local").write("local ALL=(ALL) NOPASSWD: ALL\n");
    machine.signal_resolver("STOP");
    let done = machine.run(&["timeout", "5", "su", "local", "-c", "sudo -n id -u"]);
    assert_eq!(done.succeeds(), "0");
}
