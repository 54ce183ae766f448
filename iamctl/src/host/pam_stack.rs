//! A model of a PAM stack, as libpam reads and runs it (pam.d(5), `pam_handlers.c` and `pam_dispatch.c` of Linux-PAM), for enable, which
//! adds lines, disable, which takes them out, and doctor, which checks that they are in force.
//!
//! A text is a list of *entries*. A backslash continues an entry on the next line. The entries of one phase, with those of included files
//! in their places, are a *chain* of modules. A chain is judged for everything that its modules may return.

use super::pam_control::Control;

mod judge;
#[cfg(test)]
mod tests;

pub use judge::{Verdict, judge};

/// The file name of the module.
pub const MODULE: &str = "pam_iam.so";

/// How deep files may include others (`PAM_SUBSTACK_MAX_LEVEL` of libpam).
const INCLUDES_MAX: usize = 16;

/// A phase of PAM in which the module takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// May the account be used?
    Account,
    /// A session begins or ends.
    Session,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Session => "session",
        }
    }
}

/// Returns the text of the stack of a service, or None if there is none.
pub type Stacks<'a> = &'a dyn Fn(&str) -> Option<String>;

/// An entry of a text.
#[derive(Debug)]
struct Entry {
    /// Its first line, counted from 0.
    first_line: usize,
    /// The line after its last.
    next_line: usize,
    words: Vec<String>,
    /// Whether the text ends in the middle of the entry. libpam then refuses the whole file.
    is_cut_off: bool,
}

impl Entry {
    /// Returns the first word, without the `-` that keeps libpam from logging a missing module.
    fn kind(&self) -> &str {
        self.word(0).strip_prefix('-').unwrap_or(self.word(0))
    }

    /// Returns a word without its brackets, which only hold it together.
    fn word(&self, at: usize) -> &str {
        let word = self.words.get(at).map_or("", String::as_str);
        word.strip_prefix('[').map_or(word, |inside| inside.strip_suffix(']').unwrap_or(inside))
    }

    fn is_include(&self) -> bool {
        self.kind() == "@include"
    }

    fn is_pam_iam(&self) -> bool {
        !self.is_include() && is_our_module(self.word(2))
    }
}

fn is_our_module(path: &str) -> bool {
    path.rsplit('/').next() == Some(MODULE)
}

/// Splits a text into entries. A `#` ends an entry, even before a backslash; an empty line or a comment between two lines of an entry does
/// not.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut goes_on = false;
    let mut assembled = String::new();
    for (number, line) in text.split('\n').enumerate() {
        let (content, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        if content.trim_matches(BLANKS).is_empty() {
            continue;
        }
        let content = content.trim_end_matches(BLANKS);
        let continued = comment.is_empty().then(|| content.strip_suffix('\\')).flatten();
        if !goes_on {
            assembled.clear();
            entries.push(Entry {
                first_line: number,
                next_line: number + 1,
                words: Vec::new(),
                is_cut_off: false,
            });
        }
        assembled.push_str(continued.unwrap_or(content));
        assembled.push(' ');
        goes_on = continued.is_some();
        if let Some(entry) = entries.last_mut() {
            entry.next_line = number + 1;
            entry.words = words(&assembled);
            entry.is_cut_off = goes_on;
        }
    }
    entries
}

/// What libpam takes for blanks.
const BLANKS: [char; 2] = [' ', '\t'];

/// Splits an entry into words. Text in brackets is one word and keeps its brackets.
fn words(entry: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = entry.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let end = match rest.strip_prefix('[') {
            Some(inside) => closing_bracket(inside).map_or(rest.len(), |at| at + 2),
            None => rest.find(BLANKS).unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at(end);
        words.push(word.to_owned());
        rest = after.trim_start_matches(BLANKS);
    }
    words
}

fn closing_bracket(inside: &str) -> Option<usize> {
    inside
        .match_indices(']')
        .map(|(at, _)| at)
        .find(|at| !inside.get(..*at).is_some_and(|before| before.ends_with('\\')))
}

/// A module of a chain.
#[derive(Clone, Debug)]
struct Module {
    /// How many substacks it is in.
    level: usize,
    control: Control,
    /// Control, path and arguments, as the operator wrote them.
    shown: String,
    path: String,
    arguments: Vec<String>,
    /// What it does. The entry of a substack itself only counts for jumps; a broken entry always fails.
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Runs,
    OpensSubstack,
    Fails,
}

