//! The keys with which an account may be opened, for sshd's AuthorizedKeysCommand.

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::fingerprint::Fingerprint;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::wire::{Answer, Key, Reason};

use super::{AnswerError, Answerer};
use crate::limits::Origin;
use crate::lookup::cache::{Identity, Lookup, UserEntry};
use crate::source::{Iam, IamError};

impl<I: Iam> Answerer<I> {
    /// Returns the active keys of the account `name` with `uid`, or only the one with `fingerprint`. Returns no keys if
    /// the user may not log in.
    pub(super) async fn keys(
        &self,
        name: &LinuxName,
        uid: Uid,
        fingerprint: Option<&Fingerprint>,
        origin: Origin,
    ) -> Result<Answer, AnswerError> {
        let none = Answer::Keys { keys: Vec::new() };
        let account_kind = self.account_kind(name, uid)?;
        if account_kind == AccountKind::Local {
            return Ok(none);
        }
        let lookup = self.lookup_for_keys(name, account_kind, origin).await?;
        let users = match &lookup.entry.identity {
            Identity::User(user) => match self.refusal_reason(name, uid, account_kind, user)? {
                None if self.may_log_in(user).await? => std::slice::from_ref(user),
                Some(Reason::UidMismatch) => {
                    self.log_uid_mismatch(name, uid, user);
                    return Ok(none);
                }
                _ => return Ok(none),
            },
            Identity::Members(members) if account_kind == AccountKind::Shared => members,
            _ => return Ok(none),
        };
        Ok(Answer::Keys { keys: users.iter().flat_map(|user| keys_of(user, fingerprint)).collect() })
    }

    /// Looks up `name`. If the limit is used up, a stale entry serves for a managed account that only keys of IAM open:
    /// PAM asks again, outside this limit, before it lets a key open a session.
    async fn lookup_for_keys(
        &self,
        name: &LinuxName,
        account_kind: AccountKind,
        origin: Origin,
    ) -> Result<Lookup, IamError> {
        let pam_asks_again =
            account_kind == AccountKind::Managed && !self.config().keys.others_open_managed_accounts();
        match self.directory.lookup(name, self.directory.login_freshness(origin)).await {
            Err(IamError::Limited) if pam_asks_again => self.directory.stale(name).ok_or(IamError::Limited),
            lookup => lookup,
        }
    }

    /// Logs that sshd asks about a uid that is not the user's, unless the same was logged last for the name.
    fn log_uid_mismatch(&self, name: &LinuxName, asked: Uid, user: &UserEntry) {
        let mut logged = self.logged_not_shown.borrow_mut();
        if logged.insert(name.clone(), Reason::UidMismatch) != Some(Reason::UidMismatch) {
            self.directory.warn(format!(
                "{name} had uid {asked}, and the IAM user {} has uid {}: a user who was made anew gets in at the next attempt",
                user.user.name, user.uid
            ));
        }
    }
}

/// Returns the usable keys of a user, or only the one with `fingerprint`.
fn keys_of(user: &UserEntry, fingerprint: Option<&Fingerprint>) -> impl Iterator<Item = Key> {
    let usable = user.keys.iter().filter_map(|(id, key)| Some((id, key.as_ref()?)));
    let wanted = usable
        .filter(move |(_, key)| fingerprint.is_none_or(|fingerprint| *fingerprint == key.fingerprint()));
    wanted.map(|(id, key)| Key {
        id: id.clone(),
        iam_name: user.user.name.to_string(),
        line: key.to_string(),
    })
}
