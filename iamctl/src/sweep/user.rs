//! `iamctl sessions end USER`: ends all processes of a user at once, whatever IAM says.

use std::collections::BTreeSet;
use std::path::Path;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind_or_meant};
use pam_iam_core::config::{self, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::log::Log;
use pam_iam_core::name::IamName;
use pam_iam_core::paths;
use pam_iam_core::registry::{Session, SessionRegistry};
use pam_iam_core::served::Served;
use pam_iam_sessions::lookup;
use pam_iam_sessions::table::Effort;
use pam_iam_sessions::termination::Outcome;

use super::GRACE_MAX;
use super::end::end;
use super::report::report;
use super::withdrawal::{Cause, Withdrawal};
use crate::Context;
use crate::error::{Error, Reply};
use crate::host::FileError;

/// Ends all processes of a user at once, and the sessions that the user has in shared accounts. Returns whether nothing is left.
pub fn end_user(context: &Context, user: &str) -> Result<Reply, Error> {
    let loaded = Config::load(&context.config_path);
    // A mistake in the configuration must not keep a user in.
    let (suffixes, grace) = match &loaded {
        Ok(config) => (config.accounts.drop_suffix.clone(), config.sessions.grace.0),
        Err(_) => (Vec::new(), config::Sessions::default().grace.0),
    };
    let failed = FileError::of(paths::SESSIONS);
    let registry = SessionRegistry::open(Path::new(paths::SESSIONS)).map_err(&failed)?;
    let open = registry.sessions().map_err(&failed)?.into_iter().map(|(session, _)| session).collect();
    let left = registry.left().map_err(&failed)?;
    // A user who may no longer log in has no name here, and another IAM user may have had the name before.
    let found = lookup::uid_of(user).flatten();
    let registered = Registered { open, left };
    let mut uids: BTreeSet<Uid> = found.into_iter().chain(registered.uids_of(user)).collect();
    uids.extend(Served::new(Path::new(paths::SERVED)).uids_of(user));
    let account_kind =
        |uid: Uid| account_kind_or_meant(user, uid, &loaded, &context.config_path, &Files::default());
    let is_whole = |uid: &Uid| matches!(account_kind(*uid), AccountKind::Managed | AccountKind::Adopted);
    let managed: BTreeSet<Uid> = uids.iter().copied().filter(is_whole).collect();
    let withdrawals = registered.withdrawals(user, &suffixes, found, &managed);
    if withdrawals.is_empty() {
        return Err(match uids.first().map(|uid| account_kind(*uid)) {
            Some(AccountKind::Shared) => Error::SharedAccount(user.to_owned()),
            Some(_) => Error::LocalAccount(user.to_owned()),
            None => Error::NoSuchUser(user.to_owned()),
        });
    }
    let mut log = Log::to_syslog("iamctl");
    let grace = grace.min(GRACE_MAX);
    let outcomes = end(context, &withdrawals, &registry, Effort::Thorough, grace, &mut log);
    report(context, &withdrawals, Some(&outcomes), &format!("{user} runs nothing here"));
    Ok(outcomes.iter().all(Outcome::is_complete).into())
}

/// The sessions of the registry.
struct Registered {
    open: Vec<Session>,
    /// Logins that are over and may have left processes.
    left: Vec<Session>,
}

impl Registered {
    fn uids_of(&self, user: &str) -> impl Iterator<Item = Uid> {
        let all = self.open.iter().chain(&self.left);
        all.filter(move |session| session.user == user).map(|session| session.uid)
    }

    /// Returns what is to end: all processes under the uids `managed`, and the user's sessions in other accounts. `found` is the uid of the
    /// account that has the name now.
    fn withdrawals(
        self,
        user: &str,
        suffixes: &[String],
        found: Option<Uid>,
        managed: &BTreeSet<Uid>,
    ) -> Vec<Withdrawal> {
        let new = |session: &Session| Withdrawal::new(session.user.clone(), session.uid, Cause::Operator);
        let is_elsewhere =
            |session: &&Session| !managed.contains(&session.uid) && is_of(session, user, suffixes);
        let open = self.open.iter().filter(is_elsewhere);
        let open = open.map(|session| Withdrawal { sessions: vec![session.clone()], ..new(session) });
        let left = self.left.iter().filter(|session| session.audit.is_some()).filter(is_elsewhere);
        let left = left.map(|session| Withdrawal { left: vec![session.clone()], ..new(session) });
        let whole = managed.iter().map(|uid| {
            let sessions = self.open.iter().filter(|session| session.uid == *uid).cloned().collect();
            // Another user has the name now, and with it what the host has set up by name.
            let is_anothers = found.is_some_and(|other| other != *uid);
            let name = if is_anothers { uid.to_string() } else { user.to_owned() };
            Withdrawal { sessions, whole_user: true, ..Withdrawal::new(name, *uid, Cause::Operator) }
        });
        open.chain(left).chain(whole).collect()
    }
}

/// Whether the IAM user whose Linux name is `user` opened a session.
///
/// A key that several users have makes it several names.
fn is_of(session: &Session, user: &str, suffixes: &[String]) -> bool {
    std::iter::once(session.iam_name.as_str()).chain(session.iam_name.split(',')).any(|name| {
        let linux = IamName::user(name).and_then(|name| name.to_linux(suffixes));
        linux.is_ok_and(|linux| linux.as_str() == user)
    })
}
