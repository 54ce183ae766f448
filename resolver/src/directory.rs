//! Who is this, and how fresh is what we know? One fetch for all who wait for the same user.
//!
//! The runtime has one thread, so the state is a `RefCell` that is never borrowed across an await.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, join_all, join3};
use pam_iam_core::config::Config;
use pam_iam_core::escape::Value;
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::name::{self, IamName, LinuxName};
use pam_iam_core::wire::Source;
use tokio::time::{Instant, timeout};

use crate::bucket::Bucket;
use crate::iam::{Iam, IamError, IamGroup, IamUser};
use crate::ids;
use crate::roster::Roster;
use crate::sshkey;

/// After IAM could not be reached, how long nobody waits for it again.
const BACK_OFF: Duration = Duration::from_secs(2);

/// How old the roster has to be to be read again out of turn, when a name that is not on it comes and the bucket of
/// look-ups is empty.
const ROSTER_URGENT: Duration = Duration::from_secs(30);

/// How many names that IAM does not have are remembered.
const ABSENT_MAX: usize = 10_000;

/// What IAM says about the owner of a Linux name.
#[derive(Debug)]
pub enum Known {
    /// There is no such user.
    Absent,
    /// This user.
    One(Person),
    /// More than one user: nobody gets the name.
    Ambiguous(Vec<IamName>),
    /// IAM denies this host to look.
    Denied,
}

/// An IAM user with all that a login needs.
#[derive(Debug)]
pub struct Person {
    /// The user.
    pub user: IamUser,
    /// The uid, from the user's id.
    pub uid: Uid,
    /// The groups.
    pub groups: Vec<IamGroup>,
    /// The active keys by their ids; none for a key that is not usable.
    pub keys: Vec<(String, Option<PublicKey>)>,
}

/// What is known of a name, and since when.
#[derive(Debug)]
pub struct Record {
    /// What.
    pub known: Known,
    /// Since when. The moment before the first call, so that an age is never told too young.
    pub at: Instant,
}

/// A record with the way it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The record.
    pub record: Rc<Record>,
    /// The way.
    pub source: Source,
}

type Fetch<T> = Shared<LocalBoxFuture<'static, Result<Rc<T>, IamError>>>;

/// What the resolver knows.
pub struct Directory<I> {
    iam: I,
    /// The configuration.
    pub config: Config,
    /// When this directory was opened.
    pub started: Instant,
    log: RefCell<Log>,
    state: RefCell<State>,
}

struct State {
    records: HashMap<LinuxName, Rc<Record>>,
    names: HashMap<Uid, LinuxName>,
    fetches: HashMap<LinuxName, Fetch<Record>>,
    roster: Option<Rc<Roster>>,
    roster_fetch: Option<Fetch<Roster>>,
    bucket: Bucket,
    /// Until when IAM is taken for unreachable, and why.
    back_off: Option<(Instant, IamError)>,
}

impl<I: Iam> Directory<I> {
    /// An empty directory.
    pub fn new(iam: I, config: Config, log: Log) -> Rc<Self> {
        let state = State {
            records: HashMap::new(),
            names: HashMap::new(),
            fetches: HashMap::new(),
            roster: None,
            roster_fetch: None,
            bucket: Bucket::new(config.freshness.unknown_per_minute),
            back_off: None,
        };
        Rc::new(Self {
            iam,
            config,
            started: Instant::now(),
            log: RefCell::new(log),
            state: RefCell::new(state),
        })
    }

    /// Who `name` is, by an answer that is not older than `freshness.max_age`, or not older than `offline` while IAM
    /// cannot be reached.
    ///
    /// # Errors
    /// [`IamError::Unreachable`] when there is no such answer.
    pub async fn find(self: &Rc<Self>, name: &LinuxName, offline: Duration) -> Result<Seen, IamError> {
        let known = self.state.borrow().records.get(name).cloned();
        let age = known.as_ref().map(|record| record.at.elapsed());
        if let Some(record) = known.clone().filter(|_| age < Some(self.config.freshness.max_age.0)) {
            return Ok(Seen { record, source: Source::Cache });
        }
        let remembered = known.as_ref().is_some_and(|record| !matches!(record.known, Known::Absent));
        let under_way = self.state.borrow().fetches.contains_key(name);
        if !remembered && !under_way && !self.worth_a_call(name).await {
            let record = Rc::new(Record { known: Known::Absent, at: Instant::now() });
            return Ok(Seen { record, source: Source::Cache });
        }
        match self.fetch(name).await {
            Ok(record) => Ok(Seen { record, source: Source::Iam }),
            Err(error) => {
                let usable = known.filter(|record| record.at.elapsed() < offline);
                usable.map(|record| Seen { record, source: Source::Offline }).ok_or(error)
            }
        }
    }

