//! What logins that are over have left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::id::Uid;
use pam_iam_core::registry::{Session, SessionRegistry};
use pam_iam_sessions::managed;
use pam_iam_sessions::owner::{Owned, Owner};

use super::{Judge, Verdict};
use crate::sweep::withdrawal::{Cause, Withdrawal};

/// How long it is asked about what sessions that are over have left behind.
const ASKING_LEFT_MAX: Duration = Duration::from_secs(5);

/// In how many sweeps in a row nothing may be seen of what a login left behind before nothing is looked for any more.
const UNSEEN_MAX: u32 = 60;

/// In how many of these it is asked about a user of whom nothing is seen and the kernel counts no process. There may be one
/// under a subordinate uid, of which a later look sees more.
const ASKED_UNSEEN_MAX: u32 = 3;

/// How many logins of one user may be kept of which nothing was seen for a while.
const KEPT_UNSEEN_MAX: usize = 100;

/// How many logins further each sweep begins to ask about what they left.
const ROTATION: usize = 101;

impl Judge<'_> {
    /// Returns what sessions that are over left behind and were opened with what is withdrawn now. Those that have left nothing are
    /// taken out of the registry.
    ///
    /// # Errors
    /// Returns an error if the registry cannot be read.
    pub(super) fn left_behind(
        &mut self,
        registry: &SessionRegistry,
        owned: &mut Owned<'_>,
    ) -> io::Result<Vec<Withdrawal>> {
        self.asked_until = Instant::now() + ASKING_LEFT_MAX;
        let mut sessions = registry.left()?;
        // There may not be time to ask about all.
        let sweeps = usize::try_from(pam_iam_core::registry::now() / 60).unwrap_or_default();
        let first = sweeps.wrapping_mul(ROTATION).checked_rem(sessions.len()).unwrap_or_default();
        sessions.rotate_left(first);
        let mut looks = Looks::default();
        for session in &sessions {
            *looks.counts.entry(session.uid).or_default() += 1;
        }
        let mut withdrawals: Vec<Withdrawal> = Vec::new();
        for session in sessions {
            if !self.is_worth_a_question(registry, &session, owned, &mut looks) {
                continue;
            }
            let Some(cause) = self.cause_to_end(registry, &session) else { continue };
            let uid = session.uid;
            match withdrawals.iter_mut().find(|known| known.uid == uid && known.cause == cause) {
                Some(known) => known.left.push(session),
                None => {
                    let withdrawal = Withdrawal::new(session.user.clone(), uid, cause);
                    withdrawals.push(Withdrawal { left: vec![session], ..withdrawal });
                }
            }
        }
        Ok(withdrawals)
    }

    /// Whether something of a login that is over may still run. One that has left nothing for long is forgotten.
    fn is_worth_a_question(
        &mut self,
        registry: &SessionRegistry,
        session: &Session,
        owned: &mut Owned<'_>,
        looks: &mut Looks,
    ) -> bool {
        let audit = session.audit.as_deref();
        let Some((audit, owner)) = audit.zip(Owner::new(session.uid, &session.user)) else {
            self.forget(registry, session);
            return false;
        };
        // What forks and ends all the time may be missed by any look.
        let before = *self.first_unseen.entry(session.process()).or_insert(session.unseen);
        let mut unseen = if owned.is_in_audit_session(&owner, audit) { 0 } else { before + 1 };
        let is_at_work = *looks.at_work.entry(session.uid).or_insert_with(|| owner.is_at_work());
        let has_many = looks.counts.get(&session.uid).is_some_and(|count| *count > KEPT_UNSEEN_MAX);
        if unseen > UNSEEN_MAX || has_many && unseen > ASKED_UNSEEN_MAX {
            let seen =
                looks.audit_sessions.entry(session.uid).or_insert_with(|| managed::audit_sessions_of(&owner));
            match seen {
                Some(seen) if seen.contains(audit) => unseen = 0,
                None if is_at_work && !has_many => {}
                _ => {
                    self.forget(registry, session);
                    return false;
                }
            }
        }
        if !self.is_dry {
            let _ = registry.note_unseen(session, unseen);
        }
        unseen <= ASKED_UNSEEN_MAX || is_at_work
    }

    /// Returns why what a login left behind is to end, if so.
    fn cause_to_end(&self, registry: &SessionRegistry, session: &Session) -> Option<Cause> {
        let kind = account_kind(&session.user, session.uid, self.config, &Files::default()).ok()?;
        match self.verdict(session, kind, registry) {
            Verdict::SessionWithdrawn(cause) => Some(cause),
            // What the marks of a login are on is no service of the host's.
            Verdict::UserWithdrawn(reason) if matches!(kind, AccountKind::Adopted | AccountKind::Shared) => {
                Some(Cause::Refused(reason))
            }
            _ => None,
        }
    }

    /// Takes what a login left behind out of the registry.
    fn forget(&self, registry: &SessionRegistry, session: &Session) {
        if !self.is_dry {
            let _ = registry.remove(session.process());
        }
    }
}

/// What was found out about users while their logins are gone through, so that it is looked for once.
#[derive(Default)]
struct Looks {
    /// How many logins of each are over.
    counts: BTreeMap<Uid, usize>,
    /// Whether anything runs under the uid.
    at_work: BTreeMap<Uid, bool>,
    /// The audit sessions in which something runs; None if that cannot be told.
    audit_sessions: BTreeMap<Uid, Option<BTreeSet<String>>>,
}
