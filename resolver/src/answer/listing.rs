//! The roster as this host sees it: which users have an account here, and which have none and why.

use pam_iam_core::name::IamName;
use pam_iam_core::wire::{Answer, Refused, Roster as Listing};

use super::eligibility::Eligibility;
use super::{AnswerError, Answerer};
use crate::ids;
use crate::lookup::roster::Roster;
use crate::source::{Iam, IamUser};

impl<I: Iam> Answerer<I> {
    /// Reads the roster, and returns which of its users have an account on this host.
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
                Eligibility::Managed => users.push(self.user(name, uid, &user.name)),
                Eligibility::Adopted => adopted.push(name.clone()),
                Eligibility::Ineligible(why) => {
                    let (iam_name, name) = (user.name.to_string(), Some(name.clone()));
                    refused.push(Refused { iam_name, name, uid, why: why.to_owned() });
                }
            }
        }
        refused.sort_by(|one, other| one.iam_name.cmp(&other.iam_name));
        // If a group of `access.deny` is missing, users are on the list who should not be.
        let needed = roster.access.allow.groups().iter().chain(&roster.access.deny);
        let missing: Vec<String> =
            needed.filter(|group| roster.missing.contains(group)).map(ToString::to_string).collect();
        let (groups, complete) = (self.all_groups(&roster)?, missing.is_empty());
        Ok(Answer::report(&Listing { users, adopted, refused, groups, missing, complete }))
    }

    /// Logs the users of the roster who get no account on this host, if the last call did not log them for the same
    /// reason.
    pub fn log_ineligible(&self, roster: &Roster) {
        self.refresh();
        let why = |name, user: &IamUser| {
            self.ineligible_because(name, ids::uid(&self.config().accounts, user)).ok().flatten()
        };
        let without = roster.users().filter_map(|(name, user)| Some((user.name.clone(), why(name, user)?)));
        let without: Vec<(IamName, &'static str)> = without.collect();
        let before = self.logged_ineligible.take();
        for (name, why) in without.iter().filter(|refused| !before.contains(refused)) {
            self.directory.warn(format!("refused IAM user {name}: {why}"));
        }
        self.logged_ineligible.replace(without);
    }
}
