use super::*;
use crate::fake::{FINGERPRINT, FakeIam, config, id, ids_that_meet, linux};
use pam_iam_core::log::Log;

const CONFIG: &str = r#"
    [access]
    allow = ["users"]
    sudo = ["admins"]
    [groups]
    "devs" = "dev"
    "dockers" = { group = "docker", allow_privileged = true }
    [accounts]
    adopt = ["ann", "absent"]
    adopt_group = "synced"
"#;

struct Host {
    answerer: Answerer<FakeIam>,
    directory: Rc<Directory<FakeIam>>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let iam = FakeIam::default();
        iam.add("alice", &["users"]);
        iam.add("bob", &[]);
        iam.add("carol", &["users", "admins", "devs", "dockers"]);
        for local in ["root", "ec2-user", "ann", "syn", "daemon"] {
            iam.add(local, &["users", "admins"]);
        }
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        let line = |name: &str, uid: u32| format!("{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n");
        let locals =
            [("root", 0), ("daemon", 1), ("ec2-user", 1000), ("ann", 1001), ("syn", 1002), ("pam-iam", 995)];
        std::fs::write(&passwd, locals.map(|(name, uid)| line(name, uid)).concat()).unwrap();
        std::fs::write(&group, "root:x:0:\nann:x:1001:\ndocker:x:998:\nwebteam:x:2000:\nsynced:x:2001:syn\n")
            .unwrap();
        let directory = Directory::new(iam, config(CONFIG), Log::silent());
        let answerer = Answerer::with_locals(Rc::clone(&directory), Locals::new(Files { passwd, group }));
        Self { answerer, directory, _dir: dir }
    }

    fn iam(&self) -> &FakeIam {
        self.directory.iam()
    }

    async fn ask(&self, request: Request) -> Answer {
        self.answerer.answer(&request, Uid::ROOT).await
    }

    async fn decide(&self, name: &str, uid: Uid, policy: Policy) -> (bool, Reason) {
        match self.ask(Request::Decide { name: linux(name), uid, policy }).await {
            Answer::Decision(decision) => (decision.allow, decision.reason),
            other => panic!("{other:?}"),
        }
    }

    async fn keys(&self, name: &str, uid: Uid, fingerprint: Option<&str>) -> usize {
        let fingerprint = fingerprint.map(str::to_owned);
        match self.ask(Request::Keys { name: linux(name), uid, fingerprint }).await {
            Answer::Keys { keys } => keys.len(),
            other => panic!("{other:?}"),
        }
    }

    async fn gids(&self, name: &str) -> Vec<Gid> {
        match self.ask(Request::GroupsOf { name: linux(name) }).await {
            Answer::Groups { gids } => gids,
            other => panic!("{other:?}"),
        }
    }

    async fn user(&self, name: &str) -> Option<User> {
        match self.ask(Request::UserByName { name: linux(name) }).await {
            Answer::User(user) => Some(user),
            Answer::NotFound => None,
            other => panic!("{other:?}"),
        }
    }
}

fn uid(number: u32) -> Uid {
    ids::uid_of(&id(number))
}

const LOGIN: Policy = Policy::Login;

