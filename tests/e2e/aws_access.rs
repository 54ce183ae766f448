//! How a host reaches AWS: through a proxy, with certificates of a private authority, with a role, or with credentials from
//! a program or from IAM Identity Center.

use pam_iam_tests::{Machine, repository};

/// Makes an authority `ca.pem` and a certificate `aws.pem` for the names of AWS in /root.
const MAKE_CERTIFICATES: &str = r"cd /root
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout aws.key -out aws.csr -subj /CN=aws 2>/dev/null
printf 'subjectAltName=DNS:*.amazonaws.com,DNS:sts.eu-central-1.amazonaws.com,DNS:portal.sso.eu-central-1.amazonaws.com\n' >ext
openssl x509 -req -in aws.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out aws.pem 2>/dev/null
install -m 644 ca.pem /etc/pam_iam/ca.pem";

/// The file with the resolver's environment variables.
const ENVIRONMENT: &str = "/etc/pam_iam/environment";

/// Boots a box whose IAM is at 127.0.0.9, behind TLS with a certificate of a private authority, and which has a proxy at
/// 127.0.0.1:3128. The names of AWS do not resolve.
fn machine_behind_tls() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    let way = repository().join("tests/lib/way.py");
    machine.run(&["cp", &way.to_string_lossy(), "/root/way.py"]).succeeds();
    machine.sh(MAKE_CERTIFICATES).succeeds();
    run_way(&machine, "tls 127.0.0.9 /root/aws.pem /root/aws.key");
    run_way(&machine, "proxy 3128 /root/proxy.log");
    machine.file(ENVIRONMENT).write("AWS_REGION=eu-central-1\nAWS_CA_BUNDLE=/etc/pam_iam/ca.pem\n");
    machine.wait_until("bash -c '</dev/tcp/127.0.0.9/443 && </dev/tcp/127.0.0.1/3128' 2>/dev/null");
    machine
}

/// Starts a part of tests/lib/way.py as a service.
fn run_way(machine: &Machine, words: &str) {
    let mut argv = vec!["systemd-run", "-q", "python3", "/root/way.py"];
    argv.extend(words.split(' '));
    machine.run(&argv).succeeds();
}

/// Makes the names of AWS resolve to the box's IAM.
fn resolve_names_of_aws(machine: &Machine) {
    machine.file("/etc/hosts").append("127.0.0.9 iam.amazonaws.com sts.eu-central-1.amazonaws.com\n");
}

fn restart_resolver_without_cache(machine: &Machine) {
    machine.sh("rm -rf /var/cache/pam_iam/*").succeeds();
    machine.restart_resolver();
}

/// Asserts that alice logs in, and that her keys can be read without a daemon. Returns doctor's line about IAM.
#[track_caller]
fn assert_that_iam_is_reached(machine: &Machine) -> String {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    let doctor = machine.iamctl("doctor").stdout;
    let line = doctor.lines().find(|line| line.starts_with("ok      IAM:"));
    assert!(line.is_some(), "{doctor}");
    let uid = machine.uid_of("alice");
    machine.run(&["systemctl", "stop", "iam-resolver.socket", "iam-resolver.service"]).succeeds();
    let keys = machine.key_command("alice", uid).succeeds();
    assert!(keys.contains("ssh-rsa "), "without a daemon: {keys}");
    machine.run(&["systemctl", "start", "iam-resolver.socket"]).succeeds();
    line.unwrap_or_default().to_owned()
}

#[test]
fn iam_is_reached_through_a_proxy_and_the_metadata_service_without_it() {
    let machine = machine_behind_tls();
    let (environment, log) = (machine.file(ENVIRONMENT), machine.file("/root/proxy.log"));
    environment.append("HTTPS_PROXY=http://me:secret@127.0.0.1:3128\nHTTP_PROXY=http://127.0.0.1:3128\n");
    machine.restart_resolver();
    let said = assert_that_iam_is_reached(&machine);
    assert!(said.contains("through the proxy http://127.0.0.1:3128 of HTTPS_PROXY"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    let requests = log.text();
    assert!(requests.lines().count() > 0);
    assert!(requests.lines().all(|line| line == "CONNECT iam.amazonaws.com:443 HTTP/1.1"), "{requests}");

    resolve_names_of_aws(&machine);
    environment.append("NO_PROXY=.amazonaws.com\n");
    log.remove();
    machine.restart_resolver();
    assert_that_iam_is_reached(&machine);
    assert!(!log.exists());

    environment.replace("HTTPS_PROXY=http://me:secret@127.0.0.1:3128", "HTTPS_PROXY=http://a b");
    machine.restart_resolver();
    let doctor = machine.iamctl("doctor").fails();
    assert!(
        doctor.contains("http://a b of HTTPS_PROXY is no address of a proxy, so none is used"),
        "{doctor}"
    );
}

#[test]
fn only_certificates_of_a_configured_authority_are_trusted() {
    let machine = machine_behind_tls();
    resolve_names_of_aws(&machine);
    machine.restart_resolver();
    assert!(assert_that_iam_is_reached(&machine).contains("IAM's endpoint for us-east-1"));
    machine.file(ENVIRONMENT).replace("AWS_CA_BUNDLE", "SSL_CERT_FILE");
    machine.restart_resolver();
    assert_that_iam_is_reached(&machine);
    machine.file(ENVIRONMENT).remove_lines("SSL_CERT_FILE");
    restart_resolver_without_cache(&machine);
    machine.ssh("alice", "true").fails();
    assert!(machine.iamctl("doctor").fails().contains("certificate"));
}

/// Creates the role ssh-directory, which anybody may assume and which may do everything with IAM.
const CREATE_ROLE: &str = r#"
def policy(**statement):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})
iam.create_role(RoleName="ssh-directory",
    AssumeRolePolicyDocument=policy(Principal={"AWS": "*"}, Action="sts:AssumeRole"))
