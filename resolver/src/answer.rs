//! From a question to its answer: the rules of who exists, who gets keys and who may.

use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use pam_iam_core::config::{Config, PRIVILEGED_GROUPS, Who};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use pam_iam_core::standing::{Files, Standing, standing};
use pam_iam_core::wire::{
    Answer, Decision, Failure, Group, Key, Policy, Reason, Request, Roster as WireRoster, Source, Status,
    TOTAL_TIMEOUT_MAX, User,
};

use crate::directory::{Age, Directory, Known, Person, Seen};
use crate::iam::{Iam, IamError, IamGroup};
use crate::ids;
use crate::locals::Locals;
use crate::policy::{self, Verdict};
use crate::roster::Roster;

#[cfg(test)]
mod tests;

static IAM_USERS_NAME: LazyLock<LinuxName> = LazyLock::new(|| constant(IAM_USERS));
static IAM_SUDO_NAME: LazyLock<LinuxName> = LazyLock::new(|| constant(IAM_SUDO));

#[expect(clippy::expect_used, reason = "a constant, parsed in every test run")]
fn constant(name: &str) -> LinuxName {
    LinuxName::new(name).expect("a valid name")
}

/// What an answer may take beyond `aws.total_timeout`, in which all its calls are over.
const GRACE: Duration = Duration::from_millis(500);

/// The shell of an account that may not log in. PAM refuses it with a reason; this is for the host whose PAM stack
/// lost our line.
const NOLOGIN: &str = "/usr/sbin/nologin";

/// Answers questions.
pub struct Answerer<I> {
    directory: Rc<Directory<I>>,
    locals: Locals,
}

/// Why a question has no answer.
enum Trouble {
    Iam(IamError),
    Local(std::io::Error),
}

impl From<IamError> for Trouble {
    fn from(error: IamError) -> Self {
        Self::Iam(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Local(error)
    }
}

impl<I: Iam> Answerer<I> {
    /// Answers from `directory`, with the local accounts of this host.
    pub fn new(directory: Rc<Directory<I>>) -> Self {
        Self::with_locals(directory, Locals::new(Files::default()))
    }

    /// The same with other files for the local accounts.
    pub fn with_locals(directory: Rc<Directory<I>>, locals: Locals) -> Self {
        Self { directory, locals }
    }

    /// Whether `uid` is that of the configured key command's user.
    pub fn is_key_user(&self, uid: Uid) -> bool {
        self.locals.refresh();
        self.locals.uid_of(&self.config().keys.user).is_ok_and(|known| known == Some(uid))
    }

    /// Answers `request` of the user `peer`, in a time that the client waits for.
    pub async fn answer(&self, request: &Request, peer: Uid) -> Answer {
        let limit = match request {
            Request::Roster => TOTAL_TIMEOUT_MAX,
            _ => self.config().aws.total_timeout.0 + GRACE,
        };
        let late = |_| Answer::Error { kind: Failure::Unavailable, message: "no answer in time".to_owned() };
        tokio::time::timeout(limit, self.answer_in_time(request, peer)).await.unwrap_or_else(late)
    }

    async fn answer_in_time(&self, request: &Request, peer: Uid) -> Answer {
        self.locals.refresh();
        // sshd and sudo ask as root, and see what IAM says now. To anybody else NSS is for showing names, which may be
        // as old as the roster: no user makes this host call IAM in a loop.
        let age = if peer == Uid::ROOT { self.age() } else { self.leisurely() };
        let answer = match request {
            Request::UserByName { name } => self.user_by_name(name, age).await,
            Request::UserByUid { uid } => self.user_by_uid(*uid, age).await,
            Request::GroupByName { name } => self.group_by_name(name, age).await,
            Request::GroupByGid { gid } => self.group_by_gid(*gid, age).await,
            Request::GroupsOf { name } => self.groups_of(name, age).await,
            Request::Keys { name, uid, fingerprint } => self.keys(name, *uid, fingerprint.as_deref()).await,
            Request::Decide { name, uid, policy } => self.decide(name, *uid, *policy).await,
            Request::Roster => self.roster().await,
            Request::Status => Ok(self.status()),
        };
        answer.unwrap_or_else(|trouble| match trouble {
            Trouble::Iam(IamError::Denied(message)) => {
                Answer::Error { kind: Failure::Configuration, message: format!("IAM denies it: {message}") }
            }
            Trouble::Iam(error) => Answer::Error { kind: Failure::Unavailable, message: error.to_string() },
            Trouble::Local(error) => Answer::Error {
                kind: Failure::Unavailable,
                message: format!("the local accounts cannot be read: {error}"),
            },
        })
    }

    fn config(&self) -> &Config {
        &self.directory.config
    }

