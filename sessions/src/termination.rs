//! Ends the processes of users or sessions: sends SIGHUP and SIGTERM, and after a grace period kills until none is left.
//!
//! Terminations run side by side, so that a user who resists does not delay the others. A look reads the process table once.
//! A termination is done when two looks in a row found nothing and no process can have escaped them, as far as that can be
//! made sure.

use std::collections::BTreeSet;
use std::io::{self};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::process::Process;

use crate::owner::{Accounts, Owned, Owner, SessionMarks};
use crate::table::{Effort, Table};
use crate::{cgroup, killer};

mod attempt;

use attempt::Attempt;

/// The most time for killing, after the grace period.
pub const KILLING_MAX: Duration = Duration::from_secs(20);

/// The pause between two looks while processes are asked to end.
const ASKING_PAUSE: Duration = Duration::from_millis(50);

/// The pause between two looks while processes are killed. Short, since a process can fork faster than a look.
const KILLING_PAUSE: Duration = Duration::from_millis(5);

/// The processes of one user that are to end.
#[derive(Clone, Debug)]
pub struct Termination {
    /// The user, with the uids that mark the user's processes.
    pub owner: Owner,
    /// The processes that opened the sessions to end.
    pub openers: Vec<Process>,
    /// The marks of closed logins. Their remaining processes end too.
    pub left: Vec<SessionMarks>,
    /// The groups that the user lost. The user's processes that hold one of them end too.
    pub groups: BTreeSet<Gid>,
    /// Whether all processes of the user end, or only those that `openers`, `left` and `groups` select.
    pub whole_user: bool,
    /// The reason that is written on the terminals of the sessions of `openers`.
    pub notice: String,
}

/// The outcome of a termination.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The processes that did not end, or the reason why some may be left, for the log. Empty if none is left.
    pub remaining: String,
    /// How many processes ended.
    pub ended: usize,
    /// Whether the last look during which the user's slice was frozen found no process.
    pub was_frozen: bool,
}

impl Outcome {
    /// Whether no process is left.
    pub fn is_complete(&self) -> bool {
        self.remaining.is_empty()
    }
}

