//! Reports for iamctl: explain, whois, self-test and lint.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::config::Allowed;
use pam_iam_core::id::Uid;
use pam_iam_core::key::PublicKey;
use pam_iam_core::name::{self, IamName, LinuxName};
use pam_iam_core::wire::{
    Answer, Decision, Explanation, Finding, Holder, IamEntry, KeyState, Linted, Policy, Reason, SelfTested,
    Source, Try,
};

use super::{AnswerError, Answerer};
use crate::ids;
use crate::limits::Origin;
use crate::lookup::cache::{Identity, Keys, UserEntry};
use crate::lookup::roster::{Refused, Roster};
use crate::source::{Iam, IamError, IamUser};

/// The number of users whose keys lint asks for at once: few enough for the rate limits of IAM.
const USERS_AT_ONCE: usize = 5;

/// A name that no IAM user has, to try calls with: "no such user" shows that the call is allowed.
const NOBODY: &str = "pam_iam-nobody";

impl<I: Iam> Answerer<I> {
    /// Returns everything that decides about a name. The decisions are those that PAM would get.
    pub(super) async fn explain(&self, name: &LinuxName) -> Result<Answer, AnswerError> {
        let local = self.locals.uid_of(name.as_str())?;
        let account_kind = match local {
            Some(uid) => self.account_kind(name, uid)?,
            None => AccountKind::Managed,
        };
        let mut explanation = Explanation {
            name: name.clone(),
            account_kind,
            uid: local,
            candidates: Vec::new(),
            claimants: Vec::new(),
            users: Vec::new(),
            groups: Vec::new(),
            claim: None,
            login: refused(Reason::Local),
            sudo: refused(Reason::Local),
        };
        if account_kind == AccountKind::Local {
            return Ok(Answer::report(&explanation));
        }
        if account_kind != AccountKind::Shared {
            let candidates = name::candidates(name, &self.config().accounts.drop_suffix);
            explanation.candidates = candidates.iter().map(ToString::to_string).collect();
        }
        let lookup = self.directory.lookup(name, self.directory.login_freshness(Origin::Host)).await?;
        match &lookup.entry.identity {
            Identity::User(user) => {
                let inactive = self.directory.keys(&user.user, &user.inactive).await.unwrap_or_default();
                explanation.users.push(entry(user, inactive));
            }
            Identity::Members(team) => {
                explanation.users.extend(team.iter().map(|user| entry(user, Vec::new())))
            }
            Identity::Ambiguous(names) => explanation.claimants.extend(names.iter().map(ToString::to_string)),
            Identity::NotFound | Identity::AccessDenied => {}
        }
        let would_be =
            explanation.users.first().filter(|_| account_kind != AccountKind::Shared).map(|user| user.uid);
        explanation.uid = local.or(would_be);
        // Without a user, every managed uid gives the same reason.
        let uid = explanation.uid.unwrap_or_else(|| ids::uid_of(name.as_str()));
        for (policy, decision) in
            [(Policy::Login, &mut explanation.login), (Policy::Sudo, &mut explanation.sudo)]
        {
            *decision = self.decide(name, uid, policy, Origin::Host).await?;
        }
        explanation.groups = self.groups_by_name(name).await?;
        if account_kind == AccountKind::Managed {
            explanation.claim = self.claim_of(name)?;
        }
        Ok(Answer::report(&explanation))
    }

    /// Returns the name of the user with `uid`.
    pub(super) async fn who_is(&self, uid: Uid) -> Result<Answer, AnswerError> {
        let found = self.directory.lookup_uid(uid, Origin::Host).await?;
        Ok(Answer::report(&Holder { name: found.map(|(name, _)| name) }))
    }

    /// Tries each API action that the configuration needs. Calls about a user are about the first one who is found in a
    /// group that the configuration names, or about [`NOBODY`].
    pub(super) async fn self_test(&self) -> Answer {
        let (iam, config) = (self.directory.iam(), self.config());
        let access = match self.directory.access().await {
            Ok(access) => access,
            Err(error) => {
                let checks = vec![tried("instance tags", Some(error))];
                return Answer::report(&SelfTested { checks, route: iam.route() });
            }
        };
        let mut checks = Vec::new();
        let mut known = None;
        let groups: Vec<&IamName> = access.groups().chain(config.groups.keys()).collect();
        let shared = config.shared.values().flat_map(|shared| &shared.groups);
        for group in groups.into_iter().chain(shared) {
            let answer = iam.group(group).await;
            if let Ok((_, members)) = &answer {
                known = known.or_else(|| members.first().map(|user| user.name.clone()));
            }
            checks.push(tried("iam:GetGroup", answer.err()));
        }
        if access.allow == Allowed::All {
            let answer = iam.all_users().await;
            if let Ok(users) = &answer {
                known = known.or_else(|| users.first().map(|user| user.name.clone()));
            }
            checks.push(tried("iam:ListUsers", answer.err()));
        }
        let Some(user) = known.or_else(|| IamName::user(NOBODY).ok()) else {
            return Answer::report(&SelfTested { checks, route: iam.route() });
        };
        checks.push(tried("iam:GetUser", iam.user(&user).await.err()));
        checks.push(tried("iam:ListGroupsForUser", iam.groups_of(&user).await.err()));
        let keys = iam.keys_of(&user).await;
        let key =
            keys.as_ref().ok().and_then(|keys| keys.active.iter().chain(&keys.inactive).next().cloned());
        checks.push(tried("iam:ListSSHPublicKeys", keys.err()));
        let key = key.unwrap_or_else(|| "APKANOBODY0000000000".to_owned());
        checks.push(tried("iam:GetSSHPublicKey", iam.key_body(&user, &key).await.err()));
        checks.sort_by(|one, other| (&one.action, other.denied).cmp(&(&other.action, one.denied)));
        checks.dedup_by(|one, other| {
            one.action == other.action && (one.error.is_none() || other.error.is_some())
        });
        Answer::report(&SelfTested { checks, route: iam.route() })
    }

