//! Tests of accounts: which IAM users have one, and which names and uids they may not have.

use super::*;

#[tokio::test(flavor = "local", start_paused = true)]
async fn users_who_may_log_in_have_accounts_and_no_others() {
    let host = Host::new();
    let alice = host.user("alice").await.unwrap();
    assert_eq!((alice.uid, alice.gid), (uid(1), Gid(uid(1).0)));
    assert_eq!((alice.home.as_str(), alice.shell.as_str()), ("/home/alice", "/bin/bash"));
    assert_eq!(host.user("nobody-there").await, None);
    assert_eq!(host.ask(Request::UserByUid { uid: uid(1) }).await, Answer::User(alice));
    // bob is an IAM user, but in none of the groups.
    assert_eq!(host.decide("bob", uid(2), LOGIN).await, (false, Reason::NotInGroup));
    assert_eq!((host.user("bob").await, host.keys("bob", uid(2), None).await), (None, 0));
    let gid = Gid(uid(2).0);
    for request in [
        Request::UserByUid { uid: uid(2) },
        Request::GroupByName { name: linux("bob") },
        Request::GroupByGid { gid },
        Request::GroupsOf { name: linux("bob"), known: false },
    ] {
        assert_eq!(host.ask(request.clone()).await, Answer::NotFound, "{request:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_account_that_the_importer_made_keeps_the_group_that_restricts_and_no_other() {
    let host = Host::new();
    let mut passwd = std::fs::read_to_string(&host.files.passwd).unwrap();
    for (name, uid) in [("bob", uid(2)), ("carol", uid(3))] {
        passwd.push_str(&format!("{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n"));
    }
    std::fs::write(&host.files.passwd, passwd).unwrap();
    assert_eq!(host.gids("bob").await, [ids::gid_of(IAM_USERS)]);
    assert!(host.gids("carol").await.len() > 2);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_user_added_to_a_group_has_an_account_at_the_first_lookup_by_root() {
    let host = Host::new();
    assert_eq!(host.user("bob").await, None);
    host.iam().change("bob", |bob| bob.groups = vec!["users".into()]);
    tokio::time::advance(Duration::from_secs(10)).await;
    let before = host.iam().calls.borrow().len();
    let request = Request::UserByName { name: linux("bob") };
    for _ in 0..100 {
        let answer = host.answerer.answer(&request, Uid(1001)).await;
        assert_eq!(answer, Answer::NotFound, "another user's look-up");
    }
    assert_eq!(host.iam().calls.borrow().len(), before, "which costs no call");
    assert_eq!(host.user("bob").await.unwrap().uid, uid(2));
    assert_eq!(host.keys("bob", uid(2), None).await, 1);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_user_added_to_a_group_has_an_account_although_others_exhausted_the_limit() {
    let host = Host::new();
    let apps: Vec<String> = (0..60).map(|number| format!("app{number}")).collect();
    for app in &apps {
        host.iam().add(app, &[]);
    }
    host.directory.read_roster().await.unwrap();
    assert_eq!(host.user("bob").await, None);
    for app in &apps {
        host.decide(app, uid(1), LOGIN).await;
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    // The apps are all known now as users who may not log in.
    host.iam().change("bob", |bob| bob.groups = vec!["users".into()]);
    tokio::time::advance(Duration::from_secs(31)).await;
    for app in &apps[..40] {
        assert_eq!(host.user(app).await, None);
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(host.user("bob").await.unwrap().uid, uid(2));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn names_of_ineligible_users_cost_as_many_calls_as_unknown_names() {
    let host = Host::new();
    for number in 0..100 {
        host.iam().add(&format!("app{number}"), &[]);
    }
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        for at in 0..1000 {
            assert_eq!(host.user(&format!("app{}", at % 100)).await, None);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let users = host.iam().take_calls().into_iter().filter(|call| call.starts_with("GetUser ")).count();
    let tokens = 30 + usize::try_from(began.elapsed().as_secs()).unwrap() / 2;
    assert!((30..=tokens).contains(&users), "{users} of {tokens}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_the_host_claims_goes_to_no_iam_user() {
    let host = Host::new();
    let units = host.files.passwd.with_file_name("usr/lib/systemd/system");
    std::fs::create_dir_all(&units).unwrap();
    std::fs::write(units.join("app.service"), "[Service]\nUser=alice\n").unwrap();
    let groups = std::fs::read_to_string(&host.files.group).unwrap();
    std::fs::write(&host.files.group, groups + "adm:x:4:carol\n").unwrap();
    for (name, number) in [("alice", 1), ("carol", 3)] {
        assert_eq!(host.user(name).await, None, "{name}");
        assert_eq!(host.keys(name, uid(number), None).await, 0, "{name}");
        assert_eq!(host.decide(name, uid(number), LOGIN).await, (false, Reason::NameClaimed), "{name}");
        assert_eq!(host.ask(Request::UserByUid { uid: uid(number) }).await, Answer::NotFound, "{name}");
    }
    let Answer::Report { report } = host.ask(Request::Explain { name: linux("carol") }).await else {
        panic!()
    };
    assert_eq!(report["claim"], "the name is a member of the group adm in /etc/group");
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    assert!(roster.users.is_empty(), "{roster:?}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_uid_of_a_local_account_of_another_name_goes_to_no_iam_user() {
    let host = Host::new();
    let line = format!("svc:x:{0}:{0}::/:/bin/sh\n", uid(1));
    let passwd = std::fs::read_to_string(&host.files.passwd).unwrap();
    std::fs::write(&host.files.passwd, passwd + &line).unwrap();
    assert_eq!(host.user("alice").await, None);
    assert_eq!(host.keys("alice", uid(1), None).await, 0);
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::UidTaken));
    assert_eq!(host.ask(Request::UserByUid { uid: uid(1) }).await, Answer::NotFound);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_iam_user_named_like_a_local_account_gets_nothing() {
    let host = Host::new();
    for (name, local, number) in [("root", 0, 4), ("ec2-user", 1000, 5), ("daemon", 1, 8)] {
        assert_eq!(host.user(name).await, None, "{name}");
        for claimed in [Uid(local), uid(number)] {
            assert_eq!(host.keys(name, claimed, None).await, 0, "{name}");
        }
        for policy in [Policy::Login, Policy::Sudo] {
            assert_eq!(host.decide(name, Uid(local), policy).await, (false, Reason::Local), "{name}");
        }
    }
    assert_eq!(host.iam().calls.borrow().len(), 0, "a local account costs no call");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_iam_user_named_like_a_group_gets_nothing() {
    let host = Host::new();
    // sudo compares the names of groups: a user with a private group called sudo, wheel, admin or iam-sudo would be root.
    for (at, name) in ["sudo", "wheel", "admin", "iam-sudo", "iam-users", "dev", "webteam"].iter().enumerate()
    {
        host.iam().add(name, &["users", "admins"]);
        let uid = uid(9 + u32::try_from(at).unwrap());
        assert_eq!(host.user(name).await, None, "{name}");
        assert_eq!(host.keys(name, uid, None).await, 0, "{name}");
        assert_eq!(host.decide(name, uid, LOGIN).await, (false, Reason::NameOfGroup), "{name}");
        assert_eq!(
            host.ask(Request::GroupsOf { name: linux(name), known: false }).await,
            Answer::NotFound,
            "{name}"
        );
        assert!(!matches!(host.ask(Request::UserByUid { uid }).await, Answer::User(_)), "{name}");
        let group = host.ask(Request::GroupByGid { gid: Gid(uid.0) }).await;
        assert_eq!(group, Answer::NotFound, "{name}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_account_of_a_deleted_user_does_not_serve_a_new_user_of_the_name() {
    let host = Host::new();
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup));
    host.iam().add("alice", &["users"]);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::UidMismatch));
    assert_eq!(host.keys("alice", uid(1), None).await, 0);
    assert_eq!(host.decide("alice", uid(9), LOGIN).await, (true, Reason::InGroup));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn of_two_users_with_one_uid_the_later_is_refused() {
    let host = Host::new();
    let (one, other) = ids_that_meet();
    for name in ["early", "late"] {
        host.iam().add(name, &["users"]);
    }
    host.iam().change("early", |early| early.id.clone_from(&other));
    host.iam().change("late", |late| late.id.clone_from(&one));
    host.directory.read_roster().await.unwrap();
    let uid = ids::uid_of(&one);
    assert_eq!(host.decide("early", uid, LOGIN).await, (true, Reason::InGroup));
    assert_eq!(host.decide("late", uid, LOGIN).await, (false, Reason::UidTaken));
    assert_eq!((host.keys("early", uid, None).await, host.keys("late", uid, None).await), (1, 0));
    assert_eq!(host.user("late").await, None);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_operator_gives_the_later_of_two_users_with_one_uid_another_one() {
    let (one, other) = ids_that_meet();
    let host = Host::with(&format!("[access]\nallow = ['users']\n[accounts.uids]\n{one} = 2147287040"));
    for name in ["early", "late"] {
        host.iam().add(name, &["users"]);
    }
    host.iam().change("early", |early| early.id.clone_from(&other));
    host.iam().change("late", |late| late.id.clone_from(&one));
    host.directory.read_roster().await.unwrap();
    for (name, uid) in [("early", ids::uid_of(&other)), ("late", Uid(2_147_287_040))] {
        assert_eq!(host.user(name).await.unwrap().uid, uid, "by the list");
        assert_eq!(host.decide(name, uid, LOGIN).await, (true, Reason::InGroup));
        assert_eq!(host.keys(name, uid, None).await, 1);
        let Answer::User(user) = host.ask(Request::UserByUid { uid }).await else { panic!("{uid}") };
        assert_eq!(user.name, linux(name));
    }
    assert_eq!(host.decide("late", ids::uid_of(&one), LOGIN).await, (false, Reason::UidMismatch));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_user_whose_private_group_would_be_another_group_is_refused() {
    let host = Host::new();
    let groups = std::fs::read_to_string(&host.files.group).unwrap();
    std::fs::write(&host.files.group, format!("{groups}ops:x:{}:\n", uid(1))).unwrap();
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::UidTaken), "a local group");
    assert_eq!(host.user("alice").await, None);
    std::fs::write(&host.files.group, format!("{groups}alice:x:{}:\n", uid(1))).unwrap();
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup), "the user's own");
    std::fs::write(&host.files.group, groups).unwrap();
    // An id with the same hash as that of the IAM group devs, which maps to a Linux group that is not in /etc/group.
    host.iam().change("alice", |alice| alice.id = "AGPA0000000000000devs".into());
    let other = ids::uid_of("AGPA0000000000000devs");
    host.directory.read_roster().await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("alice", other, LOGIN).await, (false, Reason::UidTaken), "a mapped group");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_sudo_does_not_tell_from_anothers_is_refused() {
    let host = Host::new();
    // Each name differs only in case from iam-sudo, a privileged group, a mapped group, a local group or a local account.
    for name in ["Iam-Sudo", "Wheel", "Dev", "WebTeam", "EC2-User"] {
        host.iam().add(name, &["users", "admins"]);
        assert_eq!(host.user(name).await, None, "{name}");
    }
    // An account that the importer made does not keep a new user out: the importer removes or renames it.
    let passwd = std::fs::read_to_string(&host.files.passwd).unwrap();
    std::fs::write(&host.files.passwd, format!("{passwd}alice2:x:{0}:{0}::/:/bin/sh\n", uid(7))).unwrap();
    host.iam().add("Alice2", &["users"]);
    assert!(host.user("Alice2").await.is_some());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_known_or_listed_name_costs_no_call_by_any_client() {
    let host = Host::new();
    host.ask(Request::Roster).await;
    host.iam().take_calls();
    let askers = [
        Asker::from(Uid::ROOT),
        Asker::from(Uid(65_534)),
        Asker { is_root: true, origin: Origin::User(Uid(1001)) },
    ];
    for _ in 0..100 {
        tokio::time::advance(Duration::from_secs(20)).await;
        for asker in askers {
            for request in [
                Request::UserByName { name: linux("alice") },
                Request::UserByUid { uid: uid(1) },
                Request::GroupByName { name: linux("alice") },
                Request::GroupByGid { gid: Gid(uid(1).0) },
            ] {
                let answer = host.answerer.answer(&request, asker).await;
                assert!(matches!(answer, Answer::User(_) | Answer::Group(_)), "{request:?}: {answer:?}");
            }
        }
    }
    assert_eq!(host.iam().take_calls(), [""; 0]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_the_list_of_local_accounts_no_user_has_an_account() {
    let host = Host::new();
    let missing =
        Locals::new(Files { passwd: "/nonexistent/passwd".into(), group: "/nonexistent/group".into() });
    let blind =
        Answerer::with_locals(Rc::clone(&host.directory), missing, Claims::new(Path::new("/nonexistent")));
    for request in [
        Request::UserByName { name: linux("alice") },
        Request::Keys { name: linux("alice"), uid: uid(1), fingerprint: None },
        Request::Decide { name: linux("alice"), uid: uid(1), policy: LOGIN },
    ] {
        assert!(matches!(blind.answer(&request, Uid::ROOT).await, Answer::Error { .. }), "{request:?}");
    }
}
