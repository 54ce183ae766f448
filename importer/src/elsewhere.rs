//! Asks the services of nsswitch.conf other than passwd(5) whether they have an account with the name or uid of an IAM user.
//! An account in passwd(5) would hide theirs, so the importer creates none if a service has such an account or does not
//! answer.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::User;
use pam_iam_core::id::Uid;
use pam_iam_core::nsswitch::{NSSWITCH, has_others};
use pam_iam_core::wire::Roster;
use pam_iam_core::{local, paths};

/// The most time for all lookups of a run. Later runs look up the other users.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether another account has a user's name or uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// No other account has either.
    Nobody,
    /// Another account has the name.
    Name,
    /// Another account has the uid.
    Uid,
    /// A directory does not answer.
    Unknown,
}

/// The other services' answers about the users of a roster.
#[derive(Debug, Default)]
pub struct Directories {
    /// The answers by name. None if there is no other service.
    answers: Option<BTreeMap<String, Elsewhere>>,
}

impl Directories {
    /// Looks up all users of `roster` who have no account in passwd(5) yet. The account files must not be locked during the
    /// call: a directory may take long to answer.
    pub fn ask(roster: &Roster) -> Self {
        let nsswitch = std::fs::read_to_string(NSSWITCH).unwrap_or_default();
        if !has_others(&nsswitch) {
            return Self::default();
        }
        let accounts = local::accounts(Path::new(paths::PASSWD)).unwrap_or_default();
        let accounts: HashSet<(&str, Uid)> =
            accounts.iter().map(|account| (account.name.as_str(), account.uid)).collect();
        let is_local = |name: &str, uid: Uid| accounts.contains(&(name, uid));
        let until = Instant::now() + LIMIT;
        // Each run begins with another user, so that a slow directory does not always delay the same ones.
        let first = begin_with(SystemTime::now(), roster.users.len());
        let users = roster.users.iter().cycle().skip(first).take(roster.users.len());
        let users = users.filter(|user| !is_local(user.name.as_str(), user.uid));
        let answers = users.map(|user| {
            let name = user.name.as_str();
            let answer = if Instant::now() < until {
                look_up(name, user.uid, &is_local).unwrap_or(Elsewhere::Unknown)
            } else {
                Elsewhere::Unknown
            };
            (name.to_owned(), answer)
        });
        Self { answers: Some(answers.collect()) }
    }

    /// Returns whether another account has the name or uid of a user.
    pub fn of(&self, name: &str) -> Elsewhere {
        match &self.answers {
            None => Elsewhere::Nobody,
            Some(answers) => answers.get(name).copied().unwrap_or(Elsewhere::Unknown),
        }
    }

    /// Returns the answers `answers`, and `Nobody` for the names `others`.
    #[cfg(test)]
    pub fn with(answers: &[(&str, Elsewhere)], others: &[&str]) -> Self {
        let nobody = others.iter().map(|name| (*name, Elsewhere::Nobody));
        let all = answers.iter().copied().chain(nobody);
        Self { answers: Some(all.map(|(name, answer)| (name.to_owned(), answer)).collect()) }
    }
}

/// Returns the index in a list of `count` users at which a run that begins at `now` starts. Differs from run to run.
fn begin_with(now: SystemTime, count: usize) -> usize {
    let nanoseconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    usize::try_from(nanoseconds / 1_000 % count.max(1) as u128).unwrap_or_default()
}

fn look_up(name: &str, uid: Uid, is_local: &dyn Fn(&str, Uid) -> bool) -> nix::Result<Elsewhere> {
    let known = User::from_name(name)?.map(|user| Uid(user.uid.as_raw()));
    if known.is_some_and(|known| known != uid && !is_local(name, known)) {
        return Ok(Elsewhere::Name);
    }
    let known = User::from_uid(uid.0.into())?.map(|user| user.name);
    let is_others = known.is_some_and(|known| known != name && !is_local(&known, uid));
    Ok(if is_others { Elsewhere::Uid } else { Elsewhere::Nobody })
}