    /// Checks all IAM users: names and uids, and the keys of those who may log in.
    pub(super) async fn lint(&self) -> Result<Answer, AnswerError> {
        let everybody = self.directory.iam().all_users().await?;
        let roster = self.directory.read_roster().await?;
        let mut allowed: BTreeMap<&IamName, bool> =
            everybody.iter().map(|user| (&user.name, false)).collect();
        allowed.extend(roster.users().map(|(_, user)| (&user.name, true)));
        allowed.extend(roster.refused.iter().map(|refused| (&refused.user.name, true)));
        let is_allowed = |user: &IamUser| allowed.get(&user.name).copied().unwrap_or_default();
        let finding = |user: &IamUser, problem: String| Finding {
            iam_name: user.name.to_string(),
            allowed: is_allowed(user),
            problem,
        };
        let mut findings: Vec<Finding> = Roster::refused_of(everybody.clone(), &self.config().accounts)
            .into_iter()
            .map(|Refused { user, why }| finding(&user, why))
            .collect();
        for user in &everybody {
            let Ok(name) = user.name.to_linux(&self.config().accounts.drop_suffix) else { continue };
            if let Some(why) = self.ineligible_because(&name, ids::uid(&self.config().accounts, user))? {
                findings.push(finding(user, why.to_owned()));
            }
        }
        let users = stream::iter(everybody.iter().filter(|user| is_allowed(user)));
        let keys = users.map(async |user: &IamUser| (user, self.trouble_with_keys(user).await));
        let mut keys = keys.buffered(USERS_AT_ONCE);
        while let Some((user, trouble)) = keys.next().await {
            findings.extend(trouble?.map(|problem| finding(user, problem)));
        }
        drop(keys);
        findings.sort();
        let allowed = allowed.values().filter(|allowed| **allowed).count();
        Ok(Answer::report(&Linted { users: everybody.len(), allowed, findings }))
    }

    /// Returns why a user has no key to log in with. None if there is a usable key.
    async fn trouble_with_keys(&self, user: &IamUser) -> Result<Option<String>, AnswerError> {
        let keys = match self.directory.iam().keys_of(&user.name).await {
            Ok(keys) => keys,
            Err(IamError::Denied(_)) => {
                return Ok(Some("IAM does not let this host list the user's keys".to_owned()));
            }
            Err(IamError::NoSuchEntity) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if keys.active.is_empty() {
            let none = if keys.inactive.is_empty() {
                "has no SSH public key"
            } else {
                "has no active SSH public key"
            };
            return Ok(Some(none.to_owned()));
        }
        let keys = self.directory.keys(user, &keys.active).await?;
        let usable = keys.iter().any(|(_, key)| key.is_some());
        Ok((!usable).then(|| "has no SSH public key that sshd would take".to_owned()))
    }
}

fn entry(user: &UserEntry, inactive: Keys) -> IamEntry {
    let state = |active: bool, (id, key): &(String, Option<PublicKey>)| KeyState {
        id: id.clone(),
        active,
        fingerprint: key.as_ref().map(|key| key.fingerprint()),
    };
    let active = user.keys.iter().map(|key| state(true, key));
    let inactive = inactive.iter().map(|key| state(false, key));
    IamEntry {
        iam_name: user.user.name.to_string(),
        iam_id: user.user.id.to_string(),
        uid: user.uid,
        groups: user.groups.iter().map(|group| group.name.to_string()).collect(),
        keys: active.chain(inactive).collect(),
    }
}

/// Returns the outcome of a call. [`IamError::NoSuchEntity`] is a success, since it shows that the call is allowed.
fn tried(action: &str, error: Option<IamError>) -> Try {
    let error = error.filter(|error| *error != IamError::NoSuchEntity);
    let denied = matches!(error, Some(IamError::Denied(_)));
    Try { action: action.to_owned(), error: error.map(|error| error.to_string()), denied }
}

fn refused(reason: Reason) -> Decision {
    Decision {
        allow: false,
        reason,
        iam_name: None,
        iam_id: None,
        group: None,
        source: Source::Cache,
        age: 0,
    }
}
