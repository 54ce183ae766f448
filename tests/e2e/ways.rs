//! The ways by which hosts reach AWS: a proxy, certificates of one's own, a role through a regional endpoint, credentials from
//! a program or from IAM Identity Center. On each, alice logs in and doctor names the way.

use pam_iam_tests::{Machine, repository};

/// A booted box whose IAM is at the addresses that AWS has, behind TLS whose certificate an authority of the host's own made.
/// The names of AWS lead nowhere yet.
fn machine() -> Machine {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").booted().start();
    let way = repository().join("tests/lib/way.py");
    machine
        .sh(&format!(
            r#"cp {way} /root/way.py; cd /root
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout aws.key -out aws.csr -subj /CN=aws 2>/dev/null
printf 'subjectAltName=DNS:*.amazonaws.com,DNS:sts.eu-central-1.amazonaws.com,DNS:portal.sso.eu-central-1.amazonaws.com\n' >ext
openssl x509 -req -in aws.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out aws.pem 2>/dev/null
install -m 644 ca.pem /etc/pam_iam/ca.pem
systemd-run -q --unit=aws python3 /root/way.py tls 127.0.0.9 /root/aws.pem /root/aws.key
systemd-run -q --unit=proxy python3 /root/way.py proxy 3128 /root/proxy.log
printf 'AWS_REGION=eu-central-1\nAWS_CA_BUNDLE=/etc/pam_iam/ca.pem\n' >/etc/pam_iam/environment"#,
            way = way.display()
        ))
        .succeeds();
    machine.wait_until("bash -c '</dev/tcp/127.0.0.9/443 && </dev/tcp/127.0.0.1/3128' 2>/dev/null");
    machine
}

/// The names of AWS lead to the box's.
const HOSTS: &str = "echo '127.0.0.9 iam.amazonaws.com sts.eu-central-1.amazonaws.com' >>/etc/hosts";

/// Sets the host up further, and lets the resolver start anew.
fn set_up(machine: &Machine, script: &str) {
    machine.sh(&format!("{script}\nsystemctl restart iam-resolver.service")).succeeds();
}

/// That alice logs in, and what doctor says of IAM. Once as the daemon does it, once without.
#[track_caller]
fn way(machine: &Machine) -> String {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    let doctor = machine.sh("iamctl doctor").stdout;
    let line = doctor.lines().find(|line| line.starts_with("ok      IAM:")).map(str::to_owned);
    let Some(line) = line else { return doctor };
    let once = "uid=$(id -u alice); systemctl stop iam-resolver.socket iam-resolver.service
        /usr/libexec/pam_iam/iam-authorized-keys --uid $uid alice; systemctl start iam-resolver.socket";
    assert!(machine.sh(once).succeeds().contains("ssh-rsa "), "without a daemon");
    line
}

#[test]
fn behind_a_proxy_iam_is_asked_through_it_and_the_metadata_service_is_not() {
    let machine = machine();
    set_up(
        &machine,
        "printf 'HTTPS_PROXY=http://me:secret@127.0.0.1:3128\nHTTP_PROXY=http://127.0.0.1:3128\n' >>/etc/pam_iam/environment",
    );
    let said = way(&machine);
    assert!(
        said.contains("through the proxy http://127.0.0.1:3128 of HTTPS_PROXY") && !said.contains("secret"),
        "{said}"
    );
    let asked = machine.sh("sort -u /root/proxy.log").succeeds();
    assert_eq!(asked, "CONNECT iam.amazonaws.com:443 HTTP/1.1");
    // What is reached without it.
    set_up(
        &machine,
        &format!("{HOSTS}; echo NO_PROXY=.amazonaws.com >>/etc/pam_iam/environment; rm /root/proxy.log"),
    );
    way(&machine);
    machine.sh("test ! -e /root/proxy.log").succeeds();
    set_up(&machine, "sed -i 's/^HTTPS_PROXY=.*/HTTPS_PROXY=http:\\/\\/a b/' /etc/pam_iam/environment");
    let doctor = machine.sh("iamctl doctor").fails();
    assert!(
        doctor.contains("http://a b of HTTPS_PROXY is no address of a proxy, so none is used"),
        "{doctor}"
    );
}

