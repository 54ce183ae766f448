//! Whose uids and names are, by this host and by the resolver.

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

/// Whose a uid of our range is.
pub(super) enum Owning {
    /// A user of this Linux name, or one who last had it here.
    User(LinuxName),
    /// Nothing tells whether it ever was a user's.
    Unknown,
    /// Nobody can tell now.
    Unanswered,
}

impl Judge<'_> {
    /// Whose a uid of our range is.
    pub(super) fn name_of(&self, uid: Uid) -> Owning {
        let Ok(local) = local::account_by_uid(Path::new(paths::PASSWD), uid) else {
            return Owning::Unanswered;
        };
        // One that neither this host nor IAM knows as a user of IAM's is the host's, whatever its number.
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
            // The user is gone, or may not be looked at, or never was: what is asked next tells which. Another directory may
            // have accounts with such uids, so nothing is asked about one that this host never served.
            holder => match (self.served.name_of(uid), holder) {
                (Some(name), _) => Owning::User(name),
                (None, Some(_)) => Owning::Unknown,
                (None, None) => Owning::Unanswered,
            },
        }
    }

    /// Whether a name is now that of another account than `uid`: a local one, another IAM user's, or, where a directory is in
    /// use, one of that. A directory that does not answer makes it nobody else's: then units of that name are still spared, and
    /// a process under a subordinate uid still needs a further mark.
    pub(super) fn is_anothers(&self, name: &LinuxName, uid: Uid) -> bool {
        match local::account_by_name(Path::new(paths::PASSWD), name.as_str()) {
            Ok(Some(account)) => return account.uid != uid,
            Ok(None) => {}
            // A file that cannot be read has every name.
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

    /// Returns the name of the user with `uid`, if there is one; None if the resolver does not answer.
    fn holder(&self, uid: Uid) -> Option<Option<LinuxName>> {
        self.report::<Holder>(&Request::WhoIs { uid }).ok().map(|holder| holder.name)
    }
}

impl Queries for Judge<'_> {
    /// Sends a request once in a sweep, so that a user with many sessions is asked about once. When the time is up, nothing is
    /// sent any more.
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
