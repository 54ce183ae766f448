//! What a sweep prints and logs.

use std::collections::BTreeSet;

use pam_iam_core::log::{Level, Log};
use pam_iam_core::registry::Session;
use pam_iam_sessions::lookup;
use pam_iam_sessions::owner::Owner;
use pam_iam_sessions::termination::Outcome;
use serde_json::json;

use super::judge::Judge;
use super::withdrawal::Withdrawal;
use crate::Context;
use crate::sessions::counted as processes;

/// Prints what was ended, or would be; `nothing` if that is nothing.
pub fn report(context: &Context, withdrawals: &[Withdrawal], outcomes: Option<&[Outcome]>, nothing: &str) {
    let (mut text, mut json) = (String::new(), Vec::new());
    for (at, withdrawal) in withdrawals.iter().enumerate() {
        let Withdrawal { user, cause, sessions, .. } = withdrawal;
        let reason = cause.as_str();
        let outcome = outcomes.and_then(|outcomes| outcomes.get(at));
        let is_complete = outcome.is_none_or(Outcome::is_complete);
        let word = match outcome {
            None => "would end",
            Some(_) if is_complete => "ended",
            Some(_) => "could not end all of",
        };
        for Session { pid, iam_name, .. } in sessions {
            // The account may be shared, or its name differ from the IAM user's.
            let whose =
                if iam_name == user || iam_name.is_empty() { String::new() } else { format!("{iam_name}, ") };
            text.push_str(&format!("{word} the session of {user} ({whose}pid {pid}): {reason}\n"));
            json.push(
                json!({ "user": user, "iam_name": iam_name, "pid": pid, "reason": reason, "ended": is_complete }),
            );
        }
        if sessions.is_empty() && outcome.is_none_or(|outcome| withdrawal.had_something_to_end(outcome)) {
            let count = outcome.map(|outcome| format!(" ({})", processes(outcome.ended))).unwrap_or_default();
            text.push_str(&format!("{word} what {user} runs without a session{count}: {reason}\n"));
            json.push(json!({ "user": user, "pid": 0, "reason": reason, "ended": is_complete }));
        }
    }
    if json.is_empty() {
        nothing.clone_into(&mut text);
    }
    context.output.show(&json!({ "ended": json, "dry_run": outcomes.is_none() }), &text);
}

/// Returns a remark if IAM gave no answer about some users.
pub fn without_answer(judge: &Judge<'_>) -> Option<String> {
    match judge.unanswered.len() {
        0 => None,
        1 => Some("IAM gave no answer about 1 user, who goes on".to_owned()),
        count => Some(format!("IAM gave no answer about {count} users, who go on")),
    }
}

/// Returns a warning for each wholly withdrawn user with processes under a subordinate uid that may be an account's.
pub fn unattributed(withdrawals: &[Withdrawal]) -> Vec<String> {
    let whole = withdrawals.iter().filter(|withdrawal| withdrawal.whole_user);
    let owners =
        whole.filter_map(|withdrawal| Some((withdrawal, Owner::new(withdrawal.uid, &withdrawal.user)?)));
    let warning = |(withdrawal, owner): (&Withdrawal, Owner)| {
        let uid = owner.subordinates_at_work().find(|uid| lookup::is_account(*uid).is_none())?;
        Some(format!(
            "{} is withdrawn and has the subordinate uid {uid}, under which processes run; no directory in nsswitch.conf tells \
             whether that is an account's, so those without another mark of the user are left alone; to see them: ps -U {uid}",
            withdrawal.user
        ))
    };
    owners.filter_map(warning).collect()
}

/// Logs what a sweep could not find out, so that a withdrawn session or process may go on.
pub fn log_what_may_go_on(judge: &Judge<'_>, withdrawals: &[Withdrawal], dry_run: bool, log: &mut Log) {
    let by_key = |withdrawal: &&Withdrawal| withdrawal.cause.is_of_a_key() && !withdrawal.whole_user;
    let users: BTreeSet<&str> = withdrawals.iter().filter(by_key).map(|known| known.user.as_str()).collect();
    for user in users.into_iter().filter(|_| !dry_run) {
        log.write(
            Level::Warning,
            format!(
                "a key of {user} was withdrawn: what its sessions put into crontab(1), at(1) or systemd --user looks like {user}'s \
                 other jobs and goes on; to end all of these: iamctl sessions end {user}"
            ),
        );
    }
    if judge.unread > 0 {
        let why = format!(
            "{} processes could not be read in time; those of withdrawn users, or with withdrawn groups, may go on",
            judge.unread
        );
        log.write(Level::Error, why);
    }
    if judge.without_answer() > 0 {
        log.write(
            Level::Warning,
            format!(
                "the resolver was too slow for {} questions about sessions, which go on; those that were confirmed longest ago \
                 come first in the next sweep",
                judge.without_answer()
            ),
        );
    }
    for uid in &judge.unknown {
        log.write(
            Level::Warning,
            format!(
                "uid {uid} is in the range of IAM users, and nothing here tells whether it ever was one: its processes are \
                 left alone; iamctl status and iamctl doctor list such uids"
            ),
        );
    }
    if lookup::was_unanswered() {
        let why = "a service of nsswitch.conf did not tell in time whether some uids have accounts: processes under subordinate uids of a \
                   withdrawn user that nothing else marks as the user's may go on";
        log.write(Level::Error, why);
    }
    if let Some(why) = without_answer(judge).filter(|_| !dry_run) {
        log.write(Level::Warning, why);
    }
}
