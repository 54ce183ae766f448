//! Follows libpam through a chain, to find out whether it may say yes without the module.

use std::collections::HashSet;

use super::super::pam_control::Action;
use super::{Chain, Module, Phase, Role, Stacks, is_our_module};

/// What a chain means for the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The module is asked whenever the chain says yes, and its no is the chain's.
    InForce,
    /// The module is not in the chain.
    Missing,
    /// The chain may say yes without asking the module, because of this entry.
    PassedOver(String),
    /// The chain may say yes although the module said no.
    NotHeeded(String),
}

/// A state that libpam may be in before it runs the module `at`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    at: usize,
    impression: Impression,
    /// The impression with which each open substack began.
    saved: Vec<Impression>,
    /// The entry that led past pam_iam's module.
    passed_over_by: Option<usize>,
    was_asked: bool,
    /// The entry of pam_iam's module that said no last.
    said_no_at: Option<usize>,
}

/// What libpam has concluded so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Impression {
    Undecided,
    Yes,
    /// A yes with the code of a failure, by `[default=ok]`.
    YesWithFailure,
    No,
}

/// Judges whether the module is in force in a phase of a stack. Only entries whose arguments `has_policy` accepts count.
pub fn judge(
    text: &str,
    phase: Phase,
    stacks: Stacks<'_>,
    has_policy: &dyn Fn(&[String]) -> bool,
) -> Verdict {
    let chain = Chain::of(text, phase, stacks);
    let is_pam_iam = |module: &Module| {
        module.role == Role::Runs && is_our_module(&module.path) && has_policy(&module.arguments)
    };
    let Some(last) = chain.0.iter().rposition(is_pam_iam) else { return Verdict::Missing };
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
        for mut next in chain.next(&state, module, is_pam_iam(module)) {
            if !next.was_asked && next.at > last && next.passed_over_by.is_none() {
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
    /// Returns all states that may follow when a module has run.
    fn next(&self, state: &State, module: &Module, is_pam_iam: bool) -> Vec<State> {
        let mut state = state.clone();
        // A `reset` in a substack goes back to the impression with which the substack began.
        state.saved.truncate(module.level + 1);
        while state.saved.len() <= module.level {
            state.saved.push(state.impression);
        }
        if module.role == Role::OpensSubstack {
            return vec![State { at: state.at + 1, ..state }];
        }
        let outcomes = match (module.role, is_pam_iam && state.said_no_at.is_some()) {
            // libpam: PAM_MUST_FAIL_CODE is PAM_PERM_DENIED.
            (Role::Fails, _) => vec![(Outcome::Failure, module.control.perm_denied)],
            // Asked twice, the module says the same.
            (_, true) => module.control.failures().map(|action| (Outcome::Failure, action)).collect(),
            _ if is_pam_iam && state.was_asked => {
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
            .map(|(outcome, action)| self.after(&state, outcome, action, is_pam_iam))
            .collect()
    }

    fn after(&self, state: &State, outcome: Outcome, action: Action, is_pam_iam: bool) -> State {
        let mut next = State { at: state.at + 1, ..state.clone() };
        next.was_asked |= is_pam_iam;
        if is_pam_iam && outcome == Outcome::Failure {
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
                // libpam logs "bad jump in stack", and goes on after the last module with a no.
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
