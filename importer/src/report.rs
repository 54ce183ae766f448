//! Reports a run to the operator: a progress bar if standard error is a terminal, a line for each change, a summary, and the
//! log.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pam_iam_core::audit::Event;
use pam_iam_core::escape::Value;
use pam_iam_core::log::{Level, Log};

use crate::plan::{Change, HomeAction, Refusal, Removal};

/// The most created accounts in one line of the log.
const NAMES_PER_LINE: usize = 20;

/// The interval at which a bar without steps moves.
const TICK: Duration = Duration::from_millis(100);

/// The report of a run.
pub struct Report {
    log: Log,
    bar: ProgressBar,
    dry_run: bool,
    quiet: bool,
    /// The numbers for the summary.
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    created: usize,
    changed: usize,
    unlocked: usize,
    locked: usize,
    removed: usize,
    refused: usize,
}

impl Report {
    /// Returns the report of a run that has just begun.
    pub fn new(dry_run: bool, quiet: bool) -> Self {
        let shown = std::io::stderr().is_terminal() && !quiet;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { log: Log::to_syslog("iam-importer"), bar, dry_run, quiet, counts: Counts::default() }
    }

    /// Shows that an action with an unknown number of steps begins.
    pub fn begin(&self, what: &'static str) {
        self.bar.set_message(what);
        self.bar.enable_steady_tick(TICK);
    }

    /// Shows that an action with `steps` steps begins.
    pub fn begin_steps(&self, what: &'static str, steps: usize) {
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
            self.bar.set_style(style);
        }
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        self.bar.set_message(what);
    }

    /// Shows that a step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Reports changes that were made or, in a dry run, would be made.
    pub fn changes(&mut self, changes: &[Change]) {
        let lines: Vec<String> = changes.iter().map(|change| change.text(self.dry_run)).collect();
        if !lines.is_empty() {
            self.say(lines.join("\n"));
        }
        let created: BTreeSet<&str> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Create { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        for change in changes {
            match change {
                Change::Create { .. } => self.counts.created += 1,
                Change::Unlock { .. } => self.counts.unlocked += 1,
                Change::Lock { .. } => self.counts.locked += 1,
                _ => self.counts.changed += 1,
            }
            // The log does not repeat the groups of a new account.
            let of_new = matches!(change, Change::Join { name, .. } if created.contains(name.as_str()));
            if !matches!(change, Change::Create { .. }) && !of_new {
                self.note(Level::Info, change.event());
            }
        }
        let created: Vec<&str> = created.into_iter().collect();
        for names in created.chunks(NAMES_PER_LINE) {
            self.note(Level::Info, import("create").with("users", names.join(",")));
        }
    }

    /// Reports an account that was removed or, in a dry run, would be removed.
    pub fn removed(&mut self, removal: &Removal) {
        let name = &removal.account.name;
        let (what, home) = match removal.home_action {
            HomeAction::Stays => ("whose name a new IAM user has", "stays"),
            HomeAction::Archive => ("with the home directory archived", "archived"),
            HomeAction::Delete => ("with the home directory deleted", "deleted"),
        };
        self.counts.removed += 1;
        let verb = if self.dry_run { "would remove" } else { "removed" };
        self.say(format!("{verb} {name}, {what}"));
        self.note(Level::Info, import("remove").with("user", name).with("home", home));
    }

    /// Reports the refusals and their reasons. Logs only refusals that are not in `told_before`.
    pub fn refused(&mut self, refused: &[Refusal], told_before: &[String]) {
        self.counts.refused += refused.len();
        for refusal in refused {
            self.say(format!("refused {refusal}"));
            if !told_before.contains(&refusal.to_string()) {
                let event = import("refuse").with("iam_name", &refusal.who).with("reason", &refusal.why);
                self.note(Level::Warning, event);
            }
        }
    }

    /// Reports a failure that does not stop the run.
    pub fn trouble(&mut self, what: impl Display) {
        self.counts.refused += 1;
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr(), "iam-importer: {what}");
        });
        self.note(Level::Error, Event::new("import").with("result", "trouble").with("error", what));
    }

    /// Reports that nothing was done.
    pub fn nothing_done(&mut self, why: impl Display) {
        self.end();
        let _ = writeln!(std::io::stderr(), "iam-importer: nothing done: {why}");
        self.note(Level::Error, Event::new("import").with("result", "nothing").with("error", why));
    }

    /// Tells the operator something that is not a failure.
    pub fn remark(&self, what: impl Display) {
        self.say(what.to_string());
    }

    /// Ends the report with a summary in one line. Returns true if nothing was refused and nothing failed.
    pub fn summary(&mut self, accounts: usize, calls_took: Duration, took: Duration) -> bool {
        self.end();
        let Counts { created, changed, unlocked, locked, removed, refused } = self.counts;
        let counts = [
            ("accounts", accounts),
            ("created", created),
            ("changed", changed),
            ("unlocked", unlocked),
            ("locked", locked),
            ("removed", removed),
            ("refused", refused),
        ];
        let words: Vec<String> = counts.iter().map(|(what, count)| format!("{what}={count}")).collect();
        let times = format!("{} ms, and {} ms for the list", took.as_millis(), calls_took.as_millis());
        let dry = if self.dry_run { "dry run, nothing is changed: " } else { "" };
        self.say(format!("{dry}{} ({times})", words.join(" ")));
        let done = Event::new("import").with("result", "done");
        self.note(Level::Info, counts.iter().fold(done, |event, (what, count)| event.with(what, count)));
        refused == 0
    }

    fn say(&self, line: String) {
        if !self.quiet {
            self.bar.suspend(|| {
                let _ = writeln!(std::io::stdout(), "{line}");
            });
        }
    }

    fn note(&mut self, level: Level, event: Event) {
        if !self.dry_run {
            self.log.event(level, &event);
        }
    }
}