#[test]
fn certificates_of_ones_own_are_trusted_and_no_others() {
    let machine = machine();
    set_up(&machine, HOSTS);
    assert!(way(&machine).contains("IAM's endpoint for us-east-1"));
    set_up(&machine, "sed -i s/AWS_CA_BUNDLE/SSL_CERT_FILE/ /etc/pam_iam/environment");
    way(&machine);
    set_up(&machine, "sed -i /SSL_CERT_FILE/d /etc/pam_iam/environment; rm -rf /var/cache/pam_iam/*");
    machine.ssh("alice", "true").fails();
    assert!(machine.sh("iamctl doctor").fails().contains("certificate"));
}

#[test]
fn a_role_is_assumed_through_the_regions_own_endpoint_and_iam_is_asked_where_it_is() {
    let machine = machine();
    let policy = |statement: &str| {
        format!(r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow", {statement}}}]}}"#)
    };
    machine.iam().python(&format!(
        "iam.create_role(RoleName='ssh-directory', AssumeRolePolicyDocument=r'{}')
iam.put_role_policy(RoleName='ssh-directory', PolicyName='directory', PolicyDocument=r'{}')",
        policy(r#""Principal": {"AWS": "*"}, "Action": "sts:AssumeRole""#),
        policy(r#""Action": "iam:*", "Resource": "*""#),
    ));
    set_up(
        &machine,
        &format!(
            "{HOSTS}; printf '[aws]\nassume_role = \"arn:aws:iam::123456789012:role/ssh-directory\"\n' >>/etc/pam_iam/config.toml"
        ),
    );
    machine.clear_calls();
    way(&machine);
    assert!(machine.calls().iter().any(|call| call.action == "AssumeRole"));
}

#[test]
fn credentials_come_from_a_program_or_from_identity_center_within_the_units_sandbox() {
    let machine = machine();
    let key =
        r#""AccessKeyId": "AKIAADMINISTRATOR000", "SecretAccessKey": "administrator-secret-of-the-box""#;
    set_up(
        &machine,
        &format!(
            r#"{HOSTS}
printf '#!/bin/sh\nid -un >/tmp/ran-by\necho '"'"'{{"Version": 1, {key}}}'"'"'\n' >/usr/local/bin/credentials; chmod 755 /usr/local/bin/credentials
printf '[profile program]\ncredential_process = /usr/local/bin/credentials\n' >/etc/pam_iam/aws
printf 'AWS_CONFIG_FILE=/etc/pam_iam/aws\nAWS_EC2_METADATA_DISABLED=true\n' >>/etc/pam_iam/environment
printf '[aws]\nprofile = "program"\n' >>/etc/pam_iam/config.toml"#
        ),
    );
    way(&machine);

    // A session of IAM Identity Center whose token somebody put there.
    set_up(
        &machine,
        r#"echo '{"roleCredentials": {"accessKeyId": "AKIAADMINISTRATOR000", "secretAccessKey": "administrator-secret-of-the-box", "sessionToken": "", "expiration": 99999999999000}}' >/root/credentials
systemd-run -q --unit=portal python3 /root/way.py portal 127.0.0.10 /root/aws.pem /root/aws.key /root/credentials
echo '127.0.0.10 portal.sso.eu-central-1.amazonaws.com' >>/etc/hosts
printf '[profile people]\nsso_start_url = https://x.awsapps.com/start\nsso_region = eu-central-1\nsso_account_id = 123456789012\nsso_role_name = hosts\n' >>/etc/pam_iam/aws
mkdir -p /etc/pam_iam/home/.aws/sso/cache
echo '{"accessToken": "token", "expiresAt": "2999-01-01T00:00:00Z", "region": "eu-central-1", "startUrl": "https://x.awsapps.com/start"}' >/etc/pam_iam/home/.aws/sso/cache/$(printf https://x.awsapps.com/start | sha1sum | cut -d' ' -f1).json
echo HOME=/etc/pam_iam/home >>/etc/pam_iam/environment
sed -i 's/"program"/"people"/' /etc/pam_iam/config.toml; rm -rf /var/cache/pam_iam/*"#,
    );
    machine.wait_until("bash -c '</dev/tcp/127.0.0.10/443' 2>/dev/null");
    way(&machine);

    set_up(
        &machine,
        "sed -i 's/\"people\"/\"nobody\"/' /etc/pam_iam/config.toml; rm -rf /var/cache/pam_iam/*",
    );
    machine.ssh("alice", "true").fails();
    let doctor = machine.sh("iamctl doctor").fails();
    assert!(doctor.contains("nobody"), "{doctor}");
}
