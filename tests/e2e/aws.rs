//! The shipped IAM policies suffice, each of their actions is needed, and the shipped CloudFormation stack makes a host that
//! lets users in.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::process::Command;

use pam_iam_tests::{Machine, package, repository};
use serde_json::{Value, json};

const ALWAYS_REVALIDATE: &str = "[freshness]\nmax_age = 0";

/// Reads a policy in aws/.
fn shipped_policy(name: &str) -> Value {
    let text = std::fs::read_to_string(repository().join("aws").join(name)).expect("a policy");
    serde_json::from_str(&text).expect("JSON")
}

/// Limits the role of the instance to a policy, and restarts the resolver without its cache.
fn restart_with_policy(machine: &Machine, policy: &Value) {
    machine.limit_role(policy);
    machine.sh("rm -f /var/cache/pam_iam/*").succeeds();
    machine.restart_resolver_by("KILL");
}

/// Starts a box in which alice and carol are under the IAM path /ssh/, and dave is not.
fn machine_with_paths() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "path": "/ssh/", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "path": "/ssh/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]},
            {"name": "dave", "path": "/other/", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings(ALWAYS_REVALIDATE)
        .start()
}

/// Asserts that logins, sudo, groups and imports work.
fn assert_everything_works(machine: &Machine) {
    assert_users_log_in(machine);
    machine.wait_until("id -Gn carol | grep -qw iam-sudo");
    let plan = machine.run(&["iam-importer", "--dry-run"]).stdout;
    assert!(plan.contains("alice"), "{plan}");
}

fn assert_users_log_in(machine: &Machine) {
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
}

/// Asserts that a user whom the policy does not let the resolver look up is refused, and that the log says so.
fn assert_lookup_is_denied(machine: &Machine, user: &str) {
    machine.ssh(user, "true").fails();
    machine.wait_for_log("resolver", &format!("user {user}: IAM denies this host to look, which means no"));
}

#[test]
fn the_shipped_policy_suffices_and_each_of_its_actions_is_needed() {
    let machine = machine_with_paths();
    let policy = shipped_policy("iam_ssh_policy.json");
    restart_with_policy(&machine, &policy);
    assert_everything_works(&machine);
    assert_eq!(machine.ssh("dave", "sudo -n id -u").succeeds(), "0");
    assert_each_action_is_needed(&machine, &policy);
}

#[test]
fn the_narrower_policy_admits_only_users_under_its_path() {
    let machine = machine_with_paths();
    let policy = shipped_policy("iam_ssh_policy_path.json");
    restart_with_policy(&machine, &policy);
    assert_everything_works(&machine);
    assert_lookup_is_denied(&machine, "dave");
    assert_each_action_is_needed(&machine, &policy);
}

/// Asserts that the policy has five actions, and that without any of them doctor names it and logins or imports fail.
fn assert_each_action_is_needed(machine: &Machine, policy: &Value) {
    let actions = [
        "iam:GetUser",
        "iam:ListGroupsForUser",
        "iam:ListSSHPublicKeys",
        "iam:GetSSHPublicKey",
        "iam:GetGroup",
    ];
    let text = policy.to_string();
    assert_eq!(actions.iter().map(|action| text.matches(action).count()).sum::<usize>(), 5);
    for action in actions {
        restart_with_policy(machine, &without_action(policy, action));
        let doctor = machine.iamctl("doctor").fails();
        assert!(doctor.contains(action), "{action}: {doctor}");
        if action == "iam:GetGroup" {
            machine.wait_for_log("resolver", "allow this host iam:GetGroup");
            let import = machine.run(&["iam-importer", "--dry-run"]).fails();
            assert!(import.contains("iam:GetGroup"), "{import}");
        } else {
            assert_lookup_is_denied(machine, "alice");
        }
    }
}

/// Returns the policy without `action`. Fails the test if the policy does not have it.
fn without_action(policy: &Value, action: &str) -> Value {
    let mut less = policy.clone();
    for statement in less["Statement"].as_array_mut().expect("statements") {
        match &mut statement["Action"] {
            Value::Array(actions) => actions.retain(|other| other != action),
            only if only == action => *only = json!("iam:ListAccountAliases"),
            _ => {}
        }
    }
    assert_ne!(less, *policy, "{action}");
    less
}

