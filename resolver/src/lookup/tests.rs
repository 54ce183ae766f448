use super::fetch::{BACK_OFF, OUTAGE, PATIENCE_IN_OUTAGE};
use super::*;
use crate::ids;
use crate::persist::dirty::PERSIST_MAX;
use crate::source::Cause;
use crate::source::fake::{FakeIam, KEY, config, linux};
use futures_util::future::join_all;
use pam_iam_core::id::Uid;
use tokio::task::spawn_local;

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
async fn what_iam_withdraws_is_gone_when_the_answer_is_too_old() {
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
async fn while_iam_is_unreachable_the_last_answer_serves_until_it_is_too_old() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.fail(Some(Cause::Call("gone".into()).into()));
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
    assert!(matches!(find(&directory, "newcomer").await.unwrap().entry.identity, Identity::User(_)));
    assert!(matches!(find(&directory, "alice").await.unwrap().entry.identity, Identity::User(_)));
}

fn unreachable() -> Option<IamError> {
    Some(Cause::Call("throttled".into()).into())
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
    let lookup = find(&directory, "alice").await.unwrap();
    assert_eq!((lookup.source, groups(&lookup).len()), (Source::Iam, 0));
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
        let lookup = find(&directory, "alice").await.unwrap();
        assert_eq!((lookup.source, groups(&lookup).len()), (Source::Offline, 0), "without {missing}");
    }
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.people.borrow_mut().clear();
    directory.iam.fail(unreachable());
    directory.iam.fail_only("GetUser");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(matches!(find(&directory, "alice").await.unwrap().entry.identity, Identity::NotFound));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_iam_has_said_counts_even_if_another_call_is_silent_to_the_end() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.change("alice", |alice| alice.groups.clear());
    directory.iam.hang_only("GetUser");
    tokio::time::advance(Duration::from_secs(11)).await;
    let lookup = find(&directory, "alice").await.unwrap();
    assert_eq!((lookup.source, groups(&lookup).len()), (Source::Offline, 0));
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
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    find(&directory, "alice").await.unwrap();
    // alice is called alicia now, and bob alice.
    directory.iam.rename("alice", "alicia");
    directory.iam.rename("bob", "alice");
    tokio::time::advance(Duration::from_secs(11)).await;
    find(&directory, "alice").await.unwrap();
    let alicia = find(&directory, "alicia").await.unwrap();
    let Identity::User(person) = &alicia.entry.identity else { panic!() };
    assert_eq!((person.uid, directory.uid_belongs_to_older_user(person)), (uid(2), false));
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
        assert!(directory.lookup_uid(Uid(2_100_000_000 + number), Origin::Host).await.is_err());
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
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    let name = |found: Option<(LinuxName, Named)>| found.map(|(name, _)| name);
    assert_eq!(name(directory.lookup_uid(uid(1), Origin::Host).await.unwrap()), Some(linux("alice")));
    assert_eq!(name(directory.lookup_uid(uid(2), Origin::Host).await.unwrap()), None);
    find(&directory, "bob").await.unwrap();
    assert_eq!(name(directory.lookup_uid(uid(2), Origin::Host).await.unwrap()), Some(linux("bob")));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn nothing_takes_longer_than_the_total_timeout() {
    let directory = directory("[access]\nallow = ['users']\n[aws]\ntotal_timeout = '10ms'");
    directory.iam.add("alice", &["users"]);
    let began = Instant::now();
    assert!(find(&directory, "alice").await.is_err());
    assert_eq!(began.elapsed(), Duration::from_millis(10));
}

