//! One termination under way: which processes belong to it, which were asked to end, and which are left.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::process::Child;
use std::time::Duration;

use pam_iam_core::id::Uid;
use pam_iam_core::process::Process;
use rustix::fs::OFlags;
use rustix::process::Signal;

use super::{Outcome, Progress, Termination};
use crate::owner::{Owned, Owner, SessionMarks};
use crate::table::{Table, Task, signal};
use crate::{cgroup, logind};

/// How long sshd may take to send its client the notice that was written on a terminal.
const RELAY_MAX: Duration = Duration::from_secs(5);

/// The most subordinate uids of one user whose processes are killed at once in one round.
const UIDS_MAX: usize = 64;

/// The most rounds that [`Attempt::make_sure`] adds without progress: on some hosts nothing can be frozen, and a user can
/// slow down the killer.
const TRIES_MAX: u32 = 3;

/// The most processes that a log line lists.
const LISTED_MAX: usize = 20;

/// One termination under way.
pub(super) struct Attempt<'a> {
    pub(super) termination: &'a Termination,
    logins: Vec<SessionMarks>,
    /// The logind sessions of `logins`, each with its control group.
    of_logind: Vec<(String, String)>,
    /// All processes that any look found in the sessions to end. Kept, since a process whose parent has ended no longer
    /// shows whose child it was.
    session_processes: BTreeSet<Process>,
    /// The sshd processes that send the notice to their clients. They are asked to end only after [`RELAY_MAX`] or half the
    /// grace period, since they end by themselves after the processes that they serve.
    relays: BTreeSet<Process>,
    asked: BTreeSet<Process>,
    asked_logind: bool,
    told_of_killing: bool,
    /// The processes that the last look found.
    found: BTreeSet<Process>,
    /// The processes found by the last look that found any, as a list for the log.
    last_list: String,
    /// All processes that any look found.
    seen: BTreeSet<Process>,
    empty_looks: u32,
    /// How many of `found` could not be read.
    unread: usize,
    /// Whether all processes of the user's uid may be killed at once.
    pub(super) may_kill_all: bool,
    /// Whether all processes of the user's uid were once killed at once, including those that no look had found.
    pub(super) killed_all: bool,
    /// Whether the last look during which the slice was frozen found nothing.
    empty_while_frozen: bool,
    /// How many rounds [`Attempt::make_sure`] has added since the last progress.
    tries: u32,
    /// The processes that have the user's uid or a subordinate one, in the last look.
    running: BTreeSet<Process>,
    /// Whether any look found a process of `running` that the look before had not found.
    begins_anew: bool,
    /// How many looks there were.
    looks: u32,
    /// The user's slice, if it exists. No other control group is frozen, since it may have processes of other users.
    pub(super) slice: Option<String>,
    /// Whether a process that is to end was seen outside the slice.
    is_elsewhere: bool,
}

impl<'a> Attempt<'a> {
    /// Notes the result of the last look if the slice was frozen during it: such a look misses no process. `frozen_paths`
    /// are the control groups that were frozen before that look.
    pub(super) fn note_frozen(&mut self, frozen_paths: &BTreeSet<String>) {
        // Another process may have thawed the slice during the look.
        let was_frozen = self
            .slice
            .as_ref()
            .is_some_and(|slice| frozen_paths.contains(slice) && cgroup::is_frozen_or_gone(slice));
        if was_frozen {
            self.empty_while_frozen = self.found.is_empty();
            let is_progress = !self.found.is_empty() && !self.is_elsewhere;
            self.tries = if is_progress { 0 } else { self.tries };
        }
    }

