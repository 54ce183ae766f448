//! Where the resolver's AWS credentials come from, and the role that it assumes with them.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use pam_iam_tests::Machine;

/// Credentials of the box's IAM with all rights, as lines for a file of environment variables.
const IN_ENVIRONMENT: &str = "AWS_ACCESS_KEY_ID=AKIAADMINISTRATOR000
AWS_SECRET_ACCESS_KEY=administrator-secret-of-the-box
";

const IN_PROFILE: &str = "[ops]
aws_access_key_id=AKIAADMINISTRATOR000
aws_secret_access_key=administrator-secret-of-the-box
";

const BY_WEB_IDENTITY: &str = "AWS_WEB_IDENTITY_TOKEN_FILE=/etc/pam_iam/token
AWS_ROLE_ARN=arn:aws:iam::123456789012:role/host
";

const ASSUMED_ROLE: &str = r#"[aws]
assume_role = "arn:aws:iam::123456789012:role/ssh-directory"
external_id = "x-1"
"#;

/// Makes the role NAME, which everybody may assume and which may make every call to IAM.
const MAKE_ROLE: &str = "trust = {'Statement': [{'Effect': 'Allow', 'Action': 'sts:AssumeRole', 'Principal': {'AWS': '*'}}]}
permissions = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': 'iam:*', 'Resource': '*'}]}
iam.create_role(RoleName='NAME', AssumeRolePolicyDocument=json.dumps(trust))
iam.put_role_policy(RoleName='NAME', PolicyName='all', PolicyDocument=json.dumps(permissions))";

#[test]
fn credentials_come_from_the_instance_by_version_2_of_its_metadata_service() {
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
fn a_configured_role_is_assumed_with_the_external_id() {
    let machine = Machine::new().start();
    machine.iam().python(&MAKE_ROLE.replace("NAME", "ssh-directory"));
    machine.config().append(ASSUMED_ROLE);
    machine.restart_resolver_by("TERM");
    machine.ssh("alice", "true").succeeds();
    let calls = machine.calls();
    let assumed = calls.iter().find(|call| call.action == "AssumeRole").expect("AssumeRole");
    assert_eq!(assumed.params["RoleSessionName"], "pam_iam-box");
    assert_eq!(assumed.params["ExternalId"], "x-1");
}

#[test]
fn credentials_come_from_the_environment_a_profile_or_a_web_identity() {
    let machine = Machine::new().settings("[resolver]\nmode = 'once'").start();
    machine.iam().python(&MAKE_ROLE.replace("NAME", "host"));
    let uid = ["/usr/libexec/pam_iam/iam-resolver", "uid", &machine.iam().user_id("alice")];
    let uid = machine.run(&uid).succeeds().parse().expect("a uid");
    let assert_keys_are_read = || {
        let keys = machine.key_command("alice", uid).succeeds();
        assert!(keys.starts_with("ssh-rsa "), "{keys}");
    };
    // Without the metadata service there are no credentials.
    machine.run(&["ip", "address", "del", "169.254.169.254/32", "dev", "lo"]).succeeds();
    machine.run(&["pkill", "-x", "iam-resolver"]).succeeds();
    machine.key_command("alice", uid).fails();

    let environment = machine.file("/etc/pam_iam/environment");
    let without_credentials = environment.text();
    environment.append(IN_ENVIRONMENT);
    assert_keys_are_read();

    machine.file("/etc/pam_iam/credentials").write(IN_PROFILE);
    let named = format!("{without_credentials}AWS_SHARED_CREDENTIALS_FILE=/etc/pam_iam/credentials\n");
    environment.write(&named);
    machine.config().append("\n[aws]\nprofile = \"ops\"\n");
    assert_keys_are_read();

    machine.file("/etc/pam_iam/token").write("token\n");
    environment.write(&(without_credentials + BY_WEB_IDENTITY));
    machine.config().remove_lines("profile = ");
    assert_keys_are_read();
}
