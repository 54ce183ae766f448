//! Decides about a session and its user, by what IAM says.

use std::path::Path;
use std::time::Duration;

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::client::ClientError;
use pam_iam_core::config::Sweep;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::registry::{Origin, Session, SessionKey, SessionRegistry};
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Policy, Reason};

use pam_iam_core::{local, paths};

use super::Judge;
use crate::sweep::withdrawal::Cause;

/// What IAM says about a session.
pub(super) enum Verdict {
    /// It may go on, by an answer of this age.
    GoesOn(Duration),
    /// The user may no longer log in.
    UserWithdrawn(Reason),
    /// The key with which it was opened, or a privileged group that it has, is withdrawn.
    SessionWithdrawn(Cause),
    /// There is no answer.
    Unknown,
}

impl Judge<'_> {
    /// Returns whether a session may go on.
    pub(super) fn verdict(
        &self,
        session: &Session,
        account_kind: AccountKind,
        registry: &SessionRegistry,
    ) -> Verdict {
        let Ok(name) = LinuxName::new(&session.user) else { return Verdict::Unknown };
        // An account that is no longer adopted or shared is the host's own, and so are the sessions that IAM did not open.
        if account_kind == AccountKind::Local {
            return match session.origin {
                // Another program may be rewriting group(5).
                Origin::Iam if !self.has_adopt_group() => Verdict::Unknown,
                Origin::Iam => Verdict::SessionWithdrawn(Cause::KeyWithdrawn),
                _ => Verdict::GoesOn(Duration::ZERO),
            };
        }
        // The owner of the key was unknown. A key that is no member's now counts as the host's own.
        if account_kind == AccountKind::Shared && session.origin != Origin::Iam {
            let is_members = |key: &SessionKey| self.is_active(&name, session.uid, key).unwrap_or(false);
            if session.keys.iter().any(is_members) {
                let _ = registry.insert(&Session { origin: Origin::Iam, ..session.clone() });
            }
            return Verdict::GoesOn(Duration::ZERO);
        }
        let age = match self.login(&name, session.uid) {
            Verdict::GoesOn(age) => age,
            verdict => return verdict,
        };
        // The groups of a shared or local account are the host's.
        let held = session.groups.iter().copied().collect();
        if account_kind == AccountKind::Managed && !self.lost(&name, &held).is_empty() {
            return Verdict::SessionWithdrawn(Cause::GroupWithdrawn);
        }
        // Keys that IAM does not have may be intended: those of further key commands, or an adopted account's own.
        let elsewhere = session.origin != Origin::Iam
            && (self.config.keys.others_open_managed_accounts() || account_kind == AccountKind::Adopted);
        // In a shared account only the key tells whose session it is.
        let by_key = self.config.sessions.sweep == Sweep::Key || account_kind == AccountKind::Shared;
        if !by_key || elsewhere {
            return Verdict::GoesOn(age);
        }
        for key in &session.keys {
            match self.is_active(&name, session.uid, key) {
                Ok(true) => {}
                Ok(false) => {
                    let foreign = session.origin == Origin::Foreign;
                    return Verdict::SessionWithdrawn(if foreign {
                        Cause::ForeignKey
                    } else {
                        Cause::KeyWithdrawn
                    });
                }
                Err(_) => return Verdict::Unknown,
            }
        }
        Verdict::GoesOn(age)
    }

    /// Returns whether IAM has the key as an active one of a user who may log in to the account.
    fn is_active(&self, name: &LinuxName, uid: Uid, key: &SessionKey) -> Result<bool, ClientError> {
        let Some(fingerprint) = key.fingerprint() else { return Ok(false) };
        Ok(!self.keys(name, uid, Some(fingerprint))?.is_empty())
    }

    /// Whether the group of `accounts.adopt_group` exists, if the configuration names one.
    fn has_adopt_group(&self) -> bool {
        let group = &self.config.accounts.adopt_group;
        let found = local::group_by_name(Path::new(paths::GROUP), group);
        group.is_empty() || found.is_ok_and(|group| group.is_some())
    }

    /// Whether a user may still log in.
    pub(super) fn login(&self, name: &LinuxName, uid: Uid) -> Verdict {
        match self.decide(name, uid, Policy::Login) {
            Ok(decision) if decision.allow => Verdict::GoesOn(Duration::from_secs(decision.age)),
            // A permission that is taken from this host's role must not end every session.
            Ok(decision) if decision.reason == Reason::Denied => Verdict::Unknown,
            Ok(decision) => Verdict::UserWithdrawn(decision.reason),
            Err(_) => Verdict::Unknown,
        }
    }
}
