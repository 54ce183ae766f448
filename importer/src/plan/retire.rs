//! Retires accounts whose users have left.

use pam_iam_core::config::{Allowed, Importer, Retire};

use super::{Account, Change, HOME, HomeAction, PlanInput, Planner, Refusal, Removal, managed_accounts};

/// The number of accounts that one run may retire even if `importer.max_retire` is a smaller part of all.
const MAX_RETIRE_AT_LEAST: usize = 3;

/// An account whose user has left.
struct Departed {
    account: Account,
    /// Whether it is locked already.
    locked: bool,
}

impl Planner<'_> {
    /// Retires accounts whose users have left: locks them now, and removes them if the configuration says so, or if a new user has the
    /// name.
    pub(super) fn retire(&mut self) {
        let PlanInput { roster, config, state, adopted, force, .. } = *self.input;
        let managed = managed_accounts(&self.plan.tables);
        let adopted =
            adopted.iter().filter(|(_, uid)| !uid.is_managed()).map(|(name, uid)| (*uid, name.clone()));
        let (mut active, mut departed) = (0, Vec::new());
        for (uid, name) in managed.into_iter().chain(adopted) {
            let locked = self.is_locked(&name, uid);
            active += usize::from(!locked);
            let missing = state.missing(uid);
            if roster.complete && missing >= config.importer.confirm.max(1) {
                departed.push(Departed { account: Account { name, uid }, locked });
            } else if missing > 0 && !locked {
                self.plan.waiting.push((name, missing));
            }
        }
        self.plan.limit = limit(&config.importer, active);
        let fresh = departed.iter().filter(|departed| !departed.locked).count();
        if force {
            self.plan.limit = usize::MAX;
        } else if fresh > self.plan.limit {
            let max = self.plan.limit;
            let why = format!(
                "{fresh} of {active} accounts would be retired, and importer.max_retire allows {max}; if all of these have \
                 really left, run: iam-importer --force"
            );
            self.plan.refused.push(Refusal { who: "retiring".to_owned(), why });
            departed.retain(|departed| departed.locked);
        }
        for departed in departed {
            self.retire_one(departed);
        }
    }

    fn retire_one(&mut self, Departed { account, locked }: Departed) {
        if !locked {
            self.lock(&account);
            self.plan.changes.push(Change::Lock { name: account.name.clone() });
        }
        if let Some(home_action) = self.home_action(&account) {
            let home = self.field(&account.name, HOME);
            self.plan.remove.push(Removal { account: account.clone(), home, home_action });
        }
        self.plan.locked.push(account);
    }

    /// Returns what happens to the home directory. None if the account is not to be removed.
    fn home_action(&self, account: &Account) -> Option<HomeAction> {
        let PlanInput { config, .. } = self.input;
        if !account.uid.is_managed() {
            return None;
        }
        let wanted = match config.importer.retire {
            // A principal who may write instance tags must not be able to have homes removed.
            _ if matches!(config.access.allow, Allowed::Tag(_)) => None,
            Retire::Archive => Some(HomeAction::Archive),
            Retire::Delete => Some(HomeAction::Delete),
            Retire::Lock => None,
        };
        let taken = || self.users.values().any(|user| user.name.as_str() == account.name);
        wanted.or_else(|| taken().then_some(HomeAction::Stays))
    }
}

/// Returns how many of `managed` accounts one run may retire.
fn limit(importer: &Importer, managed: usize) -> usize {
    (managed * usize::from(importer.max_retire.0) / 100).max(MAX_RETIRE_AT_LEAST)
}