/// Reads a policy in aws/ and fills in its placeholders.
fn filled_policy(name: &str) -> Value {
    let mut text = shipped_policy(name).to_string();
    for (placeholder, value) in [
        ("USERS_ACCOUNT", "123456789012"),
        ("HOSTS_ACCOUNT", "210987654321"),
        ("ROLE_OF_THE_INSTANCES", "hosts"),
        ("A_WORD_OF_YOUR_OWN", "sesame"),
    ] {
        text = text.replace(placeholder, value);
    }
    serde_json::from_str(&text).expect("JSON")
}

/// Deletes the roles in the account of the users, and makes the role ssh-directory with these policies.
fn make_directory_role(machine: &Machine, trust: &Value, permissions: &Value) {
    machine.iam().python(&format!(
        "for role in iam.list_roles()['Roles']:
    iam.delete_role_policy(RoleName=role['RoleName'], PolicyName='directory')
    iam.delete_role(RoleName=role['RoleName'])
iam.create_role(RoleName='ssh-directory', AssumeRolePolicyDocument=r'{trust}')
iam.put_role_policy(RoleName='ssh-directory', PolicyName='directory', PolicyDocument=r'{permissions}')"
    ));
}

const ROLE_OF_ANOTHER_ACCOUNT: &str = r#"
[aws]
assume_role = "arn:aws:iam::123456789012:role/ssh-directory"
external_id = "sesame"
"#;

#[test]
fn users_of_another_account_log_in_only_with_all_of_the_shipped_policies() {
    let machine = Machine::new().settings(ALWAYS_REVALIDATE).start();
    machine.config().append(ROLE_OF_ANOTHER_ACCOUNT);
    machine.fault("role=arn:aws:iam::210987654321:role/hosts");
    let trust = filled_policy("cross_account_trust.json");
    let permissions = shipped_policy("iam_ssh_policy.json");
    let assume = filled_policy("cross_account_assume.json");
    make_directory_role(&machine, &trust, &permissions);
    restart_with_policy(&machine, &assume);
    assert_users_log_in(&machine);

    let mut trust_with_other_word = trust.clone();
    trust_with_other_word["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"] = json!("other");
    let mut trust_in_other_role = trust.clone();
    trust_in_other_role["Statement"][0]["Principal"]["AWS"] = json!("arn:aws:iam::210987654321:role/others");
    let insufficient = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "iam:ListAccountAliases", "Resource": "*"}]});
    for (trust, permissions, assume, denied) in [
        (&trust_with_other_word, &permissions, &assume, "AssumeRole"),
        (&trust_in_other_role, &permissions, &assume, "AssumeRole"),
        (&trust, &permissions, &insufficient, "AssumeRole"),
        (&trust, &insufficient, &assume, "iam:GetUser"),
    ] {
        make_directory_role(&machine, trust, permissions);
        restart_with_policy(&machine, assume);
        machine.ssh("alice", "true").fails();
        let doctor = machine.iamctl("doctor").fails();
        assert!(doctor.contains(denied), "{denied}: {doctor}");
    }
}

#[test]
fn listing_all_users_needs_the_third_policy() {
    let machine = Machine::new().config(&format!("[access]\nallow = 'all'\n{ALWAYS_REVALIDATE}")).start();
    let mut policy = shipped_policy("iam_ssh_policy.json");
    restart_with_policy(&machine, &policy);
    machine.wait_for_log("resolver", "iam:ListUsers");
    assert!(machine.iamctl("lint").fails().contains("iam:ListUsers"));

    let third = shipped_policy("iam_ssh_policy_all_users.json")["Statement"][0].clone();
    policy["Statement"].as_array_mut().expect("statements").push(third);
    restart_with_policy(&machine, &policy);
    machine.ssh("bob", "true").succeeds();
    assert!(!machine.iamctl("lint").stdout.contains("ListUsers"));
    machine.wait_until("iamctl --json status | grep -q '\"roster_users\": [1-9]'");
    machine.wait_until("id -Gn bob | grep -qw iam-users");
}