iam.put_role_policy(RoleName="ssh-directory", PolicyName="directory",
    PolicyDocument=policy(Action="iam:*", Resource="*"))"#;

#[test]
fn a_role_is_assumed_at_the_regional_endpoint_and_iam_is_called_at_its_own() {
    let machine = machine_behind_tls();
    machine.iam().python(CREATE_ROLE);
    resolve_names_of_aws(&machine);
    machine.config().append("[aws]\nassume_role = \"arn:aws:iam::123456789012:role/ssh-directory\"\n");
    machine.restart_resolver();
    machine.clear_calls();
    assert_that_iam_is_reached(&machine);
    assert!(machine.actions().contains(&"AssumeRole".to_owned()));
}

const CREDENTIAL_PROCESS: &str = r#"#!/bin/sh
echo '{"Version": 1, "AccessKeyId": "AKIAADMINISTRATOR000", "SecretAccessKey": "administrator-secret-of-the-box"}'
"#;

/// The answer of Identity Center's portal to a request with a valid token.
const ROLE_CREDENTIALS: &str = r#"{"roleCredentials": {"accessKeyId": "AKIAADMINISTRATOR000",
 "secretAccessKey": "administrator-secret-of-the-box", "sessionToken": "", "expiration": 99999999999000}}"#;

const IDENTITY_CENTER_PROFILE: &str = "[profile people]
sso_start_url = https://x.awsapps.com/start
sso_region = eu-central-1
sso_account_id = 123456789012
sso_role_name = hosts
";

/// Saves a token of Identity Center in the file that `aws sso login` would write: its name is the SHA-1 of the start URL.
const SAVE_TOKEN: &str = r#"folder=/etc/pam_iam/home/.aws/sso/cache; mkdir -p $folder
name=$(printf https://x.awsapps.com/start | sha1sum | cut -d' ' -f1)
echo '{"accessToken": "token", "expiresAt": "2999-01-01T00:00:00Z", "region": "eu-central-1", "startUrl": "https://x.awsapps.com/start"}' >$folder/$name.json"#;

/// Boots a box without an instance role, whose credentials come from the AWS profile `program`.
fn machine_with_profiles() -> Machine {
    let machine = machine_behind_tls();
    resolve_names_of_aws(&machine);
    machine.file("/usr/local/bin/credentials").write(CREDENTIAL_PROCESS);
    machine.file("/usr/local/bin/credentials").chmod("755");
    machine
        .file("/etc/pam_iam/aws")
        .write("[profile program]\ncredential_process = /usr/local/bin/credentials\n");
    machine.file(ENVIRONMENT).append("AWS_CONFIG_FILE=/etc/pam_iam/aws\nAWS_EC2_METADATA_DISABLED=true\n");
    machine.config().append("[aws]\nprofile = \"program\"\n");
    machine.restart_resolver();
    machine
}

#[test]
fn credentials_come_from_a_program_or_identity_center_within_the_units_sandbox() {
    let machine = machine_with_profiles();
    assert_that_iam_is_reached(&machine);

    machine.file("/root/credentials").write(ROLE_CREDENTIALS);
    run_way(&machine, "portal 127.0.0.10 /root/aws.pem /root/aws.key /root/credentials");
    machine.file("/etc/hosts").append("127.0.0.10 portal.sso.eu-central-1.amazonaws.com\n");
    machine.file("/etc/pam_iam/aws").append(IDENTITY_CENTER_PROFILE);
    machine.sh(SAVE_TOKEN).succeeds();
    machine.file(ENVIRONMENT).append("HOME=/etc/pam_iam/home\n");
    machine.config().replace("\"program\"", "\"people\"");
    machine.wait_until("bash -c '</dev/tcp/127.0.0.10/443' 2>/dev/null");
    restart_resolver_without_cache(&machine);
    assert_that_iam_is_reached(&machine);

    machine.config().replace("\"people\"", "\"nobody\"");
    restart_resolver_without_cache(&machine);
    machine.ssh("alice", "true").fails();
    let doctor = machine.iamctl("doctor").fails();
    assert!(doctor.contains("nobody"), "{doctor}");
}
