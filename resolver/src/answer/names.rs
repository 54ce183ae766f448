//! The accounts that NSS shows. Only a user who may log in has one.

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::id::Uid;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::{Answer, Policy, User};

use super::{AnswerError, Answerer};
use crate::ids;
use crate::limits::Origin;
use crate::lookup::Named;
use crate::lookup::cache::{Identity, Lookup};
use crate::lookup::roster::Roster;
use crate::source::Iam;

/// The most names in `logged_not_shown`. When there are as many, all are removed.
const LOGGED_MAX: usize = 10_000;

impl<I: Iam> Answerer<I> {
    pub(super) async fn user_by_name(&self, name: &LinuxName, origin: Origin) -> Result<Answer, AnswerError> {
        Ok(self.account(name, origin).await?.map_or(Answer::NotFound, Answer::User))
    }

    pub(super) async fn user_by_uid(&self, uid: Uid, origin: Origin) -> Result<Answer, AnswerError> {
        Ok(self.account_by_uid(uid, origin).await?.map_or(Answer::NotFound, Answer::User))
    }

    /// Returns the account that NSS shows under `name`.
    pub(super) async fn account(
        &self,
        name: &LinuxName,
        origin: Origin,
    ) -> Result<Option<User>, AnswerError> {
        if self.is_local_or_shared(name)? || self.refusal_of_name(name, None)?.is_some() {
            return Ok(None);
        }
        let named = self.directory.lookup_name(name, origin).await?;
        let account = self.account_of(name, &named).await?;
        match (&account, &named) {
            (None, Named::Cached(lookup)) if !matches!(origin, Origin::User(_)) => {
                self.log_not_shown(name, lookup).await?;
            }
            (None, _) => {}
            (Some(_), _) => drop(self.logged_not_shown.borrow_mut().remove(name)),
        }
        Ok(account)
    }

    /// Returns the account of the user with `uid`, if NSS shows it under the user's name.
    pub(super) async fn account_by_uid(&self, uid: Uid, origin: Origin) -> Result<Option<User>, AnswerError> {
        let Some((name, named)) = self.directory.lookup_uid(uid, origin).await? else { return Ok(None) };
        Ok(self.account_of(&name, &named).await?.filter(|user| user.uid == uid))
    }

    /// Returns the account of the user behind a name, if the user has a right to the name and may log in.
    async fn account_of(&self, name: &LinuxName, named: &Named) -> Result<Option<User>, AnswerError> {
        if self.is_local_or_shared(name)? {
            return Ok(None);
        }
        match named {
            Named::Cached(lookup) => match self.entitled_user(name, lookup)? {
                Some(user) if self.may_log_in(user).await? => {
                    Ok(Some(self.user(name, user.uid, &user.user.name)))
                }
                _ => Ok(None),
            },
            // The roster lists only users who may log in.
            Named::Listed(roster) => {
                let listed = self.listed_user(name, roster)?;
                Ok(listed.map(|(uid, iam_name)| self.user(name, uid, &iam_name)))
            }
        }
    }

    /// Returns the uid and the IAM name of a user who is known from the roster alone, if the user has a right to the
    /// name.
    pub(super) fn listed_user(
        &self,
        name: &LinuxName,
        roster: &Roster,
    ) -> Result<Option<(Uid, IamName)>, AnswerError> {
        let Some(user) = roster.user(name) else { return Ok(None) };
        let uid = ids::uid(&self.config().accounts, user);
        let is_refused = self.refusal_of_name(name, Some(uid))?.is_some()
            || self.directory.uid_belongs_to_older_user(uid, user)
            || self.locals.is_uid_of_another(uid, name.as_str())?
            || self.group_with_uid(name, uid)?.is_some();
        Ok((!is_refused).then(|| (uid, user.name.clone())))
    }

    /// Returns the passwd(5) entry of a managed account.
    pub(super) fn user(&self, name: &LinuxName, uid: Uid, iam_name: &IamName) -> User {
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

    /// Logs why an existing IAM user has no account on this host, unless the same reason was logged last: the "invalid
    /// user" of sshd gives no reason.
    async fn log_not_shown(&self, name: &LinuxName, lookup: &Lookup) -> Result<(), AnswerError> {
        let Identity::User(user) = &lookup.entry.identity else { return Ok(()) };
        let reason = match self.refusal_reason(name, user.uid, AccountKind::Managed, user)? {
            Some(reason) => reason,
            // The error was logged where it occurred.
            None => match self.verdict(Policy::Login, user).await {
                Ok(verdict) => verdict.reason,
                Err(_) => return Ok(()),
            },
        };
        let mut logged = self.logged_not_shown.borrow_mut();
        if logged.len() >= LOGGED_MAX {
            logged.clear();
        }
        if logged.insert(name.clone(), reason) != Some(reason) {
            self.directory.warn(format!(
                "IAM user {} has no account here ({}); iamctl explain {name} says more",
                user.user.name,
                reason.as_str()
            ));
        }
        Ok(())
    }
}