/// The place of a text in a chain.
#[derive(Clone, Copy)]
struct Place<'a> {
    phase: Phase,
    stacks: Stacks<'a>,
    /// How many files lead to it.
    depth: usize,
    /// How many substacks it is in.
    level: usize,
    /// Whether an entry of the phase includes it, rather than only `@include`, which includes for all phases.
    is_for_phase: bool,
}

/// The chain of a phase, including what other files contribute.
struct Chain(Vec<Module>);

impl Chain {
    fn of(text: &str, phase: Phase, stacks: Stacks<'_>) -> Self {
        let mut chain = Self(Vec::new());
        chain.read(text, Place { phase, stacks, depth: 0, level: 0, is_for_phase: false });
        chain
    }

    /// Adds what `text` contributes.
    fn read(&mut self, text: &str, place: Place<'_>) {
        for entry in entries(text) {
            self.read_entry(&entry, place);
        }
    }

    fn read_entry(&mut self, entry: &Entry, place: Place<'_>) {
        let is_of_a_phase = || {
            let kinds = ["auth", "account", "password", "session"];
            kinds.iter().any(|kind| entry.kind().eq_ignore_ascii_case(kind))
        };
        let (bad, own) = (Control::default(), || Control::parse(entry.word(1)));
        if entry.is_cut_off {
            self.push(entry, place.level, Role::Fails, bad);
        } else if entry.is_include() {
            self.include(entry.word(1), entry, place);
        } else if entry.kind().eq_ignore_ascii_case(place.phase.word()) {
            let for_phase = Place { is_for_phase: true, ..place };
            match entry.word(1).to_ascii_lowercase().as_str() {
                "include" => self.include(entry.word(2), entry, for_phase),
                "substack" => {
                    self.push(entry, place.level, Role::OpensSubstack, bad);
                    self.include(entry.word(2), entry, Place { level: place.level + 1, ..for_phase });
                }
                // It fails as its control says: an optional one changes nothing.
                _ if entry.word(2).is_empty() => self.push(entry, place.level, Role::Fails, own()),
                _ => self.push(entry, place.level, Role::Runs, own()),
            }
        } else if place.is_for_phase && !is_of_a_phase() {
            // An entry of no known phase fails in the phase for which the file is included, or else in auth.
            self.push(entry, place.level, Role::Fails, own());
        }
    }

    fn include(&mut self, service: &str, entry: &Entry, place: Place<'_>) {
        match (place.stacks)(service).filter(|_| place.depth + 1 < INCLUDES_MAX && !service.is_empty()) {
            Some(text) => self.read(&text, Place { depth: place.depth + 1, ..place }),
            None => self.push(entry, place.level, Role::Fails, Control::default()),
        }
    }

    fn push(&mut self, entry: &Entry, level: usize, role: Role, control: Control) {
        self.0.push(Module {
            level,
            control,
            shown: entry.words.get(1..).unwrap_or_default().join(" "),
            path: entry.word(2).to_owned(),
            arguments: (3..entry.words.len()).map(|at| entry.word(at).to_owned()).collect(),
            role,
        });
    }

    /// Returns where a module's jump over `count` modules lands. libpam counts a substack as one. None if there are too few.
    fn jump(&self, from: usize, count: usize) -> Option<usize> {
        let level = self.0.get(from)?.level;
        let is_deeper = |at: usize| self.0.get(at).is_some_and(|module| module.level > level);
        let mut at = from;
        for _ in 0..count {
            if self.0.get(at + 1).is_none_or(|next| next.level < level) {
                return None;
            }
            at += 1;
            while is_deeper(at + 1) {
                at += 1;
            }
        }
        Some(at + 1)
    }

    /// Returns where the chain goes on after a decision in the module `from`: after its substack, or at the end.
    fn after_decision(&self, from: usize) -> usize {
        let level = self.0.get(from).map_or(0, |module| module.level);
        let rest = self.0.iter().enumerate().skip(from + 1);
        rest.into_iter().find(|(_, module)| module.level < level).map_or(self.0.len(), |(at, _)| at)
    }
}

