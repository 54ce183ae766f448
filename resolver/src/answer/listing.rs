//! The roster as this host sees it: who of it has an account here, and who has not and why.

use pam_iam_core::account_kind::{AccountKind, account_kind};
use pam_iam_core::id::Uid;
use pam_iam_core::name::{IamName, LinuxName};
use pam_iam_core::wire::{Answer, Refused, Roster as Listing};

use super::{AnswerError, Answerer};
use crate::ids;
use crate::lookup::Identity;
use crate::lookup::roster::Roster;
use crate::source::{Iam, IamUser};

/// What an IAM user who may log in has on this host.
enum Eligibility {
    /// An account of ours.
    Managed,
    /// The local account of its name, which is adopted.
    Adopted,
    /// Nothing.
    None(&'static str),
}

impl<I: Iam> Answerer<I> {
    /// The roster, read now.
    pub(super) async fn roster(&self) -> Result<Answer, AnswerError> {
        let roster = self.directory.read_roster().await?;
        let (mut users, mut adopted) = (Vec::new(), Vec::new());
        let mut refused: Vec<Refused> = roster
            .refused
            .iter()
            .map(|refused| Refused {
                iam_name: refused.user.name.to_string(),
                name: refused.user.name.to_linux(&self.config().accounts.drop_suffix).ok(),
                uid: ids::uid(&self.config().accounts, &refused.user),
                why: refused.why.clone(),
            })
            .collect();
        for (name, user) in roster.users() {
            let uid = ids::uid(&self.config().accounts, user);
            match self.eligibility(name, uid)? {
                Eligibility::Managed => users.push(self.entry(name, uid, &user.name)),
                Eligibility::Adopted => adopted.push(name.clone()),
                Eligibility::None(why) => {
                    let (iam_name, name) = (user.name.to_string(), Some(name.clone()));
                    refused.push(Refused { iam_name, name, uid, why: why.to_owned() });
                }
            }
        }
        refused.sort_by(|one, other| one.iam_name.cmp(&other.iam_name));
        // Without a group that denies, too many are on the list.
        let needed = roster.access.allow.groups().iter().chain(&roster.access.deny);
        let missing: Vec<String> =
            needed.filter(|group| roster.missing.contains(group)).map(ToString::to_string).collect();
        let (groups, complete) = (self.all_groups(&roster)?, missing.is_empty());
        Ok(Answer::report(&Listing { users, adopted, refused, groups, missing, complete }))
    }

    /// Logs who is on the list and gets no account on this host, when that has changed.
    pub fn log_ineligible(&self, roster: &Roster) {
        self.locals.refresh();
        let why = |name, user: &IamUser| {
            self.ineligible_because(name, ids::uid(&self.config().accounts, user)).ok().flatten()
        };
        let without = roster.users().filter_map(|(name, user)| Some((user.name.clone(), why(name, user)?)));
        let without: Vec<(IamName, &'static str)> = without.collect();
        let before = self.without_place.take();
        for (name, why) in without.iter().filter(|refused| !before.contains(refused)) {
            self.directory.warn(format!("refused IAM user {name}: {why}"));
        }
        self.without_place.replace(without);
    }

    /// Whether the owner of `name` has an account here.
    pub(super) fn is_eligible(&self, roster: &Roster, name: &LinuxName) -> bool {
        let lookup = self.directory.record(name).and_then(|record| match &record.identity {
            Identity::User(person) => Some(person.uid),
            _ => None,
        });
        let uid = lookup.or_else(|| roster.user(name).map(|user| ids::uid(&self.config().accounts, user)));
        uid.is_some_and(|uid| self.ineligible_because(name, uid).is_ok_and(|why| why.is_none()))
    }

    /// Why the owner of `name` has no account here, if so.
    pub(super) fn ineligible_because(
        &self,
        name: &LinuxName,
        uid: Uid,
    ) -> Result<Option<&'static str>, AnswerError> {
        Ok(match self.eligibility(name, uid)? {
            Eligibility::None(why) => Some(why),
            Eligibility::Managed | Eligibility::Adopted => None,
        })
    }

    fn eligibility(&self, name: &LinuxName, uid: Uid) -> Result<Eligibility, AnswerError> {
        if self.is_shared(name) {
            return Ok(Eligibility::None("its name is that of a shared account"));
        }
        if let Some(local) = self.locals.uid_of(name.as_str())?.filter(|local| !local.is_managed()) {
            let account_kind = account_kind(name.as_str(), local, self.config(), &self.locals.files)?;
            return Ok(match account_kind {
                AccountKind::Adopted => Eligibility::Adopted,
                _ => Eligibility::None("its name is that of a local account"),
            });
        }
        Ok(if self.name_of_a_group(name, Some(uid))? {
            Eligibility::None("its name is that of a group on this host")
        } else if self.claim_of(name)?.is_some() {
            Eligibility::None("this host needs its name for itself; iamctl explain says for what")
        } else if let Some(why) = self.group_with_uid(name, uid)? {
            Eligibility::None(why)
        } else {
            Eligibility::Managed
        })
    }
}
