//! Tests of runs that were cut off between two files, and of the runs that finish them.

use super::*;

#[test]
fn an_interrupted_run_is_completed() {
    let whole = {
        let mut host = Host::new("");
        host.add("alice", 1, &["iam-users", "docker"]);
        host.run();
        host.tables
    };
    // The files are renamed in this order: group, gshadow, shadow, passwd.
    for put in 0..4 {
        let mut host = Host::new("");
        host.add("alice", 1, &["iam-users", "docker"]);
        host.tables.group = whole.group.clone();
        if put > 0 {
            host.tables.gshadow = whole.gshadow.clone();
        }
        if put > 1 {
            host.tables.shadow = whole.shadow.clone();
        }
        host.run();
        assert_eq!(host.passwd("alice"), whole.passwd.get("alice").map(|row| row.join(":")), "{put}");
        assert_eq!(host.shadow("alice"), Some("alice:*:20000::::::".into()), "{put}");
        assert_eq!(host.plan().changes, [], "{put}");
    }
}

#[test]
fn a_renamed_user_keeps_the_account() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.add("bob", 2, &["iam-users"]);
    host.run();
    // The two users exchange their names.
    let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
    std::mem::swap(&mut alice.name, &mut bob.name);
    host.roster.users = vec![alice, bob];
    host.roster.groups[2].members = vec![linux("alice"), linux("bob")];
    host.roster.groups[0].members = vec![linux("bob")];
    host.run();
    assert!(host.passwd("bob").unwrap().starts_with(&format!("bob:x:{}:", uid(1))));
    assert!(host.passwd("alice").unwrap().starts_with(&format!("alice:x:{}:", uid(2))));
    assert_eq!(host.members("docker"), "ec2-user,aduser,bob");
    assert_eq!(host.plan().changes, []);
}

#[test]
fn an_interrupted_renaming_is_completed() {
    for names in [["alicia", "bob"], ["bob", "alice"], ["bob", "robert"]] {
        let before = || {
            let mut host = Host::new("");
            host.add("alice", 1, &["iam-users", "docker"]);
            host.add("bob", 2, &["iam-users"]);
            host.run();
            let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
            (alice.name, bob.name) = (linux(names[0]), linux(names[1]));
            host.roster.users = vec![alice, bob];
            host.roster.groups[2].members = names.map(linux).to_vec();
            host.roster.groups[0].members = vec![linux(names[0])];
            host
        };
        let mut whole = before();
        let old = whole.tables.clone();
        whole.run();
        for put in 0..4 {
            let mut host = before();
            host.tables = cut_off(&old, &whole.tables, put);
            host.run();
            for (number, name) in [(1, names[0]), (2, names[1])] {
                assert!(
                    host.passwd(name).unwrap().starts_with(&format!("{name}:x:{}:", uid(number))),
                    "{names:?} {put}"
                );
                assert!(host.shadow(name).is_some(), "{names:?} {put}");
            }
            assert_eq!(managed_accounts(&host.tables).len(), 2, "{names:?} {put}");
            assert_eq!(host.members("docker"), whole.members("docker"), "{names:?} {put}");
            assert_eq!(host.plan().changes, [], "{names:?} {put}");
        }
    }
}

#[test]
fn an_account_that_cannot_be_renamed_blocks_those_that_need_its_name() {
    let mut host = Host::new("");
    for (number, name) in ["alice", "bob", "carol"].iter().enumerate() {
        host.add(name, u32::try_from(number).unwrap(), &[]);
    }
    host.run();
    // carol is missing and not yet retired. bob is renamed to carol, and alice to bob.
    let (mut alice, mut bob) = (host.leave("alice"), host.leave("bob"));
    host.leave("carol");
    (alice.name, bob.name) = (linux("bob"), linux("carol"));
    host.roster.users = vec![alice, bob];
    let plan = host.run();
    assert_eq!(plan.refused.len(), 2, "{:?}", plan.refused);
    let names: BTreeSet<&String> = host.tables.passwd.rows().filter_map(|row| row.first()).collect();
    assert_eq!(names.len(), host.tables.passwd.rows().count(), "no name twice");
    host.run();
    host.run();
    assert!(host.passwd("carol").unwrap().contains(&uid(1).to_string()));
    assert!(host.passwd("bob").unwrap().contains(&uid(0).to_string()));
}

#[test]
fn an_interrupted_lock_is_completed_and_keeps_the_former_date() {
    let mut host = Host::with_users("", 5);
    host.adopted = vec![("jonathan".into(), Uid(1001))];
    host.run();
    // The state is saved, and the account files are not replaced.
    host.state.count([Uid(1001)], |_| false);
    host.state.count([Uid(1001)], |_| false);
    let plan = host.plan();
    assert!(plan.changes.contains(&Change::Lock { name: "jonathan".into() }));
    host.state.locked = plan.former_expiry;
    let again = host.plan();
    assert!(again.changes.contains(&Change::Lock { name: "jonathan".into() }), "it is still to be done");
    host.run();
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:$6$x:1:0:99999:7::20999:".into()));

    // A managed account has expired but still has its shell when its user comes back.
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("user0").unwrap().get_mut(EXPIRY).unwrap() = "1".into();
    host.state.locked.insert("user0".into(), "20500".into());
    host.run();
    assert_eq!(host.shadow("user0"), Some("user0:*:20000:::::20500:".into()));
}
