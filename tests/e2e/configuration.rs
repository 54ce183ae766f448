//! An error in the configuration keeps IAM users out, and local accounts are not affected.

use pam_iam_tests::Machine;

#[test]
fn a_broken_or_writable_configuration_keeps_iam_users_out_and_local_accounts_in() {
    let machine = Machine::new().start();
    machine.let_root_in();
    machine.ssh("alice", "true").succeeds();
    machine.config().replace("allow", "alow");
    machine.ssh("alice", "true").fails();
    machine.local_root_logs_in();
    machine.wait_for_log("authpriv", "/etc/pam_iam/config.toml:2: unknown field `alow`");
    let check = ["/usr/libexec/pam_iam/iam-resolver", "check-config", "/etc/pam_iam/config.toml"];
    let said = machine.run(&check).fails();
    assert!(
        said.contains("config.toml:2: unknown field `alow`, expected one of `allow`, `sudo`, `deny`"),
        "{said}"
    );
    machine.config().replace("alow", "allow");
    machine.config().chmod("o+w");
    machine.ssh("alice", "true").fails();
    machine.local_root_logs_in();
}

#[test]
fn with_a_broken_configuration_no_resolver_starts_and_nobody_logs_in() {
    let machine = Machine::new().config("[access]\nallow = ['ssh-users']\nsuod = 'all'\n").start();
    assert!(machine.passwd("alice").is_none());
    machine.ssh("alice", "true").fails();
    machine.wait_for_log("resolver", "unknown field `suod`");
}

#[test]
fn an_error_is_reported_at_once_and_a_correction_takes_effect_by_itself() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    machine.config().replace("allow", "alow");
    // The running resolver keeps the configuration that it has read. PAM and the key command read the file.
    machine.ssh("alice", "true").fails();
    let said = machine.iamctl("explain alice").fails();
    assert!(said.contains("but        refused all the same: /etc/pam_iam/config.toml:"), "{said}");
    let status = machine.iamctl("status").succeeds();
    assert!(status.contains("IAM users are kept out until it is mended"), "{status}");

    machine.run(&["pkill", "-x", "iam-resolver"]).succeeds();
    machine.wait_until("iamctl status 2>&1 | grep -q '/etc/pam_iam/config.toml has an error; run: /usr/libexec/pam_iam/iam-resolver check-config /etc/pam_iam/config.toml'");
    machine.ssh("alice", "true").fails();
    assert!(machine.passwd("alice").is_some(), "the map outlives the resolver, and decides nothing");
    machine.config().replace("alow", "allow");
    machine.wait_until("iamctl status >/dev/null 2>&1");
    machine.ssh("alice", "true").succeeds();
}
