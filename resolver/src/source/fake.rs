//! An IAM in memory, for the unit tests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::config::Config;
use pam_iam_core::name::{IamName, LinuxName};

use crate::ids;
use crate::source::{CallStats, Cause, Iam, IamError, IamGroup, IamId, IamUser, KeyIds};

/// A key that `ssh-keygen` made.
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPN9SXhdP7bRkOqa5bisLjehzJ34xLZiv99XZaq9khSe";
/// The fingerprint of [`KEY`].
pub const FINGERPRINT: &str = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";

pub struct FakeUser {
    pub id: String,
    pub created: i64,
    pub groups: Vec<String>,
    pub keys: Vec<(String, String)>,
}

/// An IAM in memory. Every call takes [`Self::CALL`].
#[derive(Default)]
pub struct FakeIam {
    pub people: RefCell<BTreeMap<String, FakeUser>>,
    pub calls: RefCell<Vec<String>>,
    pub failure: RefCell<Option<IamError>>,
    pub denied: RefCell<Vec<String>>,
    made: Cell<u32>,
    hanging: Cell<bool>,
    muted: RefCell<Vec<String>>,
    /// The additional time that calls of an action take.
    pub slow: RefCell<BTreeMap<&'static str, Duration>>,
    pub tags: RefCell<BTreeMap<String, String>>,
    only: RefCell<String>,
}

impl FakeIam {
    pub const CALL: Duration = Duration::from_millis(20);

    pub fn add(&self, name: &str, groups: &[&str]) {
        self.made.set(self.made.get() + 1);
        let person = FakeUser {
            id: id(self.made.get()),
            created: i64::from(self.made.get()),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            keys: vec![(format!("APKA{:016}", self.made.get()), KEY.to_owned())],
        };
        self.people.borrow_mut().insert(name.to_owned(), person);
    }

    pub fn fail(&self, failure: Option<IamError>) {
        *self.failure.borrow_mut() = failure;
    }

    /// Leaves all calls without an answer from now on.
    pub fn hang(&self) {
        self.hanging.set(true);
    }

    /// Ends what [`Self::hang`] began.
    pub fn answer_again(&self) {
        self.hanging.set(false);
    }

    /// Leaves calls of `action` without an answer from now on.
    pub fn hang_only(&self, action: &str) {
        self.hang();
        self.fail_only(action);
    }

    pub fn rename(&self, from: &str, to: &str) {
        let mut people = self.people.borrow_mut();
        let person = people.remove(from).unwrap();
        people.insert(to.to_owned(), person);
    }

    /// Makes only calls of `action` fail, with the error given to [`Self::fail`].
    pub fn fail_only(&self, action: &str) {
        *self.only.borrow_mut() = action.to_owned();
    }

    /// Makes calls about `name` fail without an answer.
    pub fn mute(&self, name: &str) {
        self.muted.borrow_mut().push(name.to_owned());
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut FakeUser)) {
        change(self.people.borrow_mut().get_mut(name).unwrap());
    }

    /// Returns the calls since this was last called, sorted.
    pub fn take_calls(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.borrow_mut());
        calls.sort();
        calls
    }

    async fn call<T>(
        &self,
        action: &str,
        name: &str,
        answer: impl FnOnce(&BTreeMap<String, FakeUser>) -> Option<T>,
    ) -> Result<T, IamError> {
        self.calls.borrow_mut().push(format!("{action} {name}"));
        let more = self.slow.borrow().get(action).copied().unwrap_or_default();
        tokio::time::sleep(Self::CALL + more).await;
        let hit = self.only.borrow().is_empty() || *self.only.borrow() == action;
        if self.hanging.get() && hit {
            std::future::pending::<()>().await;
        }
        if let Some(failure) = self.failure.borrow().as_ref().filter(|_| hit) {
            return Err(failure.clone());
        }
        if self.muted.borrow().iter().any(|muted| muted == name) {
            return Err(Cause::Call("muted".into()).into());
        }
        if self.denied.borrow().iter().any(|denied| denied == name) {
            return Err(IamError::Denied("not you".into()));
        }
        answer(&self.people.borrow()).ok_or(IamError::NoSuchEntity)
    }
}

