use super::*;
use crate::fake::{FakeIam, KEY, config, linux};
use crate::ids;
use futures_util::future::join_all;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn directory(text: &str) -> Rc<Directory<FakeIam>> {
    Directory::new(FakeIam::default(), config(text), Log::silent())
}

async fn find(directory: &Rc<Directory<FakeIam>>, name: &str) -> Result<Seen, IamError> {
    directory.find(&linux(name), age(directory)).await
}

fn age(directory: &Directory<FakeIam>) -> Age {
    Age { fresh: directory.config.freshness.max_age.0, offline: DAY }
}

fn groups(seen: &Seen) -> Vec<String> {
    match &seen.record.known {
        Known::One(person) => person.groups.iter().map(|group| group.name.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

const USERS: &str = "[access]\nallow = ['users']";

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_login_costs_what_is_promised() {
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
async fn all_who_ask_for_one_user_share_one_fetch() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    let seen = join_all((0..100).map(|_| find(&directory, "alice"))).await;
    assert!(seen.iter().all(|seen| seen.as_ref().is_ok_and(|seen| groups(seen) == ["users"])));
    assert_eq!(directory.iam.take_calls().len(), 4);
    directory.iam.fail(Some(IamError::Unreachable("gone".into())));
    let began = Instant::now();
    let seen = join_all((0..100).map(|_| find(&directory, "alice"))).await;
    assert!(seen.iter().all(|seen| seen.as_ref().is_ok_and(|seen| seen.source == Source::Offline)));
    assert_eq!(directory.iam.take_calls().len(), 3);
    assert_eq!(began.elapsed(), FakeIam::CALL);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_iam_withdraws_is_gone_when_the_answer_is_too_old() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.change("alice", |alice| {
        alice.groups.clear();
        alice.keys.clear();
    });
    tokio::time::advance(Duration::from_secs(10)).await;
    let seen = find(&directory, "alice").await.unwrap();
    assert!(groups(&seen).is_empty());
    directory.iam.people.borrow_mut().clear();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().record.known, Known::Absent));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn while_iam_is_unreachable_the_last_answer_serves_until_it_is_too_old() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.fail(Some(IamError::Unreachable("gone".into())));
    tokio::time::advance(DAY - Duration::from_secs(10)).await;
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Offline);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(find(&directory, "alice").await.is_err());
    assert!(find(&directory, "bob").await.is_err(), "a name that was never seen");
    directory.iam.fail(None);
    tokio::time::advance(BACK_OFF).await;
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Iam);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_that_two_users_claim_is_nobodys() {
    let directory = directory(USERS);
    directory.iam.add("a@b", &["users"]);
    assert!(matches!(find(&directory, "a.at.b").await.unwrap().record.known, Known::One(_)));
    directory.iam.add("a.at.b", &["users"]);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "a.at.b").await.unwrap().record.known, Known::Ambiguous(_)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_of_another_case_is_another_name() {
    let directory = directory(USERS);
    directory.iam.add("Bob", &["users"]);
    assert!(matches!(find(&directory, "bob").await.unwrap().record.known, Known::Absent));
    assert!(matches!(find(&directory, "Bob").await.unwrap().record.known, Known::One(_)));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn denied_means_no_and_not_unreachable() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.denied.borrow_mut().push("alice".into());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().record.known, Known::Denied));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn guessed_names_cost_what_the_bucket_holds_and_a_new_user_still_gets_in() {
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
    // The bucket's 30, and what flowed in while they were looked up.
    assert!((30..=32).contains(&lookups), "{lookups}");
    directory.iam.add("newcomer", &["users"]);
    tokio::time::advance(Duration::from_secs(31)).await;
    for guess in 0..100 {
        find(&directory, &format!("guess{guess}")).await.unwrap();
    }
    assert!(matches!(find(&directory, "newcomer").await.unwrap().record.known, Known::One(_)));
    assert!(matches!(find(&directory, "alice").await.unwrap().record.known, Known::One(_)));
}