    /// Who has `uid`. A uid says nothing about its user, so only those who were seen or are on the roster are found.
    /// The pair never changes but by a renaming, so an answer as old as the roster will do.
    ///
    /// # Errors
    /// [`IamError`] when nothing is known and the roster cannot be read.
    pub async fn find_uid(
        self: &Rc<Self>,
        uid: Uid,
        offline: Duration,
    ) -> Result<Option<(LinuxName, Seen)>, IamError> {
        let name = self.state.borrow().names.get(&uid).cloned();
        let name = match name {
            Some(name) => name,
            None => match self.roster().await?.name_of(uid) {
                Some(name) => name.clone(),
                None => return Ok(None),
            },
        };
        let known = self.state.borrow().records.get(&name).cloned();
        let recent = known.filter(|record| record.at.elapsed() < self.config.freshness.roster.0);
        let seen = match recent {
            Some(record) => Seen { record, source: Source::Cache },
            None => self.find(&name, offline).await?,
        };
        Ok(Some((name, seen)))
    }

    /// The roster, read now if there is none yet.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        let known = self.state.borrow().roster.clone();
        match known {
            Some(roster) => Ok(roster),
            None => self.read_roster().await,
        }
    }

    /// The roster as it was last read, if ever.
    pub fn last_roster(&self) -> Option<Rc<Roster>> {
        self.state.borrow().roster.clone()
    }

    /// The IAM behind it.
    #[cfg(test)]
    pub fn iam(&self) -> &I {
        &self.iam
    }

    /// How many names are remembered.
    pub fn known(&self) -> usize {
        self.state.borrow().records.len()
    }

    /// The calls to IAM so far.
    pub fn tally(&self) -> crate::iam::Tally {
        self.iam.tally()
    }

    /// Reads the roster. Who comes while it is being read shares the reading.
    ///
    /// # Errors
    /// Why it could not be read. An earlier one stays.
    pub async fn read_roster(self: &Rc<Self>) -> Result<Rc<Roster>, IamError> {
        let running = self.state.borrow().roster_fetch.clone();
        let fetch = running.unwrap_or_else(|| {
            let this = Rc::clone(self);
            let fetch = async move {
                let result = this.limited(Roster::read(&this.iam, &this.config)).await.map(Rc::new);
                this.roster_read(&result);
                result
            };
            let fetch = fetch.boxed_local().shared();
            self.state.borrow_mut().roster_fetch = Some(fetch.clone());
            fetch
        });
        fetch.await
    }

    fn roster_read(&self, result: &Result<Rc<Roster>, IamError>) {
        let before = self.last_roster();
        self.state.borrow_mut().roster_fetch = None;
        match result {
            Ok(roster) => {
                let told = before.as_ref().map(|roster| (&roster.refused, &roster.missing));
                if told != Some((&roster.refused, &roster.missing)) {
                    for who in &roster.refused {
                        self.warn(format!("refused IAM user {who}"));
                    }
                    for group in &roster.missing {
                        self.warn(format!("the configuration names the IAM group {group}, which does not exist"));
                    }
                }
                self.state.borrow_mut().roster = Some(Rc::clone(roster));
            }
            Err(IamError::Denied(message)) => self.warn(format!(
                "the list of allowed users cannot be read, since IAM denies it; give this host iam:GetGroup and iam:ListUsers: {message}"
            )),
            Err(error) => self.warn(format!("the list of allowed users cannot be read: {error}")),
        }
    }

    /// Whether an unknown name may cost calls: it is on the roster, or the bucket has a token, or a roster that is
    /// read for the occasion has it. So neither guessers of names cost much nor are new users kept out.
    async fn worth_a_call(self: &Rc<Self>, name: &LinuxName) -> bool {
        let roster = self.last_roster();
        if roster.as_ref().is_some_and(|roster| roster.has(name)) || self.state.borrow_mut().bucket.take() {
            return true;
        }
        let old = roster.is_none_or(|roster| roster.at.elapsed() > ROSTER_URGENT);
        old && self.read_roster().await.is_ok_and(|roster| roster.has(name))
    }

    async fn fetch(self: &Rc<Self>, name: &LinuxName) -> Result<Rc<Record>, IamError> {
        let running = self.state.borrow().fetches.get(name).cloned();
        if let Some(fetch) = running {
            return fetch.await;
        }
        if let Some((until, error)) = &self.state.borrow().back_off
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let (this, asked) = (Rc::clone(self), name.clone());
        let fetch = async move {
            let result = this.limited(this.ask(&asked)).await.map(Rc::new);
            this.fetched(&asked, &result);
            result
        };
        let fetch = fetch.boxed_local().shared();
        self.state.borrow_mut().fetches.insert(name.clone(), fetch.clone());
        fetch.await
    }

    /// Bounds whatever is asked of IAM by `aws.total_timeout`.
    async fn limited<T>(&self, work: impl Future<Output = Result<T, IamError>>) -> Result<T, IamError> {
        let limit = self.config.aws.total_timeout.0;
        let late = |_| Err(IamError::Unreachable(format!("no answer within {} ms", limit.as_millis())));
        timeout(limit, work).await.unwrap_or_else(late)
    }

    fn fetched(&self, name: &LinuxName, result: &Result<Rc<Record>, IamError>) {
        let mut state = self.state.borrow_mut();
        state.fetches.remove(name);
        let record = match result {
            Ok(record) => record,
            Err(error) => {
                state.back_off = Some((Instant::now() + BACK_OFF, error.clone()));
                drop(state);
                self.warn(format!("user {name}: {error}"));
                return;
            }
        };
        state.back_off = None;
        match &record.known {
            Known::One(person) => {
                state.names.insert(person.uid, name.clone());
            }
            Known::Absent => state.forget_some_absent(),
            Known::Ambiguous(_) | Known::Denied => {}
        }
        let before = state.records.insert(name.clone(), Rc::clone(record));
        drop(state);
        self.tell_news(name, before.as_deref(), record);
    }

    /// Logs what an operator should know, once for each time that it changes.
    fn tell_news(&self, name: &LinuxName, before: Option<&Record>, now: &Record) {
        match (&now.known, before.map(|record| &record.known)) {
            (Known::Ambiguous(_), Some(Known::Ambiguous(_))) | (Known::Denied, Some(Known::Denied)) => {}
            (Known::Ambiguous(users), _) => {
                let users: Vec<&str> = users.iter().map(IamName::as_str).collect();
                self.warn(format!("refused the name {name}: the IAM users {} claim it", users.join(" and ")));
            }
            (Known::Denied, _) => {
                self.warn(format!("user {name}: IAM denies this host to look, which means no"))
            }
            (Known::One(_) | Known::Absent, _) => {}
        }
    }

    /// Asks IAM about every user who could stand behind `name`.
    async fn ask(&self, name: &LinuxName) -> Result<Record, IamError> {
        let at = Instant::now();
        let candidates = name::candidates(name, &self.config.accounts.drop_suffix);
        let answers = join_all(candidates.iter().map(|candidate| self.look_up(name, candidate))).await;
        let (mut found, mut denied) = (Vec::new(), false);
        for answer in answers {
            match answer {
                Ok(person) => found.push(person),
                Err(IamError::NoSuchEntity) => {}
                Err(IamError::Denied(_)) => denied = true,
                Err(error) => return Err(error),
            }
        }
        let known = match (found.len(), found.pop()) {
            (1, Some(person)) => Known::One(person),
            (_, Some(last)) => {
                found.push(last);
                Known::Ambiguous(found.into_iter().map(|person| person.user.name).collect())
            }
            (_, None) if denied => Known::Denied,
            (_, None) => Known::Absent,
        };
        Ok(Record { known, at })
    }

    async fn look_up(&self, name: &LinuxName, candidate: &IamName) -> Result<Person, IamError> {
        let calls = join3(
            self.iam.user(candidate),
            self.iam.groups_of(candidate),
            self.iam.active_keys_of(candidate),
        );
        let (user, groups, key_ids) = calls.await;
        let (user, groups, key_ids) = (user?, groups?, key_ids?);
        if user.name != *candidate {
            // IAM's names are unique without regard to case, Linux names are not: `Bob` is not `bob`.
            return Err(IamError::NoSuchEntity);
        }
        let known = self.state.borrow().records.get(name).cloned();
        let keys = key_ids.iter().map(|id| self.key(&user, id, known.as_deref()));
        let keys = join_all(keys).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let keys = keys.into_iter().flatten().collect();
        Ok(Person { uid: ids::uid_of(user.id.as_str()), user, groups, keys })
    }

    /// A key by its id, under which its body never changes: what is known is not asked again.
    async fn key(
        &self,
        user: &IamUser,
        id: &str,
        known: Option<&Record>,
    ) -> Result<Option<(String, Option<PublicKey>)>, IamError> {
        if let Some(Record { known: Known::One(person), .. }) = known
            && person.user.id == user.id
            && let Some(key) = person.keys.iter().find(|(known, _)| known == id)
        {
            return Ok(Some(key.clone()));
        }
        match self.iam.key_body(&user.name, id).await {
            Ok(body) => {
                let key = sshkey::usable(&body);
                let key = key.inspect_err(|why| {
                    self.warn(format!("key {} of IAM user {} {why}", Value(id), user.name));
                });
                Ok(Some((id.to_owned(), key.ok())))
            }
            // Deleted since it was listed.
            Err(IamError::NoSuchEntity) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn warn(&self, message: impl std::fmt::Display) {
        self.log.borrow_mut().write(Level::Warning, message);
    }
}

impl State {
    /// Keeps guessers of names from filling the memory.
    fn forget_some_absent(&mut self) {
        if self.records.len() >= ABSENT_MAX {
            self.records.retain(|_, record| !matches!(record.known, Known::Absent));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeIam, KEY, config, linux};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn directory(text: &str) -> Rc<Directory<FakeIam>> {
        Directory::new(FakeIam::default(), config(text), Log::to_stderr())
    }

    async fn find(directory: &Rc<Directory<FakeIam>>, name: &str) -> Result<Seen, IamError> {
        directory.find(&linux(name), DAY).await
    }

    fn groups(seen: &Seen) -> Vec<String> {
        match &seen.record.known {
            Known::One(person) => person.groups.iter().map(|group| group.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    const USERS: &str = "[access]\nallow = ['users']";

    #[tokio::test(start_paused = true)]
    async fn a_login_costs_what_is_promised() {
        let directory = directory(USERS);
        directory.iam.add("alice", &["users"]);
        directory.iam.change("alice", |alice| alice.keys.push(("APKA2222222222222222".into(), KEY.into())));

        let began = Instant::now();
        assert_eq!(find(&directory, "alice").await.unwrap().source, Source::Iam);
        assert_eq!(began.elapsed(), FakeIam::CALL * 2, "two round trips, each with its calls side by side");
        let cold =
            ["GetSSHPublicKey", "GetSSHPublicKey", "GetUser", "ListGroupsForUser", "ListSSHPublicKeys"];
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

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
    async fn a_name_that_two_users_claim_is_nobodys() {
        let directory = directory(USERS);
        directory.iam.add("a@b", &["users"]);
        assert!(matches!(find(&directory, "a.at.b").await.unwrap().record.known, Known::One(_)));
        directory.iam.add("a.at.b", &["users"]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(matches!(find(&directory, "a.at.b").await.unwrap().record.known, Known::Ambiguous(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_of_another_case_is_another_name() {
        let directory = directory(USERS);
        directory.iam.add("Bob", &["users"]);
        assert!(matches!(find(&directory, "bob").await.unwrap().record.known, Known::Absent));
        assert!(matches!(find(&directory, "Bob").await.unwrap().record.known, Known::One(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn denied_means_no_and_not_unreachable() {
        let directory = directory(USERS);
        directory.iam.add("alice", &["users"]);
        find(&directory, "alice").await.unwrap();
        directory.iam.denied.borrow_mut().push("alice".into());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(matches!(find(&directory, "alice").await.unwrap().record.known, Known::Denied));
    }

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
    async fn a_uid_is_found_by_the_roster_and_by_who_was_seen() {
        let directory = directory(USERS);
        directory.iam.add("alice", &["users"]);
        directory.iam.add("bob", &[]);
        let uid = |number| ids::uid_of(&crate::fake::id(number));
        let name = |found: Option<(LinuxName, Seen)>| found.map(|(name, _)| name);
        assert_eq!(name(directory.find_uid(uid(1), DAY).await.unwrap()), Some(linux("alice")));
        assert_eq!(name(directory.find_uid(uid(2), DAY).await.unwrap()), None);
        find(&directory, "bob").await.unwrap();
        assert_eq!(name(directory.find_uid(uid(2), DAY).await.unwrap()), Some(linux("bob")));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_takes_longer_than_the_total_timeout() {
        let directory = directory("[access]\nallow = ['users']\n[aws]\ntotal_timeout = '10ms'");
        directory.iam.add("alice", &["users"]);
        let began = Instant::now();
        assert!(find(&directory, "alice").await.is_err());
        assert_eq!(began.elapsed(), Duration::from_millis(10));
    }
}