    fn age(&self) -> Age {
        let freshness = &self.config().freshness;
        Age { fresh: freshness.max_age.0, offline: freshness.offline.0 }
    }

    fn leisurely(&self) -> Age {
        let freshness = &self.config().freshness;
        Age { fresh: freshness.roster.0.max(freshness.max_age.0), offline: freshness.offline.0 }
    }

    async fn user_by_name(&self, name: &LinuxName, age: Age) -> Result<Answer, Trouble> {
        Ok(self.account(name, age).await?.map_or(Answer::NotFound, Answer::User))
    }

    async fn user_by_uid(&self, uid: Uid, age: Age) -> Result<Answer, Trouble> {
        Ok(self.account_by_uid(uid, age).await?.map_or(Answer::NotFound, Answer::User))
    }

    async fn group_by_name(&self, name: &LinuxName, age: Age) -> Result<Answer, Trouble> {
        if self.locals.gid_of(name.as_str())?.is_some() {
            // `files` has answered, and whoever asks us all the same must not get two groups of one name.
            return Ok(Answer::NotFound);
        }
        if let Some(group) = self.own_group_with(|known, _| known == name).await {
            return Ok(Answer::Group(group));
        }
        if self.config().groups.values().any(|target| target.group == *name) {
            let mapped = self.mapped_groups().await?.into_iter().find(|group| group.name == *name);
            return Ok(mapped.map_or(Answer::NotFound, Answer::Group));
        }
        Ok(self.account(name, age).await?.map_or(Answer::NotFound, private_group))
    }

    async fn group_by_gid(&self, gid: Gid, age: Age) -> Result<Answer, Trouble> {
        let mut found = self.own_group_with(|_, known| known == gid).await;
        if found.is_none() && !self.config().groups.is_empty() {
            found = self.mapped_groups().await?.into_iter().find(|group| group.gid == gid);
        }
        match found {
            Some(group) if self.locals.gid_of(group.name.as_str())?.is_some() => Ok(Answer::NotFound),
            Some(group) => Ok(Answer::Group(group)),
            None => Ok(self.account_by_uid(Uid(gid.0), age).await?.map_or(Answer::NotFound, private_group)),
        }
    }

    async fn groups_of(&self, name: &LinuxName, age: Age) -> Result<Answer, Trouble> {
        let seen = self.directory.find(name, age).await?;
        let Some(person) = self.rightful(name, &seen)? else { return Ok(Answer::NotFound) };
        if self.locals.uid_of(name.as_str())?.is_some_and(|uid| uid != person.uid) {
            return Ok(Answer::NotFound);
        }
        let mut gids = vec![self.own_group(IAM_USERS)?];
        if self.verdict(Policy::Sudo, person).allow {
            gids.push(self.own_group(IAM_SUDO)?);
        }
        // Who may not log in has no group either: cron and the like do not ask whether a user may.
        let login = self.verdict(Policy::Login, person).allow;
        for IamGroup { name, id } in person.groups.iter().filter(|_| login) {
            if let Some(target) = self.config().groups.get(name) {
                let local = self.locals.gid_of(target.group.as_str())?;
                gids.push(local.unwrap_or_else(|| ids::gid_of(id.as_str())));
            }
        }
        // gid 0 is never given, whatever a local group is called.
        gids.retain(|gid| gid.0 != 0);
        gids.sort();
        gids.dedup();
        Ok(Answer::Groups { gids })
    }

    async fn keys(&self, name: &LinuxName, uid: Uid, fingerprint: Option<&str>) -> Result<Answer, Trouble> {
        let none = Answer::Keys { keys: Vec::new() };
        let standing = self.standing(name, uid)?;
        if standing == Standing::Local {
            return Ok(none);
        }
        let seen = self.directory.find(name, self.age()).await?;
        let Known::One(person) = &seen.record.known else { return Ok(none) };
        if self.obstacle(name, uid, standing, person)?.is_some() {
            return Ok(none);
        }
        let usable = person.keys.iter().filter_map(|(id, key)| Some((id, key.as_ref()?)));
        let wanted = usable.filter(|(_, key)| fingerprint.is_none_or(|wanted| wanted == key.fingerprint()));
        let keys = wanted.map(|(id, key)| Key {
            id: id.clone(),
            iam_name: person.user.name.to_string(),
            line: key.to_string(),
        });
        Ok(Answer::Keys { keys: keys.collect() })
    }