    pub(super) fn begin(termination: &'a Termination, table: &Table, grace: Duration) -> Self {
        let mut attempt = Self {
            termination,
            logins: Vec::new(),
            of_logind: Vec::new(),
            session_processes: BTreeSet::new(),
            relays: BTreeSet::new(),
            asked: BTreeSet::new(),
            asked_logind: false,
            told_of_killing: false,
            found: BTreeSet::new(),
            last_list: String::new(),
            seen: BTreeSet::new(),
            empty_looks: 0,
            unread: 0,
            may_kill_all: false,
            killed_all: false,
            empty_while_frozen: false,
            tries: 0,
            running: BTreeSet::new(),
            begins_anew: false,
            looks: 0,
            slice: None,
            is_elsewhere: false,
        };
        let mut owned = Owned::new(table);
        for opener in &termination.openers {
            let of_logind = logind::session_of(opener.pid);
            let marks = SessionMarks::of(*opener, table, of_logind.as_ref().map(|(_, scope)| scope.clone()));
            attempt.of_logind.extend(of_logind);
            let found = owned.session_processes(
                &BTreeSet::from([*opener]),
                &termination.owner,
                std::slice::from_ref(&marks),
            );
            if notify(termination, &found, table, grace) {
                // The opener is sshd's. sshd runs the user's processes in another session (setsid(2)) than its own.
                let session = table.task(*opener).map(|task| task.stat.session);
                let is_sshd =
                    |process: &&Process| table.task(**process).map(|task| task.stat.session) == session;
                let relays: BTreeSet<Process> = found.iter().filter(is_sshd).copied().collect();
                if relays.len() < found.len() {
                    attempt.relays.extend(relays);
                }
            }
            attempt.session_processes.extend(found);
            attempt.logins.push(marks);
        }
        attempt.logins.extend(termination.left.iter().cloned());
        if termination.whole_user {
            attempt.found = owned.of(&termination.owner);
            attempt.last_list = attempt.list(&owned);
            attempt.seen.extend(attempt.found.iter().copied());
            attempt.may_kill_all = may_kill_all_of(&mut owned, &termination.owner);
        }
        attempt
    }

    pub(super) fn is_done(&self) -> bool {
        self.empty_looks >= 2
    }

    /// Looks for the processes that are to end: all of the user's if `whole`.
    pub(super) fn look(&mut self, owned: &mut Owned<'_>, whole: bool) {
        let owner = &self.termination.owner;
        self.found = owned.session_processes(&self.session_processes, owner, &self.logins);
        self.session_processes.extend(self.found.iter().copied());
        if whole {
            self.found.extend(owned.of(owner));
        } else {
            self.found.extend(owned.holders(owner, &self.termination.groups));
        }
        self.may_kill_all = whole && may_kill_all_of(owned, owner);
        let uid = owner.uid;
        // Set even if no process was found in the slice: one that ended before its path was read may have a child there.
        self.slice = cgroup::existing_slice(uid);
        for process in &self.found {
            let path = owned.path_of(process.pid);
            self.is_elsewhere |= path.is_some_and(|path| !cgroup::is_in_slice(path, uid));
        }
        let runs = |task: &&Task| task.all_uids().any(|of| of == uid || owner.is_subordinate(of));
        let running: BTreeSet<Process> =
            owned.table().0.values().filter(runs).map(|task| task.process).collect();
        // In the first look every process is new.
        self.begins_anew |= self.looks > 0 && running.iter().any(|process| !self.running.contains(process));
        self.looks += 1;
        self.running = running;
        let tasks = self.found.iter().filter_map(|process| owned.table().task(*process));
        self.unread = tasks.filter(|task| task.unread.is_some()).count();
        if !self.found.is_empty() {
            self.last_list = self.list(owned);
        }
        self.seen.extend(self.found.iter().copied());
        self.empty_looks = if self.found.is_empty() { self.empty_looks + 1 } else { 0 };
    }

