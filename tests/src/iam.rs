//! The box's IAM: changes to it, faults of it, and the calls that it has received.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Machine;

/// A client of the box's IAM with the rights of the AWS account's administrator.
#[derive(Clone, Copy)]
pub struct Iam<'machine> {
    machine: &'machine Machine,
}

/// A call that the box's IAM received.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Call {
    /// The API action, or `IMDS` for a metadata request.
    pub action: String,
    /// The parameters of the action, or the `path` of a metadata request.
    pub params: Value,
}

impl Machine {
    /// Returns a client of the box's IAM.
    pub fn iam(&self) -> Iam<'_> {
        Iam { machine: self }
    }

    /// Sends a query such as `fail=throttle` or `delay=2&only=GetUser` to the control address of the box's IAM
    /// (tests/README.md).
    pub fn fault(&self, query: &str) {
        self.sh(&format!("curl -sSf \"$BOX_CTL?{query}\"")).succeeds();
    }

    /// Gives the role of the instance the permissions of this IAM policy and no others.
    #[track_caller]
    pub fn limit_role(&self, policy: &Value) {
        let script = "curl -sSf -G \"$BOX_CTL\" --data-urlencode \"policy=$1\"";
        self.run(&["bash", "-c", script, "bash", &policy.to_string()]).succeeds();
    }

    /// Empties the list of calls that IAM has received.
    pub fn clear_calls(&self) {
        self.fault("clear");
    }

    /// Returns the calls that IAM has received since the list was last emptied.
    pub fn calls(&self) -> Vec<Call> {
        let log = self.sh("curl -sSf \"$BOX_CTL?log\"").succeeds();
        let log: Value = serde_json::from_str(&log).expect("a log");
        serde_json::from_value(log["calls"].clone()).expect("calls")
    }

    /// Returns the number of received calls of an API action.
    pub fn count_calls(&self, action: &str) -> usize {
        self.calls().iter().filter(|call| call.action == action).count()
    }

    /// Returns the API actions of the received calls, sorted, without requests for metadata.
    pub fn actions(&self) -> Vec<String> {
        let mut actions: Vec<String> = self.calls().into_iter().map(|call| call.action).collect();
        actions.retain(|action| action != "IMDS");
        actions.sort();
        actions
    }
}

impl Iam<'_> {
    /// Runs a Python script in which `iam` is a boto3 client. Returns its output.
    #[track_caller]
    pub fn python(self, script: &str) -> String {
        let script = format!("import boto3, json\niam = boto3.client('iam')\n{script}\n");
        // The file system of a booted box may lack this Python, so the script runs beside the box.
        let request = json!({"argv": ["bash", "-c", "exec $BOX_PYTHON -"], "stdin": script, "beside": true});
        self.machine.ask(&request, "exec $BOX_PYTHON").succeeds()
    }

    /// Adds a user to a group.
    #[track_caller]
    pub fn add_to_group(self, user: &str, group: &str) {
        self.python(&format!("iam.add_user_to_group(UserName='{user}', GroupName='{group}')"));
    }

    /// Removes a user from a group.
    #[track_caller]
    pub fn remove_from_group(self, user: &str, group: &str) {
        self.python(&format!("iam.remove_user_from_group(UserName='{user}', GroupName='{group}')"));
    }

    /// Creates a user without keys in these groups.
    #[track_caller]
    pub fn create_user(self, user: &str, groups: &[&str]) {
        self.python(&format!(
            "iam.create_user(UserName='{user}')
for group in {groups:?}: iam.add_user_to_group(UserName='{user}', GroupName=group)"
        ));
    }

    /// Creates a user in these groups with an RSA key, whose private half is `/root/USER` in the box.
    #[track_caller]
    pub fn create_user_with_key(self, user: &str, groups: &[&str]) {
        let path = format!("/root/{user}");
        self.machine.run(&["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", &path]).succeeds();
        self.create_user(user, groups);
        self.upload_key(user, &self.machine.file(&format!("{path}.pub")).text());
    }

    /// Uploads an SSH public key of a user.
    #[track_caller]
    pub fn upload_key(self, user: &str, body: &str) {
        self.python(&format!("iam.upload_ssh_public_key(UserName='{user}', SSHPublicKeyBody={body:?})"));
    }

    /// Removes a user from all groups, deletes the user's keys, and then the user.
    #[track_caller]
    pub fn delete_user(self, user: &str) {
        self.delete_keys(user);
        self.python(&format!(
            "for group in iam.list_groups_for_user(UserName='{user}')['Groups']:
    iam.remove_user_from_group(UserName='{user}', GroupName=group['GroupName'])
iam.delete_user(UserName='{user}')"
        ));
    }

    /// Deletes a user and creates one with the same name, keys and groups, and with another UserId.
    #[track_caller]
    pub fn recreate_user(self, user: &str) {
        self.python(&format!(
            "user = '{user}'
groups = [group['GroupName'] for group in iam.list_groups_for_user(UserName=user)['Groups']]
bodies = []
for key in iam.list_ssh_public_keys(UserName=user)['SSHPublicKeys']:
    found = iam.get_ssh_public_key(UserName=user, SSHPublicKeyId=key['SSHPublicKeyId'], Encoding='SSH')
    bodies.append(found['SSHPublicKey']['SSHPublicKeyBody'])
    iam.delete_ssh_public_key(UserName=user, SSHPublicKeyId=key['SSHPublicKeyId'])
for group in groups: iam.remove_user_from_group(UserName=user, GroupName=group)
iam.delete_user(UserName=user)
iam.create_user(UserName=user)
for body in bodies: iam.upload_ssh_public_key(UserName=user, SSHPublicKeyBody=body)
for group in groups: iam.add_user_to_group(UserName=user, GroupName=group)"
        ));
    }

    /// Renames a user, whose UserId stays.
    #[track_caller]
    pub fn rename_user(self, user: &str, new_name: &str) {
        self.python(&format!("iam.update_user(UserName='{user}', NewUserName='{new_name}')"));
    }

    /// Deletes all SSH public keys of a user.
    #[track_caller]
    pub fn delete_keys(self, user: &str) {
        self.python(&format!(
            "for key in iam.list_ssh_public_keys(UserName='{user}')['SSHPublicKeys']:
    iam.delete_ssh_public_key(UserName='{user}', SSHPublicKeyId=key['SSHPublicKeyId'])"
        ));
    }

    /// Sets the status of the first SSH public key of a user to Inactive.
    #[track_caller]
    pub fn deactivate_first_key(self, user: &str) {
        self.python(&format!(
            "key = iam.list_ssh_public_keys(UserName='{user}')['SSHPublicKeys'][0]['SSHPublicKeyId']
iam.update_ssh_public_key(UserName='{user}', SSHPublicKeyId=key, Status='Inactive')"
        ));
    }

    /// Returns the UserId of a user.
    #[track_caller]
    pub fn user_id(self, user: &str) -> String {
        self.python(&format!("print(iam.get_user(UserName='{user}')['User']['UserId'])"))
    }
}
