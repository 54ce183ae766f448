//! Finds out, from this host and from the resolver, to whom uids and names belong.

use std::path::Path;
use std::time::Instant;

use pam_iam_core::client::ClientError;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::nsswitch;
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Answer, Holder, Request};
use pam_iam_core::{local, paths};
use pam_iam_sessions::lookup;

use super::Judge;

/// The owner of a managed uid.
pub(super) enum Owning {
    /// A user with this Linux name, or the last who had it here.
    User(LinuxName),
    /// Nothing tells whether it ever was a user's.
    Unknown,
    /// There is no answer now.
    Unanswered,
}

impl Judge<'_> {
    /// Returns the owner of a managed uid.
    pub(super) fn name_of(&self, uid: Uid) -> Owning {
        let Ok(local) = local::account_by_uid(Path::new(paths::PASSWD), uid) else {
            return Owning::Unanswered;
        };
        // An account that neither this host nor IAM knows as an IAM user's is the host's, whatever its number.
        let is_known = |account: &local::Account| {
            self.served.has(uid) || Path::new(paths::IMPORTER_STATE).exists() || {
                self.holder(uid).flatten().is_some_and(|name| name.as_str() == account.name)
            }
        };
        if let Some(account) = local {
            if !is_known(&account) {
                return Owning::Unknown;
            }
            let _ = self.served.add(uid, &account.name);
            return LinuxName::new(&account.name).map_or(Owning::Unanswered, Owning::User);
        }
        match self.holder(uid) {
            Some(Some(name)) => {
                let _ = self.served.add(uid, name.as_str());
                Owning::User(name)
            }
            // The user is gone, or may not be looked at, or never existed; the next question will tell. Another directory may have accounts
            // with such uids, so nothing is asked about a uid that this host never served.
            holder => match (self.served.name_of(uid), holder) {
                (Some(name), _) => Owning::User(name),
                (None, Some(_)) => Owning::Unknown,
                (None, None) => Owning::Unanswered,
            },
        }
    }

    /// Whether a name now belongs to another account than `uid`: a local one, another IAM user's, or a directory's. If a directory does not
    /// answer, the name counts as this user's: units of that name are still spared, and a process under a subordinate uid still needs a
    /// further mark.
    pub(super) fn is_anothers(&self, name: &LinuxName, uid: Uid) -> bool {
        match local::account_by_name(Path::new(paths::PASSWD), name.as_str()) {
            Ok(Some(account)) => return account.uid != uid,
            Ok(None) => {}
            // If the file cannot be read, it may have any name.
            Err(_) => return true,
        }
        match self.user(name) {
            Ok(Some(user)) => user.uid != uid,
            _ => {
                let nsswitch = std::fs::read_to_string(nsswitch::NSSWITCH).unwrap_or_default();
                nsswitch::has_directory(&nsswitch)
                    && lookup::uid_of(name.as_str()).flatten().is_some_and(|other| other != uid)
            }
        }
    }

    /// Returns the name of the user with `uid`. None if the resolver does not answer; the inner value is None if there is no such user.
    fn holder(&self, uid: Uid) -> Option<Option<LinuxName>> {
        self.report::<Holder>(&Request::WhoIs { uid }).ok().map(|holder| holder.name)
    }
}

impl Queries for Judge<'_> {
    /// Sends each request once in a sweep, so that a user with many sessions is asked about once. Sends nothing when the time is up.
    fn send(&self, request: &Request) -> Result<Answer, ClientError> {
        let question =
            serde_json::to_string(request).map_err(|error| ClientError::Malformed(error.to_string()))?;
        if let Some(answer) = self.answers.borrow().get(&question) {
            return Ok(answer.clone());
        }
        if Instant::now() >= self.asked_until {
            self.without_answer.set(self.without_answer.get() + 1);
            return Err(ClientError::TimedOut);
        }
        match self.context.resolver.send(request)? {
            Answer::Error { kind, message } => Err(ClientError::Failed { kind, message }),
            answer => {
                self.answers.borrow_mut().insert(question, answer.clone());
                Ok(answer)
            }
        }
    }
}