fn user(name: &str, person: &FakeUser) -> IamUser {
    IamUser {
        name: IamName::user(name).unwrap(),
        id: IamId::new(&person.id).unwrap(),
        created: person.created,
    }
}

fn group(name: &str) -> IamGroup {
    IamGroup {
        name: IamName::group(name).unwrap(),
        id: IamId::new(&format!("AGPA{name:0>17}").replace('-', "0")).unwrap(),
    }
}

impl Iam for FakeIam {
    async fn user(&self, name: &IamName) -> Result<IamUser, IamError> {
        // IAM's names are unique without regard to case, and its look-ups may ignore the case too.
        let find = |people: &BTreeMap<String, FakeUser>| {
            let mut all = people.iter();
            all.find(|(known, _)| known.eq_ignore_ascii_case(name.as_str()))
                .map(|(name, person)| user(name, person))
        };
        self.call("GetUser", name.as_str(), find).await
    }

    async fn groups_of(&self, name: &IamName) -> Result<Vec<IamGroup>, IamError> {
        let groups = |person: &FakeUser| person.groups.iter().map(|name| group(name)).collect();
        self.call("ListGroupsForUser", name.as_str(), |people| people.get(name.as_str()).map(groups)).await
    }

    async fn keys_of(&self, name: &IamName) -> Result<KeyIds, IamError> {
        let ids = |person: &FakeUser| {
            let mut ids = KeyIds::default();
            for (id, _) in &person.keys {
                ids.add(id.clone(), !id.ends_with("OFF"));
            }
            ids
        };
        self.call("ListSSHPublicKeys", name.as_str(), |people| people.get(name.as_str()).map(ids)).await
    }

    async fn key_body(&self, name: &IamName, key: &str) -> Result<String, IamError> {
        let body =
            |person: &FakeUser| person.keys.iter().find(|(id, _)| id == key).map(|(_, body)| body.clone());
        self.call("GetSSHPublicKey", name.as_str(), |people| people.get(name.as_str()).and_then(body)).await
    }

    async fn group(&self, name: &IamName) -> Result<(IamGroup, Vec<IamUser>), IamError> {
        let members = |people: &BTreeMap<String, FakeUser>| {
            let mut known = people.values().flat_map(|person| &person.groups);
            known.any(|known| known == name.as_str()).then(|| {
                let members =
                    people.iter().filter(|(_, person)| person.groups.iter().any(|g| g == name.as_str()));
                (group(name.as_str()), members.map(|(name, person)| user(name, person)).collect())
            })
        };
        self.call("GetGroup", name.as_str(), members).await
    }

    async fn all_users(&self) -> Result<Vec<IamUser>, IamError> {
        self.call("ListUsers", "", |people| {
            Some(people.iter().map(|(name, person)| user(name, person)).collect())
        })
        .await
    }

    async fn instance_tag(&self, tag: &str) -> Result<String, IamError> {
        let value = self.tags.borrow().get(tag).cloned();
        self.call("IMDS", tag, |_| value).await
    }

    fn stats(&self) -> CallStats {
        CallStats { calls: self.calls.borrow().len() as u64, ..CallStats::default() }
    }
}

pub fn id(number: u32) -> String {
    format!("AIDA{number:017}")
}

/// Returns two ids with the same uid. By the birthday bound, some 20,000 ids are enough to find them.
pub fn ids_that_meet() -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    (0..)
        .find_map(|number| seen.insert(ids::uid_of(&id(number)), id(number)).map(|one| (one, id(number))))
        .unwrap()
}

pub fn config(text: &str) -> Config {
    Config::parse(text, Path::new("config.toml")).unwrap()
}

pub fn linux(name: &str) -> LinuxName {
    LinuxName::new(name).unwrap()
}
