//! From a question to its answer: the rules of who exists, who gets keys and who may.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::config::{Access, Config, PRIVILEGED_GROUPS};
use pam_iam_core::id::Uid;
use pam_iam_core::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use pam_iam_core::paths;
use pam_iam_core::wire::{
    Answer, Decision, Failure, Flushed, Key, LINT_LIMIT, Policy, ROSTER_LIMIT, Reason, Request, Source,
    Status, User,
};

use crate::claims::Claims;
use crate::ids;
use crate::limits::Origin;
use crate::locals::Locals;
use crate::lookup::roster::Roster;
use crate::lookup::{Age, Directory, Identity, Lookup, Named, UserEntry};
use crate::policy::{self, Verdict};
use crate::source::{Iam, IamError};
use crate::trail::Trail;

mod explain;
mod groups;
mod listing;
#[cfg(test)]
mod tests;

/// What an answer may take beyond `aws.total_timeout`, in which all its calls are over.
const GRACE: Duration = Duration::from_secs(1);

/// Of how many names it is remembered why they were not shown.
const NOT_SHOWN_MAX: usize = 10_000;

/// Answers questions.
pub struct Answerer<I> {
    directory: Rc<Directory<I>>,
    locals: Locals,
    claims: Claims,
    /// Who was last said to have no account here, and why.
    without_place: RefCell<Vec<(IamName, &'static str)>>,
    /// Why users whom IAM has were last said not to exist here.
    not_shown: RefCell<BTreeMap<LinuxName, Reason>>,
    /// How many there were, by their kind.
    questions: RefCell<BTreeMap<&'static str, u64>>,
    decisions: RefCell<BTreeMap<String, u64>>,
    /// Where events are recorded.
    trail: Trail,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Whether the asking process is root's.
    pub is_root: bool,
    /// Whose question it is.
    pub origin: Origin,
}

impl From<Uid> for Asker {
    /// A process that asks by itself.
    fn from(peer: Uid) -> Self {
        let is_root = peer == Uid::ROOT;
        Self { is_root, origin: if is_root { Origin::Host } else { Origin::User(peer) } }
    }
}

/// Why a question has no answer.
enum AnswerError {
    Iam(IamError),
    Local(std::io::Error),
}

impl From<IamError> for AnswerError {
    fn from(error: IamError) -> Self {
        Self::Iam(error)
    }
}

impl From<std::io::Error> for AnswerError {
    fn from(error: std::io::Error) -> Self {
        Self::Local(error)
    }
}

impl<I: Iam> Answerer<I> {
    /// Answers from `directory`, with the local accounts of this host.
    pub fn new(directory: Rc<Directory<I>>) -> Self {
        Self::with_locals(directory, Locals::new(Files::default()), Claims::new(Path::new("/")))
    }

    /// The same with other files for the local accounts, and for what the host claims.
    pub fn with_locals(directory: Rc<Directory<I>>, locals: Locals, claims: Claims) -> Self {
        Self {
            directory,
            locals,
            claims,
            without_place: RefCell::default(),
            not_shown: RefCell::default(),
            questions: RefCell::default(),
            decisions: RefCell::default(),
            trail: Trail::default(),
        }
    }

    /// Whether `uid` is that of the configured key command's user.
    pub fn is_key_user(&self, uid: Uid) -> bool {
        self.locals.refresh();
        self.locals.uid_of(&self.config().keys.user).is_ok_and(|known| known == Some(uid))
    }

    /// Answers `request` of `asker`, in a time that the client waits for.
    pub async fn answer(&self, request: &Request, asker: impl Into<Asker>) -> Answer {
        let asker = asker.into();
        let limit = match request {
            Request::Roster | Request::SelfTest => ROSTER_LIMIT + GRACE,
            Request::Lint => LINT_LIMIT + GRACE,
            _ => self.config().aws.total_timeout.0 + GRACE,
        };
        let late = |_| Answer::Error { kind: Failure::Unavailable, message: "no answer in time".to_owned() };
        tokio::time::timeout(limit, self.answer_in_time(request, asker)).await.unwrap_or_else(late)
    }

