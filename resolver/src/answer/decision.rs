//! Decides for PAM whether an account may log in or use sudo.

use pam_iam_core::account_kind::AccountKind;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::wire::{Answer, Decision, Policy, Reason, Source};

use super::{AnswerError, Answerer};
use crate::limits::Origin;
use crate::lookup::cache::{Identity, UserEntry};
use crate::policy::Verdict;
use crate::source::Iam;

impl<I: Iam> Answerer<I> {
    /// Decides, and counts the decision for `iamctl status`.
    pub(super) async fn counted_decision(
        &self,
        name: &LinuxName,
        uid: Uid,
        policy: Policy,
        origin: Origin,
    ) -> Result<Answer, AnswerError> {
        let decision = self.decide(name, uid, policy, origin).await?;
        let counted_as = format!("{} {}", policy.as_str(), decision.reason.as_str());
        *self.decisions.borrow_mut().entry(counted_as).or_default() += 1;
        Ok(Answer::Decision(decision))
    }

    /// Returns the decision about the account `name` with `uid`: whether it may log in, or use sudo, as `policy` asks.
    pub(super) async fn decide(
        &self,
        name: &LinuxName,
        uid: Uid,
        policy: Policy,
        origin: Origin,
    ) -> Result<Decision, AnswerError> {
        let account_kind = self.account_kind(name, uid)?;
        if account_kind == AccountKind::Local {
            return Ok(decision(Verdict::refused(Reason::Local), None, Source::Cache, 0));
        }
        let freshness = match policy {
            Policy::Login => self.directory.login_freshness(origin),
            Policy::Sudo => self.directory.sudo_freshness(origin),
        };
        let lookup = self.directory.lookup(name, freshness).await?;
        let (verdict, user) = match &lookup.entry.identity {
            Identity::User(user) => match self.refusal_reason(name, uid, account_kind, user)? {
                Some(reason) => (Verdict::refused(reason), Some(user)),
                None => (self.verdict(policy, user).await?, Some(user)),
            },
            Identity::Members(members) if account_kind == AccountKind::Shared => {
                (shared_account_verdict(policy, members), None)
            }
            // A managed account that is older than the setting which makes its name that of a shared account.
            Identity::Members(_) => (Verdict::refused(Reason::Local), None),
            Identity::NotFound => (Verdict::refused(Reason::NoSuchUser), None),
            Identity::Ambiguous(_) => (Verdict::refused(Reason::Ambiguous), None),
            Identity::AccessDenied => (Verdict::refused(Reason::Denied), None),
        };
        Ok(decision(verdict, user, lookup.source, lookup.entry.age().as_secs()))
    }
}

/// Returns the verdict about a shared account. Login is allowed if there are members; the key shows later which of them
/// logs in. Whether the account may use sudo is left to the host.
fn shared_account_verdict(policy: Policy, members: &[UserEntry]) -> Verdict {
    match (policy, members.is_empty()) {
        (Policy::Sudo, _) => Verdict::refused(Reason::Local),
        (Policy::Login, true) => Verdict::refused(Reason::NotInGroup),
        (Policy::Login, false) => Verdict { allow: true, reason: Reason::InGroup, group: None },
    }
}

fn decision(verdict: Verdict, user: Option<&UserEntry>, source: Source, age: u64) -> Decision {
    Decision {
        allow: verdict.allow,
        reason: verdict.reason,
        iam_name: user.map(|user| user.user.name.to_string()),
        iam_id: user.map(|user| user.user.id.to_string()),
        group: verdict.group.map(String::from),
        source,
        age,
    }
}
