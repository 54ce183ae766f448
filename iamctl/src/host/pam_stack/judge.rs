//! Follows libpam through a chain: may it say yes without our module?

use std::collections::HashSet;

use super::super::pam_control::Action;
use super::{Chain, Module, Phase, Role, Stacks, is_our_module};

/// What a chain means for our module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is asked whenever the chain says yes, and its no is the chain's.
    InForce,
    /// It is not there.
    Missing,
    /// The chain may say yes without asking it, because of this entry.
    PassedOver(String),
    /// The chain may say yes although it said no.
    NotHeeded(String),
}

/// How a chain may be on its way, at one module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    at: usize,
    impression: Impression,
    /// What each substack that is open began with.
    saved: Vec<Impression>,
    /// The entry that led past our module.
    passed_over_by: Option<usize>,
    was_asked: bool,
    /// Our entry that said no last.
    said_no_at: Option<usize>,
}

/// What libpam thinks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Impression {
    Undecided,
    Yes,
    /// A yes with a code that is none, by `[default=ok]`.
    YesWithFailure,
    No,
}

/// Judges a stack: is our module in force in a phase? Only entries whose arguments `are_ours` accepts count.
pub fn judge(text: &str, phase: Phase, stacks: Stacks<'_>, are_ours: &dyn Fn(&[String]) -> bool) -> Verdict {
    let chain = Chain::of(text, phase, stacks);
    let is_managed = |module: &Module| {
        module.role == Role::Runs && is_our_module(&module.path) && are_ours(&module.arguments)
    };
    let Some(last_of_ours) = chain.0.iter().rposition(is_managed) else { return Verdict::Missing };
    let start = State {
        at: 0,
        impression: Impression::Undecided,
        saved: vec![Impression::Undecided],
        passed_over_by: None,
        was_asked: false,
        said_no_at: None,
    };
    let (mut seen, mut open) = (HashSet::from([start.clone()]), vec![start]);
    let shown = |at: Option<usize>| {
        at.and_then(|at| chain.0.get(at)).map_or_else(String::new, |module| module.shown.clone())
    };
    let mut verdict = Verdict::InForce;
    while let Some(state) = open.pop() {
        let Some(module) = chain.0.get(state.at) else {
            match state.impression {
                Impression::Yes if !state.was_asked => {
                    return Verdict::PassedOver(shown(state.passed_over_by));
                }
                Impression::Yes if state.said_no_at.is_some() => {
                    verdict = Verdict::NotHeeded(shown(state.said_no_at));
                }
                _ => {}
            }
            continue;
        };
        for mut next in chain.next(&state, module, is_managed(module)) {
            if !next.was_asked && next.at > last_of_ours && next.passed_over_by.is_none() {
                next.passed_over_by = Some(state.at);
            }
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    verdict
}

impl Chain {
    /// All that may come after a module has run.
    fn next(&self, state: &State, module: &Module, is_managed: bool) -> Vec<State> {
        let mut state = state.clone();
        // What a substack began with is remembered for an action `reset` in it.
        state.saved.truncate(module.level + 1);
        while state.saved.len() <= module.level {
            state.saved.push(state.impression);
        }
        if module.role == Role::OpensSubstack {
            return vec![State { at: state.at + 1, ..state }];
        }
        let outcomes = match (module.role, is_managed && state.said_no_at.is_some()) {
            // libpam: PAM_MUST_FAIL_CODE is PAM_PERM_DENIED.
            (Role::Fails, _) => vec![(Outcome::Failure, module.control.perm_denied)],
            // Asked twice, it says the same.
            (_, true) => module.control.failures().map(|action| (Outcome::Failure, action)).collect(),
            _ if is_managed && state.was_asked => {
                vec![(Outcome::Success, module.control.success), (Outcome::Ignore, module.control.ignore)]
            }
            _ => {
                let yes = [
                    (Outcome::Success, module.control.success),
                    (Outcome::Success, module.control.new_authtok_reqd),
                ];
                let ignore = (Outcome::Ignore, module.control.ignore);
                let no = module.control.failures().map(|action| (Outcome::Failure, action));
                yes.into_iter().chain([ignore]).chain(no).collect()
            }
        };
        outcomes
            .into_iter()
            .map(|(outcome, action)| self.after(&state, outcome, action, is_managed))
            .collect()
    }

    fn after(&self, state: &State, outcome: Outcome, action: Action, is_managed: bool) -> State {
        let mut next = State { at: state.at + 1, ..state.clone() };
        next.was_asked |= is_managed;
        if is_managed && outcome == Outcome::Failure {
            next.said_no_at = Some(state.at);
        }
        match action {
            Action::Ignore => {}
            Action::Ok | Action::Done => {
                if [Impression::Undecided, Impression::Yes].contains(&next.impression) {
                    let is_yes = outcome == Outcome::Success;
                    next.impression = if is_yes { Impression::Yes } else { Impression::YesWithFailure };
                }
                if action == Action::Done && next.impression != Impression::No {
                    next.at = self.after_decision(state.at);
                }
            }
            Action::Bad => next.impression = Impression::No,
            Action::Die => {
                next.impression = Impression::No;
                next.at = self.after_decision(state.at);
            }
            Action::Reset => next.impression = next.saved.last().copied().unwrap_or(Impression::Undecided),
            Action::Jump(count) => match self.jump(state.at, count) {
                Some(target) => next.at = target,
                // libpam: "bad jump in stack". It goes on behind the last module, with a no.
                None => (next.at, next.impression) = (self.after_decision(state.at), Impression::No),
            },
        }
        next
    }
}

/// What a module returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    Ignore,
    Failure,
}