    async fn decide(&self, name: &LinuxName, uid: Uid, policy: Policy) -> Result<Answer, Trouble> {
        let standing = self.standing(name, uid)?;
        if standing == Standing::Local {
            return Ok(refusal(Reason::Local, None, Source::Cache, 0));
        }
        let age = match policy {
            Policy::Login => self.age(),
            Policy::Sudo => Age { offline: self.config().freshness.offline_sudo.0, ..self.age() },
        };
        let seen = self.directory.find(name, age).await?;
        let (source, age) = (seen.source, seen.record.at.elapsed().as_secs());
        let refused = |reason, person| Ok(refusal(reason, person, source, age));
        let person = match &seen.record.known {
            Known::One(person) => person,
            Known::Absent => return refused(Reason::NoSuchUser, None),
            Known::Ambiguous(_) => return refused(Reason::Ambiguous, None),
            Known::Denied => return refused(Reason::Denied, None),
        };
        if let Some(reason) = self.obstacle(name, uid, standing, person)? {
            return refused(reason, Some(person));
        }
        let Verdict { allow, reason, group } = self.verdict(policy, person);
        Ok(Answer::Decision(Decision {
            allow,
            reason,
            iam_name: Some(person.user.name.to_string()),
            iam_id: Some(person.user.id.to_string()),
            group: group.map(String::from),
            source,
            age,
        }))
    }

    async fn roster(&self) -> Result<Answer, Trouble> {
        let roster = self.directory.roster().await?;
        let mut users = Vec::new();
        for (name, user) in roster.users() {
            if self.locals.uid_of(name.as_str())?.is_none_or(Uid::is_ours) && !self.name_of_a_group(name)? {
                users.push(self.entry(name, ids::uid_of(user.id.as_str()), &user.name, true));
            }
        }
        let complete =
            !self.config().access.allow.groups().iter().any(|group| roster.missing.contains(group));
        Ok(Answer::Roster(WireRoster { users, complete, age: roster.at.elapsed().as_secs() }))
    }

    fn status(&self) -> Answer {
        let roster = self.directory.last_roster();
        let tally = self.directory.tally();
        Answer::Status(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.directory.started.elapsed().as_secs(),
            roster_age: roster.as_ref().map(|roster| roster.at.elapsed().as_secs()),
            roster_users: roster.map_or(0, |roster| roster.users().count()),
            known: self.directory.known(),
            calls: tally.calls,
            errors: tally.errors,
            last_error: tally.last_error,
        })
    }

    /// The account that NSS shows under `name`: every IAM user who may have the name has one, so that who may not
    /// log in is told why, by PAM.
    async fn account(&self, name: &LinuxName, age: Age) -> Result<Option<User>, Trouble> {
        if self.locals.uid_of(name.as_str())?.is_some() || self.name_of_a_group(name)? {
            return Ok(None);
        }
        let seen = self.directory.find(name, age).await?;
        Ok(self.rightful(name, &seen)?.map(|person| self.entry_of(name, person)))
    }

    async fn account_by_uid(&self, uid: Uid, age: Age) -> Result<Option<User>, Trouble> {
        let Some((name, seen)) = self.directory.find_uid(uid, age).await? else { return Ok(None) };
        if self.locals.uid_of(name.as_str())?.is_some() {
            return Ok(None);
        }
        let person = self.rightful(&name, &seen)?.filter(|person| person.uid == uid);
        Ok(person.map(|person| self.entry_of(&name, person)))
    }

    fn entry_of(&self, name: &LinuxName, person: &Person) -> User {
        let login = self.verdict(Policy::Login, person).allow;
        self.entry(name, person.uid, &person.user.name, login)
    }

    fn entry(&self, name: &LinuxName, uid: Uid, iam_name: &IamName, login: bool) -> User {
        let accounts = &self.config().accounts;
        let shell = if login { accounts.shell.0.to_string_lossy().into_owned() } else { NOLOGIN.to_owned() };
        User {
            name: name.clone(),
            uid,
            gid: uid.private_group(),
            gecos: iam_name.to_string(),
            home: accounts.home.of(name),
            shell,
        }
    }

