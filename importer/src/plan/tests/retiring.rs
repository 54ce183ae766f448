//! Tests of retired accounts: locked, archived, deleted, and brought back.

use super::*;

#[test]
fn a_user_missing_twice_in_a_row_is_locked_and_unlocked_when_back() {
    let mut host = Host::with_users("", 3);
    let gone = host.leave("user1");
    let first = host.run();
    assert_eq!((first.changes, first.waiting), (vec![], vec![("user1".to_owned(), 1)]));
    assert_eq!(host.run().changes, [Change::Lock { name: "user1".into() }]);
    let one = FIRST + 1;
    assert_eq!(
        host.passwd("user1"),
        Some(format!("user1:x:{one}:{one}:user1:/home/user1:/usr/sbin/nologin"))
    );
    assert_eq!(host.shadow("user1"), Some("user1:*:20000:::::1:".into()));
    let again = host.run();
    assert_eq!((again.changes, again.locked.len()), (vec![], 1), "sessions are ended in each run");
    assert!(host.members("iam-users").contains("user1"), "sshd's rule about keys applies to locked users");

    host.roster.users.push(gone);
    assert_eq!(host.run().changes, [Change::Unlock { name: "user1".into() }]);
    assert_eq!(host.shadow("user1"), Some("user1:*:20000::::::".into()));
    assert_eq!(host.locked(), 0);
}

#[test]
fn an_account_locked_as_usermod_suggests_stays_locked() {
    // Does to an account what `usermod -L -e 1 -s /usr/sbin/nologin` does.
    let mut host = Host::with_users("", 3);
    host.tables.passwd.get_mut("user1").unwrap()[SHELL] = NOLOGIN.to_owned();
    host.tables.shadow.as_mut().unwrap().get_mut("user1").unwrap()[EXPIRY] = EXPIRED.to_owned();
    let before = (host.passwd("user1"), host.shadow("user1"));
    for _ in 0..3 {
        assert_eq!(host.run().changes, []);
    }
    assert_eq!((host.passwd("user1"), host.shadow("user1")), before);
}

#[test]
fn a_user_who_was_back_is_counted_from_zero() {
    let mut host = Host::with_users("", 3);
    for _ in 0..3 {
        let gone = host.leave("user1");
        assert_eq!(host.run().changes, []);
        host.roster.users.push(gone);
        assert_eq!(host.run().changes, []);
    }
}

#[test]
fn an_incomplete_list_retires_nobody() {
    let mut host = Host::new("");
    host.add("alice", 1, &["iam-users", "docker"]);
    host.run();
    let mut alice = host.leave("alice");
    host.roster.complete = false;
    host.add("bob", 2, &["iam-users"]);
    for _ in 0..5 {
        host.run();
    }
    assert!(host.passwd("alice").unwrap().ends_with("/bin/bash") && host.members("docker").contains("alice"));
    assert!(host.passwd("bob").is_some(), "accounts are still created");
    // The user has been missing often enough, but this list is incomplete.
    host.roster.complete = true;
    host.run();
    host.roster.complete = false;
    alice.shell = "/bin/sh".into();
    host.run();
    host.run();
    assert_eq!(host.locked(), 0);
}

#[test]
fn no_run_retires_more_than_its_share() {
    for (users, gone, retired) in
        [(50, 10, 10), (50, 11, 0), (5, 3, 3), (5, 4, 0), (1000, 200, 200), (1000, 201, 0)]
    {
        let mut host = Host::with_users("", users);
        for number in 0..gone {
            host.leave(&format!("user{number}"));
        }
        host.run();
        let plan = host.run();
        assert_eq!(host.locked(), retired, "{gone} of {users}");
        let told = plan.refused.iter().any(|refusal| refusal.why.contains("iam-importer --force"));
        assert_eq!(told, retired == 0);
        host.force = true;
        host.run();
        assert_eq!(host.locked(), gone as usize, "with --force");
    }
}

#[test]
fn locked_accounts_do_not_count_towards_the_limit() {
    let mut host = Host::with_users("[importer]\nmax_retire = '50%'", 10);
    for number in 0..5 {
        host.leave(&format!("user{number}"));
    }
    host.run();
    host.run();
    assert_eq!(host.locked(), 5);
    // Of the 5 accounts left, 3 may be retired. Half of the 10 that there were would be 5.
    for number in 5..9 {
        host.leave(&format!("user{number}"));
    }
    host.run();
    host.run();
    assert_eq!(host.locked(), 5);
}