/// Creates the stack of the template TEMPLATE, and prints its status, public name, policy and user data.
const CREATE_STACK: &str = "import ast, base64
ec2, stacks, ssm = (boto3.client(name, region_name='us-east-1') for name in ('ec2', 'cloudformation', 'ssm'))
subnet = ec2.describe_subnets()['Subnets'][0]
image = ec2.describe_images()['Images'][0]['ImageId']
ssm.put_parameter(Name='/image', Value=image, Type='String')
wanted = dict(PackageUrl='https://packages.example/pam-iam.deb', PackageSha256='0' * 64, SshFrom='192.0.2.0/24', Vpc=subnet['VpcId'], Subnet=subnet['SubnetId'])
# The stand-in knows no image of Debian's.
template = open('TEMPLATE').read().replace('/aws/service/debian/release/12/latest/amd64', '/image')
stacks.create_stack(StackName='showcase', TemplateBody=template, Capabilities=['CAPABILITY_IAM'],
                    Parameters=[dict(ParameterKey=k, ParameterValue=v) for k, v in wanted.items()])
stack = stacks.describe_stacks(StackName='showcase')['Stacks'][0]
outputs = {o['OutputKey']: o['OutputValue'] for o in stack['Outputs']}
role = stacks.describe_stack_resource(StackName='showcase', LogicalResourceId='Role')['StackResourceDetail']['PhysicalResourceId']
data = ec2.describe_instance_attribute(InstanceId=outputs['InstanceId'], Attribute='userData')['UserData']['Value']
# The stand-in gives the policy of a stack as Python writes it.
policy = iam.get_role_policy(RoleName=role, PolicyName='pam_iam')['PolicyDocument']
print(json.dumps(dict(status=stack['StackStatus'], name=outputs['PublicName'],
                      policy=ast.literal_eval(policy) if isinstance(policy, str) else policy,
                      data=base64.b64decode(data).decode())))";

#[test]
fn the_showcase_is_a_stack_whose_user_data_makes_a_host_that_lets_iam_users_in() {
    let template = repository().join("aws/showcase.yaml");
    let lint = repository().join(".venv/bin/cfn-lint");
    let lint = Command::new(lint).arg(&template).output().expect("cfn-lint");
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));

    let cloud = Machine::new().start();
    let stack = cloud.iam().python(&CREATE_STACK.replace("TEMPLATE", &template.to_string_lossy()));
    let stack: Value = serde_json::from_str(&stack).expect("JSON");
    assert_eq!(stack["status"], "CREATE_COMPLETE", "{stack}");
    assert!(stack["name"].as_str().is_some_and(|name| name.starts_with("ec2-")), "{stack}");
    assert_eq!(stack["policy"], shipped_policy("iam_ssh_policy.json"));
    assert_user_data_makes_a_host(stack["data"].as_str().expect("user data"));
}

/// Runs the user data as the instance does at its first boot, with the package from a file instead of the network.
fn assert_user_data_makes_a_host(user_data: &str) {
    assert!(user_data.starts_with("#!/bin/bash\n") && user_data.contains("iamctl enable"), "{user_data}");
    let host = Machine::new().bare().start();
    let url = format!("file://{}", package().display());
    let user_data =
        user_data.replace("'https://packages.example/pam-iam.deb'", &url).replace("=https", "=file");
    let refused = host.sh(&user_data).fails();
    assert!(refused.contains("WARNING: 1 computed checksum did NOT match"), "{refused}");

    let digest = host.run(&["sha256sum", &package().to_string_lossy()]).succeeds();
    let digest = digest.split(' ').next().expect("a digest");
    host.config().remove();
    host.sh(&user_data.replace(&"0".repeat(64), digest)).succeeds();
    assert_users_log_in(&host);
    host.ssh("bob", "true").fails();
}
