//! The shipped IAM policies suffice, and no action in them is too much.

use pam_iam_tests::{Machine, package, repository};
use serde_json::{Value, json};

const FRESH: &str = "[freshness]\nmax_age = 0";

fn shipped(name: &str) -> Value {
    let text = std::fs::read_to_string(repository().join("aws").join(name)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The role of the instance may do this, from now on, and the resolver begins anew.
fn under(machine: &Machine, policy: &Value) {
    machine
        .run(&[
            "bash",
            "-c",
            "curl -sSf -G \"$BOX_CTL\" --data-urlencode \"policy=$1\"",
            "bash",
            &policy.to_string(),
        ])
        .succeeds();
    machine.sh("rm -f /var/cache/pam_iam/*").succeeds();
    machine.end_resolver("KILL");
}

fn machine() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "path": "/ssh/", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "path": "/ssh/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "dave", "path": "/other/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings(FRESH)
        .start()
}

/// Login, sudo, groups, import.
fn everything_works(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.wait_until("id -Gn carol | grep -qw iam-sudo");
    machine.sh("iam-importer --dry-run | grep -q alice").succeeds();
}

#[test]
fn under_the_shipped_policy_everything_works_and_with_any_action_less_something_says_so() {
    let machine = machine();
    let policy = shipped("iam_ssh_policy.json");
    under(&machine, &policy);
    everything_works(&machine);
    assert_eq!(machine.ssh("dave", "sudo -n id -u").succeeds(), "0");

    each_action_is_missed(&machine, &policy);
}

/// With any action less, doctor names it and what needs it fails.
fn each_action_is_missed(machine: &Machine, policy: &Value) {
    let actions = [
        "iam:GetUser",
        "iam:ListGroupsForUser",
        "iam:ListSSHPublicKeys",
        "iam:GetSSHPublicKey",
        "iam:GetGroup",
    ];
    assert_eq!(actions.iter().map(|action| policy.to_string().matches(action).count()).sum::<usize>(), 5);
    for action in actions {
        let mut less = policy.clone();
        for statement in less.get_mut("Statement").and_then(Value::as_array_mut).into_iter().flatten() {
            match statement.get_mut("Action") {
                Some(Value::Array(list)) => list.retain(|known| known != action),
                Some(only) if only == action => *only = json!("iam:ListAccountAliases"),
                _ => {}
            }
        }
        assert_ne!(less, *policy, "{action}");
        under(machine, &less);
        let doctor = machine.sh("iamctl doctor").fails();
        assert!(doctor.contains(action), "{action}: {doctor}");
        if action == "iam:GetGroup" {
            machine.logs("resolver", "give this host iam:GetGroup");
            assert!(machine.sh("iam-importer --dry-run").fails().contains("iam:GetGroup"));
        } else {
            machine.ssh("alice", "true").fails();
            machine.logs("resolver", "user alice: IAM denies this host to look, which means no");
        }
    }
}

#[test]
fn under_the_narrower_policy_just_the_users_under_its_path_get_in() {
    let machine = machine();
    under(&machine, &shipped("iam_ssh_policy_path.json"));
    everything_works(&machine);
    machine.ssh("dave", "true").fails();
    machine.logs("resolver", "user dave: IAM denies this host to look, which means no");
    each_action_is_missed(&machine, &shipped("iam_ssh_policy_path.json"));
}

/// A shipped policy with the names that it leaves open.
fn filled(name: &str) -> Value {
    let mut text = shipped(name).to_string();
    for (open, filled) in [
        ("USERS_ACCOUNT", "123456789012"),
        ("HOSTS_ACCOUNT", "210987654321"),
        ("ROLE_OF_THE_INSTANCES", "hosts"),
        ("A_WORD_OF_YOUR_OWN", "sesame"),
    ] {
        text = text.replace(open, filled);
    }
    serde_json::from_str(&text).unwrap_or_default()
}

#[test]
fn users_in_another_account_are_asked_by_the_shipped_policies_and_not_without_any_of_them() {
    let machine = Machine::new().settings(FRESH).start();
    machine.sh("printf '[aws]\nassume_role = \"arn:aws:iam::123456789012:role/ssh-directory\"\nexternal_id = \"sesame\"\n' >>/etc/pam_iam/config.toml").succeeds();
    let directory = |trust: &Value, policy: &Value| {
        machine.iam().python(&format!(
            "for role in iam.list_roles()['Roles']:
    iam.delete_role_policy(RoleName=role['RoleName'], PolicyName='directory')
    iam.delete_role(RoleName=role['RoleName'])
iam.create_role(RoleName='ssh-directory', AssumeRolePolicyDocument=r'{trust}')
iam.put_role_policy(RoleName='ssh-directory', PolicyName='directory', PolicyDocument=r'{policy}')"
        ));
    };
    let (trust, may) = (filled("cross_account_trust.json"), shipped("iam_ssh_policy.json"));
    let assume = filled("cross_account_assume.json");
    machine.fault("role=arn:aws:iam::210987654321:role/hosts");
    directory(&trust, &may);
    under(&machine, &assume);
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");

    let mut other = trust.clone();
    other["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"] = json!("other");
    let mut nobody = trust.clone();
    nobody["Statement"][0]["Principal"]["AWS"] = json!("arn:aws:iam::210987654321:role/others");
    let little = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "iam:ListAccountAliases", "Resource": "*"}]});
    for (trust, may, assume, said) in [
        (&other, &may, &assume, "AssumeRole"),
        (&nobody, &may, &assume, "AssumeRole"),
        (&trust, &may, &little, "AssumeRole"),
        (&trust, &little, &assume, "iam:GetUser"),
    ] {
        directory(trust, may);
        under(&machine, assume);
        machine.ssh("alice", "true").fails();
        let doctor = machine.sh("iamctl doctor").fails();
        assert!(doctor.contains(said), "{said}: {doctor}");
    }
}

