//! The output and the log messages of a sweep. `iamctl sessions end` prints by [`report`] too.

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

/// Prints each session and each user without one that was ended; without `outcomes`, as in a dry run, those that would be. Prints
/// `text_if_none` if there are none.
pub fn report(
    context: &Context,
    withdrawals: &[Withdrawal],
    outcomes: Option<&[Outcome]>,
    text_if_none: &str,
) {
    let (mut text, mut json) = (String::new(), Vec::new());
    for (index, withdrawal) in withdrawals.iter().enumerate() {
        let Withdrawal { user, cause, sessions, .. } = withdrawal;
        let reason = cause.as_str();
        let outcome = outcomes.and_then(|outcomes| outcomes.get(index));
        let has_ended = outcome.is_some_and(Outcome::is_complete);
        let word = match outcome {
            None => "would end",
            Some(_) if has_ended => "ended",
            Some(_) => "could not end every process of",
        };
        for Session { pid, iam_name, .. } in sessions {
            // In a shared account, or where the names differ, the IAM user is named too.
            let iam_user =
                if iam_name == user || iam_name.is_empty() { String::new() } else { format!("{iam_name}, ") };
            text.push_str(&format!("{word} the session of {user} ({iam_user}pid {pid}): {reason}\n"));
            json.push(
                json!({ "user": user, "iam_name": iam_name, "pid": pid, "reason": reason, "ended": has_ended }),
            );
        }
        if sessions.is_empty() && outcome.is_none_or(|outcome| withdrawal.had_something_to_end(outcome)) {
            let count =
                outcome.map(|outcome| format!(" ({} ended)", processes(outcome.ended))).unwrap_or_default();
            text.push_str(&format!("{word} what {user} runs without a session{count}: {reason}\n"));
            json.push(json!({ "user": user, "pid": 0, "reason": reason, "ended": has_ended }));
        }
    }
    if json.is_empty() {
        text_if_none.clone_into(&mut text);
    }
    context.output.show(&json!({ "ended": json, "dry_run": outcomes.is_none() }), &text);
}

/// Returns a message with the number of users about whom there was no decision in this sweep.
pub fn undecided_users(judge: &Judge<'_>) -> Option<String> {
    match judge.unanswered.len() {
        0 => None,
        1 => Some("there was no answer about 1 user, whose sessions and processes go on".to_owned()),
        count => Some(format!("there was no answer about {count} users, whose sessions and processes go on")),
    }
}

/// Returns a warning for each user of whom everything is to end and who has processes under a subordinate uid (subuid(5)) that may be
/// the uid of another account.
pub fn unattributed(withdrawals: &[Withdrawal]) -> Vec<String> {
    let whole = withdrawals.iter().filter(|withdrawal| withdrawal.whole_user);
    let owners =
        whole.filter_map(|withdrawal| Some((withdrawal, Owner::new(withdrawal.uid, &withdrawal.user)?)));
    let warning = |(withdrawal, owner): (&Withdrawal, Owner)| {
        let uid = owner.subordinates_at_work().find(|uid| lookup::is_account(*uid).is_none())?;
        Some(format!(
            "{} is withdrawn and has the subordinate uid {uid}, under which processes run; nsswitch.conf does not tell whether {uid} is \
             an account's, so processes that nothing else ties to the user are not ended; to see them: ps -U {uid}",
            withdrawal.user
        ))
    };
    owners.filter_map(warning).collect()
}

/// Logs the gaps of a sweep, because of which a withdrawn session or process may still run. A dry run does not log those about keys and
/// about users without a decision.
pub fn log_what_may_go_on(judge: &Judge<'_>, withdrawals: &[Withdrawal], dry_run: bool, log: &mut Log) {
    let is_by_key = |withdrawal: &&Withdrawal| withdrawal.cause.is_of_a_key() && !withdrawal.whole_user;
    let users: BTreeSet<&str> =
        withdrawals.iter().filter(is_by_key).map(|withdrawal| withdrawal.user.as_str()).collect();
    for user in users.into_iter().filter(|_| !dry_run) {
        log.write(
            Level::Warning,
            format!(
                "sessions of {user} ended because of their key; the jobs that they left in crontab(1), at(1) or systemd --user cannot be \
                 told from {user}'s others and go on; to end everything of {user}: iamctl sessions end {user}"
            ),
        );
    }
    if judge.unread > 0 {
        let why = format!(
            "{} could not be read in time; those of withdrawn users, or with withdrawn groups, may go on",
            processes(judge.unread)
        );
        log.write(Level::Error, why);
    }
    if judge.requests_out_of_time() > 0 {
        log.write(
            Level::Warning,
            format!(
                "there was no time for {} requests to the resolver; their sessions and processes go on, and the next sweep begins with \
                 the sessions that were confirmed longest ago",
                judge.requests_out_of_time()
            ),
        );
    }
    for uid in &judge.unknown {
        log.write(
            Level::Warning,
            format!(
                "uid {uid} is in the managed range, but no record shows that an IAM user ever had it: its processes are \
                 left alone; iamctl status and iamctl doctor list such uids"
            ),
        );
    }
    if lookup::was_unanswered() {
        let why = "a service of nsswitch.conf did not tell in time whether some uids have accounts: processes of withdrawn users under \
                   subordinate uids may go on";
        log.write(Level::Error, why);
    }
    if let Some(why) = undecided_users(judge).filter(|_| !dry_run) {
        log.write(Level::Warning, why);
    }
}
