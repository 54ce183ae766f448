//! Finds which IAM user has a right to a name and a uid on this host, apart from the rules of access.

use pam_iam_core::account_kind::{AccountKind, account_kind};
use pam_iam_core::config::{Access, PRIVILEGED_GROUPS};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use pam_iam_core::paths;
use pam_iam_core::wire::{Policy, Reason};

use super::{AnswerError, Answerer};
use crate::ids;
use crate::lookup::cache::{Identity, Lookup, UserEntry};
use crate::lookup::roster::Roster;
use crate::policy::{self, Verdict};
use crate::source::{Iam, IamError};

/// The account that an IAM user who may log in has on this host.
pub(super) enum Eligibility {
    /// A managed account.
    Managed,
    /// The local account of the user's name, which is adopted.
    Adopted,
    /// No account, for this reason.
    Ineligible(&'static str),
}

impl<I: Iam> Answerer<I> {
    /// Returns the kind of the account `name` with `uid`. If /etc/passwd has `name` with another uid, the client means
    /// another account of that name, which is local and gets nothing.
    pub(super) fn account_kind(&self, name: &LinuxName, uid: Uid) -> Result<AccountKind, AnswerError> {
        let local = self.locals.uid_of(name.as_str())?;
        if local.is_some_and(|local| local != uid) {
            return Ok(AccountKind::Local);
        }
        Ok(account_kind(name.as_str(), uid, self.config(), &self.locals.files)?)
    }

    /// Returns whether `name` is that of a shared account. No IAM user gets such a name.
    pub(super) fn is_shared(&self, name: &LinuxName) -> bool {
        self.config().shared.contains_key(name)
    }

    /// Returns whether `name` is that of a local or a shared account. The resolver shows no account to NSS under such a
    /// name.
    pub(super) fn is_local_or_shared(&self, name: &LinuxName) -> Result<bool, AnswerError> {
        Ok(self.is_shared(name) || self.locals.uid_of(name.as_str())?.is_some())
    }

