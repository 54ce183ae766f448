//! Accounts of IAM users whose names are unusable, or who have the name or the uid of another user.

use pam_iam_tests::Machine;
use serde_json::{Value, json};

/// The first uid of the managed range.
const FIRST_MANAGED_UID: u32 = 2_013_265_920;

/// Returns fixtures with IAM users of these names, each with a key and in ssh-users and ssh-admins.
fn users(names: &[&str]) -> Value {
    let user = |name: &&str| json!({"name": name, "groups": ["ssh-users", "ssh-admins"], "keys": [{}]});
    json!({"groups": ["ssh-users", "ssh-admins"], "users": names.iter().map(user).collect::<Vec<_>>()})
}

/// IAM names of which only the last is usable. `ec2-user` is also a local account.
const IAM_NAMES: [&str; 11] = [
    "root",
    "ec2-user",
    "daemon",
    "-oProxyCommand=x",
    ".",
    "..",
    "12345",
    "x123456789012345678901234567@x",
    "a@b",
    "a.at.b",
    "Bob",
];

const LOCAL_ACCOUNTS: [&str; 3] = ["root", "ec2-user", "daemon"];

/// Linux names that no IAM user of `IAM_NAMES` may get.
const REFUSED_NAMES: [&str; 13] = [
    "root",
    "ec2-user",
    "daemon",
    "-oProxyCommand.equal.x",
    ".",
    "..",
    "12345",
    "x123456789012345678901234567.at.x",
    "a.at.b",
    "bob",
    "a b",
    "a/b",
    "",
];

/// The unusable IAM names, each with the reason that the resolver and the importer give for the refusal.
const REASONS: [(&str, &str); 10] = [
    ("root", "its name is that of a local account"),
    ("ec2-user", "its name is that of a local account"),
    ("daemon", "its name is that of a local account"),
    ("-oProxyCommand=x", "its Linux name begins with '-' or '.'"),
    (".", "its Linux name begins with '-' or '.'"),
    ("..", "its Linux name begins with '-' or '.'"),
    ("12345", "its Linux name is all digits"),
    ("x123456789012345678901234567@x", "its Linux name has 33 characters, more than 32"),
    ("a@b", "a.at.b and a@b would all be called a.at.b"),
    ("a.at.b", "a.at.b and a@b would all be called a.at.b"),
];

/// Adds the local account ec2-user. useradd(8) refuses to, since an IAM user has the name.
fn add_ec2_user(machine: &Machine) {
    machine.file("/etc/passwd").append("ec2-user:x:1000:1000::/home/ec2-user:/bin/bash\n");
    machine.file("/etc/shadow").append("ec2-user:*:20000::::::\n");
    machine.run(&["install", "-d", "-o", "1000", "/home/ec2-user"]).succeeds();
}

/// Asserts that the key command, sshd, PAM and NSS treat no name of [`REFUSED_NAMES`] as that of a managed user.
fn assert_that_names_are_refused(machine: &Machine) {
    for name in REFUSED_NAMES {
        assert_eq!(machine.authorized_keys(name), "", "{name:?}");
        // Tries the keys of all IAM users, among them the key of the user whose name this is.
        let any_key_opens = format!(
            "for key in $BOX_KEYS/*; do timeout 10 box-ssh -i $key -- '{name}' true && exit 0; done; exit 1"
        );
        machine.sh(&any_key_opens).fails();
        let decision = machine.pam("sshd", name).acct_mgmt();
        let is_local = LOCAL_ACCOUNTS.contains(&name);
        assert_eq!(decision.status == 0, is_local, "{name:?}: only local accounts may log in: {decision:?}");
        let entry = machine.passwd(name);
        assert!(entry.as_ref().is_none_or(|entry| entry.uid < FIRST_MANAGED_UID), "{name:?}: {entry:?}");
    }
    machine.ssh("Bob", "true").succeeds();
}

