//! Tests of the list of users.

use super::*;

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_roster_lists_the_eligible_users() {
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
    // /etc/group has the private group, and /etc/passwd does not have the account yet.
    let line = format!("alice:x:{}:\n", uid(1).0);
    std::fs::write(&host.files.group, std::fs::read_to_string(&host.files.group).unwrap() + &line).unwrap();
    let roster: Roster = host.ask(Request::Roster).await.into_report().unwrap();
    assert_eq!(roster.users.first().unwrap().name, linux("alice"));
}