/// A step of a termination, for the log.
pub enum Progress<'a> {
    /// The listed processes are asked to end.
    Asked(&'a Termination, String),
    /// The listed processes did not end within the grace period, and are killed now.
    Killed(&'a Termination, String),
}

/// Ends `terminations` side by side, and returns their outcomes in the same order. Each look reads the processes with
/// `effort`. `is_whole` is called before each look at a termination of a whole user. It returns whether all processes of the
/// user are still to end: the user may have logged in again.
pub fn end(
    terminations: &[Termination],
    effort: Effort,
    grace: Duration,
    mut is_whole: impl FnMut(&Termination) -> bool,
    mut tell: impl FnMut(Progress<'_>),
) -> Vec<Outcome> {
    if terminations.is_empty() {
        return Vec::new();
    }
    raise_priority();
    cgroup::thaw_abandoned();
    let mut attempts: Vec<Attempt<'_>> = match Table::read(effort) {
        Ok(table) => {
            terminations.iter().map(|termination| Attempt::begin(termination, &table, grace)).collect()
        }
        Err(error) => return terminations.iter().map(|_| failed(&error)).collect(),
    };
    let mut ending = Ending::begin(grace);
    loop {
        ending.kill_known_uids(&mut attempts, &mut is_whole, &mut tell);
        let is_over = ending.is_over();
        // Called before anything is frozen, since `is_whole` may wait for the resolver.
        let whole: Vec<bool> = attempts
            .iter()
            .map(|attempt| {
                !attempt.is_done() && attempt.termination.whole_user && is_whole(attempt.termination)
            })
            .collect();
        match ending.look(effort, &mut attempts, &whole, &mut tell) {
            Err(error) if is_over => return terminations.iter().map(|_| failed(&error)).collect(),
            Err(_) => {
                sleep(ASKING_PAUSE);
                continue;
            }
            Ok(()) => {}
        }
        if is_over || attempts.iter().all(|attempt| attempt.is_done()) {
            break;
        }
        sleep(if ending.is_asking { ASKING_PAUSE } else { KILLING_PAUSE });
    }
    ending.leave_helpers();
    attempts.into_iter().map(Attempt::outcome).collect()
}

/// The state that all terminations of a run share.
struct Ending {
    /// When the grace period began.
    began: Instant,
    grace: Duration,
    /// Whether this round began within the grace period: it asks processes to end, and does not kill them.
    is_asking: bool,
    killing_since: Option<Instant>,
    /// The uids whose processes are all killed before the next look.
    to_kill: Vec<Uid>,
    /// The slices that are frozen during the next look.
    to_freeze: BTreeSet<String>,
    round: usize,
    /// The `loginctl` processes that were started. Nothing waits for them: processes that logind does not end are ended
    /// here.
    helpers: Vec<Child>,
    accounts: Accounts,
}

impl Ending {
    fn begin(grace: Duration) -> Self {
        Self {
            began: Instant::now(),
            grace,
            is_asking: true,
            killing_since: None,
            to_kill: Vec::new(),
            to_freeze: BTreeSet::new(),
            round: 0,
            helpers: Vec::new(),
            accounts: Accounts::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.killing_since.is_some_and(|since| since.elapsed() >= KILLING_MAX)
    }

    /// Kills all processes of the uids in `to_kill`. Done before a look, which takes long if a user has many processes.
    fn kill_known_uids(
        &mut self,
        attempts: &mut [Attempt<'_>],
        is_whole: &mut impl FnMut(&Termination) -> bool,
        tell: &mut impl FnMut(Progress<'_>),
    ) {
        // Decided once for the round, since a call of `is_whole` may take long.
        self.is_asking = self.began.elapsed() < self.grace;
        if !self.is_asking && self.killing_since.is_none() {
            self.killing_since = Some(Instant::now());
            for attempt in attempts.iter_mut().filter(|attempt| !attempt.is_done() && attempt.may_kill_all) {
                if is_whole(attempt.termination) {
                    self.to_kill.push(attempt.termination.owner.uid);
                    attempt.tell_of_killing(tell);
                }
            }
        }
        let killed = killer::kill_all_of(self.to_kill.drain(..));
        for attempt in attempts {
            attempt.killed_all |= killed.contains(&attempt.termination.owner.uid);
        }
        self.round += 1;
    }

    /// Reads all processes, asks or kills those that are to end, and notes the uids to kill before the next look. `whole`
    /// says for each attempt whether all processes of its user end.
    fn look(
        &mut self,
        effort: Effort,
        attempts: &mut [Attempt<'_>],
        whole: &[bool],
        tell: &mut impl FnMut(Progress<'_>),
    ) -> io::Result<()> {
        // A frozen process cannot fork before it is found and killed.
        let (frozen, frozen_paths) = cgroup::freeze(std::mem::take(&mut self.to_freeze));
        let table = Table::read(effort)?;
        let mut owned = Owned::knowing(&table, std::mem::take(&mut self.accounts), frozen.is_empty());
        let mut uids = Vec::new();
        for (attempt, whole) in attempts.iter_mut().zip(whole).filter(|(attempt, _)| !attempt.is_done()) {
            attempt.look(&mut owned, *whole);
            attempt.note_frozen(&frozen_paths);
            if attempt.is_done() {
                if attempt.make_sure() {
                    uids.extend(attempt.may_kill_all.then(|| attempt.uids_to_kill(&mut owned)));
                    self.to_freeze.extend(attempt.slice.clone());
                }
            } else if self.is_asking {
                attempt.ask_to_end(&mut owned, self.began.elapsed(), self.grace, &mut self.helpers, tell);
            } else {
                uids.push(attempt.kill(&mut owned, *whole, tell));
                self.to_freeze.extend(attempt.slice.clone());
            }
        }
        self.accounts = owned.into_accounts();
        drop(frozen);
        self.to_kill = in_turn(&uids, self.round);
        Ok(())
    }

    /// Reaps the helpers that have ended. The others have a time limit of their own.
    fn leave_helpers(mut self) {
        for helper in &mut self.helpers {
            let _ = helper.try_wait();
        }
    }
}

/// Returns the order in which uids are killed in a round. `users` has the uids of each user, the user's own first. Own uids
/// come before subordinate ones. Each round begins with another user, so that a user who slows down a killer does not delay
/// the same users in every round.
fn in_turn(users: &[Vec<Uid>], round: usize) -> Vec<Uid> {
    let mut order: Vec<Uid> = users.iter().filter_map(|uids| uids.first().copied()).collect();
    if !order.is_empty() {
        let first = round % order.len();
        order.rotate_left(first);
    }
    order.extend(users.iter().flat_map(|uids| uids.iter().skip(1)));
    order
}

/// Gives this process the highest priority, so that a user who keeps the processors busy does not slow it down.
pub fn raise_priority() {
    let _ = rustix::process::setpriority_process(None, -20);
}

fn failed(error: &io::Error) -> Outcome {
    Outcome { remaining: format!("processes cannot be listed: {error}"), ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::attempt::signal_known;
    use super::*;
    use pam_iam_core::process::stat;
    use rustix::process::Signal;
    use std::io::Read;
    use std::process::{Command, Stdio};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Starts a shell, and waits until it has written a line.
    fn start(script: &str) -> (Killed, Process) {
        let mut command = Command::new("sh");
        let child =
            command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut killed = Killed(child);
        let mut output = killed.0.stdout.take().unwrap();
        output.read_exact(&mut [0]).unwrap();
        (killed, Process { pid, start: stat(pid).unwrap().start })
    }

    fn session_of(opener: Process) -> Termination {
        // No process has this uid, so the processes of a test are found by descent alone.
        let owner = Owner::new(Uid(3_999_999_998), "nobody-of-that-name").unwrap();
        Termination {
            owner,
            openers: vec![opener],
            left: Vec::new(),
            groups: BTreeSet::new(),
            whole_user: false,
            notice: String::new(),
        }
    }

    fn ended(terminations: &[Termination], grace: Duration) -> (Vec<Outcome>, Vec<String>) {
        let mut told = Vec::new();
        let outcomes = end(
            terminations,
            Effort::Quick,
            grace,
            |_| false,
            |progress| {
                told.push(match progress {
                    Progress::Asked(_, list) => format!("asked {list}"),
                    Progress::Killed(_, list) => format!("killed {list}"),
                });
            },
        );
        (outcomes, told)
    }

    #[test]
    fn a_session_ends_with_its_descendants_and_with_orphans_in_their_sessions() {
        // The inner shell leads a session of its own. A sleep in it becomes an orphan if its parent, the other sleep, ends
        // first.
        let (_shell, opener) = start("setsid sh -c '(sleep 1000 & echo; exec sleep 1000) & wait'; wait");
        let (outcomes, told) = ended(&[session_of(opener)], Duration::from_secs(10));
        assert!(outcomes[0].is_complete(), "{outcomes:?}");
        assert!(outcomes[0].ended >= 4, "{outcomes:?}");
        assert_eq!(told.len(), 1, "asked once, and nothing was killed: {told:?}");
        assert!(told[0].starts_with("asked ") && told[0].contains("sleep"), "{told:?}");
    }

    #[test]
    fn nothing_is_sent_to_a_process_of_which_only_the_effective_uid_is_known() {
        let (_first, one) = start("echo; exec sleep 1000");
        let (_second, other) = start("echo; exec sleep 1000");
        let mut table = Table::read(Effort::Quick).unwrap();
        table.0.get_mut(&one.pid).unwrap().is_guessed = true;
        signal_known(&table, &BTreeSet::from([one, other]), &[Signal::KILL]);
        while other.is_running() {
            std::thread::yield_now();
        }
        // Signals are sent in the order of pids: a signal to `one` would have been sent before that to `other`.
        assert!(one.is_running());
    }

    #[test]
    fn own_uids_are_killed_first_and_each_round_begins_with_another_user() {
        let users = [vec![Uid(1), Uid(11), Uid(12)], vec![], vec![Uid(2)], vec![Uid(3), Uid(31)]];
        let order = |round| in_turn(&users, round).iter().map(|uid| uid.0).collect::<Vec<u32>>();
        assert_eq!(order(0), [1, 2, 3, 11, 12, 31]);
        assert_eq!(order(1), [2, 3, 1, 11, 12, 31]);
        assert_eq!(order(5), [3, 1, 2, 11, 12, 31]);
        assert_eq!(in_turn(&[vec![]], 1), []);
    }

    #[test]
    fn a_process_that_ignores_signals_is_killed() {
        let (_stubborn, opener) = start("trap '' HUP TERM; echo; while :; do sleep 1000; done");
        let (_other, another) = start("echo; exec sleep 1000");
        let (outcomes, told) = ended(&[session_of(opener), session_of(another)], Duration::from_millis(200));
        assert!(outcomes.iter().all(Outcome::is_complete), "{outcomes:?}");
        let stubborn = format!("killed {}(", opener.pid);
        assert!(told.iter().any(|line| line.starts_with(&stubborn)), "{told:?}");
        assert!(!opener.is_running() && !another.is_running());
    }
}