    pub(super) fn ask_to_end(
        &mut self,
        owned: &mut Owned<'_>,
        elapsed: Duration,
        grace: Duration,
        helpers: &mut Vec<Child>,
        tell: &mut impl FnMut(Progress<'_>),
    ) {
        // A relay ends by itself after the processes that it serves, and sends the notice before that.
        let relays_run = self.found.intersection(&self.relays).next().is_some();
        let relays_wait = relays_run && elapsed < RELAY_MAX.min(grace / 2);
        let is_due = |process: &&Process| !relays_wait || !self.relays.contains(process);
        // Each process is asked once: a shell that handles SIGHUP must not get it again and again.
        let new: BTreeSet<Process> = self.found.difference(&self.asked).filter(is_due).copied().collect();
        if self.asked.is_empty() && !new.is_empty() {
            tell(Progress::Asked(self.termination, self.list(owned)));
        }
        if !relays_wait && !std::mem::replace(&mut self.asked_logind, true) {
            helpers.extend(self.ask_logind(owned));
        }
        signal_known(owned.table(), &new, &[Signal::HUP, Signal::TERM]);
        self.asked.extend(new);
    }

    /// Asks logind to end the sessions, or, for a whole user without known sessions, the user. Leaves out those with a
    /// process that is not to end: logind ends all processes in a control group, even a daemon that the user has started by
    /// sudo.
    pub(super) fn ask_logind(&self, owned: &mut Owned<'_>) -> Vec<Child> {
        let uid = self.termination.owner.uid;
        if self.termination.whole_user && self.of_logind.is_empty() {
            let slice =
                self.found.iter().find_map(|process| cgroup::slice_of(owned.path_of(process.pid)?, uid));
            let slice = slice.filter(|slice| self.has_all_of(owned, slice));
            let ended = slice.and_then(|_| logind::begin(&["terminate-user", &uid.to_string()]));
            return ended.into_iter().collect();
        }
        let whole = self.of_logind.iter().filter(|(_, scope)| self.has_all_of(owned, scope));
        whole.filter_map(|(id, _)| logind::begin(&["terminate-session", id])).collect()
    }

    /// Whether every process in a control group and below it is in `found`.
    pub(super) fn has_all_of(&self, owned: &mut Owned<'_>, group: &str) -> bool {
        let below = format!("{group}/");
        owned.table().0.values().all(|task| {
            let path = owned.path_of(task.process.pid);
            let is_in = path.is_some_and(|path| path == group || path.starts_with(&below));
            !is_in || self.found.contains(&task.process)
        })
    }

    pub(super) fn tell_of_killing(&mut self, tell: &mut impl FnMut(Progress<'_>)) {
        if !self.last_list.is_empty() && !std::mem::replace(&mut self.told_of_killing, true) {
            tell(Progress::Killed(self.termination, self.last_list.clone()));
        }
    }

    /// Whether no process can have escaped by forking faster than the looks, or nothing more can be done about such a
    /// process.
    pub(super) fn is_sure(&self) -> bool {
        let is_killed = self.killed_all || !self.may_kill_all;
        // Outside the slice nothing can be frozen. Killing all processes of the uid at once is the most that can be done.
        let is_found = self.slice.is_none() || self.empty_while_frozen && !self.is_elsewhere;
        is_killed && (is_found || self.may_kill_all && self.is_elsewhere)
    }

    /// Asks for one more round if a process may have escaped every look. In it all processes of the uid are killed at once
    /// and the slice is frozen during the look, so that no fork in progress escapes. Returns false if no round is necessary,
    /// or [`TRIES_MAX`] rounds made no progress.
    pub(super) fn make_sure(&mut self) -> bool {
        if self.is_sure() || self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        self.empty_looks = 0;
        true
    }

    /// Returns the uids whose processes may all be killed at once, the user's own first. The subordinate uids among them are
    /// in use, and no process outside `found` has one of them.
    pub(super) fn uids_to_kill(&self, owned: &mut Owned<'_>) -> Vec<Uid> {
        let owner = &self.termination.owner;
        let tasks = self.found.iter().filter_map(|process| owned.table().task(*process));
        let mut subordinate: BTreeSet<Uid> = tasks
            .flat_map(|task| task.uids.iter().flat_map(|uids| [uids.real, uids.saved]))
            .filter(|uid| *uid != owner.uid)
            .collect();
        subordinate.extend(owner.subordinates_at_work().take(UIDS_MAX));
        // A process of another user may have a subordinate uid too, for example in a container.
        let others = owned.table().0.values().filter(|task| !self.found.contains(&task.process));
        let of_others: BTreeSet<Uid> = others.flat_map(Task::all_uids).collect();
        let mut uids = vec![owner.uid];
        let seen = subordinate.difference(&of_others);
        uids.extend(seen.filter(|uid| owned.is_owners(**uid, owner)).take(UIDS_MAX).copied());
        uids
    }

    /// Kills the processes found. Returns the uids whose processes are to be killed at once, the user's own first.
    pub(super) fn kill(
        &mut self,
        owned: &mut Owned<'_>,
        whole: bool,
        tell: &mut impl FnMut(Progress<'_>),
    ) -> Vec<Uid> {
        if self.found.is_empty() {
            return Vec::new();
        }
        self.tell_of_killing(tell);
        let owner = &self.termination.owner;
        let uids = if self.may_kill_all { self.uids_to_kill(owned) } else { Vec::new() };
        if whole {
            let groups: BTreeSet<String> = self
                .found
                .iter()
                .filter_map(|process| cgroup::unit_of_user(owned.path_of(process.pid)?, owner.uid))
                .collect();
            for group in groups.iter().filter(|group| self.has_all_of(owned, group)) {
                cgroup::kill(group);
            }
        }
        signal_known(owned.table(), &self.found, &[Signal::KILL]);
        uids
    }

    /// Returns the processes found, as a list for the log.
    pub(super) fn list(&self, owned: &Owned<'_>) -> String {
        let tasks = self.found.iter().filter_map(|process| owned.table().task(*process));
        listed(tasks.map(ToString::to_string), self.found.len())
    }

    pub(super) fn outcome(self) -> Outcome {
        let running: Vec<&Process> = self.seen.iter().filter(|process| process.is_running()).collect();
        let ended = self.seen.len() - running.len();
        // New processes kept beginning, and nothing made sure that none is left: a killing of all at once where that is
        // allowed, or else a look at the frozen slice.
        let may_have_missed = self.begins_anew
            && match self.may_kill_all {
                true => !self.killed_all,
                false => !self.empty_while_frozen || self.is_elsewhere,
            };
        let remaining = match (self.is_done() && !may_have_missed, running.is_empty()) {
            (true, _) => String::new(),
            (false, true) if self.unread > 0 => {
                format!("{} processes that are too slow to read", self.unread)
            }
            (false, true) => "processes that begin faster than they are found".to_owned(),
            (false, false) => listed(running.iter().map(|process| process.pid.to_string()), running.len()),
        };
        Outcome { remaining, ended, was_frozen: self.empty_while_frozen }
    }
}

/// Lists the first of `count` words, and how many more there are.
fn listed(words: impl Iterator<Item = String>, count: usize) -> String {
    let mut words: Vec<String> = words.take(LISTED_MAX).collect();
    let more = count.saturating_sub(LISTED_MAX);
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

/// Sends `signals` to `processes`, except to those of which only the effective uid is known: root may be lending it.
pub(super) fn signal_known(table: &Table, processes: &BTreeSet<Process>, signals: &[Signal]) {
    let tasks = processes.iter().filter_map(|process| table.task(*process));
    for task in tasks.filter(|task| !task.is_guessed) {
        signal(task.process, signals);
    }
}

/// Whether all processes of a user's uid may be killed at once: not if the host runs a process as this user, or if a process
/// has the reserved uid.
fn may_kill_all_of(owned: &mut Owned<'_>, owner: &Owner) -> bool {
    !owned.has_host_processes(owner) && !reserved_is_in_use(owned.table())
}

/// Whether the effective uid of a process is the reserved one. A killer would kill such a process too, and could be killed
/// by it.
fn reserved_is_in_use(table: &Table) -> bool {
    table.0.values().any(|task| task.uids.iter().any(|uids| uids.effective == Uid::RESERVED))
}

/// Writes the notice to those terminals of `processes` that the user owns. Returns true if at least one write succeeded.
fn notify(termination: &Termination, processes: &BTreeSet<Process>, table: &Table, grace: Duration) -> bool {
    let mut told = false;
    let terminals =
        processes.iter().filter_map(|process| table.task(*process)).map(|task| task.stat.terminal);
    for terminal in terminals.filter(|terminal| *terminal != 0).collect::<BTreeSet<i32>>() {
        // Unix98 terminals have the major numbers 136 to 143 (devices.txt of the kernel).
        let (major, minor) = (terminal >> 8 & 0xfff, terminal & 0xff | terminal >> 12 & 0xfff00);
        if !(136..=143).contains(&major) {
            continue;
        }
        let path = format!("/dev/pts/{}", (major - 136) * 256 + minor);
        let flags = OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let mut options = OpenOptions::new();
        let file =
            options.write(true).custom_flags(i32::try_from(flags.bits()).unwrap_or_default()).open(path);
        if let Ok(mut file) = file
            && file.metadata().is_ok_and(|found| {
                found.uid() == termination.owner.uid.0 && found.file_type().is_char_device()
            })
        {
            let (notice, seconds) = (&termination.notice, grace.as_secs());
            told |= write!(
                file,
                "\r\npam_iam: {notice}. This session ends now; what is left is killed in {seconds} s.\r\n"
            )
            .is_ok();
        }
    }
    told
}