    async fn answer_in_time(&self, request: &Request, asker: Asker) -> Answer {
        self.locals.refresh();
        self.directory.notice_sleep();
        *self.questions.borrow_mut().entry(request.kind()).or_default() += 1;
        let answer = match request {
            Request::UserByName { name } => self.user_by_name(name, asker.origin).await,
            Request::UserByUid { uid } => self.user_by_uid(*uid, asker.origin).await,
            Request::GroupByName { name } => self.group_by_name(name, asker.origin).await,
            Request::GroupByGid { gid } => self.group_by_gid(*gid, asker.origin).await,
            Request::GroupsOf { name, known } => self.groups_of(name, *known, asker).await,
            Request::Keys { name, uid, fingerprint } => {
                self.keys(name, *uid, fingerprint.as_deref(), asker.origin).await
            }
            Request::Decide { name, uid, policy } => self.decide(name, *uid, *policy, asker.origin).await,
            Request::Roster => self.roster().await,
            Request::Status => Ok(self.status()),
            Request::Explain { name } => self.explain(name).await,
            Request::WhoIs { uid } => self.who_is(*uid).await,
            Request::Flush { name } => {
                let forgotten = self.directory.flush(name.as_ref());
                self.directory.settle().await;
                Ok(Answer::report(&Flushed { forgotten }))
            }
            Request::SelfTest => Ok(self.self_test().await),
            Request::Lint => self.lint().await,
            Request::Record { line } => {
                self.trail.record(line);
                Ok(Answer::Done)
            }
        };
        if let (Request::Decide { policy, .. }, Ok(Answer::Decision(decision))) = (request, &answer) {
            let what = format!("{} {}", policy.as_str(), decision.reason.as_str());
            *self.decisions.borrow_mut().entry(what).or_default() += 1;
        }
        answer.unwrap_or_else(|trouble| match trouble {
            AnswerError::Iam(IamError::Denied(message)) => {
                Answer::Error { kind: Failure::Configuration, message: format!("IAM denies it: {message}") }
            }
            AnswerError::Iam(error @ IamError::Configuration(_)) => {
                Answer::Error { kind: Failure::Configuration, message: error.to_string() }
            }
            AnswerError::Iam(error) => {
                Answer::Error { kind: Failure::Unavailable, message: error.to_string() }
            }
            AnswerError::Local(error) => Answer::Error {
                kind: Failure::Unavailable,
                message: format!("the local accounts cannot be read: {error}"),
            },
        })
    }

    fn config(&self) -> &Config {
        &self.directory.config
    }

    /// How old what is decided by may be, for a question of `origin`.
    fn age(&self, origin: Origin) -> Age {
        let freshness = &self.config().freshness;
        Age { fresh: freshness.max_age.0, offline: freshness.offline.0, origin }
    }

    async fn user_by_name(&self, name: &LinuxName, origin: Origin) -> Result<Answer, AnswerError> {
        Ok(self.account(name, origin).await?.map_or(Answer::NotFound, Answer::User))
    }

    async fn user_by_uid(&self, uid: Uid, origin: Origin) -> Result<Answer, AnswerError> {
        Ok(self.account_by_uid(uid, origin).await?.map_or(Answer::NotFound, Answer::User))
    }