    /// Returns the IAM user who has a right to `name`. None if there is no such user.
    pub(super) fn entitled_user<'a>(
        &self,
        name: &LinuxName,
        lookup: &'a Lookup,
    ) -> Result<Option<&'a UserEntry>, AnswerError> {
        let Identity::User(user) = &lookup.entry.identity else { return Ok(None) };
        let is_refused =
            self.refusal_of_name(name, Some(user.uid))?.is_some() || self.is_uid_taken(name, user)?;
        Ok((!is_refused).then_some(user))
    }

    /// Returns why `user` has no right to the account `name` with `uid`, whatever the rules of access say. None if the
    /// user has one, as always for an adopted account, which keeps its own uid and group.
    pub(super) fn refusal_reason(
        &self,
        name: &LinuxName,
        uid: Uid,
        account_kind: AccountKind,
        user: &UserEntry,
    ) -> Result<Option<Reason>, AnswerError> {
        Ok(match account_kind {
            AccountKind::Adopted => None,
            AccountKind::Local | AccountKind::Shared => Some(Reason::Local),
            AccountKind::Managed if user.uid != uid => Some(Reason::UidMismatch),
            AccountKind::Managed => match self.refusal_of_name(name, Some(uid))? {
                None if self.is_uid_taken(name, user)? => Some(Reason::UidTaken),
                refusal => refusal,
            },
        })
    }

    /// Returns whether the uid of `user` belongs to an older IAM user, or to another account or group of this host.
    pub(super) fn is_uid_taken(&self, name: &LinuxName, user: &UserEntry) -> Result<bool, AnswerError> {
        let gid = user.uid.private_group();
        let mut mapped = user.groups.iter().filter(|group| self.config().groups.contains_key(&group.name));
        Ok(self.directory.uid_belongs_to_older_user(user.uid, &user.user)
            || self.locals.is_uid_of_another(user.uid, name.as_str())?
            || self.group_with_uid(name, user.uid)?.is_some()
            || mapped.any(|group| ids::gid_of(group.id.as_str()) == gid))
    }

    /// Returns a text about the group that has `uid` as its gid, and so would become the primary group of the user called
    /// `name`. None if there is no such group but the user's private one.
    pub(super) fn group_with_uid(
        &self,
        name: &LinuxName,
        uid: Uid,
    ) -> Result<Option<&'static str>, AnswerError> {
        let gid = uid.private_group();
        let roster = self.directory.cached_roster();
        let mut mapped = self.config().groups.keys().filter_map(|group| roster.as_ref()?.gid_of(group));
        Ok(if is_gid_of_own_group(gid) || mapped.any(|mapped| mapped == gid) {
            Some("its uid is the gid of a group of ours")
        } else if self.locals.is_gid_of_another(gid, name.as_str())? {
            Some("its uid is the gid of a local group")
        } else {
            None
        })
    }

    /// Returns why no IAM user gets `name` on this host. None if one may get it. `uid` is that of the user, if it is
    /// known.
    pub(super) fn refusal_of_name(
        &self,
        name: &LinuxName,
        uid: Option<Uid>,
    ) -> Result<Option<Reason>, AnswerError> {
        if self.is_name_of_a_group(name, uid)? {
            return Ok(Some(Reason::NameOfGroup));
        }
        Ok(self.claim_of(name)?.map(|_| Reason::NameClaimed))
    }

    /// Returns a text for an administrator about the claim of this host on `name`. None if there is no claim.
    pub(super) fn claim_of(&self, name: &LinuxName) -> Result<Option<String>, AnswerError> {
        if let Some(group) = self.locals.privileged_group_of(name.as_str())? {
            return Ok(Some(format!("the name is a member of the group {group} in {}", paths::GROUP)));
        }
        if self.locals.has_in_other_case(name.as_str())? {
            let claim =
                "a local account or group has the name in another case, and sudo does not tell them apart";
            return Ok(Some(claim.to_owned()));
        }
        Ok(self.claims.of(name.as_str()))
    }

    /// Returns whether the private group of an account called `name` would be mistaken for another group. sudo compares
    /// the names of groups, so an IAM user called `sudo`, `wheel` or `admin` would be root by `%sudo`. A local group
    /// called `name` does not count if it is the private group of the user with `uid` or, without a `uid`, if its gid is
    /// in the managed range.
    fn is_name_of_a_group(&self, name: &LinuxName, uid: Option<Uid>) -> Result<bool, AnswerError> {
        let name = name.as_str();
        let mapped = self.config().mapped_groups().map(LinuxName::as_str);
        let mut reserved = mapped.chain([IAM_USERS, IAM_SUDO]).chain(PRIVILEGED_GROUPS.iter().copied());
        // sudo ignores the case of the names.
        if reserved.any(|group| group.eq_ignore_ascii_case(name)) {
            return Ok(true);
        }
        let Some(gid) = self.locals.gid_of(name)? else { return Ok(false) };
        let is_private_group = match uid {
            Some(uid) => gid == uid.private_group(),
            None => gid.is_managed(),
        };
        // A local group with the name of a local account belongs to that account.
        Ok(self.locals.uid_of(name)?.is_none() && !is_private_group)
    }

    /// Returns whether the IAM user whose name maps to `name` has an account on this host.
    pub(super) fn is_eligible(&self, roster: &Roster, name: &LinuxName) -> bool {
        let cached = self.directory.entry(name).and_then(|entry| match &entry.identity {
            Identity::User(user) => Some(user.uid),
            _ => None,
        });
        let uid = cached.or_else(|| roster.user(name).map(|user| ids::uid(&self.config().accounts, user)));
        uid.is_some_and(|uid| self.ineligible_because(name, uid).is_ok_and(|why| why.is_none()))
    }

    /// Returns why the IAM user with `uid`, whose name maps to `name`, has no account on this host. None if the user has
    /// one.
    pub(super) fn ineligible_because(
        &self,
        name: &LinuxName,
        uid: Uid,
    ) -> Result<Option<&'static str>, AnswerError> {
        Ok(match self.eligibility(name, uid)? {
            Eligibility::Ineligible(why) => Some(why),
            Eligibility::Managed | Eligibility::Adopted => None,
        })
    }

    /// Returns the account that the IAM user with `uid`, whose name maps to `name`, has on this host.
    pub(super) fn eligibility(&self, name: &LinuxName, uid: Uid) -> Result<Eligibility, AnswerError> {
        if self.is_shared(name) {
            return Ok(Eligibility::Ineligible("its name is that of a shared account"));
        }
        if let Some(local) = self.locals.uid_of(name.as_str())?.filter(|local| !local.is_managed()) {
            let account_kind = account_kind(name.as_str(), local, self.config(), &self.locals.files)?;
            return Ok(match account_kind {
                AccountKind::Adopted => Eligibility::Adopted,
                _ => Eligibility::Ineligible("its name is that of a local account"),
            });
        }
        Ok(if self.is_name_of_a_group(name, Some(uid))? {
            Eligibility::Ineligible("its name is that of a group on this host")
        } else if self.claim_of(name)?.is_some() {
            Eligibility::Ineligible("this host needs its name for itself; iamctl explain says for what")
        } else if let Some(why) = self.group_with_uid(name, uid)? {
            Eligibility::Ineligible(why)
        } else {
            Eligibility::Managed
        })
    }

    /// Returns whether the rules of access let `user` log in. False if they are left to an instance tag that names no
    /// group.
    ///
    /// # Errors
    /// Returns an error if the rules are not known, since the instance tags could not be read.
    pub(super) async fn may_log_in(&self, user: &UserEntry) -> Result<bool, AnswerError> {
        match self.verdict(Policy::Login, user).await {
            Ok(verdict) => Ok(verdict.allow),
            Err(AnswerError::Iam(error @ (IamError::Unavailable(_) | IamError::Limited))) => {
                Err(error.into())
            }
            Err(AnswerError::Iam(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns what the rules of access say about a user.
    pub(super) async fn verdict(&self, policy: Policy, user: &UserEntry) -> Result<Verdict, AnswerError> {
        Ok(verdict_by(&*self.directory.access().await?, policy, user))
    }
}

/// Returns what `access` says about a user.
pub(super) fn verdict_by(access: &Access, policy: Policy, user: &UserEntry) -> Verdict {
    let groups: Vec<IamName> = user.groups.iter().map(|group| group.name.clone()).collect();
    policy::decide(access, policy, &groups)
}

/// Returns whether `gid` is that of iam-users or iam-sudo: no user gets a private group with it.
fn is_gid_of_own_group(gid: Gid) -> bool {
    [Gid::IAM_USERS, Gid::IAM_SUDO].contains(&gid)
}