    /// The one IAM user who has a right to `name`.
    fn rightful<'a>(&self, name: &LinuxName, seen: &'a Seen) -> Result<Option<&'a Person>, Trouble> {
        let Known::One(person) = &seen.record.known else { return Ok(None) };
        let refused = self.name_of_a_group(name)? || self.uid_is_taken(person);
        Ok((!refused).then_some(person))
    }

    /// Why `person` gets neither keys nor a yes for the account `name` with `uid`, whatever the policy says. An adopted
    /// account keeps its own uid and its own group.
    fn obstacle(
        &self,
        name: &LinuxName,
        uid: Uid,
        standing: Standing,
        person: &Person,
    ) -> Result<Option<Reason>, Trouble> {
        Ok(match standing {
            Standing::Adopted => None,
            Standing::Local => Some(Reason::Local),
            Standing::Ours if person.uid != uid => Some(Reason::UidMismatch),
            Standing::Ours if self.name_of_a_group(name)? => Some(Reason::NameOfGroup),
            Standing::Ours if self.uid_is_taken(person) => Some(Reason::UidTaken),
            Standing::Ours => None,
        })
    }

    /// Whether the uid of `person` is an older user's, or the gid of a group of ours, which would then be the user's
    /// primary group.
    fn uid_is_taken(&self, person: &Person) -> bool {
        let gid = person.uid.private_group();
        [IAM_USERS, IAM_SUDO].map(ids::gid_of).contains(&gid) || self.directory.has_elder(person)
    }

    /// Whether an account called `name` would have a private group that is called like one that means something.
    /// sudo compares group names, so an IAM user called `sudo`, `wheel` or `admin` would be root by `%sudo` and the
    /// like.
    fn name_of_a_group(&self, name: &LinuxName) -> Result<bool, Trouble> {
        let word = name.as_str();
        let mapped = self.config().groups.values().any(|target| target.group == *name);
        if mapped || [IAM_USERS, IAM_SUDO].contains(&word) || PRIVILEGED_GROUPS.contains(&word) {
            return Ok(true);
        }
        // A local account brings the local group of its name along; its group is its own.
        Ok(self.locals.uid_of(word)?.is_none() && self.locals.gid_of(word)?.is_some())
    }

    fn verdict(&self, policy: Policy, person: &Person) -> Verdict {
        let groups: Vec<IamName> = person.groups.iter().map(|group| group.name.clone()).collect();
        policy::decide(&self.config().access, policy, &groups)
    }

    /// Whose the account is. What /etc/passwd says of a name is how the account is: whoever saw another uid saw
    /// something else, and gets nothing of it.
    fn standing(&self, name: &LinuxName, uid: Uid) -> Result<Standing, Trouble> {
        let local = self.locals.uid_of(name.as_str())?;
        if local.is_some_and(|local| local != uid) {
            return Ok(Standing::Local);
        }
        Ok(standing(name.as_str(), uid, &self.config().accounts, &self.locals.files)?)
    }

    /// The gid of one of our own two groups: the local group's, where there is one.
    fn own_group(&self, name: &str) -> Result<Gid, Trouble> {
        Ok(self.locals.gid_of(name)?.unwrap_or_else(|| ids::gid_of(name)))
    }

    /// The one of our own two groups that is `wanted`, with the members that the roster knows. They are there without a
    /// roster too: sshd's rule about keys goes by the name of the first.
    async fn own_group_with(&self, wanted: impl Fn(&LinuxName, Gid) -> bool) -> Option<Group> {
        type Members<I> = fn(&Answerer<I>, &Roster) -> Vec<LinuxName>;
        let groups: [(&LinuxName, Members<I>); 2] =
            [(&IAM_USERS_NAME, |_, roster| everybody(roster)), (&IAM_SUDO_NAME, Self::sudoers)];
        for (name, members) in groups {
            let gid = ids::gid_of(name.as_str());
            if wanted(name, gid) {
                let roster = self.directory.roster().await.ok();
                let members = roster.map(|roster| members(self, &roster)).unwrap_or_default();
                return Some(Group { name: name.clone(), gid, members });
            }
        }
        None
    }

    /// The groups that IAM groups map to.
    async fn mapped_groups(&self) -> Result<Vec<Group>, Trouble> {
        let roster = self.directory.roster().await?;
        let groups = self.config().groups.iter().filter_map(|(iam, target)| {
            let (gid, members) = (roster.gid_of(iam)?, roster.members(iam).to_vec());
            Some(Group { name: target.group.clone(), gid, members })
        });
        Ok(groups.collect())
    }

    fn sudoers(&self, roster: &Roster) -> Vec<LinuxName> {
        let mut names = match &self.config().access.sudo {
            Who::None => Vec::new(),
            Who::All => everybody(roster),
            Who::Groups(groups) => groups.iter().flat_map(|group| roster.members(group)).cloned().collect(),
        };
        names.sort();
        names.dedup();
        names
    }
}

fn everybody(roster: &Roster) -> Vec<LinuxName> {
    roster.users().map(|(name, _)| name.clone()).collect()
}

fn private_group(user: User) -> Answer {
    Answer::Group(Group { name: user.name, gid: user.gid, members: Vec::new() })
}

fn refusal(reason: Reason, person: Option<&Person>, source: Source, age: u64) -> Answer {
    Answer::Decision(Decision {
        allow: false,
        reason,
        iam_name: person.map(|person| person.user.name.to_string()),
        iam_id: person.map(|person| person.user.id.to_string()),
        group: None,
        source,
        age,
    })
}