fn unreachable() -> Option<IamError> {
    Some(IamError::Unreachable("throttled".into()))
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_failure_for_one_user_serves_no_old_answer_for_another() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.change("alice", |alice| alice.groups.clear());
    tokio::time::advance(Duration::from_secs(11)).await;
    directory.iam.fail(unreachable());
    assert!(find(&directory, "zzz").await.is_err());
    directory.iam.fail(None);
    let seen = find(&directory, "alice").await.unwrap();
    assert_eq!((seen.source, groups(&seen).len()), (Source::Iam, 0));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_iam_has_said_is_not_overridden_because_the_rest_is_missing() {
    for missing in ["ListSSHPublicKeys", "GetUser"] {
        let directory = directory(USERS);
        directory.iam.add("alice", &["users"]);
        find(&directory, "alice").await.unwrap();
        directory.iam.change("alice", |alice| alice.groups.clear());
        directory.iam.fail(unreachable());
        directory.iam.fail_only(missing);
        tokio::time::advance(Duration::from_secs(11)).await;
        let seen = find(&directory, "alice").await.unwrap();
        assert_eq!((seen.source, groups(&seen).len()), (Source::Offline, 0), "without {missing}");
    }
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.people.borrow_mut().clear();
    directory.iam.fail(unreachable());
    directory.iam.fail_only("GetUser");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().record.known, Known::Absent));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_iam_has_said_counts_even_if_another_call_is_silent_to_the_end() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.change("alice", |alice| alice.groups.clear());
    directory.iam.hang_only("GetUser");
    tokio::time::advance(Duration::from_secs(11)).await;
    let seen = find(&directory, "alice").await.unwrap();
    assert_eq!((seen.source, groups(&seen).len()), (Source::Offline, 0));
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
async fn after_renamings_everybody_is_who_they_are() {
    let directory = directory(USERS);
    directory.iam.add("bob", &["users"]);
    directory.iam.add("alice", &["users"]);
    let uid = |number| ids::uid_of(&crate::fake::id(number));
    find(&directory, "alice").await.unwrap();
    // alice is called alicia now, and bob alice.
    directory.iam.rename("alice", "alicia");
    directory.iam.rename("bob", "alice");
    tokio::time::advance(Duration::from_secs(11)).await;
    find(&directory, "alice").await.unwrap();
    let alicia = find(&directory, "alicia").await.unwrap();
    let Known::One(person) = &alicia.record.known else { panic!() };
    assert_eq!((person.uid, directory.has_elder(person)), (uid(2), false));
    for (number, name) in [(1, "alice"), (2, "alicia")] {
        let found = directory.find_uid(uid(number), age(&directory)).await.unwrap();
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
    let found = directory.find_uid(ids::uid_of(&crate::fake::id(1)), age(&directory)).await.unwrap();
    assert_eq!(found.map(|(name, _)| name), Some(linux("alicia")));
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
async fn a_roster_that_cannot_be_read_is_not_asked_for_again_and_again() {
    let directory = directory(USERS);
    directory.iam.fail(unreachable());
    for number in 0..100 {
        assert!(directory.find_uid(Uid(1_900_000_000 + number), age(&directory)).await.is_err());
    }
    assert_eq!(directory.iam.take_calls(), ["GetGroup users"]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn with_an_empty_bucket_and_no_roster_nobody_can_tell() {
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
async fn a_uid_is_found_by_the_roster_and_by_who_was_seen() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.iam.add("bob", &[]);
    let uid = |number| ids::uid_of(&crate::fake::id(number));
    let name = |found: Option<(LinuxName, Seen)>| found.map(|(name, _)| name);
    assert_eq!(name(directory.find_uid(uid(1), age(&directory)).await.unwrap()), Some(linux("alice")));
    assert_eq!(name(directory.find_uid(uid(2), age(&directory)).await.unwrap()), None);
    find(&directory, "bob").await.unwrap();
    assert_eq!(name(directory.find_uid(uid(2), age(&directory)).await.unwrap()), Some(linux("bob")));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn nothing_takes_longer_than_the_total_timeout() {
    let directory = directory("[access]\nallow = ['users']\n[aws]\ntotal_timeout = '10ms'");
    directory.iam.add("alice", &["users"]);
    let began = Instant::now();
    assert!(find(&directory, "alice").await.is_err());
    assert_eq!(began.elapsed(), Duration::from_millis(10));
}
