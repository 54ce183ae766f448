//! What is shipped is what works.

use pam_iam_tests::Machine;

#[test]
fn the_shipped_files_are_what_their_readers_want() {
    let machine = Machine::new().start();
    machine.run(&["visudo", "-c", "-f", "/etc/sudoers.d/pam_iam"]).succeeds();
    machine.run(&["/usr/sbin/sshd", "-t"]).succeeds();
    let effective = machine.sh("/usr/sbin/sshd -T -C user=alice,host=h,addr=127.0.0.1").succeeds();
    for line in [
        "authorizedkeyscommand /usr/libexec/pam_iam/iam-authorized-keys --uid %U %u %f",
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

#[test]
fn a_role_is_taken_on_where_one_is_named() {
    let machine = Machine::new()
        .settings("[aws]\nassume_role = 'arn:aws:iam::123456789012:role/ssh-directory'\nexternal_id = 'x-1'")
        .start();
    machine.ssh("alice", "true").succeeds();
    let calls = machine.calls();
    let assumed = calls.iter().find(|call| call.action == "AssumeRole").expect("AssumeRole");
    assert_eq!(assumed.params["RoleSessionName"], "pam_iam-box");
    assert_eq!(assumed.params["ExternalId"], "x-1");
}
