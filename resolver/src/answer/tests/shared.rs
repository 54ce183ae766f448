//! Tests of shared accounts.

use super::*;

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
async fn a_removed_member_of_a_shared_account_is_refused_even_if_other_answers_are_missing() {
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
    // A managed account that is older than the shared one gets neither keys nor a login.
    assert_eq!(host.decide("alice", uid(1), LOGIN).await, (false, Reason::Local));
    assert_eq!(host.keys("alice", uid(1), None).await, 0);
}
