//! Tests of access by an instance tag.

use super::*;

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
    // devs matches no pattern of `within`, so the tag cannot allow it.
    host.iam().change("alice", |alice| alice.groups = vec!["devs".into()]);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::NotInGroup));
    // A principal who may write tags cannot make a user root.
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
    // A removed tag is an answer, so the last value does not serve.
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
async fn a_missing_tag_is_not_read_for_each_request() {
    let host = Host::with(TAGGED);
    for _ in 0..50 {
        host.user("alice").await;
        host.ask(Request::GroupsOf { name: linux("alice"), known: false }).await;
    }
    let asked = host.iam().take_calls().into_iter().filter(|call| call.starts_with("IMDS")).count();
    assert_eq!(asked, 2, "once for each of the two");
}