#[test]
fn unusable_names_are_refused_by_nss_pam_and_sshd() {
    let machine = Machine::new().fixtures(users(&IAM_NAMES)).start();
    add_ec2_user(&machine);
    assert_that_names_are_refused(&machine);
    // A resolver logs the refused names when it first reads the list of users.
    machine.restart_resolver_by("KILL");
    for (name, why) in REASONS {
        machine.wait_for_log("resolver", &format!("refused IAM user {name}: {why}"));
    }
}

#[test]
fn unusable_names_are_refused_by_the_importer() {
    let machine = Machine::new().fixtures(users(&IAM_NAMES)).importer().start();
    // The box has run the importer, which has made an account ec2-user.
    machine.run(&["userdel", "ec2-user"]).succeeds();
    add_ec2_user(&machine);
    let before = passwd_without_bob(&machine);
    let done = machine.run(&["iam-importer"]);
    assert_eq!(done.status, 1);
    assert_eq!(passwd_without_bob(&machine), before);
    assert_that_names_are_refused(&machine);
    for (name, why) in REASONS {
        assert!(done.stdout.contains(&format!("refused {name}: {why}\n")), "{name}: {}", done.stdout);
        let field = if name.contains('=') { format!("\"{name}\"") } else { name.to_owned() };
        machine.wait_for_log(
            "authpriv",
            &format!("event=import action=refuse iam_name={field} reason=\"{why}\""),
        );
    }
}

fn passwd_without_bob(machine: &Machine) -> String {
    let text = machine.file("/etc/passwd").text();
    text.split_inclusive('\n').filter(|line| !line.starts_with("Bob")).collect()
}

#[test]
fn an_imported_account_is_refused_once_a_second_user_maps_to_its_name() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "a.at.b", "groups": ["ssh-users"], "keys": [{}]},
            {"name": "bob", "groups": ["ssh-users"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .importer()
        .start();
    machine.ssh("a.at.b", "true").succeeds();
    let uid = machine.uid_of("a.at.b");
    assert!(machine.key_command("a.at.b", uid).succeeds().starts_with("ssh-rsa "));

    machine.iam().create_user("a@b", &["ssh-users"]);
    assert_eq!(machine.key_command("a.at.b", uid).stdout, "");
    machine.pam("sshd", "a.at.b").acct_mgmt().fails();
    machine.wait_for_log("authpriv", "result=deny reason=ambiguous");
    machine.ssh("a.at.b", "true").fails();
    let imported = machine.run(&["iam-importer"]).stdout;
    assert!(imported.contains("refused a@b: a.at.b and a@b would all be called a.at.b"), "{imported}");
}

/// Two UserIds that give the uid `SHARED_UID` (docs/uids.md has the function).
const COLLIDING_IDS: [&str; 2] = ["AIDAEXAMPLE0000006202", "AIDAEXAMPLE0000012239"];
const SHARED_UID: u32 = 2_019_794_717;

#[test]
fn of_two_users_with_one_uid_the_later_gets_no_account() {
    for builder in [Machine::new(), Machine::new().importer()] {
        let machine = builder
            .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
                {"name": "early", "id": COLLIDING_IDS[0], "groups": ["ssh-users"], "keys": [{}]},
                {"name": "late", "id": COLLIDING_IDS[1], "groups": ["ssh-users"], "keys": [{}]}]}))
            .start();
        assert_eq!(machine.ssh("early", "id -u").succeeds(), SHARED_UID.to_string());
        machine.ssh("late", "true").fails();
        assert_eq!(machine.passwd("late"), None);
        assert_eq!(machine.authorized_keys("late"), "");
        assert_eq!(machine.key_command("late", SHARED_UID).stdout, "");
        let owner = machine.passwd(&SHARED_UID.to_string()).map(|entry| entry.name);
        assert_eq!(owner.as_deref(), Some("early"));
        machine.wait_for_log(
            "resolver",
            "refused IAM user late: it has the uid 2019794717 of early, who came first",
        );
    }
}