#[test]
fn listing_all_users_takes_the_third_policy() {
    let machine = Machine::new().config(&format!("[access]\nallow = 'all'\n{FRESH}")).start();
    let mut policy = shipped("iam_ssh_policy.json");
    under(&machine, &policy);
    machine.logs("resolver", "iam:ListUsers");
    assert!(machine.sh("iamctl lint").fails().contains("iam:ListUsers"));
    let more = shipped("iam_ssh_policy_all_users.json")["Statement"][0].clone();
    if let Some(statements) = policy["Statement"].as_array_mut() {
        statements.push(more);
    }
    under(&machine, &policy);
    machine.ssh("bob", "true").succeeds();
    assert!(!machine.sh("iamctl lint").stdout.contains("ListUsers"));
    machine.wait_until(
        "iamctl --json status | grep -q '\"roster_users\": [1-9]' && id -Gn bob | grep -qw iam-users",
    );
}

#[test]
fn the_showcase_is_a_stack_whose_user_data_makes_a_host_that_lets_iam_users_in() {
    let lint = std::process::Command::new(repository().join(".venv/bin/cfn-lint"))
        .arg(repository().join("aws/showcase.yaml"))
        .output()
        .expect("cfn-lint");
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));

    let cloud = Machine::new().start();
    let made = cloud.iam().python(&format!(
        "import ast, base64
ec2, stacks, ssm = (boto3.client(name, region_name='us-east-1') for name in ('ec2', 'cloudformation', 'ssm'))
subnet = ec2.describe_subnets()['Subnets'][0]
image = ec2.describe_images()['Images'][0]['ImageId']
ssm.put_parameter(Name='/image', Value=image, Type='String')
wanted = dict(PackageUrl='https://packages.example/pam-iam.deb', PackageSha256='0' * 64, SshFrom='192.0.2.0/24', Vpc=subnet['VpcId'], Subnet=subnet['SubnetId'])
# The stand-in knows no image of Debian's.
template = open('{}').read().replace('/aws/service/debian/release/12/latest/amd64', '/image')
stacks.create_stack(StackName='showcase', TemplateBody=template, Capabilities=['CAPABILITY_IAM'],
                    Parameters=[dict(ParameterKey=k, ParameterValue=v) for k, v in wanted.items()])
stack = stacks.describe_stacks(StackName='showcase')['Stacks'][0]
outputs = {{o['OutputKey']: o['OutputValue'] for o in stack['Outputs']}}
role = stacks.describe_stack_resource(StackName='showcase', LogicalResourceId='Role')['StackResourceDetail']['PhysicalResourceId']
data = ec2.describe_instance_attribute(InstanceId=outputs['InstanceId'], Attribute='userData')['UserData']['Value']
# The stand-in gives the policy of a stack as Python writes it.
policy = iam.get_role_policy(RoleName=role, PolicyName='pam_iam')['PolicyDocument']
print(json.dumps(dict(status=stack['StackStatus'], name=outputs['PublicName'],
                      policy=ast.literal_eval(policy) if isinstance(policy, str) else policy,
                      data=base64.b64decode(data).decode())))",
        repository().join("aws/showcase.yaml").display()
    ));
    let made: Value = serde_json::from_str(&made).unwrap_or_default();
    assert_eq!(made["status"], "CREATE_COMPLETE", "{made}");
    assert!(made["name"].as_str().is_some_and(|name| name.starts_with("ec2-")), "{made}");
    assert_eq!(made["policy"], shipped("iam_ssh_policy.json"));

    // The instance's first boot, with the package at hand.
    let host = Machine::new().bare().start();
    let package = format!("file://{}", package().display());
    let digest =
        host.sh(&format!("sha256sum {} | cut -d' ' -f1", pam_iam_tests::package().display())).succeeds();
    let data = made["data"].as_str().unwrap_or_default();
    let data = data.replace("'https://packages.example/pam-iam.deb'", &package).replace("=https", "=file");
    assert!(
        host.sh(&data).fails().contains("WARNING: 1 computed checksum did NOT match"),
        "another package is not installed"
    );
    let data = data.replace(&"0".repeat(64), &digest);
    assert!(data.starts_with("#!/bin/bash\n") && data.contains("iamctl enable"), "{data}");
    host.sh("rm /etc/pam_iam/config.toml").succeeds();
    host.run(&["bash", "-c", &data]).succeeds();
    assert_eq!(host.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(host.ssh("carol", "sudo -n id -u").succeeds(), "0");
    host.ssh("bob", "true").fails();
}