    async fn keys(
        &self,
        name: &LinuxName,
        uid: Uid,
        fingerprint: Option<&str>,
        origin: Origin,
    ) -> Result<Answer, AnswerError> {
        let none = Answer::Keys { keys: Vec::new() };
        let account_kind = self.account_kind(name, uid)?;
        if account_kind == AccountKind::Local {
            return Ok(none);
        }
        let lookup = match self.directory.find(name, self.age(origin)).await {
            // Unauthenticated clients have used the limit up. PAM asks again without one, and for a managed account it lets
            // no other key open a session.
            Err(IamError::Limited)
                if account_kind == AccountKind::Managed
                    && !self.config().keys.others_open_managed_accounts() =>
            {
                self.directory.remembered(name).ok_or(IamError::Limited)?
            }
            lookup => lookup?,
        };
        let people = match &lookup.entry.identity {
            Identity::User(person) => match self.refusal_reason(name, uid, account_kind, person)? {
                None if self.may_log_in(person).await? => std::slice::from_ref(person),
                Some(Reason::UidMismatch) => {
                    self.tell_of_another_uid(name, uid, person);
                    return Ok(none);
                }
                _ => return Ok(none),
            },
            Identity::Members(team) if account_kind == AccountKind::Shared => team,
            _ => return Ok(none),
        };
        let keys = people.iter().flat_map(|person| {
            let usable = person.keys.iter().filter_map(|(id, key)| Some((id, key.as_ref()?)));
            let wanted =
                usable.filter(|(_, key)| fingerprint.is_none_or(|wanted| wanted == key.fingerprint()));
            wanted.map(|(id, key)| Key {
                id: id.clone(),
                iam_name: person.user.name.to_string(),
                line: key.to_string(),
            })
        });
        Ok(Answer::Keys { keys: keys.collect() })
    }

    async fn decide(
        &self,
        name: &LinuxName,
        uid: Uid,
        policy: Policy,
        origin: Origin,
    ) -> Result<Answer, AnswerError> {
        let account_kind = self.account_kind(name, uid)?;
        if account_kind == AccountKind::Local {
            return Ok(refusal(Reason::Local, None, Source::Cache, 0));
        }
        let age = match policy {
            Policy::Login => self.age(origin),
            Policy::Sudo => Age { offline: self.config().freshness.offline_sudo.0, ..self.age(origin) },
        };
        let lookup = self.directory.find(name, age).await?;
        let (source, age) = (lookup.source, lookup.entry.at.elapsed().as_secs());
        let refused = |reason, person| Ok(refusal(reason, person, source, age));
        let person = match &lookup.entry.identity {
            Identity::User(person) => person,
            Identity::NotFound => return refused(Reason::NoSuchUser, None),
            Identity::Ambiguous(_) => return refused(Reason::Ambiguous, None),
            Identity::AccessDenied => return refused(Reason::Denied, None),
            // Who they are shows with the key. What the account may do beside logging in is the host's business.
            Identity::Members(team) if account_kind == AccountKind::Shared => {
                let reason = match (policy, team.is_empty()) {
                    (Policy::Sudo, _) => Reason::Local,
                    (Policy::Login, true) => Reason::NotInGroup,
                    (Policy::Login, false) => Reason::InGroup,
                };
                let allow = reason == Reason::InGroup;
                return Ok(decision(Verdict { allow, reason, group: None }, None, source, age));
            }
            // An account of ours from before its name was shared.
            Identity::Members(_) => return refused(Reason::Local, None),
        };
        if let Some(reason) = self.refusal_reason(name, uid, account_kind, person)? {
            return refused(reason, Some(person));
        }
        Ok(decision(self.verdict(policy, person).await?, Some(person), source, age))
    }

    fn status(&self) -> Answer {
        let roster = self.directory.last_roster();
        let stats = self.directory.stats();
        let saved = self.directory.saved();
        Answer::report(&Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.directory.started.elapsed().as_secs(),
            roster_age: roster.as_ref().map(|roster| roster.at.elapsed().as_secs()),
            roster_users: roster.map_or(0, |roster| roster.users().count()),
            known: self.directory.known(),
            cache_age: saved.at.map(|at| at.elapsed().as_secs()),
            cache_bytes: saved.bytes,
            cache_error: saved.error,
            calls: stats.calls,
            errors: stats.errors,
            last_error: stats.last_error,
            last_answer: stats.last_answer.map(|at| at.elapsed().as_secs()),
            unknown_left: self.directory.unknown_left(),
            unknown_per_minute: self.config().freshness.unknown_per_minute,
            backing_off: self.directory.backing_off(),
            questions: self
                .questions
                .borrow()
                .iter()
                .map(|(kind, count)| ((*kind).to_owned(), *count))
                .collect(),
            decisions: self.decisions.borrow().clone(),
        })
    }

