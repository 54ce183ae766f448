use super::*;
use crate::ids;
use crate::source::Cause;
use crate::source::fake::{FINGERPRINT, FakeIam, config, id, ids_that_meet, linux};
use pam_iam_core::id::Gid;
use pam_iam_core::log::Log;
use pam_iam_core::name::{IAM_SUDO, IAM_USERS};
use pam_iam_core::wire::{Group, Policy, Roster, User};

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
    files: Files,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn with(text: &str) -> Self {
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
        let files = Files { passwd, group };
        let directory = Directory::new(iam, config(text), Log::silent());
        let answerer =
            Answerer::with_locals(Rc::clone(&directory), Locals::new(files.clone()), Claims::new(dir.path()));
        Self { answerer, directory, files, _dir: dir }
    }

    fn iam(&self) -> &FakeIam {
        self.directory.iam()
    }

    async fn ask(&self, request: Request) -> Answer {
        self.answerer.answer(&request, Uid::ROOT).await
    }

    /// Lets what was begun in the background come to its end.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    async fn decide(&self, name: &str, uid: Uid, policy: Policy) -> (bool, Reason) {
        match self.ask(Request::Decide { name: linux(name), uid, policy }).await {
            Answer::Decision(decision) => (decision.allow, decision.reason),
            other => panic!("{other:?}"),
        }
    }

    async fn keys(&self, name: &str, uid: Uid, fingerprint: Option<&str>) -> usize {
        let fingerprint = fingerprint.map(|fingerprint| fingerprint.parse().unwrap());
        match self.ask(Request::Keys { name: linux(name), uid, fingerprint }).await {
            Answer::Keys { keys } => keys.len(),
            other => panic!("{other:?}"),
        }
    }

    async fn gids(&self, name: &str) -> Vec<Gid> {
        match self.ask(Request::GroupsOf { name: linux(name), known: false }).await {
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
async fn users_who_may_log_in_have_accounts_and_no_others() {
    let host = Host::new();
    let alice = host.user("alice").await.unwrap();
    assert_eq!((alice.uid, alice.gid), (uid(1), Gid(uid(1).0)));
    assert_eq!((alice.home.as_str(), alice.shell.as_str()), ("/home/alice", "/bin/bash"));
    assert_eq!(host.user("nobody-there").await, None);
    assert_eq!(host.ask(Request::UserByUid { uid: uid(1) }).await, Answer::User(alice));
    // IAM has him, and he is in none of the groups.
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
async fn an_adopted_account_gets_no_keys_while_its_user_may_not_log_in() {
    let host = Host::new();
    assert_eq!(host.keys("ann", Uid(1001), None).await, 1);
    host.iam().change("ann", |ann| ann.groups.clear());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.keys("ann", Uid(1001), None).await, 0);
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
async fn one_who_is_added_to_a_group_has_an_account_at_the_first_attempt_of_the_host() {
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
async fn one_who_is_added_to_a_group_has_an_account_though_others_have_used_up_the_limit() {
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
    // Of all of them is known that they may not.
    host.iam().change("bob", |bob| bob.groups = vec!["users".into()]);
    tokio::time::advance(Duration::from_secs(31)).await;
    for app in &apps[..40] {
        assert_eq!(host.user(app).await, None);
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(host.user("bob").await.unwrap().uid, uid(2));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn names_of_those_who_may_not_log_in_cost_what_unknown_names_do() {
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
async fn a_member_of_a_denied_group_is_nobody_and_opens_no_adopted_or_shared_account() {
    let host = Host::with(
        "[access]\nallow = ['users']\nsudo = ['admins']\ndeny = ['out', 'no-such-group']\n[accounts]\nadopt = ['ann']\n\
         [shared.ec2-user]\ngroups = ['users']",
    );
    for name in ["alice", "ann"] {
        host.iam().change(name, |user| user.groups.push("out".into()));
    }
    host.iam().add("dave", &["out"]);
    assert_eq!(host.user("alice").await, None);
    assert_eq!(host.keys("alice", uid(1), None).await, 0);
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::InDeniedGroup));
    assert_eq!(host.decide("ann", Uid(1001), LOGIN).await, (false, Reason::InDeniedGroup));
    assert_eq!(host.keys("ann", Uid(1001), None).await, 0);
    host.directory.read_roster().await.unwrap();
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    let names: Vec<&str> = roster.users.iter().map(|user| user.name.as_str()).collect();
    assert!(names.contains(&"carol") && !names.contains(&"alice"), "{names:?}");
    let shared = match host.ask(shared_keys()).await {
        Answer::Keys { keys } => keys.into_iter().map(|key| key.iam_name).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert!(shared.contains(&"carol".to_owned()) && !shared.contains(&"alice".to_owned()), "{shared:?}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_group_that_denies_counts_though_the_rest_of_the_answer_does_not_come() {
    let host = Host::with("[access]\nallow = ['users']\ndeny = ['out']");
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup));
    host.iam().change("alice", |alice| alice.groups.push("out".into()));
    host.iam().fail_only("ListSSHPublicKeys");
    host.iam().fail(Some(Cause::Call("silent".into()).into()));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::InDeniedGroup));
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
async fn a_uid_that_a_local_account_of_another_name_has_is_nobodys_else() {
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
    // sudo looks at the names of groups: a private group called sudo, wheel, admin or iam-sudo would be root.
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
async fn only_the_key_that_is_asked_for_is_served() {
    let host = Host::new();
    assert_eq!(host.keys("alice", uid(1), None).await, 1);
    assert_eq!(host.keys("alice", uid(1), Some(FINGERPRINT)).await, 1);
    assert_eq!(
        host.keys("alice", uid(1), Some("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")).await,
        0
    );
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
    assert_eq!(host.ask(Request::GroupsOf { name: linux("bob"), known: false }).await, Answer::NotFound);
    host.iam().change("carol", |carol| carol.groups.retain(|group| group != "users"));
    tokio::time::advance(Duration::from_secs(10)).await;
    // Root's question begins a revalidation and does not wait for it.
    assert_eq!(host.gids("carol").await, all);
    host.settle().await;
    let groups = host.ask(Request::GroupsOf { name: linux("carol"), known: false }).await;
    assert_eq!(groups, Answer::NotFound, "one who may no longer log in");
    host.iam().change("carol", |carol| carol.groups.push("users".into()));
    tokio::time::advance(Duration::from_secs(10)).await;
    // newgrp(1) lets in whoever has the name of a listed member, from whichever service the account is.
    let group = |name: &str, gid| Answer::Group(Group { name: linux(name), gid, members: Vec::new() });
    assert_eq!(host.ask(Request::GroupByName { name: linux("iam-sudo") }).await, group("iam-sudo", sudo));
    assert_eq!(host.ask(Request::GroupByGid { gid: dev }).await, group("dev", dev));
    assert_eq!(host.ask(Request::GroupByName { name: linux("docker") }).await, Answer::NotFound, "local");
    assert_eq!(host.ask(Request::GroupByName { name: linux("alice") }).await, group("alice", Gid(uid(1).0)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_group_with_the_gid_of_one_that_means_root_takes_the_operators_word() {
    let host = Host::new();
    let groups = std::fs::read_to_string(&host.files.group).unwrap();
    std::fs::write(&host.files.group, groups + "dev:x:998:\n").unwrap();
    // docker has the operator's word, and dev has not.
    assert!(host.gids("carol").await.contains(&Gid(998)));
    let without = "[access]\nallow = ['users']\n[groups]\n'devs' = 'dev'";
    let other = Host::with(without);
    std::fs::write(&other.files.group, "docker:x:998:\ndev:x:998:\n").unwrap();
    assert_eq!(other.gids("carol").await, [ids::gid_of(IAM_USERS)]);
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
    // An id whose number is that of the group devs, which IAM maps to a group that no file has.
    host.iam().change("alice", |alice| alice.id = "AGPA0000000000000devs".into());
    let other = ids::uid_of("AGPA0000000000000devs");
    host.directory.read_roster().await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("alice", other, LOGIN).await, (false, Reason::UidTaken), "a mapped group");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_sudo_does_not_tell_from_anothers_is_refused() {
    let host = Host::new();
    // In another case: our own group, one that means root, a mapped one, a local group, a local account.
    for name in ["Iam-Sudo", "Wheel", "Dev", "WebTeam", "EC2-User"] {
        host.iam().add(name, &["users", "admins"]);
        assert_eq!(host.user(name).await, None, "{name}");
    }
    // An account of the importer's makes way for a new user, or is renamed itself.
    let passwd = std::fs::read_to_string(&host.files.passwd).unwrap();
    std::fs::write(&host.files.passwd, format!("{passwd}alice2:x:{0}:{0}::/:/bin/sh\n", uid(7))).unwrap();
    host.iam().add("Alice2", &["users"]);
    assert!(host.user("Alice2").await.is_some());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn groups_that_are_asked_for_at_boot_cost_no_call() {
    let host = Host::new();
    let known = |name: &str| host.ask(Request::GroupsOf { name: linux(name), known: true });
    assert_eq!(known("carol").await, Answer::NotFound);
    assert_eq!(host.iam().take_calls().len(), 0);
    let gids = host.gids("carol").await;
    host.iam().take_calls();
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(known("carol").await, Answer::Groups { gids });
    assert_eq!(host.iam().take_calls().len(), 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn sudo_is_for_its_groups_and_its_offline_limit_is_shorter() {
    let host = Host::new();
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (true, Reason::InGroup));
    assert_eq!(host.decide("alice", uid(1), Policy::Sudo).await, (false, Reason::NotInGroup));
    host.iam().fail(Some(Cause::Call("gone".into()).into()));
    tokio::time::advance(Duration::from_secs(3600)).await;
    let sudo = host.ask(Request::Decide { name: linux("carol"), uid: uid(3), policy: Policy::Sudo }).await;
    assert!(matches!(sudo, Answer::Error { kind: Failure::Unavailable, .. }), "{sudo:?}");
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.decide("carol", uid(3), LOGIN).await, (true, Reason::InGroup));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_is_known_or_listed_costs_no_call_whoever_asks_and_however_often() {
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
async fn roots_initgroups_begins_one_revalidation_for_each_max_age_and_nobody_elses_does() {
    let host = Host::new();
    host.ask(Request::Roster).await;
    host.iam().take_calls();
    let groups = async |asker: Asker| {
        let answer =
            host.answerer.answer(&Request::GroupsOf { name: linux("carol"), known: false }, asker).await;
        assert!(matches!(answer, Answer::Groups { ref gids } if gids.len() == 4), "{answer:?}");
        host.settle().await;
        host.iam().take_calls().len()
    };
    assert_eq!(groups(Asker::from(Uid(65_534))).await, 0);
    assert_eq!(groups(Asker::from(Uid::ROOT)).await, 4, "with the key, which is asked for once");
    assert_eq!(groups(Asker::from(Uid::ROOT)).await, 0);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(groups(Asker::from(Uid::ROOT)).await, 3);
    assert_eq!(groups(Asker { is_root: true, origin: Origin::User(Uid(1001)) }).await, 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn who_uses_sudo_often_is_not_refused_for_that_where_each_asks_iam() {
    let host = Host::with(&CONFIG.replace("[groups]", "[freshness]\nmax_age = 0\n[groups]"));
    let carol = Asker { is_root: true, origin: Origin::User(uid(3)) };
    let request = Request::Decide { name: linux("carol"), uid: uid(3), policy: Policy::Sudo };
    let allowed = async || match host.answerer.answer(&request, carol).await {
        Answer::Decision(decision) => decision.allow,
        other => panic!("{other:?}"),
    };
    for _ in 0..500 {
        assert!(allowed().await);
    }
    host.iam().change("carol", |carol| carol.groups.clear());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(!allowed().await, "and no withdrawal is later than by default");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_limit_that_is_used_up_never_keeps_a_withdrawal_from_being_heard() {
    let host = Host::new();
    let mallory = Asker { is_root: true, origin: Origin::User(uid(3)) };
    let decide =
        |name: &str, number| Request::Decide { name: linux(name), uid: uid(number), policy: Policy::Login };
    host.ask(Request::Roster).await;
    // As often as she likes, for whoever is stale.
    for _ in 0..200 {
        host.answerer.answer(&decide("alice", 1), mallory).await;
        tokio::time::advance(Duration::from_millis(10)).await;
        host.directory.flush(Some(&linux("alice")));
    }
    host.answerer.answer(&decide("carol", 3), Asker::from(Uid::ROOT)).await;
    host.iam().change("carol", |carol| carol.groups.clear());
    tokio::time::advance(Duration::from_secs(11)).await;
    let refused = host.answerer.answer(&decide("carol", 3), mallory).await;
    assert!(!matches!(refused, Answer::Decision(ref decision) if decision.allow), "{refused:?}");
    assert_eq!(
        host.decide("carol", uid(3), LOGIN).await,
        (false, Reason::NotInGroup),
        "and sshd is told at once"
    );
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
        assert!(began.elapsed() < request.patience(), "{request:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_the_list_of_local_accounts_nobody_is_anybody() {
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

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_roster_lists_who_may_have_an_account() {
    let host = Host::new();
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    let names: Vec<&str> = roster.users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["alice", "carol"]);
    assert_eq!(roster.adopted, [linux("ann"), linux("syn")]);
    let refused: Vec<(&str, &str)> =
        roster.refused.iter().map(|refused| (refused.iam_name.as_str(), refused.why.as_str())).collect();
    let local = "its name is that of a local account";
    assert_eq!(refused, [("daemon", local), ("ec2-user", local), ("root", local)]);
    let groups: Vec<(&str, Vec<&str>)> = roster
        .groups
        .iter()
        .map(|group| (group.name.as_str(), group.members.iter().map(LinuxName::as_str).collect()))
        .collect();
    assert_eq!(
        groups,
        [
            ("dev", vec!["carol"]),
            ("docker", vec!["carol"]),
            ("iam-sudo", vec!["ann", "carol", "syn"]),
            ("iam-users", vec!["alice", "ann", "carol", "syn"]),
        ]
    );
    assert!(roster.complete && roster.missing.is_empty());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_list_without_a_group_that_is_allowed_is_not_complete() {
    let host = Host::with("[access]\nallow = ['users', 'gone']\nsudo = ['gone-too']");
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    assert_eq!((roster.complete, roster.missing), (false, vec!["gone".to_owned()]));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_list_is_read_each_time_and_never_from_memory() {
    let host = Host::new();
    let names = |answer: Answer| {
        let roster: Roster = answer.into_report().unwrap();
        roster.users.iter().map(|user| user.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(host.ask(Request::Roster).await), ["alice", "carol"]);
    host.iam().change("alice", |alice| alice.groups.clear());
    assert_eq!(names(host.ask(Request::Roster).await), ["carol"]);
    host.iam().fail(Some(Cause::Call("throttled".into()).into()));
    assert!(matches!(host.ask(Request::Roster).await, Answer::Error { .. }));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_account_that_an_import_has_begun_to_make_is_not_refused() {
    let host = Host::new();
    // The private group is there, the account is not yet.
    let line = format!("alice:x:{}:\n", uid(1).0);
    std::fs::write(&host.files.group, std::fs::read_to_string(&host.files.group).unwrap() + &line).unwrap();
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    assert_eq!(roster.users.first().unwrap().name, linux("alice"));
}

const SHARED: &str = r#"
    [access]
    allow = ["users"]
    [shared.ec2-user]
    groups = ["deployers", "admins"]
"#;

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_shared_account_is_opened_by_its_members_keys_and_no_others() {
    let host = Host::with(SHARED);
    host.iam().change("bob", |bob| bob.groups.push("deployers".into()));
    let owners = async || {
        let request = Request::Keys { name: linux("ec2-user"), uid: Uid(1000), fingerprint: None };
        match host.ask(request).await {
            Answer::Keys { keys } => {
                let mut owners: Vec<String> = keys.into_iter().map(|key| key.iam_name).collect();
                owners.sort();
                owners
            }
            other => panic!("{other:?}"),
        }
    };
    let all = ["ann", "bob", "carol", "daemon", "ec2-user", "root", "syn"];
    assert_eq!(owners().await, all);
    assert_eq!(host.decide("ec2-user", Uid(1000), LOGIN).await, (true, Reason::InGroup));
    assert_eq!(host.decide("ec2-user", Uid(1000), Policy::Sudo).await, (false, Reason::Local));
    assert_eq!(host.keys("ec2-user", Uid(1001), None).await, 0, "another account");
    assert_eq!(host.keys("ec2-user", uid(5), None).await, 0, "the IAM user of the name");
    assert_eq!(host.user("ec2-user").await, None);

    host.iam().change("bob", |bob| bob.groups.clear());
    host.iam().change("carol", |carol| carol.keys.clear());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(owners().await, ["ann", "daemon", "ec2-user", "root", "syn"]);
    for name in ["ann", "daemon", "ec2-user", "root", "syn"] {
        host.iam().change(name, |person| person.groups.clear());
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(owners().await, ["carol"; 0], "carol is an admin still, and has no key");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_member_who_was_taken_out_of_a_shared_account_is_out_whatever_else_is_missing() {
    let host = Host::with(SHARED);
    host.iam().change("bob", |bob| bob.groups.push("deployers".into()));
    assert_eq!(host.keys("ec2-user", Uid(1000), None).await, 7);
    host.iam().change("carol", |carol| carol.groups.clear());
    host.iam().change("ann", |ann| ann.keys.clear());
    host.iam().mute("bob");
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.keys("ec2-user", Uid(1000), None).await, 5, "without carol and ann, with bob's old keys");
    host.iam().denied.borrow_mut().push("deployers".into());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.keys("ec2-user", Uid(1000), None).await, 5, "a list that is denied says nothing");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_shared_login_costs_a_list_for_each_group_and_each_member() {
    let host = Host::with("[access]\nallow = ['users']\n[shared.ec2-user]\ngroups = ['devs', 'dockers']");
    host.iam().change("bob", |bob| bob.groups.push("devs".into()));
    host.keys("ec2-user", Uid(1000), None).await;
    let lists = ["GetGroup devs", "GetGroup dockers"];
    let keys = ["ListSSHPublicKeys bob", "ListSSHPublicKeys carol"];
    let bodies = ["GetSSHPublicKey bob", "GetSSHPublicKey carol"];
    assert_eq!(host.iam().take_calls(), [lists, bodies, keys].concat());
    host.keys("ec2-user", Uid(1000), None).await;
    assert_eq!(host.iam().take_calls(), [""; 0]);
    tokio::time::advance(Duration::from_secs(10)).await;
    host.keys("ec2-user", Uid(1000), None).await;
    assert_eq!(host.iam().take_calls(), [lists, keys].concat());
}

const TAGGED: &str = r#"
    [access]
    allow = { tag = "ssh-groups", within = ["users", "prod-*"] }
    sudo = { tag = "sudo-groups", within = ["admins"] }
"#;

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_instance_tag_names_groups_within_what_the_configuration_allows() {
    let host = Host::with(TAGGED);
    let tag = |tag: &str, value: &str| {
        host.iam().tags.borrow_mut().insert(tag.into(), value.into());
    };
    tag("ssh-groups", "prod-users, users,root devs");
    tag("sudo-groups", "admins");
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup));
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (true, Reason::InGroup));
    // devs is not within the pattern, whoever writes it into the tag.
    host.iam().change("alice", |alice| alice.groups = vec!["devs".into()]);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::NotInGroup));
    // Who may write tags makes nobody root.
    host.iam().change("alice", |alice| alice.groups = vec!["users".into()]);
    tag("sudo-groups", "users, all");
    tokio::time::advance(Duration::from_secs(11)).await;
    host.directory.read_roster().await.unwrap();
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup));
    assert_eq!(host.decide("alice", uid(1), Policy::Sudo).await, (false, Reason::PolicyNone));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_tag_that_is_missing_or_empty_lets_nobody_in() {
    let host = Host::with(TAGGED);
    let decide = Request::Decide { name: linux("alice"), uid: uid(1), policy: LOGIN };
    for value in [None, Some(""), Some(" , "), Some("all"), Some("a/b")] {
        host.iam().tags.borrow_mut().clear();
        if let Some(value) = value {
            host.iam().tags.borrow_mut().insert("ssh-groups".into(), value.into());
        }
        tokio::time::advance(Duration::from_secs(600)).await;
        let answer = host.ask(decide.clone()).await;
        assert!(
            matches!(answer, Answer::Error { kind: Failure::Configuration, .. }),
            "{value:?}: {answer:?}"
        );
        assert!(matches!(host.ask(Request::Roster).await, Answer::Error { .. }), "{value:?}");
        let name = linux("alice");
        let account = host.ask(Request::UserByName { name }).await;
        assert!(!matches!(account, Answer::User(_)), "{value:?}: {account:?}");
    }
    host.iam().tags.borrow_mut().insert("ssh-groups".into(), "users".into());
    tokio::time::advance(Duration::from_secs(20)).await;
    host.directory.read_roster().await.unwrap();
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup), "without sudo-groups");
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (false, Reason::PolicyNone));
    // Taken away, it is an answer, and the last value does not serve.
    host.iam().tags.borrow_mut().clear();
    assert!(host.directory.read_roster().await.is_err());
    assert!(matches!(host.ask(decide).await, Answer::Error { .. }));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn while_the_metadata_service_is_silent_the_last_tags_serve_each_for_its_time() {
    let host = Host::with(TAGGED);
    host.iam().tags.borrow_mut().insert("ssh-groups".into(), "users".into());
    host.iam().tags.borrow_mut().insert("sudo-groups".into(), "admins".into());
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (true, Reason::InGroup));
    host.iam().fail_only("IMDS");
    host.iam().fail(Some(Cause::Call("silent".into()).into()));
    tokio::time::advance(Duration::from_secs(50 * 60)).await;
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (true, Reason::InGroup));
    tokio::time::advance(Duration::from_secs(10 * 60)).await;
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (false, Reason::PolicyNone));
    tokio::time::advance(Duration::from_secs(10 * 3600)).await;
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (true, Reason::InGroup));
    tokio::time::advance(Duration::from_secs(3600)).await;
    let decide = Request::Decide { name: linux("alice"), uid: uid(1), policy: LOGIN };
    assert!(matches!(host.ask(decide).await, Answer::Error { kind: Failure::Unavailable, .. }));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_tag_that_cannot_be_read_for_sudo_keeps_nobody_from_logging_in() {
    let host = Host::with("[access]\nallow = ['users']\nsudo = { tag = 'sudo-groups', within = ['admins'] }");
    host.iam().fail_only("IMDS");
    host.iam().fail(Some(Cause::Call("silent".into()).into()));
    assert_eq!(host.decide("carol", uid(3), LOGIN).await, (true, Reason::InGroup));
    assert_eq!(host.decide("carol", uid(3), Policy::Sudo).await, (false, Reason::PolicyNone));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_missing_tag_is_not_asked_for_again_and_again() {
    let host = Host::with(TAGGED);
    for _ in 0..50 {
        host.user("alice").await;
        host.ask(Request::GroupsOf { name: linux("alice"), known: false }).await;
    }
    let asked = host.iam().take_calls().into_iter().filter(|call| call.starts_with("IMDS")).count();
    assert_eq!(asked, 2, "once for each of the two");
}

fn shared_keys() -> Request {
    Request::Keys { name: linux("ec2-user"), uid: Uid(1000), fingerprint: None }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_deleted_key_opens_no_shared_account_because_a_group_is_silent() {
    let host = Host::with(SHARED);
    host.iam().change("bob", |bob| bob.groups.push("deployers".into()));
    host.keys("ec2-user", Uid(1000), None).await;
    host.iam().change("bob", |bob| bob.keys.clear());
    host.iam().hang_only("GetGroup");
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.keys("ec2-user", Uid(1000), None).await, 6, "of 7: all but bob's");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn one_member_whom_iam_denies_keeps_no_other_out() {
    let host = Host::with(SHARED);
    host.iam().denied.borrow_mut().push("carol".into());
    assert_eq!(host.keys("ec2-user", Uid(1000), None).await, 5);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_account_that_too_many_share_opens_for_none() {
    let host = Host::with(SHARED);
    for number in 0..100 {
        host.iam().add(&format!("deployer{number}"), &["deployers"]);
    }
    let answer = host.ask(shared_keys()).await;
    assert!(
        matches!(&answer, Answer::Error { message, .. } if message.contains("more than 100 IAM users share it"))
    );
    host.iam().take_calls();
    host.ask(shared_keys()).await;
    assert_eq!(host.iam().take_calls(), [""; 0], "and costs nothing for a while");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_name_of_a_shared_account_is_no_iam_users_and_costs_nothing() {
    let host = Host::with("[access]\nallow = ['users']\n[shared.alice]\ngroups = ['admins']");
    assert_eq!(host.user("alice").await, None);
    assert_eq!(host.ask(Request::GroupsOf { name: linux("alice"), known: false }).await, Answer::NotFound);
    assert_eq!(host.iam().take_calls(), [""; 0]);
    // An account of ours from before: neither keys nor a yes.
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::Local));
    assert_eq!(host.keys("alice", uid(1), None).await, 0);
}