impl Change {
    /// Returns the change as a sentence in the past tense, or with "would" in a dry run.
    fn text(&self, dry_run: bool) -> String {
        let verb = |present: &str, past: &str| match dry_run {
            true => format!("would {present}"),
            false => past.to_owned(),
        };
        match self {
            Self::Group { name, gid } => format!("{} group {name} with gid {gid}", verb("create", "created")),
            Self::Create { name, uid } => format!("{} {name} with uid {uid}", verb("create", "created")),
            Self::Rename { from, to } => format!("{} {from} to {to}", verb("rename", "renamed")),
            Self::Update { name, field, value } => {
                format!("{} {field} of {name} to {}", verb("set", "set"), Value(value))
            }
            Self::Unlock { name } => format!("{} {name}, who is back", verb("unlock", "unlocked")),
            Self::Lock { name } => format!("{} {name}, who has left", verb("lock", "locked")),
            Self::Join { name, group } => format!("{} {name} to {group}", verb("add", "added")),
            Self::Leave { name, group } => format!("{} {name} from {group}", verb("remove", "removed")),
        }
    }

    /// Returns the change as an event for the log.
    fn event(&self) -> Event {
        match self {
            Self::Group { name, gid } => import("group").with("group", name).with("gid", gid),
            Self::Create { name, uid } => import("create").with("user", name).with("uid", uid),
            Self::Rename { from, to } => import("rename").with("user", to).with("old_name", from),
            Self::Update { name, field, value } => import("update").with("user", name).with(field, value),
            Self::Unlock { name } => import("unlock").with("user", name),
            Self::Lock { name } => import("lock").with("user", name),
            Self::Join { name, group } => import("join").with("user", name).with("group", group),
            Self::Leave { name, group } => import("leave").with("user", name).with("group", group),
        }
    }
}

fn import(action: &str) -> Event {
    Event::new("import").with("action", action)
}

impl Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.who, self.why)
    }
}