    /// The account that NSS shows under `name`: only a user who may log in has one.
    async fn account(&self, name: &LinuxName, origin: Origin) -> Result<Option<User>, AnswerError> {
        if self.is_the_hosts(name)? || self.refusal_of_name(name, None)?.is_some() {
            return Ok(None);
        }
        let named = self.directory.find_name(name, origin).await?;
        let entry = self.entry_named(name, &named).await?;
        match (&entry, &named) {
            (None, Named::Cached(lookup)) if !matches!(origin, Origin::User(_)) => {
                self.tell_why_not_shown(name, lookup).await?;
            }
            (None, _) => {}
            (Some(_), _) => drop(self.not_shown.borrow_mut().remove(name)),
        }
        Ok(entry)
    }

    /// Logs why a user whom IAM has does not exist here, when that is new: sshd's "invalid user" does not tell.
    async fn tell_why_not_shown(&self, name: &LinuxName, lookup: &Lookup) -> Result<(), AnswerError> {
        let Identity::User(person) = &lookup.entry.identity else { return Ok(()) };
        let reason = match self.refusal_reason(name, person.uid, AccountKind::Managed, person)? {
            Some(reason) => reason,
            // Why nobody can tell is in the log by itself.
            None => match self.verdict(Policy::Login, person).await {
                Ok(verdict) => verdict.reason,
                Err(_) => return Ok(()),
            },
        };
        let mut told = self.not_shown.borrow_mut();
        if told.len() >= NOT_SHOWN_MAX {
            told.clear();
        }
        if told.insert(name.clone(), reason) != Some(reason) {
            self.directory.warn(format!(
                "IAM user {} has no account here ({}); iamctl explain {name} says more",
                person.user.name,
                reason.as_str()
            ));
        }
        Ok(())
    }

    /// Logs that sshd asks about another uid than the user's, when that is new.
    fn tell_of_another_uid(&self, name: &LinuxName, asked: Uid, person: &UserEntry) {
        if self.not_shown.borrow_mut().insert(name.clone(), Reason::UidMismatch) != Some(Reason::UidMismatch)
        {
            self.directory.warn(format!(
                "{name} had uid {asked}, and the IAM user {} has uid {}: a user who was made anew gets in at the next attempt",
                person.user.name, person.uid
            ));
        }
    }

    /// The account of the user who has a uid, if NSS shows it under the user's name.
    async fn account_by_uid(&self, uid: Uid, origin: Origin) -> Result<Option<User>, AnswerError> {
        let Some((name, named)) = self.directory.find_uid(uid, origin).await? else { return Ok(None) };
        Ok(self.entry_named(&name, &named).await?.filter(|user| user.uid == uid))
    }

    /// Whether `name` is that of a local account, shared or not: then NSS shows no other.
    fn is_the_hosts(&self, name: &LinuxName) -> Result<bool, AnswerError> {
        Ok(self.is_shared(name) || self.locals.uid_of(name.as_str())?.is_some())
    }

    /// The account of the user who is behind a name, if the user may have it and may log in.
    async fn entry_named(&self, name: &LinuxName, named: &Named) -> Result<Option<User>, AnswerError> {
        if self.is_the_hosts(name)? {
            return Ok(None);
        }
        match named {
            Named::Cached(lookup) => match self.entitled_user(name, lookup)? {
                Some(person) if self.may_log_in(person).await? => {
                    Ok(Some(self.entry(name, person.uid, &person.user.name)))
                }
                _ => Ok(None),
            },
            // The roster lists those who may log in.
            Named::Listed(roster) => {
                let listed = self.listed_uid(name, roster)?;
                Ok(listed.map(|(uid, iam_name)| self.entry(name, uid, &iam_name)))
            }
        }
    }

