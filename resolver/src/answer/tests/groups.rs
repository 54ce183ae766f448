//! Tests of groups.

use super::*;

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
    // A request of root starts a revalidation without waiting for it.
    assert_eq!(host.gids("carol").await, all);
    host.settle().await;
    let groups = host.ask(Request::GroupsOf { name: linux("carol"), known: false }).await;
    assert_eq!(groups, Answer::NotFound, "one who may no longer log in");
    host.iam().change("carol", |carol| carol.groups.push("users".into()));
    tokio::time::advance(Duration::from_secs(10)).await;
    // No group lists members: newgrp(1) would admit an account of any NSS service that has the name of one.
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
    // The configuration sets `allow_privileged` for docker, and not for dev.
    assert!(host.gids("carol").await.contains(&Gid(998)));
    let without = "[access]\nallow = ['users']\n[groups]\n'devs' = 'dev'";
    let other = Host::with(without);
    std::fs::write(&other.files.group, "docker:x:998:\ndev:x:998:\n").unwrap();
    assert_eq!(other.gids("carol").await, [ids::gid_of(IAM_USERS)]);
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
async fn only_roots_initgroups_begins_a_revalidation_and_only_one_in_max_age() {
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
