//! Ends users and sessions: asked by SIGHUP and SIGTERM, and after a grace period killed until nothing is left.
//!
//! All terminations of one run go on side by side, each with its own time limit: a user who resists delays the end of no other user. A termination is done when two looks in a row have found nothing.

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

mod course;

use course::Course;

/// The most time for killing the processes of one user, after the grace period.
pub const KILLING_MAX: Duration = Duration::from_secs(20);

/// The pause between two looks while processes are asked to end.
const ASKING_PAUSE: Duration = Duration::from_millis(50);

/// The pause between two looks while processes are killed: a process that forks is faster than one look.
const KILLING_PAUSE: Duration = Duration::from_millis(5);

/// What is to end, of one user.
#[derive(Clone, Debug)]
pub struct Termination {
    /// The user.
    pub owner: Owner,
    /// The processes that opened the sessions that end.
    pub openers: Vec<Process>,
    /// The marks of logins that are over, of which what was left ends too.
    pub left: Vec<SessionMarks>,
    /// Processes of the user that hold one of these groups end too.
    pub groups: BTreeSet<Gid>,
    /// Whether all that the user runs ends, or these sessions alone.
    pub whole_user: bool,
    /// What the user is told on the terminals of these sessions.
    pub notice: String,
}

/// The outcome of a termination.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The processes that did not end, as a list for the log.
    pub remaining: String,
    /// How many processes ended.
    pub ended: usize,
    /// Whether nothing was left while all that is in the user's slice stood still.
    pub was_still: bool,
}

impl Outcome {
    /// Whether nothing is left.
    pub fn is_complete(&self) -> bool {
        self.remaining.is_empty()
    }
}

/// The progress of a termination, for the log.
pub enum Progress<'a> {
    /// These processes are asked to end.
    Asked(&'a Termination, String),
    /// These were asked, did not end, and are killed now.
    Killed(&'a Termination, String),
}

/// Ends `terminations`, all together. Processes are read in each look, with `effort`. `is_whole` says before each killing whether
/// all that a user runs still ends: the user may have logged in anew meanwhile.
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
    cgroup::let_go_on();
    let mut courses: Vec<Course<'_>> = match Table::read(effort) {
        Ok(table) => {
            terminations.iter().map(|termination| Course::begin(termination, &table, grace)).collect()
        }
        Err(error) => return terminations.iter().map(|_| failed(&error)).collect(),
    };
    let mut ending = Ending::begin(grace);
    loop {
        ending.kill_known_uids(&mut courses, &mut is_whole, &mut tell);
        let is_over = ending.is_over();
        // Asked before anything stands still: the resolver may take its time.
        let whole: Vec<bool> = courses
            .iter()
            .map(|course| !course.is_done() && course.termination.whole_user && is_whole(course.termination))
            .collect();
        match ending.look(effort, &mut courses, &whole, &mut tell) {
            Err(error) if is_over => return terminations.iter().map(|_| failed(&error)).collect(),
            Err(_) => {
                sleep(ASKING_PAUSE);
                continue;
            }
            Ok(()) => {}
        }
        if is_over || courses.iter().all(|course| course.is_done()) {
            break;
        }
        sleep(if ending.is_asking { ASKING_PAUSE } else { KILLING_PAUSE });
    }
    ending.leave_helpers();
    courses.into_iter().map(Course::outcome).collect()
}

/// What the terminations that run together share.
struct Ending {
    /// The grace begins when the processes can be asked.
    began: Instant,
    grace: Duration,
    /// Whether the processes still had time to end by themselves when this round began.
    is_asking: bool,
    killing_since: Option<Instant>,
    /// The uids of which all processes are killed before the next look.
    to_kill: Vec<Uid>,
    /// The slices that stand still for the next look.
    to_freeze: BTreeSet<String>,
    round: usize,
    /// Programs that were started and are not waited for: logind ends by itself, and what it does not end is ended here.
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