#[tokio::test(flavor = "local", start_paused = true)]
async fn iam_users_have_accounts_and_who_may_not_log_in_has_no_shell() {
    let host = Host::new();
    let alice = host.user("alice").await.unwrap();
    assert_eq!((alice.uid, alice.gid), (uid(1), Gid(uid(1).0)));
    assert_eq!((alice.home.as_str(), alice.shell.as_str()), ("/home/alice", "/bin/bash"));
    assert_eq!(host.user("bob").await.unwrap().shell, NOLOGIN);
    assert_eq!(host.user("nobody-there").await, None);
    assert_eq!(host.ask(Request::UserByUid { uid: uid(1) }).await, Answer::User(alice));
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
    // sudo looks at the names of groups: a private group called sudo, wheel, admin or iam-sudo would be root.
    for (at, name) in ["sudo", "wheel", "admin", "iam-sudo", "iam-users", "dev", "webteam"].iter().enumerate()
    {
        host.iam().add(name, &["users", "admins"]);
        let uid = uid(9 + u32::try_from(at).unwrap());
        assert_eq!(host.user(name).await, None, "{name}");
        assert_eq!(host.keys(name, uid, None).await, 0, "{name}");
        assert_eq!(host.decide(name, uid, LOGIN).await, (false, Reason::NameOfGroup), "{name}");
        assert_eq!(host.ask(Request::GroupsOf { name: linux(name) }).await, Answer::NotFound, "{name}");
        assert!(!matches!(host.ask(Request::UserByUid { uid }).await, Answer::User(_)), "{name}");
        let group = host.ask(Request::GroupByGid { gid: Gid(uid.0) }).await;
        assert_eq!(group, Answer::NotFound, "{name}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn adopted_accounts_keep_their_uids_and_get_keys_and_decisions() {
    let host = Host::new();
    for (name, local) in [("ann", 1001), ("syn", 1002)] {
        assert_eq!(host.user(name).await, None, "/etc/passwd shows {name}");
        assert_eq!(host.keys(name, Uid(local), None).await, 1, "{name}");
        assert_eq!(host.decide(name, Uid(local), LOGIN).await, (true, Reason::InGroup), "{name}");
        assert_eq!(host.decide(name, Uid(local + 10), LOGIN).await, (false, Reason::Local), "{name}");
    }
    assert_eq!(host.decide("absent", Uid(1005), LOGIN).await, (false, Reason::Local), "no such account");
    host.iam().change("ann", |ann| ann.groups.clear());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("ann", Uid(1001), LOGIN).await, (false, Reason::NotInGroup));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_account_left_by_a_deleted_user_serves_nobody_who_took_the_name() {
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
async fn only_the_key_that_is_asked_for_is_served() {
    let host = Host::new();
    assert_eq!(host.keys("alice", uid(1), None).await, 1);
    assert_eq!(host.keys("alice", uid(1), Some(FINGERPRINT)).await, 1);
    assert_eq!(host.keys("alice", uid(1), Some("SHA256:another")).await, 0);
    assert_eq!(host.keys("alice", uid(2), None).await, 0, "another's uid");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn groups_follow_iam_and_the_table() {
    let host = Host::new();
    let (users, sudo) = (ids::gid_of(IAM_USERS), ids::gid_of(IAM_SUDO));
    let dev = ids::gid_of("AGPA0000000000000devs");
    let mut all = vec![users, sudo, dev, Gid(998)];
    all.sort();
    assert_eq!(host.gids("carol").await, all);
    assert_eq!(host.gids("alice").await, [users]);
    assert_eq!(host.gids("bob").await, [users], "who may not log in is still under the rule for keys");
    host.iam().change("carol", |carol| carol.groups.retain(|group| group != "users"));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.gids("carol").await, [users], "who may no longer log in has no group of use to cron");
    host.iam().change("carol", |carol| carol.groups.push("users".into()));
    tokio::time::advance(Duration::from_secs(10)).await;
    let group = |name: &str, gid, members: &[&str]| {
        Answer::Group(Group { name: linux(name), gid, members: members.iter().map(|m| linux(m)).collect() })
    };
    assert_eq!(
        host.ask(Request::GroupByName { name: linux("iam-sudo") }).await,
        group("iam-sudo", sudo, &["ann", "carol", "daemon", "ec2-user", "root", "syn"])
    );
    assert_eq!(host.ask(Request::GroupByGid { gid: dev }).await, group("dev", dev, &["carol"]));
    assert_eq!(host.ask(Request::GroupByName { name: linux("docker") }).await, Answer::NotFound, "local");
    assert_eq!(
        host.ask(Request::GroupByName { name: linux("alice") }).await,
        group("alice", Gid(uid(1).0), &[])
    );
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn sudo_is_for_its_groups_and_its_offline_limit_is_shorter() {
    let host = Host::new();
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (true, Reason::InGroup));
    assert_eq!(host.decide("alice", uid(1), Policy::Sudo).await, (false, Reason::NotInGroup));
    host.iam().fail(Some(IamError::Unreachable("gone".into())));
    tokio::time::advance(Duration::from_secs(3600)).await;
    let sudo = host.ask(Request::Decide { name: linux("carol"), uid: uid(3), policy: Policy::Sudo }).await;
    assert!(matches!(sudo, Answer::Error { kind: Failure::Unavailable, .. }), "{sudo:?}");
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("carol", uid(3), LOGIN).await, (true, Reason::InGroup));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn nobody_but_root_makes_this_host_call_iam_in_a_loop() {
    let host = Host::new();
    let ask = async |peer| {
        let request = Request::UserByName { name: linux("alice") };
        assert!(matches!(host.answerer.answer(&request, peer).await, Answer::User(_)));
        host.iam().take_calls().len()
    };
    assert_eq!(ask(Uid(65_534)).await, 4);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(ask(Uid(65_534)).await, 0);
    assert_eq!(ask(Uid::ROOT).await, 3);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn no_question_takes_longer_than_its_client_waits() {
    let host = Host::new();
    host.iam().hang();
    for request in [
        Request::GroupByName { name: linux("dev") },
        Request::GroupByGid { gid: Gid(uid(1).0) },
        Request::UserByName { name: linux("alice") },
        Request::Roster,
    ] {
        let began = tokio::time::Instant::now();
        assert!(matches!(host.ask(request.clone()).await, Answer::Error { .. }), "{request:?}");
        assert!(began.elapsed() < pam_iam_core::wire::CLIENT_DEADLINE, "{request:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_the_list_of_local_accounts_nobody_is_anybody() {
    let host = Host::new();
    let missing =
        Locals::new(Files { passwd: "/nonexistent/passwd".into(), group: "/nonexistent/group".into() });
    let blind = Answerer::with_locals(Rc::clone(&host.directory), missing);
    for request in [
        Request::UserByName { name: linux("alice") },
        Request::Keys { name: linux("alice"), uid: uid(1), fingerprint: None },
        Request::Decide { name: linux("alice"), uid: uid(1), policy: LOGIN },
    ] {
        assert!(matches!(blind.answer(&request, Uid::ROOT).await, Answer::Error { .. }), "{request:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_roster_lists_who_may_have_an_account() {
    let host = Host::new();
    let Answer::Roster(roster) = host.ask(Request::Roster).await else { panic!() };
    let names: Vec<&str> = roster.users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["alice", "carol"]);
    assert!(roster.complete);
}
