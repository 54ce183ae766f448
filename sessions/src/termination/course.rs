//! One termination under way: what belongs to it, what was asked, what is left.

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

/// How long sshd may take to carry to its client what a terminal was told.
const RELAY_MAX: Duration = Duration::from_secs(5);

/// How many subordinate uids of one user are killed as a whole in one round.
const UIDS_MAX: usize = 64;

/// How often it is tried to make sure that nothing is left: on some hosts nothing can stand still, and a user may hold up the
/// process that kills.
const TRIES_MAX: u32 = 3;

/// How many processes a log line lists.
const LISTED_MAX: usize = 20;

/// One termination under way.
pub(super) struct Course<'a> {
    pub(super) termination: &'a Termination,
    logins: Vec<SessionMarks>,
    /// The logind sessions of these, with their control groups.
    of_logind: Vec<(String, String)>,
    /// All that was ever found to belong to the sessions that end: once a parent has ended, nobody knows whose child was
    /// whose.
    family: BTreeSet<Process>,
    /// The sshd of sessions that were told something, asked after what it relays has ended.
    relays: BTreeSet<Process>,
    asked: BTreeSet<Process>,
    asked_logind: bool,
    told_of_killing: bool,
    /// What the last look has found.
    found: BTreeSet<Process>,
    /// The last that was found, for the log.
    last_list: String,
    /// All that any look has found.
    seen: BTreeSet<Process>,
    empty_looks: u32,
    /// How many of these could not be read.
    unread: usize,
    /// Whether all processes of the user's uid may be killed at once.
    pub(super) may_kill_all: bool,
    /// Whether all processes of the user's uid were killed once without being seen.
    pub(super) killed_all: bool,
    /// Whether nothing was found while all that is in the user's slice stood still.
    looked_while_still: bool,
    /// How often that was tried.
    tries: u32,
    /// What the last look has found of the user's uid, and whether in any look some of it was not there in the look before.
    running: BTreeSet<Process>,
    begins_anew: bool,
    /// How often it looked.
    looks: u32,
    /// The user's slice, if not all of the user's may be killed. No other control group stands still for a look: it may be
    /// anybody's.
    pub(super) slice: Option<String>,
    /// Whether any of what is to end was seen outside the slice.
    is_elsewhere: bool,
}

impl<'a> Course<'a> {
    /// Notes that the last look was at a slice that stood still, if it was: what it found is there, however often other looks find
    /// nothing. `still` are the slices that were stopped for the look.
    pub(super) fn note_stillness(&mut self, still: &BTreeSet<String>) {
        // Nobody else may have let it go on meanwhile.
        let stood_still =
            self.slice.as_ref().is_some_and(|slice| still.contains(slice) && cgroup::is_still(slice));
        if stood_still {
            self.looked_while_still = self.found.is_empty();
            let is_progress = !self.found.is_empty() && !self.is_elsewhere;
            self.tries = if is_progress { 0 } else { self.tries };
        }
    }

    pub(super) fn begin(termination: &'a Termination, table: &Table, grace: Duration) -> Self {
        let mut course = Self {
            termination,
            logins: Vec::new(),
            of_logind: Vec::new(),
            family: BTreeSet::new(),
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
            looked_while_still: false,
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
            course.of_logind.extend(of_logind);
            let family =
                owned.family(&BTreeSet::from([*opener]), &termination.owner, std::slice::from_ref(&marks));
            if notify(termination, &family, table, grace) {
                // None of sshd's processes is in a session (setsid(2)) with what it runs for the user.
                let session = table.task(*opener).map(|task| task.stat.session);
                let is_sshd =
                    |process: &&Process| table.task(**process).map(|task| task.stat.session) == session;
                let relays: BTreeSet<Process> = family.iter().filter(is_sshd).copied().collect();
                if relays.len() < family.len() {
                    course.relays.extend(relays);
                }
            }
            course.family.extend(family);
            course.logins.push(marks);
        }
        course.logins.extend(termination.left.iter().cloned());
        if termination.whole_user {
            course.found = owned.of(&termination.owner);
            course.last_list = course.list(&owned);
            course.seen.extend(course.found.iter().copied());
            course.may_kill_all = may_kill_all_of(&mut owned, &termination.owner);
        }
        course
    }

    pub(super) fn is_done(&self) -> bool {
        self.empty_looks >= 2
    }