/// The same after a restart so much later, in which IAM does not answer.
fn restarted(directory: &Directory<FakeIam>, text: &str, ago: Duration) -> Rc<Directory<FakeIam>> {
    let saved = serde_json::to_vec(&directory.snapshot()).unwrap();
    let restarted = self::directory(text);
    restarted.restore(serde_json::from_slice(&saved).unwrap(), ago);
    restarted.iam.fail(Some(Cause::Call("gone".into()).into()));
    restarted
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_was_learned_survives_a_restart_and_ages_meanwhile() {
    let text = "[access]\nallow = ['users']\n[shared.deploy]\ngroups = ['users']\n[accounts]\ndrop_suffix = ['@example.com']";
    let before = directory(text);
    before.iam.add("alice@example.com", &["users"]);
    before.iam.add("bob", &["users"]);
    find(&before, "alice").await.unwrap();
    find(&before, "deploy").await.unwrap();
    before.read_roster().await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;

    let after = restarted(&before, text, Duration::from_secs(3600));
    let lookup = find(&after, "alice").await.unwrap();
    assert_eq!((lookup.source, groups(&lookup)), (Source::Offline, vec!["users".to_owned()]));
    assert_eq!(lookup.entry.age().as_secs(), 3660);
    assert_eq!(lookup.entry.identity, before.entry(&linux("alice")).unwrap().identity);
    assert!(
        matches!(&find(&after, "deploy").await.unwrap().entry.identity, Identity::Members(team) if team.len() == 2)
    );
    let uid = ids::uid_of(&crate::source::fake::id(1));
    assert_eq!(after.lookup_uid(uid, Origin::Host).await.unwrap().unwrap().0, linux("alice"));
    let names: Vec<LinuxName> = after.last_roster().unwrap().users().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, [linux("alice"), linux("bob")]);
    assert_eq!(after.snapshot().count(), before.snapshot().count());
    // The bodies of keys are never asked for again.
    after.iam.fail(None);
    tokio::time::advance(BACK_OFF).await;
    after.iam.take_calls();
    after.iam.people.replace(before.iam.people.take());
    assert_eq!(find(&after, "alice").await.unwrap().source, Source::Iam);
    assert!(after.iam.take_calls().iter().all(|call| !call.starts_with("GetSSHPublicKey")));

    let late = restarted(&before, text, DAY);
    assert!(find(&late, "alice").await.is_err());
    assert_eq!(late.snapshot().count(), 0, "what is too old is not saved again");
    let other = restarted(&before, USERS, Duration::ZERO);
    assert!(other.entry(&linux("alice")).is_none() && other.entry(&linux("deploy")).is_none());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_is_taken_away_is_on_the_disk_before_it_is_told() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    // What takes something away is known before the rest of the answer.
    directory.iam.slow.borrow_mut().insert("GetUser", Duration::from_millis(50));
    find(&directory, "alice").await.unwrap();
    assert!(!directory.dirty.take_change().is_revocation, "something new can wait");
    find(&directory, "alice").await.unwrap();
    assert!(!directory.dirty.take_change().is_revocation, "and so can what is merely younger");
    directory.iam.change("alice", |alice| alice.keys.clear());
    let _keeper = directory.dirty.register_writer();
    let disk = Rc::clone(&directory);
    let saved = spawn_local(async move {
        let change = disk.dirty.next_change(DAY, DAY).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        disk.dirty.set_persisted(&change);
        change.is_revocation
    });
    let began = Instant::now();
    find(&directory, "alice").await.unwrap();
    assert!(saved.await.unwrap());
    assert_eq!(
        began.elapsed(),
        FakeIam::CALL + Duration::from_millis(100),
        "written while the rest is awaited"
    );
    // A disk that hangs keeps somebody waiting once.
    directory.iam.people.borrow_mut().clear();
    let took = async || {
        let began = Instant::now();
        assert_eq!(find(&directory, "alice").await.unwrap().entry.identity, Identity::NotFound);
        began.elapsed()
    };
    assert_eq!(took().await, FakeIam::CALL + Duration::from_millis(50) + PERSIST_MAX);
    directory.flush(None);
    assert_eq!(took().await, FakeIam::CALL + Duration::from_millis(50));
    let change = directory.dirty.take_change();
    assert!(change.is_revocation);
    directory.dirty.set_persisted(&change);
    directory.flush(None);
    assert_eq!(took().await, FakeIam::CALL + Duration::from_millis(50) + PERSIST_MAX);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_old_failure_makes_nobody_impatient() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.iam.fail(Some(Cause::Call("throttled".into()).into()));
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Offline);
    directory.iam.fail(None);
    directory.iam.change("alice", |alice| alice.groups.clear());
    directory.iam.slow.borrow_mut().insert("GetUser", Duration::from_secs(2));
    tokio::time::advance(OUTAGE).await;
    let lookup = find(&directory, "alice").await.unwrap();
    assert_eq!((lookup.source, groups(&lookup).len()), (Source::Iam, 0));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_is_known_ages_while_the_machine_sleeps() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.read_roster().await.unwrap();
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Cache);
    let slept = directory.slept.get();
    directory.age_by_sleep(slept + Duration::from_millis(10));
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Cache, "no sleep, but two clocks");
    directory.age_by_sleep(slept + Duration::from_secs(60));
    assert_eq!(directory.last_roster().unwrap().age().as_secs(), 60);
    directory.iam.fail(Some(Cause::Call("gone".into()).into()));
    let lookup = find(&directory, "alice").await.unwrap();
    assert_eq!((lookup.source, lookup.entry.age().as_secs()), (Source::Offline, 60));
    directory.age_by_sleep(slept + DAY + Duration::from_secs(60));
    assert!(find(&directory, "alice").await.is_err());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_was_asked_before_a_flush_is_not_stored_after_it() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    directory.iam.slow.borrow_mut().insert("ListSSHPublicKeys", Duration::from_secs(1));
    let asker = Rc::clone(&directory);
    let early = spawn_local(async move { find(&asker, "alice").await });
    tokio::time::sleep(FakeIam::CALL * 2).await;
    directory.flush(None);
    directory.iam.change("alice", |alice| alice.groups.clear());
    let late = find(&directory, "alice").await.unwrap();
    early.await.unwrap().unwrap();
    assert!(groups(&late).is_empty());
    assert!(groups(&find(&directory, "alice").await.unwrap()).is_empty());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn after_a_restart_the_list_says_who_there_is_and_not_who_there_is_not() {
    let before = directory(USERS);
    before.iam.add("alice", &["users"]);
    before.iam.add("bob", &["users"]);
    before.read_roster().await.unwrap();
    // Who was known and is no more, since the list was read.
    before.iam.people.borrow_mut().remove("bob");
    assert_eq!(find(&before, "bob").await.unwrap().entry.identity, Identity::NotFound);
    let after = restarted(&before, USERS, Duration::ZERO);
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    assert!(after.lookup_uid(uid(7), Origin::Host).await.is_err());
    assert_eq!(after.entry(&linux("bob")).unwrap().identity, Identity::NotFound);
    after.iam.fail(None);
    after.read_roster().await.unwrap();
    assert!(after.lookup_uid(uid(7), Origin::Host).await.unwrap().is_none());
    assert!(restarted(&before, USERS, DAY).last_roster().is_none(), "too old");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn in_an_outage_the_first_waits_and_the_next_do_not_and_the_first_after_it_is_fresh() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    let limit = directory.config.aws.total_timeout.0;
    directory.iam.hang();
    let took = async |name| {
        let began = Instant::now();
        let lookup = find(&directory, name).await;
        (began.elapsed(), lookup.map(|lookup| lookup.source))
    };
    assert_eq!(took("alice").await, (limit, Ok(Source::Offline)));
    assert_eq!(took("alice").await, (Duration::ZERO, Ok(Source::Offline)));
    tokio::time::advance(BACK_OFF).await;
    assert_eq!(took("alice").await, (PATIENCE_IN_OUTAGE, Ok(Source::Offline)));
    let (waited, nobody) = took("nobody").await;
    assert!(waited == PATIENCE_IN_OUTAGE && nobody.is_err());
    // The hanging calls are over, and nobody asked since.
    tokio::time::advance(limit + BACK_OFF).await;
    tokio::time::sleep(BACK_OFF).await;
    directory.iam.answer_again();
    assert_eq!(took("alice").await, (FakeIam::CALL, Ok(Source::Iam)));
    assert_eq!(took("nobody").await.1, Ok(Source::Iam));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_name_of_which_iam_did_not_answer_a_moment_ago_takes_no_part_of_a_limit() {
    let directory = directory("[access]\nallow = ['users']");
    directory.iam.fail(Some(Cause::Call("gone".into()).into()));
    let freshness = Freshness { origin: Origin::User(Uid(7)), ..freshness(&directory) };
    for _ in 0..100 {
        assert!(directory.lookup(&linux("alice"), freshness).await.is_err());
    }
    assert!(directory.unknown_left() >= 29, "{}", directory.unknown_left());
}
