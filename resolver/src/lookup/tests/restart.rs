//! Tests of the directory after a restart, a sleep of the machine and a flush.

use super::*;

/// Returns a directory with the saved state of `directory`, as after a restart that took `ago`. Its IAM does not answer.
fn restarted(directory: &Directory<FakeIam>, text: &str, ago: Duration) -> Rc<Directory<FakeIam>> {
    let saved = serde_json::to_vec(&directory.snapshot()).unwrap();
    let restarted = self::directory(text);
    restarted.restore(serde_json::from_slice(&saved).unwrap(), ago);
    restarted.iam.fail(Some(Cause::Call("gone".into()).into()));
    restarted
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn entries_survive_a_restart_and_age_meanwhile() {
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
    let names: Vec<LinuxName> =
        after.cached_roster().unwrap().users().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, [linux("alice"), linux("bob")]);
    assert_eq!(after.snapshot().count(), before.snapshot().count());
    // The body of a key is never fetched again.
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
async fn a_login_the_day_after_and_after_a_restart_takes_one_round_trip() {
    let before = directory(USERS);
    for name in ["alice", "bob"] {
        before.iam.add(name, &["users"]);
        find(&before, name).await.unwrap();
    }
    tokio::time::advance(DAY).await;
    before.iam.people.borrow_mut().remove("bob");
    before.read_roster().await.unwrap();
    let after = restarted(&before, USERS, Duration::from_secs(60));
    assert_eq!((before.snapshot().count(), after.snapshot().keys()), (0, 1), "not those of bob");
    assert!(find(&after, "alice").await.is_err(), "a key is no answer about its user");

    after.iam.fail(None);
    tokio::time::advance(BACK_OFF).await;
    after.iam.take_calls();
    after.iam.people.replace(before.iam.people.take());
    let lookup = find(&after, "alice").await.unwrap();
    assert!(matches!(&lookup.entry.identity, Identity::User(alice) if alice.keys.len() == 1));
    let calls = ["GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
    assert_eq!(after.iam.take_calls(), calls.map(|action| format!("{action} alice")));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_withdrawal_is_on_the_disk_before_it_is_answered() {
    let directory = directory("[access]\nallow = ['users']\n[freshness]\nmax_age = 0");
    directory.iam.add("alice", &["users"]);
    // The calls that show the withdrawal below answer before GetUser.
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
    // Only one lookup waits for a disk that hangs.
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
async fn entries_age_while_the_machine_sleeps() {
    let directory = directory(USERS);
    directory.iam.add("alice", &["users"]);
    find(&directory, "alice").await.unwrap();
    directory.read_roster().await.unwrap();
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Cache);
    let slept = directory.slept.get();
    directory.age_by_sleep(slept + Duration::from_millis(10));
    assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Cache, "no sleep, but two clocks");
    directory.age_by_sleep(slept + Duration::from_secs(60));
    assert_eq!(directory.cached_roster().unwrap().age().as_secs(), 60);
    directory.iam.fail(Some(Cause::Call("gone".into()).into()));
    let lookup = find(&directory, "alice").await.unwrap();
    assert_eq!((lookup.source, lookup.entry.age().as_secs()), (Source::Offline, 60));
    directory.age_by_sleep(slept + DAY + Duration::from_secs(60));
    assert!(find(&directory, "alice").await.is_err());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_answer_requested_before_a_flush_is_not_stored_after_it() {
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
async fn after_a_restart_the_cached_roster_proves_presence_and_not_absence() {
    let before = directory(USERS);
    before.iam.add("alice", &["users"]);
    before.iam.add("bob", &["users"]);
    before.read_roster().await.unwrap();
    // A user who was deleted after the roster was read.
    before.iam.people.borrow_mut().remove("bob");
    assert_eq!(find(&before, "bob").await.unwrap().entry.identity, Identity::NotFound);
    let after = restarted(&before, USERS, Duration::ZERO);
    let uid = |number| ids::uid_of(&crate::source::fake::id(number));
    assert!(after.lookup_uid(uid(7), Origin::Host).await.is_err());
    assert_eq!(after.entry(&linux("bob")).unwrap().identity, Identity::NotFound);
    after.iam.fail(None);
    after.read_roster().await.unwrap();
    assert!(after.lookup_uid(uid(7), Origin::Host).await.unwrap().is_none());
    assert!(restarted(&before, USERS, DAY).cached_roster().is_none(), "too old");
}