    /// The uid and the IAM name of a user who is known from the roster alone, if the user may have the name.
    fn listed_uid(&self, name: &LinuxName, roster: &Roster) -> Result<Option<(Uid, IamName)>, AnswerError> {
        let Some(user) = roster.user(name) else { return Ok(None) };
        let uid = ids::uid(&self.config().accounts, user);
        let refused = self.refusal_of_name(name, Some(uid))?.is_some()
            || is_never_a_users(uid)
            || self.locals.is_uid_of_another(uid, name.as_str())?
            || self.group_with_uid(name, uid)?.is_some();
        Ok((!refused).then(|| (uid, user.name.clone())))
    }

    /// Whether the name is that of a shared account, and so no IAM user's.
    fn is_shared(&self, name: &LinuxName) -> bool {
        self.config().shared.contains_key(name)
    }

    fn entry(&self, name: &LinuxName, uid: Uid, iam_name: &IamName) -> User {
        let accounts = &self.config().accounts;
        User {
            name: name.clone(),
            uid,
            gid: uid.private_group(),
            gecos: iam_name.to_string(),
            home: accounts.home.of(name),
            shell: accounts.shell.0.to_string_lossy().into_owned(),
        }
    }

    /// The one IAM user who has a right to `name`.
    fn entitled_user<'a>(
        &self,
        name: &LinuxName,
        lookup: &'a Lookup,
    ) -> Result<Option<&'a UserEntry>, AnswerError> {
        let Identity::User(person) = &lookup.entry.identity else { return Ok(None) };
        let refused =
            self.refusal_of_name(name, Some(person.uid))?.is_some() || self.uid_is_taken(name, person)?;
        Ok((!refused).then_some(person))
    }

    /// Why `person` gets neither keys nor a yes for the account `name` with `uid`, whatever the policy says. An adopted
    /// account keeps its own uid and its own group.
    fn refusal_reason(
        &self,
        name: &LinuxName,
        uid: Uid,
        account_kind: AccountKind,
        person: &UserEntry,
    ) -> Result<Option<Reason>, AnswerError> {
        Ok(match account_kind {
            AccountKind::Adopted => None,
            AccountKind::Local | AccountKind::Shared => Some(Reason::Local),
            AccountKind::Managed if person.uid != uid => Some(Reason::UidMismatch),
            AccountKind::Managed => match self.refusal_of_name(name, Some(uid))? {
                None if self.uid_is_taken(name, person)? => Some(Reason::UidTaken),
                refusal => refusal,
            },
        })
    }

    /// Whether the uid of `person` is an older user's, or this host has it otherwise.
    fn uid_is_taken(&self, name: &LinuxName, person: &UserEntry) -> Result<bool, AnswerError> {
        let mut mapped = person.groups.iter().filter(|group| self.config().groups.contains_key(&group.name));
        let gid = person.uid.private_group();
        Ok(self.directory.uid_belongs_to_older_user(person)
            || self.locals.is_uid_of_another(person.uid, name.as_str())?
            || self.group_with_uid(name, person.uid)?.is_some()
            || mapped.any(|group| ids::gid_of(group.id.as_str()) == gid))
    }

    /// What of this host has the number `uid`, if it is not the user's called `name`: a group, which would then be the user's
    /// primary group.
    fn group_with_uid(&self, name: &LinuxName, uid: Uid) -> Result<Option<&'static str>, AnswerError> {
        let gid = uid.private_group();
        let roster = self.directory.last_roster();
        let mut mapped = self.config().groups.keys().filter_map(|group| roster.as_ref()?.gid_of(group));
        Ok(if is_never_a_users(uid) || mapped.any(|mapped| mapped == gid) {
            Some("its uid is the gid of a group of ours")
        } else if self.locals.is_gid_of_another(gid, name.as_str())? {
            Some("its uid is the gid of a local group")
        } else {
            None
        })
    }

    /// Why no IAM user gets `name` on this host, if so: it is that of a group, or the host claims it.
    fn refusal_of_name(&self, name: &LinuxName, uid: Option<Uid>) -> Result<Option<Reason>, AnswerError> {
        if self.name_of_a_group(name, uid)? {
            return Ok(Some(Reason::NameOfGroup));
        }
        Ok(self.claim_of(name)?.map(|_| Reason::NameClaimed))
    }

    /// What of the host claims `name`, if anything does.
    fn claim_of(&self, name: &LinuxName) -> Result<Option<String>, AnswerError> {
        if let Some(group) = self.locals.privileged_group_of(name.as_str())? {
            return Ok(Some(format!("the name is a member of the group {group} in {}", paths::GROUP)));
        }
        if self.locals.has_in_other_case(name.as_str())? {
            let what =
                "a local account or group has the name in another case, and sudo does not tell them apart";
            return Ok(Some(what.to_owned()));
        }
        Ok(self.claims.of(name.as_str()))
    }

    /// Whether an account called `name` would have a private group that is called like one that means something.
    /// sudo compares group names, so an IAM user called `sudo`, `wheel` or `admin` would be root by `%sudo` and the
    /// like. A local group that is the private group of an account with `uid` is no such group; where the uid is not
    /// known yet, any group of our range may be.
    fn name_of_a_group(&self, name: &LinuxName, uid: Option<Uid>) -> Result<bool, AnswerError> {
        let word = name.as_str();
        // Without regard to case, as sudo compares.
        let mapped = self.config().groups.values().map(|target| target.group.as_str());
        let mut meant = mapped.chain([IAM_USERS, IAM_SUDO]).chain(PRIVILEGED_GROUPS.iter().copied());
        if meant.any(|group| group.eq_ignore_ascii_case(word)) {
            return Ok(true);
        }
        // A local account brings the local group of its name along; its group is its own.
        let Some(gid) = self.locals.gid_of(word)? else { return Ok(false) };
        let own = match uid {
            Some(uid) => gid == uid.private_group(),
            None => gid.is_managed(),
        };
        Ok(self.locals.uid_of(word)?.is_none() && !own)
    }

    /// Whether `access` lets a person log in. A tag that names nobody lets nobody.
    ///
    /// # Errors
    /// Returns an error if nobody can tell, since the instance's tags could not be read.
    async fn may_log_in(&self, person: &UserEntry) -> Result<bool, AnswerError> {
        match self.verdict(Policy::Login, person).await {
            Ok(verdict) => Ok(verdict.allow),
            Err(AnswerError::Iam(error @ (IamError::Unreachable(_) | IamError::Limited))) => {
                Err(error.into())
            }
            Err(AnswerError::Iam(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn verdict(&self, policy: Policy, person: &UserEntry) -> Result<Verdict, AnswerError> {
        Ok(verdict_by(&*self.directory.access().await?, policy, person))
    }

    /// Whose the account is. What /etc/passwd says of a name is how the account is: whoever saw another uid saw
    /// something else, and gets nothing of it.
    fn account_kind(&self, name: &LinuxName, uid: Uid) -> Result<AccountKind, AnswerError> {
        let local = self.locals.uid_of(name.as_str())?;
        if local.is_some_and(|local| local != uid) {
            return Ok(AccountKind::Local);
        }
        Ok(account_kind(name.as_str(), uid, self.config(), &self.locals.files)?)
    }
}

/// What `access` says about a person.
fn verdict_by(access: &Access, policy: Policy, person: &UserEntry) -> Verdict {
    let groups: Vec<IamName> = person.groups.iter().map(|group| group.name.clone()).collect();
    policy::decide(access, policy, &groups)
}

/// Whether `uid` is no user's, whatever an id hashes to: its private group would be one of our own two groups.
fn is_never_a_users(uid: Uid) -> bool {
    [IAM_USERS, IAM_SUDO].map(ids::gid_of).contains(&uid.private_group())
}

fn refusal(reason: Reason, person: Option<&UserEntry>, source: Source, age: u64) -> Answer {
    decision(Verdict { allow: false, reason, group: None }, person, source, age)
}

fn decision(verdict: Verdict, person: Option<&UserEntry>, source: Source, age: u64) -> Answer {
    Answer::Decision(Decision {
        allow: verdict.allow,
        reason: verdict.reason,
        iam_name: person.map(|person| person.user.name.to_string()),
        iam_id: person.map(|person| person.user.id.to_string()),
        group: verdict.group.map(String::from),
        source,
        age,
    })
}