    /// Kills what has a known uid: reading all processes takes long if a user makes many.
    fn kill_known_uids(
        &mut self,
        courses: &mut [Course<'_>],
        is_whole: &mut impl FnMut(&Termination) -> bool,
        tell: &mut impl FnMut(Progress<'_>),
    ) {
        // Once for the round: to ask whether users have logged in anew may take long.
        self.is_asking = self.began.elapsed() < self.grace;
        if !self.is_asking && self.killing_since.is_none() {
            self.killing_since = Some(Instant::now());
            for course in courses.iter_mut().filter(|course| !course.is_done() && course.may_kill_all) {
                if is_whole(course.termination) {
                    self.to_kill.push(course.termination.owner.uid);
                    course.tell_of_killing(tell);
                }
            }
        }
        let killed = killer::kill_all_of(self.to_kill.drain(..));
        for course in courses {
            course.killed_all |= killed.contains(&course.termination.owner.uid);
        }
        self.round += 1;
    }

    /// Looks at all processes, asks or kills what is to end, and notes what is to be killed next. `whole` says of each course
    /// whether all that its user runs ends.
    fn look(
        &mut self,
        effort: Effort,
        courses: &mut [Course<'_>],
        whole: &[bool],
        tell: &mut impl FnMut(Progress<'_>),
    ) -> io::Result<()> {
        // What of a user's stands still can be looked at, and killed, before it forks.
        let (frozen, still) = cgroup::freeze(std::mem::take(&mut self.to_freeze));
        let table = Table::read(effort)?;
        let mut owned = Owned::knowing(&table, std::mem::take(&mut self.accounts), frozen.is_empty());
        let mut uids = Vec::new();
        for (course, whole) in courses.iter_mut().zip(whole).filter(|(course, _)| !course.is_done()) {
            course.look(&mut owned, *whole);
            course.note_stillness(&still);
            if course.is_done() {
                if course.make_sure() {
                    uids.extend(course.may_kill_all.then(|| course.uids_to_kill(&mut owned)));
                    self.to_freeze.extend(course.slice.clone());
                }
            } else if self.is_asking {
                course.ask(&mut owned, self.began.elapsed(), self.grace, &mut self.helpers, tell);
            } else {
                uids.push(course.kill(&mut owned, *whole, tell));
                self.to_freeze.extend(course.slice.clone());
            }
        }
        self.accounts = owned.into_accounts();
        drop(frozen);
        self.to_kill = in_turn(&uids, self.round);
        Ok(())
    }

    /// Reaps the helpers that have ended. One that is still at work has a limit of its own.
    fn leave_helpers(mut self) {
        for helper in &mut self.helpers {
            let _ = helper.try_wait();
        }
    }
}

/// The order in which uids are killed in a round, from those of each user, the user's own first: everybody's own uid before
/// anybody's subordinate ones. Another user comes first in each round: whoever holds up his killer is not to hold up the same
/// others each time.
fn in_turn(users: &[Vec<Uid>], round: usize) -> Vec<Uid> {
    let mut order: Vec<Uid> = users.iter().filter_map(|uids| uids.first().copied()).collect();
    if !order.is_empty() {
        let first = round % order.len();
        order.rotate_left(first);
    }
    order.extend(users.iter().flat_map(|uids| uids.iter().skip(1)));
    order
}

/// Gives this process the highest priority: a user who keeps the processors busy must not keep root from them.
pub fn raise_priority() {
    let _ = rustix::process::setpriority_process(None, -20);
}

fn failed(error: &io::Error) -> Outcome {
    Outcome { remaining: format!("processes cannot be listed: {error}"), ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::course::signal_known;
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

    /// A shell that says a line when it has started what it starts.
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
        // A uid that no process has: what ends here is found by descent alone.
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
    fn a_session_ends_with_its_descendants_and_with_what_left_their_parent_but_not_their_session() {
        // The grandchild has a session of its own, in which its own child is left without a parent.
        let (_shell, opener) = start("setsid sh -c '(sleep 1000 & echo; exec sleep 1000) & wait'; wait");
        let (outcomes, told) = ended(&[session_of(opener)], Duration::from_secs(10));
        assert!(outcomes[0].is_complete(), "{outcomes:?}");
        assert!(outcomes[0].ended >= 4, "{outcomes:?}");
        assert_eq!(told.len(), 1, "asked once, and nobody was killed: {told:?}");
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
        // Signals that one process sends take effect in their order.
        assert!(one.is_running());
    }

    #[test]
    fn everybodys_own_uid_is_killed_before_subordinate_ones_and_another_comes_first_in_each_round() {
        let users = [vec![Uid(1), Uid(11), Uid(12)], vec![], vec![Uid(2)], vec![Uid(3), Uid(31)]];
        let order = |round| in_turn(&users, round).iter().map(|uid| uid.0).collect::<Vec<u32>>();
        assert_eq!(order(0), [1, 2, 3, 11, 12, 31]);
        assert_eq!(order(1), [2, 3, 1, 11, 12, 31]);
        assert_eq!(order(5), [3, 1, 2, 11, 12, 31]);
        assert_eq!(in_turn(&[vec![]], 1), []);
    }

    #[test]
    fn a_process_that_does_not_heed_is_killed() {
        let (_stubborn, opener) = start("trap '' HUP TERM; echo; while :; do sleep 1000; done");
        let (_other, another) = start("echo; exec sleep 1000");
        let (outcomes, told) = ended(&[session_of(opener), session_of(another)], Duration::from_millis(200));
        assert!(outcomes.iter().all(Outcome::is_complete), "{outcomes:?}");
        let stubborn = format!("killed {}(", opener.pid);
        assert!(told.iter().any(|line| line.starts_with(&stubborn)), "{told:?}");
        assert!(!opener.is_running() && !another.is_running());
    }
}
