use super::fetch::{BACK_OFF, OUTAGE, PATIENCE_IN_OUTAGE};
use super::*;
use crate::ids;
use crate::persist::dirty::PERSIST_MAX;
use crate::source::Cause;
use crate::source::fake::{FakeIam, KEY, config, linux};
use futures_util::future::join_all;
use pam_iam_core::id::Uid;
use tokio::task::spawn_local;

mod outage;
mod restart;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn directory(text: &str) -> Rc<Directory<FakeIam>> {
    Directory::new(FakeIam::default(), config(text), Log::silent())
}

async fn find(directory: &Rc<Directory<FakeIam>>, name: &str) -> Result<Lookup, IamError> {
    directory.lookup(&linux(name), freshness(directory)).await
}

fn freshness(directory: &Directory<FakeIam>) -> Freshness {
    Freshness { stale_if_error: DAY, ..directory.login_freshness(Origin::Host) }
}

fn groups(lookup: &Lookup) -> Vec<String> {
    match &lookup.entry.identity {
        Identity::User(person) => person.groups.iter().map(|group| group.name.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

const USERS: &str = "[access]\nallow = ['users']";

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_login_makes_the_documented_calls() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.iam.change("alice", |alice| alice.keys.push(("APKA2222222222222222".into(), KEY.into())));

    let began = Instant::now();
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Iam);
    assert_eq!(began.elapsed(), FakeIam::CALL * 2, "two round trips, each with its calls side by side");
    let cold = ["GetSSHPublicKey", "GetSSHPublicKey", "GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
    assert_eq!(directory.iam.take_calls(), cold.map(|action| format!("{action} alice")));

    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Cache);
    assert_eq!(directory.iam.take_calls(), [""; 0]);

    tokio::time::advance(Duration::from_secs(11)).await;
    let began = Instant::now();
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Iam);
    assert_eq!(began.elapsed(), FakeIam::CALL, "one round trip");
    let again = ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
    assert_eq!(directory.iam.take_calls(), again.map(|action| format!("{action} alice")));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn concurrent_lookups_of_one_user_share_one_fetch() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    let lookup = join_all((0..100).map(|_| find(&directory, "alice"))).await;
    assert!(lookup.iter().all(|lookup| lookup.as_ref().is_ok_and(|lookup| groups(lookup) == ["users"])));
    assert_eq!(directory.iam.take_calls().len(), 4);
    directory.iam.fail(Some(Cause::Call("gone".into()).into()));
    let began = Instant::now();
    let lookup = join_all((0..100).map(|_| find(&directory, "alice"))).await;
    assert!(lookup.iter().all(|lookup| lookup.as_ref().is_ok_and(|lookup| lookup.source == Source::Offline)));
    assert_eq!(directory.iam.take_calls().len(), 3);
    assert_eq!(began.elapsed(), FakeIam::CALL);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_withdrawal_takes_effect_once_the_entry_is_stale() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.change("alice", |alice| {
        alice.groups.clear();
        alice.keys.clear();
    });
    tokio::time::advance(Duration::from_secs(10)).await;
    let lookup = find(&directory, "alice").await.unwrap();
    assert!(groups(&lookup).is_empty());
    directory.iam.people.borrow_mut().clear();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().entry.identity, Identity::NotFound));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_two_users_map_to_goes_to_neither() {
    let directory = directory(USERS);
    directory.iam.add("a@b", &["users"]);
    assert!(matches!(find(&directory, "a.at.b").await.unwrap().entry.identity, Identity::User(_)));
    directory.iam.add("a.at.b", &["users"]);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "a.at.b").await.unwrap().entry.identity, Identity::Ambiguous(_)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_of_another_case_is_another_name() {
    let directory = directory(USERS);
    directory.iam.add("Bob", &["users"]);
    assert!(matches!(find(&directory, "bob").await.unwrap().entry.identity, Identity::NotFound));
    assert!(matches!(find(&directory, "Bob").await.unwrap().entry.identity, Identity::User(_)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn denied_means_no_and_not_unreachable() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.denied.borrow_mut().push("alice".into());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().entry.identity, Identity::AccessDenied));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn guessed_names_make_no_more_calls_than_the_limit_and_a_new_user_logs_in() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.read_roster().await.unwrap();
    directory.iam.take_calls();
    tokio::time::advance(Duration::from_secs(31)).await;
    for guess in 0..10_000 {
        find(&directory, &format!("guess{guess}")).await.unwrap();
    }
    let calls = directory.iam.take_calls();
    let lookups = calls.iter().filter(|call| call.starts_with("GetUser")).count();
    // The full bucket's 30 tokens, and those that were added during the lookups.
    assert!((30..=32).contains(&lookups), "{lookups}");
    directory.iam.add("newcomer", &["users"]);
    tokio::time::advance(Duration::from_secs(31)).await;
    for guess in 0..100 {
        find(&directory, &format!("guess{guess}")).await.unwrap();
    }
    assert!(matches!(find(&directory, "newcomer").await.unwrap().entry.identity, Identity::User(_)));
    assert!(matches!(find(&directory, "alice").await.unwrap().entry.identity, Identity::User(_)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_recreated_user_ends_the_old_one_whatever_else_is_missing() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.add("alice", &["users"]);
    directory.iam.fail(unreachable());
    directory.iam.fail_only("ListSSHPublicKeys");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(find(&directory, "alice").await.is_err());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn after_renamings_each_name_has_its_present_user() {
    let directory = directory(USERS);
    directory.iam.add("bob", &["users"]);
    directory.iam.add("alice", &["users"]);
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    find(&directory, "alice").await.unwrap();
    // alice is renamed to alicia, and bob to alice.
    directory.iam.rename("alice", "alicia");
    directory.iam.rename("bob", "alice");
    tokio::time::advance(Duration::from_secs(11)).await;
    find(&directory, "alice").await.unwrap();
    let alicia = find(&directory, "alicia").await.unwrap();
    let Identity::User(person) = &alicia.entry.identity else { panic!() };
    assert_eq!((person.uid, directory.uid_belongs_to_older_user(person.uid, &person.user)), (uid(2), false));
    for (number, name) in [(1, "alice"), (2, "alicia")] {
        let found = directory.lookup_uid(uid(number), Origin::Host).await.unwrap();
        assert_eq!(found.map(|(name, _)| name), Some(linux(name)));
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_uid_whose_user_was_renamed_is_found_by_the_roster() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.rename("alice", "alicia");
    directory.read_roster().await.unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    find(&directory, "alice").await.unwrap();
    let found = directory.lookup_uid(ids::uid_of(&crate::source::fake::id(1)), Origin::Host).await.unwrap();
    assert_eq!(found.map(|(name, _)| name), Some(linux("alicia")));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_no_that_comes_while_the_roster_is_read_is_not_undone_by_the_roster() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    let remove = || directory.iam.people.borrow_mut().clear();
    let found = found_while_the_roster_is_read(&directory, "GetUser", remove).await;
    assert_eq!(found.entry.identity, Identity::NotFound);
    let named = directory.lookup_name(&linux("alice"), Origin::Host).await.unwrap();
    assert!(matches!(named, Named::Cached(lookup) if lookup.entry.identity == Identity::NotFound));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_group_that_is_withdrawn_while_the_roster_is_read_is_not_given_back_by_the_roster() {
    let directory = directory("[access]\nallow = ['users']\n[groups]\ndevelopers = 'dev'");
    directory.iam.add("alice", &["users", "developers"]);
    find(&directory, "alice").await.unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    let withdraw = || directory.iam.change("alice", |alice| alice.groups = vec!["users".into()]);
    let found = found_while_the_roster_is_read(&directory, "ListGroupsForUser", withdraw).await;
    assert_eq!(groups(&found), ["users"]);
    let Some(Named::Cached(known)) = directory.known_name(&linux("alice")) else { panic!("the roster") };
    assert_eq!(groups(&known), ["users"]);
}

/// Has a fetch of alice begin while the roster is read, which lists her, and end after `change`, since its call `slow` takes longer.
/// Returns what the fetch found.
async fn found_while_the_roster_is_read(
    directory: &Rc<Directory<FakeIam>>,
    slow: &'static str,
    change: impl FnOnce(),
) -> Lookup {
    let roster = spawn_local({
        let directory = Rc::clone(directory);
        async move { directory.read_roster().await }
    });
    tokio::time::advance(FakeIam::CALL / 2).await;
    directory.iam.slow.borrow_mut().insert(slow, FakeIam::CALL * 5);
    let found = spawn_local({
        let directory = Rc::clone(directory);
        async move { find(&directory, "alice").await }
    });
    assert!(roster.await.unwrap().unwrap().has(&linux("alice")));
    change();
    found.await.unwrap().unwrap()
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_user_who_changes_groups_while_the_roster_is_read_keeps_the_rights_that_both_groups_give() {
    let text = "[access]\nallow = ['a', 'b']\n[groups]\na = 'dev'\nb = 'dev'\nc = 'web'";
    let directory = directory(text);
    directory.iam.add("alice", &["a"]);
    directory.iam.add("bob", &["b", "c"]);
    let moved = || directory.iam.change("alice", |alice| alice.groups = vec!["b".into(), "c".into()]);
    found_while_the_roster_is_read(&directory, "ListGroupsForUser", moved).await;
    let Some(Named::Cached(known)) = directory.known_name(&linux("alice")) else { panic!("the roster") };
    assert_eq!(groups(&known), ["b"], "both allow her and give dev; the roster does not give web");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_candidate_that_is_gone_is_forgotten_while_another_cannot_be_asked() {
    let directory = directory("[access]\nallow = ['users']\n[accounts]\ndrop_suffix = ['@example.com']");
    directory.iam.add("alice@example.com", &["users"]);
    assert_eq!(groups(&find(&directory, "alice").await.unwrap()), ["users"]);
    directory.iam.people.borrow_mut().clear();
    directory.iam.mute("alice");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(find(&directory, "alice").await.is_err(), "no old answer about the one who is gone");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_reads_in_many_ways_costs_as_many_tokens() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.read_roster().await.unwrap();
    directory.iam.take_calls();
    for guess in 0..100 {
        find(&directory, &format!("g{guess}.at.b.at.c.at.d")).await.unwrap();
    }
    let lookups = directory.iam.take_calls().iter().filter(|call| call.starts_with("GetUser")).count();
    assert!((24..=40).contains(&lookups), "{lookups}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_roster_that_cannot_be_read_is_not_read_for_each_request() {
    let directory = directory(USERS);
    directory.iam.fail(unreachable());
    for number in 0..100 {
        assert!(directory.lookup_uid(Uid(2_100_000_000 + number), Origin::Host).await.is_err());
    }
    assert_eq!(directory.iam.take_calls(), ["GetGroup users"]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn without_calls_left_and_without_a_roster_a_lookup_is_an_error() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nunknown_per_minute = 0");
    directory.iam.add("alice", &["users"]);
    directory.iam.fail(unreachable());
    assert!(find(&directory, "alice").await.is_err(), "which is not the same as: there is no alice");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn denied_names_cost_tokens_too() {
    let directory = directory(USERS);
    directory.read_roster().await.ok();
    directory.iam.take_calls();
    for round in 0..3 {
        for guess in 0..100 {
            let name = format!("guess{guess}");
            directory.iam.denied.borrow_mut().push(name.clone());
            let _ = find(&directory, &name).await;
        }
        let lookups = directory.iam.take_calls().iter().filter(|call| call.starts_with("GetUser")).count();
        assert!(lookups <= 40, "{lookups} in round {round}");
        tokio::time::advance(Duration::from_secs(11)).await;
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_uid_is_found_in_the_roster_and_among_entries() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.iam.add("bob", &[]);
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    let name = |found: Option<(LinuxName, Named)>| found.map(|(name, _)| name);
    assert_eq!(name(directory.lookup_uid(uid(1), Origin::Host).await.unwrap()), Some(linux("alice")));
    assert_eq!(name(directory.lookup_uid(uid(2), Origin::Host).await.unwrap()), None);
    find(&directory, "bob").await.unwrap();
    assert_eq!(name(directory.lookup_uid(uid(2), Origin::Host).await.unwrap()), Some(linux("bob")));
}

fn unreachable() -> Option<IamError> {
    Some(Cause::Call("throttled".into()).into())
}
