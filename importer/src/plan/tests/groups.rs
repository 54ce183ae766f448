//! Tests of group memberships.

use super::*;

#[test]
fn an_adopted_account_gets_groups_and_is_locked_but_never_removed() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 5);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.roster.adopted = vec![linux("jonathan")];
    for group in &mut host.roster.groups {
        group.members.push(linux("jonathan"));
    }
    host.run();
    assert_eq!(host.members("iam-sudo"), "jonathan");
    assert_eq!(host.passwd("jonathan"), Some("jonathan:x:1001:1001::/home/jonathan:/bin/zsh".into()));
    host.roster.adopted.clear();
    for group in &mut host.roster.groups {
        group.members.retain(|member| member.as_str() != "jonathan");
    }
    host.run();
    let plan = host.run();
    assert_eq!((plan.remove, plan.locked.len()), (vec![], 1));
    assert_eq!(
        host.passwd("jonathan"),
        Some("jonathan:x:1001:1001::/home/jonathan:/bin/zsh".into()),
        "its shell included"
    );
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::1:".into()));
    assert_eq!(host.members("iam-sudo"), "");
    assert!(host.members("iam-users").contains("jonathan"), "sshd's rule about keys still applies");
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::20999:".into()), "as it was");
}

#[test]
fn groups_follow_iam_and_the_configuration() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "iam-sudo", "docker"]);
    host.run();
    host.roster.groups.iter_mut().find(|group| group.name.as_str() == "iam-sudo").unwrap().members.clear();
    assert_eq!(host.run().changes, [Change::Leave { name: "alice".into(), group: "iam-sudo".into() }]);
    // The configuration no longer maps an IAM group to docker.
    host.roster.groups.retain(|group| group.name.as_str() != "docker");
    assert_eq!(host.run().changes, [Change::Leave { name: "alice".into(), group: "docker".into() }]);
    assert_eq!(host.members("docker"), "ec2-user,aduser");
}

#[test]
fn groups_of_a_new_user_are_not_given_to_the_old_account_of_the_name() {
    let mut host = Host::with_users("", 5);
    host.leave("user1");
    host.add("user1", 77, &["docker", "iam-sudo"]);
    host.run();
    assert_eq!((host.members("docker"), host.members("iam-sudo")), ("ec2-user,aduser".into(), String::new()));
    host.run();
    assert_eq!(host.members("iam-sudo"), "user1");
}

#[test]
fn an_account_that_is_no_longer_adopted_loses_its_groups() {
    let mut host = Host::with_users("", 1);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.roster.adopted = vec![linux("jonathan")];
    for group in &mut host.roster.groups {
        group.members.push(linux("jonathan"));
    }
    host.run();
    assert!(host.members("docker").contains("jonathan"));
    host.adopted.clear();
    host.roster.adopted.clear();
    for group in &mut host.roster.groups {
        group.members.retain(|member| member.as_str() != "jonathan");
    }
    host.run();
    for group in ["docker", "iam-sudo", "iam-users"] {
        assert!(!host.members(group).contains("jonathan"), "{group}");
    }
    assert!(host.members("docker").contains("aduser"), "the importer did not add it");
}

#[test]
fn a_listed_user_loses_a_group_by_an_incomplete_list_too() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    host.roster.complete = false;
    host.roster.groups[0].members.clear();
    host.run();
    assert_eq!(host.members("docker"), "ec2-user,aduser");
}

#[test]
fn a_group_whose_members_differ_in_the_two_files_is_repaired() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    let before = host.tables.clone();
    host.roster.groups[0].members.clear();
    host.run();
    let after = host.tables.clone();
    host.tables = cut_off(&before, &after, 1);
    host.run();
    assert_eq!(host.members("docker"), "ec2-user,aduser", "and gshadow agrees");
}