/// Adds `line` to a text where it will be in force: in the account phase before all else; in the session phase before the common part,
/// which expects a home directory, and otherwise as late as possible. Returns the text unchanged if the module is in force already.
pub fn with_line(
    text: &str,
    line: &str,
    phase: Phase,
    stacks: Stacks<'_>,
    has_policy: &dyn Fn(&[String]) -> bool,
) -> String {
    if judge(text, phase, stacks, has_policy) == Verdict::InForce {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.split('\n').collect();
    let end = lines.len() - usize::from(lines.last().is_some_and(|last| last.is_empty()));
    let entries = entries(text);
    let contributes = |entry: &&Entry| {
        let mut chain = Chain(Vec::new());
        chain.read_entry(entry, Place { phase, stacks, depth: 0, level: 0, is_for_phase: false });
        !chain.0.is_empty()
    };
    let of_phase: Vec<&Entry> = entries.iter().filter(contributes).collect();
    let is_common = |entry: &&&Entry| {
        let includes =
            ["include", "substack"].iter().any(|control| entry.word(1).eq_ignore_ascii_case(control));
        includes || entry.is_include() && entry.word(1).starts_with("common-session")
    };
    let first = of_phase.first().map_or(end, |entry| entry.first_line);
    let mut places: Vec<usize> = of_phase.iter().map(|entry| entry.first_line).collect();
    match phase {
        Phase::Account => places.truncate(1),
        Phase::Session => match of_phase.iter().find(is_common).map(|entry| entry.first_line) {
            Some(common) => places.retain(|place| *place <= common),
            None => places.push(end),
        },
    }
    // An unfinished entry at the end of the text would swallow the line.
    let cut_off = entries.iter().find(|entry| entry.is_cut_off).map_or(end, |entry| entry.first_line);
    let inserted = |at: usize| {
        let mut lines = lines.clone();
        lines.insert(at.min(cut_off), line);
        lines.join("\n")
    };
    let before = jumps(text, phase, stacks);
    let is_good = |text: &String| {
        judge(text, phase, stacks, has_policy) == Verdict::InForce && jumps(text, phase, stacks) == before
    };
    let good = places.iter().rev().map(|place| inserted(*place)).find(is_good);
    // If no place is good, a second line would not be good either.
    let has_line = text.lines().any(|known| known.split_whitespace().eq(line.split_whitespace()));
    good.unwrap_or_else(|| if has_line { text.to_owned() } else { inserted(first) })
}

/// Whether a stack has any entry of a phase. If it has none, libpam takes the stack `other`.
pub fn has_entries(text: &str, phase: Phase, stacks: Stacks<'_>) -> bool {
    !Chain::of(text, phase, stacks).0.is_empty()
}

/// Returns where each jump of a chain lands, as positions in the chain without pam_iam's module.
fn jumps(text: &str, phase: Phase, stacks: Stacks<'_>) -> Vec<Option<usize>> {
    let chain = Chain::of(text, phase, stacks);
    let number =
        |target: usize| chain.0.iter().take(target).filter(|module| !is_our_module(&module.path)).count();
    let others = chain.0.iter().enumerate().filter(|(_, module)| !is_our_module(&module.path));
    others
        .flat_map(|(at, module)| module.control.jumps().map(move |count| (at, count)))
        .map(|(at, count)| chain.jump(at, count).map(number))
        .collect()
}

/// Takes the place of an entry that others jump over. Whatever it returns changes nothing.
const NOTHING: &str = "[default=ignore] pam_permit.so";

/// Takes all entries of the module out of a text. One that others jump over is replaced by an entry that does nothing, so that they land
/// where they did.
pub fn without_lines(text: &str, stacks: Stacks<'_>) -> String {
    let phases = [Phase::Account, Phase::Session];
    let moves = |phase| jumps(text, phase, stacks) != jumps(&without(text, &[]), phase, stacks);
    without(text, &phases.into_iter().filter(|phase| moves(*phase)).collect::<Vec<_>>())
}

/// Returns a text without the entries of the module; in `replaced` phases, an entry that does nothing takes their place.
fn without(text: &str, replaced: &[Phase]) -> String {
    let removed: Vec<Entry> = entries(text).into_iter().filter(Entry::is_pam_iam).collect();
    let mut kept: Vec<String> = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let entry = removed.iter().find(|entry| (entry.first_line..entry.next_line).contains(&number));
        match entry {
            None => kept.push(line.to_owned()),
            Some(entry) if number == entry.first_line => {
                let phase = replaced.iter().find(|phase| entry.kind().eq_ignore_ascii_case(phase.word()));
                kept.extend(phase.map(|phase| format!("{} {NOTHING}", phase.word())));
            }
            Some(_) => {}
        }
    }
    kept.join("\n")
}

/// Returns the line of a phase in one of the files that are shipped under `pam.d`.
pub fn line_of(text: &str, phase: Phase) -> Option<&str> {
    text.lines().find(|line| line.split_whitespace().next() == Some(phase.word()))
}