    /// Finds what is there of it now.
    pub(super) fn look(&mut self, owned: &mut Owned<'_>, whole: bool) {
        let owner = &self.termination.owner;
        self.found = owned.family(&self.family, owner, &self.logins);
        self.family.extend(self.found.iter().copied());
        if whole {
            self.found.extend(owned.of(owner));
        } else {
            self.found.extend(owned.holders(owner, &self.termination.groups));
        }
        self.may_kill_all = whole && may_kill_all_of(owned, owner);
        let uid = owner.uid;
        // One that is gone before it could be asked where it was may go on as another.
        self.slice = cgroup::slice_that_is_there(uid);
        for process in &self.found {
            let path = owned.path_of(process.pid);
            self.is_elsewhere |= path.is_some_and(|path| !cgroup::is_in_slice(path, uid));
        }
        let runs = |task: &&Task| task.all_uids().any(|of| of == uid || owner.is_subordinate(of));
        let running: BTreeSet<Process> =
            owned.table().0.values().filter(runs).map(|task| task.process).collect();
        // In the first look all is new.
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

    pub(super) fn ask(
        &mut self,
        owned: &mut Owned<'_>,
        elapsed: Duration,
        grace: Duration,
        helpers: &mut Vec<Child>,
        tell: &mut impl FnMut(Progress<'_>),
    ) {
        // They end by themselves once what they relay for has, and by then have sent what was on the terminal.
        let relays_run = self.found.intersection(&self.relays).next().is_some();
        let relays_wait = relays_run && elapsed < RELAY_MAX.min(grace / 2);
        let is_due = |process: &&Process| !relays_wait || !self.relays.contains(process);
        // Each once: a shell that has its own way with SIGHUP is not to have it again and again.
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

    /// Has logind end the sessions of which nothing would live on: it ends whatever is in their scopes, also a daemon that
    /// the user has started by sudo.
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

    /// Whether everything in a control group and below it is found to end.
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

    /// Whether nothing can have escaped the looks by forking faster than anybody looks.
    pub(super) fn is_sure(&self) -> bool {
        let is_killed = self.killed_all || !self.may_kill_all;
        // Outside of the slice nothing stands still, and killing all of it unseen is all that can be done.
        let is_found = self.slice.is_none() || self.looked_while_still && !self.is_elsewhere;
        is_killed && (is_found || self.may_kill_all && self.is_elsewhere)
    }

    /// Whether, before it is over, everything of the user's is to be killed once more unseen, and looked at while it stands still:
    /// no process that is just being forked escapes that, as it may escape every look.
    pub(super) fn make_sure(&mut self) -> bool {
        if self.is_sure() || self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        self.empty_looks = 0;
        true
    }

    /// The uids of which everything may be killed at once, the user's own first: of the subordinate ones those that are at work and
    /// that nothing else has.
    pub(super) fn uids_to_kill(&self, owned: &mut Owned<'_>) -> Vec<Uid> {
        let owner = &self.termination.owner;
        let tasks = self.found.iter().filter_map(|process| owned.table().task(*process));
        let mut subordinate: BTreeSet<Uid> = tasks
            .flat_map(|task| task.uids.iter().flat_map(|uids| [uids.real, uids.saved]))
            .filter(|uid| *uid != owner.uid)
            .collect();
        subordinate.extend(owner.subordinates_at_work().take(UIDS_MAX));
        // A number may be another's too, as in a container.
        let others = owned.table().0.values().filter(|task| !self.found.contains(&task.process));
        let of_others: BTreeSet<Uid> = others.flat_map(Task::all_uids).collect();
        let mut uids = vec![owner.uid];
        let seen = subordinate.difference(&of_others);
        uids.extend(seen.filter(|uid| owned.is_owners(**uid, owner)).take(UIDS_MAX).copied());
        uids
    }

    /// Kills what is there. Returns the uids of which everything is to be killed at once, the user's own first.
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

    /// What was found, for the log.
    pub(super) fn list(&self, owned: &Owned<'_>) -> String {
        let tasks = self.found.iter().filter_map(|process| owned.table().task(*process));
        listed(tasks.map(ToString::to_string), self.found.len())
    }

    pub(super) fn outcome(self) -> Outcome {
        let running: Vec<&Process> = self.seen.iter().filter(|process| process.is_running()).collect();
        let ended = self.seen.len() - running.len();
        // Nothing was found, and nothing could be held still to look at it.
        let may_have_missed = self.begins_anew
            && match self.may_kill_all {
                true => !self.killed_all,
                false => !self.looked_while_still || self.is_elsewhere,
            };
        let remaining = match (self.is_done() && !may_have_missed, running.is_empty()) {
            (true, _) => String::new(),
            (false, true) if self.unread > 0 => {
                format!("{} processes that are too slow to read", self.unread)
            }
            (false, true) => "processes that begin faster than they are found".to_owned(),
            (false, false) => listed(running.iter().map(|process| process.pid.to_string()), running.len()),
        };
        Outcome { remaining, ended, was_still: self.looked_while_still }
    }
}

/// The first of many, and how many more there are.
fn listed(words: impl Iterator<Item = String>, count: usize) -> String {
    let mut words: Vec<String> = words.take(LISTED_MAX).collect();
    let more = count.saturating_sub(LISTED_MAX);
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join(", ")
}

/// Sends signals to those of which more is known than an effective uid, which root may have lent them.
pub(super) fn signal_known(table: &Table, processes: &BTreeSet<Process>, signals: &[Signal]) {
    let tasks = processes.iter().filter_map(|process| table.task(*process));
    for task in tasks.filter(|task| !task.is_guessed) {
        signal(task.process, signals);
    }
}

/// Whether all processes of a user's uid may be killed at once: not where the host runs something as this user.
fn may_kill_all_of(owned: &mut Owned<'_>, owner: &Owner) -> bool {
    !owned.has_some_of_the_hosts(owner) && !reserved_is_in_use(owned.table())
}

/// Whether a process has the uid that is assigned to nobody: it would be killed with the rest, and could stop a killer.
fn reserved_is_in_use(table: &Table) -> bool {
    table.0.values().any(|task| task.uids.iter().any(|uids| uids.effective == Uid::RESERVED))
}

/// Writes the notice to the terminals of a session. True if one took it. A terminal belongs to the user, so nothing else
/// is written to.
fn notify(termination: &Termination, family: &BTreeSet<Process>, table: &Table, grace: Duration) -> bool {
    let mut told = false;
    let terminals = family.iter().filter_map(|process| table.task(*process)).map(|task| task.stat.terminal);
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
