//! Decides about processes that were left by logins which are over.

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

/// How long the resolver is asked about logins that are over.
const ASKING_LEFT_MAX: Duration = Duration::from_secs(5);

/// After this many sweeps in a row without a process of a login, the login is forgotten.
const UNSEEN_MAX: u32 = 60;

/// After this many sweeps without any process of its user, the resolver is no longer asked about a login. There may be one under a
/// subordinate uid, which a later look finds.
const ASKED_UNSEEN_MAX: u32 = 3;

/// The most logins of one user that are kept although nothing of them was seen for a while.
const KEPT_UNSEEN_MAX: usize = 100;

/// Each sweep begins this many logins further, as there may not be time for all.
const ROTATION: usize = 101;

impl Judge<'_> {
    /// Returns what was left by sessions that are over and were opened with something that is withdrawn now. Logins that have left nothing
    /// are removed from the registry.
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

    /// Whether processes of a login that is over may still run. A login without any for long is forgotten.
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
        // A process that forks and ends all the time can escape every look.
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

    /// Returns why the processes that a login has left are to end. None if they may go on.
    fn cause_to_end(&self, registry: &SessionRegistry, session: &Session) -> Option<Cause> {
        let kind = account_kind(&session.user, session.uid, self.config, &Files::default()).ok()?;
        match self.verdict(session, kind, registry) {
            Verdict::SessionWithdrawn(cause) => Some(cause),
            // A process with the marks of a login is no service of the host.
            Verdict::UserWithdrawn(reason) if matches!(kind, AccountKind::Adopted | AccountKind::Shared) => {
                Some(Cause::Refused(reason))
            }
            _ => None,
        }
    }

    /// Removes a login that is over from the registry.
    fn forget(&self, registry: &SessionRegistry, session: &Session) {
        if !self.is_dry {
            let _ = registry.remove(session.process());
        }
    }
}

/// What is found out about each user in one pass over the logins, so that it is looked up once.
#[derive(Default)]
struct Looks {
    /// How many logins of each are over.
    counts: BTreeMap<Uid, usize>,
    /// Whether any process runs under a uid of the user.
    at_work: BTreeMap<Uid, bool>,
    /// The audit sessions in which processes of the user run. None if that cannot be told.
    audit_sessions: BTreeMap<Uid, Option<BTreeSet<String>>>,
}
