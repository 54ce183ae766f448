//! A name changes hands while its first owner has a session open: the uid of that session never gets a name that is not its
//! user's, and never the rights that somebody of that name has.

use pam_iam_tests::Machine;
use serde_json::json;

/// One way in which the name of alice changes hands, and the way back.
struct Change {
    what: &'static str,
    /// A script of root's, run after `iam`.
    host: &'static str,
    /// A change of IAM, in Python.
    iam: &'static str,
    /// Whether the session's uid still has the name alice afterwards.
    is_still_hers: bool,
}

const fn change(what: &'static str, iam: &'static str, host: &'static str, is_still_hers: bool) -> Change {
    Change { what, host, iam, is_still_hers }
}

const CHANGES: &[Change] = &[
    change("nothing happens", "", "", true),
    change("a local account of the name is made", "", "echo 'alice:x:5000:5000::/home/alice:/bin/bash' >>/etc/passwd", false),
    change("a local account with the name and sudo", "", "echo 'alice:x:5000:5000::/home/alice:/bin/bash' >>/etc/passwd; sed -i '/^sudo:/s/$/alice/' /etc/group", false),
    change("a local group of the name is made", "", "echo 'alice:x:5000:' >>/etc/group", false),
    change("a privileged group lists the name", "", "sed -i '/^adm:/s/$/,alice/' /etc/group", false),
    change("a package's unit claims the name", "", "printf '[Service]\\nUser=alice\\n' >/usr/lib/systemd/system/hands.service", false),
    change("sysusers.d claims the name", "", "echo 'u alice - x' >/usr/lib/sysusers.d/hands.conf", false),
    change("a dynamic user has the name", "", "printf '[Service]\\nDynamicUser=yes\\n' >/etc/systemd/system/alice.service", false),
    change("she leaves the group", "iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')", "", false),
    change("she is denied", "iam.add_user_to_group(UserName='alice', GroupName='denied')", "", false),
    change("she leaves the group while the resolver is dead",
        "iam.remove_user_from_group(UserName='alice', GroupName='ssh-users')", "mv /run/pam_iam/resolver.sock /run/aside.sock", false),
    change("she is recreated", "recreate('alice')", "", false),
    change("she is recreated, by the roster alone", "recreate('alice')", "iamctl flush", false),
    change("she is renamed", "iam.update_user(UserName='alice', NewUserName='alicia')", "", false),
    change("an admin takes her name over",
        "iam.update_user(UserName='alice', NewUserName='alicia'); iam.update_user(UserName='carol', NewUserName='alice')", "", false),
    change("an admin takes her name over while IAM was silent, and then it is heard",
        "iam.update_user(UserName='alice', NewUserName='alicia'); iam.update_user(UserName='carol', NewUserName='alice')",
        "curl -sSf \"$BOX_CTL?fail=hang\"; getent passwd alice >/dev/null; curl -sSf \"$BOX_CTL?fail=\"", false),
    change("she is deleted", "delete('alice')", "", false),
    change("two users claim her name", "iam.create_user(UserName='alice@example.com')\niam.add_user_to_group(UserName='alice@example.com', GroupName='ssh-users')",
        "sed -i \"s/^shell/drop_suffix = ['@example.com']\\nshell/\" /etc/pam_iam/config.toml; systemctl restart iam-resolver.service", false),
    change("an account of her name is adopted", "", "echo 'alice:x:5000:5000::/home/alice:/bin/bash' >>/etc/passwd; sed -i \"s/^shell/adopt = ['alice']\\nshell/\" /etc/pam_iam/config.toml; systemctl restart iam-resolver.service", false),
    change("an account of her name is adopted no longer", "",
        "echo 'alice:x:5000:5000::/home/alice:/bin/bash' >>/etc/passwd; sed -i \"s/^shell/adopt = ['alice']\\nshell/\" /etc/pam_iam/config.toml; systemctl restart iam-resolver.service; id alice
         sed -i /^adopt/d /etc/pam_iam/config.toml; systemctl restart iam-resolver.service", false),
    change("the cache alone knows her", "", "curl -sSf \"$BOX_CTL?fail=hang\"; systemctl restart iam-resolver.service", true),
    change("a uid is assigned to her by hand", "", "sed -i \"s/^shell/uids.$(id_of alice) = 2147287050\\nshell/\" /etc/pam_iam/config.toml; systemctl restart iam-resolver.service", false),
];

/// What a change may use, and the way back from each.
const PYTHON: &str = "
def key(name):
    return [iam.get_ssh_public_key(UserName=name, SSHPublicKeyId=k['SSHPublicKeyId'], Encoding='SSH')['SSHPublicKey']['SSHPublicKeyBody']
            for k in iam.list_ssh_public_keys(UserName=name)['SSHPublicKeys']]
def delete(name):
    for k in iam.list_ssh_public_keys(UserName=name)['SSHPublicKeys']:
        iam.delete_ssh_public_key(UserName=name, SSHPublicKeyId=k['SSHPublicKeyId'])
    for g in iam.list_groups_for_user(UserName=name)['Groups']:
        iam.remove_user_from_group(UserName=name, GroupName=g['GroupName'])
    iam.delete_user(UserName=name)
def recreate(name):
    keys = key(name)
    delete(name)
    iam.create_user(UserName=name)
    for body in keys:
        iam.upload_ssh_public_key(UserName=name, SSHPublicKeyBody=body)
    iam.add_user_to_group(UserName=name, GroupName='ssh-users')
";

#[test]
fn a_uid_never_gets_a_foreign_name_nor_a_foreign_right_when_its_name_changes_hands() {
    // Each in a box of its own, two at a time.
    std::thread::scope(|scope| {
        for changes in CHANGES.chunks(CHANGES.len().div_ceil(2)) {
            scope.spawn(|| changes.iter().for_each(check));
        }
    });
}

fn check(change: &Change) {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "denied"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .settings("deny = ['denied']\n[accounts]\nshell = '/bin/bash'\n[freshness]\nmax_age = 0")
        .booted()
        .start();
    // A rule that somebody on this host made for a local alice of the future.
    machine.sh("echo 'alice ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/local").succeeds();
    let uid = machine.ssh("alice", "id -u").succeeds();
    let what = change.what;
    machine.iam().python(&format!("{PYTHON}\n{}", change.iam));
    let id_of = "id_of() { python3 -c \"import boto3; print(boto3.client('iam').get_user(UserName='$1')['User']['UserId'])\"; }";
    machine.sh(&format!("{id_of}\n{}", change.host)).succeeds();
    // What the resolver finds out by the next question.
    let _ = machine.ssh("alice", "true");
    let name = machine.sh(&format!("getent passwd {uid} | cut -d: -f1")).stdout.trim().to_owned();
    assert_eq!(name, if change.is_still_hers { "alice" } else { "" }, "{what}");
    // What still runs under the uid.
    let sudo =
        machine.sh(&format!("setpriv --reuid {uid} --regid {uid} --clear-groups timeout 20 sudo -n id -u"));
    assert_ne!((sudo.status, sudo.stdout.as_str()), (0, "0"), "{what}: {sudo:?}");
    for group in ["sudo", "iam-sudo", "adm"] {
        let script =
            format!("setpriv --reuid {uid} --regid {uid} --clear-groups sg {group} -c 'id -u' </dev/null");
        assert_ne!(machine.sh(&script).status, 0, "{what}: {group}");
    }
}
