//! Tests of a directory whose IAM does not answer.

use super::*;

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
async fn a_partial_answer_withdraws_although_the_rest_is_missing() {
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
async fn a_partial_answer_counts_even_if_another_call_times_out() {
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
async fn nothing_takes_longer_than_the_total_timeout() {
    let directory = directory("[access]\nallow = ['users']\n[aws]\ntotal_timeout = '10ms'");
    directory.iam.add("alice", &["users"]);
    let began = Instant::now();
    assert!(find(&directory, "alice").await.is_err());
    assert_eq!(began.elapsed(), Duration::from_millis(10));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_old_failure_does_not_shorten_a_wait() {
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
    // The hanging calls time out, and no lookup starts others.
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