#[test]
fn archive_and_delete_remove_the_account() {
    for (retire, home_action) in [("archive", HomeAction::Archive), ("delete", HomeAction::Delete)] {
        let mut host = Host::with_users(&format!("[importer]\nretire = '{retire}'"), 3);
        host.leave("user1");
        host.run();
        let plan = host.run();
        let account = Account { name: "user1".into(), uid: uid(1) };
        let removal = Removal { account: account.clone(), home: "/home/user1".into(), home_action };
        assert_eq!((plan.remove, plan.locked), (vec![removal], vec![account]));
        assert_eq!((host.passwd("user1"), host.shadow("user1")), (None, None));
        assert!(host.tables.group.get("user1").is_none() && !host.members("iam-users").contains("user1"));
        assert_eq!(host.run().changes, []);
    }
}

#[test]
fn a_recreated_user_gets_an_account_when_the_old_one_is_removed() {
    let mut host = Host::with_users("", 5);
    host.leave("user1");
    host.add("user1", 77, &[]);
    let first = host.run();
    assert!(first.refused.iter().any(|refusal| refusal.why.contains("belongs to an earlier IAM user")));
    assert!(host.passwd("user1").unwrap().contains(&uid(1).to_string()));
    let second = host.run();
    assert_eq!(
        second.remove.iter().map(|removal| removal.home_action).collect::<Vec<_>>(),
        [HomeAction::Stays]
    );
    let new = uid(77);
    assert_eq!(host.passwd("user1"), Some(format!("user1:x:{new}:{new}:user1:/home/user1:/bin/bash")));
    assert_eq!(host.run().changes, []);
}

#[test]
fn an_expired_account_without_a_record_stays_locked() {
    let mut host = Host::with_users("", 1);
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("user0").unwrap() = "user0:!*:20000:::::1:".split(':').map(str::to_owned).collect();
    assert_eq!(host.run().changes, []);
}

#[test]
fn an_adopted_account_that_an_administrator_has_locked_stays_locked() {
    let mut host = Host::new("");
    *host.tables.passwd.get_mut("jonathan").unwrap().get_mut(SHELL).unwrap() = NOLOGIN.into();
    let shadow = host.tables.shadow.as_mut().unwrap();
    *shadow.get_mut("jonathan").unwrap() = "jonathan:!*:20000:::::1:".split(':').map(str::to_owned).collect();
    host.roster.adopted = vec![linux("jonathan")];
    host.run();
    assert_eq!(host.shadow("jonathan"), Some("jonathan:!*:20000:::::1:".into()));
    assert_eq!(host.run().changes, []);
}

#[test]
fn accounts_that_cannot_be_removed_do_not_keep_others_from_being_locked() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 10);
    let uids: Vec<Uid> = (0..10).map(uid).collect();
    for number in 0..3 {
        host.leave(&format!("user{number}"));
    }
    for _ in 0..2 {
        host.state.count(uids.clone(), |known| known.0 >= uid(3).0);
    }
    // Their homes cannot be cleared, so no run removes an account.
    for _ in 0..3 {
        let mut plan = host.plan();
        host.tables = std::mem::take(&mut plan.tables);
        assert_eq!((plan.remove.len(), plan.limit), (3, 3));
    }
    for number in 3..6 {
        host.leave(&format!("user{number}"));
    }
    for _ in 0..2 {
        host.state.count(uids.clone(), |known| known.0 >= uid(6).0);
    }
    let plan = host.plan();
    assert_eq!(plan.changes.iter().filter(|change| matches!(change, Change::Lock { .. })).count(), 3);
    assert_eq!((plan.remove.len(), plan.limit), (6, 3), "and no more than the limit is removed at once");
}

#[test]
fn an_account_without_a_shell_by_an_administrator_stays_without() {
    let mut host = Host::with_users("", 1);
    *host.tables.passwd.get_mut("user0").unwrap().get_mut(SHELL).unwrap() = NOLOGIN.into();
    assert_eq!(host.run().changes, []);
}

#[test]
fn a_home_directory_is_not_moved() {
    let mut host = Host::with_users("", 1);
    host.roster.users[0].home = "/srv/user0".into();
    assert_eq!(host.run().changes, []);
}

#[test]
fn with_an_instance_tag_as_rule_no_home_is_removed() {
    let mut host = Host::with_users("[importer]\nretire = 'delete'", 3);
    host.config.access.allow =
        Config::parse("[access]\nallow = { tag = 'x', within = ['*'] }", Path::new("c"))
            .unwrap()
            .access
            .allow;
    host.leave("user1");
    host.run();
    let plan = host.run();
    assert_eq!((plan.remove, host.locked()), (vec![], 1));
}
