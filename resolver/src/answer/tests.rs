use super::*;
use crate::ids;
use crate::source::Cause;
use crate::source::fake::{FINGERPRINT, FakeIam, config, id, ids_that_meet, linux};
use pam_iam_core::id::Gid;
use pam_iam_core::log::Log;
use pam_iam_core::name::{IAM_SUDO, IAM_USERS};
use pam_iam_core::wire::{Group, Policy, Roster, User};

mod accounts;
mod groups;
mod listing;
mod shared;
mod tags;

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

    /// Waits until background tasks have ended.
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
async fn an_adopted_account_gets_no_keys_while_its_user_may_not_log_in() {
    let host = Host::new();
    assert_eq!(host.keys("ann", Uid(1001), None).await, 1);
    host.iam().change("ann", |ann| ann.groups.clear());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(host.keys("ann", Uid(1001), None).await, 0);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_member_of_a_denied_group_has_no_account_and_opens_no_adopted_or_shared_one() {
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
async fn frequent_sudo_is_not_limited_where_each_use_calls_iam() {
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
    // Mallory causes a fetch of alice each time, as often as the limit allows.
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

fn shared_keys() -> Request {
    Request::Keys { name: linux("ec2-user"), uid: Uid(1000), fingerprint: None }
}
