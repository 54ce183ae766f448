//! The control field of a PAM entry: what libpam does with what a module returns (pam.conf(5)).

/// What libpam does with one return value of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The module does not count.
    Ignore,
    /// The module counts as a yes, unless there was a no.
    Ok,
    /// Like `Ok`, and the rest is not asked.
    Done,
    /// The module counts as a no.
    Bad,
    /// Like `Bad`, and the rest is not asked.
    Die,
    /// Everything concluded so far is forgotten.
    Reset,
    /// This number of following modules are skipped.
    Jump(usize),
}

/// The values that mean no: all but `success`, `new_authtok_reqd`, `ignore` and `default`.
const FAILURES: [&str; 28] = [
    "open_err",
    "symbol_err",
    "service_err",
    "system_err",
    "buf_err",
    "perm_denied",
    "auth_err",
    "cred_insufficient",
    "authinfo_unavail",
    "user_unknown",
    "maxtries",
    "acct_expired",
    "session_err",
    "cred_unavail",
    "cred_expired",
    "cred_err",
    "no_module_data",
    "conv_err",
    "authtok_err",
    "authtok_recover_err",
    "authtok_lock_busy",
    "authtok_disable_aging",
    "try_again",
    "abort",
    "authtok_expired",
    "module_unknown",
    "bad_item",
    "conv_again",
];

/// The actions of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub success: Action,
    pub new_authtok_reqd: Action,
    pub ignore: Action,
    pub perm_denied: Action,
    /// The different actions for the failures.
    failures: Vec<Action>,
}

/// The actions of a control that libpam does not understand: everything is a no.
impl Default for Control {
    fn default() -> Self {
        Self {
            success: Action::Bad,
            new_authtok_reqd: Action::Bad,
            ignore: Action::Bad,
            perm_denied: Action::Bad,
            failures: vec![Action::Bad],
        }
    }
}

impl Control {
    /// Parses a control without its brackets: one of the four words, or a list.
    pub fn parse(word: &str) -> Self {
        let of = |yes, ignore, failure| Self {
            success: yes,
            new_authtok_reqd: yes,
            ignore,
            perm_denied: failure,
            failures: vec![failure],
        };
        match word.to_ascii_lowercase().as_str() {
            "required" => of(Action::Ok, Action::Ignore, Action::Bad),
            "requisite" => of(Action::Ok, Action::Ignore, Action::Die),
            "optional" => of(Action::Ok, Action::Ignore, Action::Ignore),
            "sufficient" => of(Action::Done, Action::Ignore, Action::Ignore),
            list => Self::parse_list(list).unwrap_or_default(),
        }
    }

    /// Parses a list like `success=ok default=die`. None if libpam would refuse it.
    fn parse_list(list: &str) -> Option<Self> {
        let spaced = list.replace('=', " = ");
        let mut words = spaced.split_whitespace();
        let mut given: Vec<(&str, Action)> = Vec::new();
        while let Some(value) = words.next() {
            let (sign, action) = (words.next()?, words.next()?);
            let is_known = FAILURES.contains(&value)
                || ["success", "new_authtok_reqd", "ignore", "default", "incomplete"].contains(&value);
            if sign != "=" || !is_known {
                return None;
            }
            given.push((value, action_of(action)?));
        }
        // The first of two defaults counts: it leaves nothing for the second to set.
        let default =
            given.iter().find(|(value, _)| *value == "default").map_or(Action::Bad, |(_, action)| *action);
        let action = |value: &str| {
            given.iter().rev().find(|(known, _)| *known == value).map_or(default, |(_, action)| *action)
        };
        let mut failures: Vec<Action> = Vec::new();
        for failure in FAILURES.map(action) {
            if !failures.contains(&failure) {
                failures.push(failure);
            }
        }
        Some(Self {
            success: action("success"),
            new_authtok_reqd: action("new_authtok_reqd"),
            ignore: action("ignore"),
            perm_denied: action("perm_denied"),
            failures,
        })
    }

    /// Returns the actions that may follow a no.
    pub fn failures(&self) -> impl Iterator<Item = Action> + '_ {
        self.failures.iter().copied()
    }

    /// Returns the numbers of modules over which it may jump.
    pub fn jumps(&self) -> impl Iterator<Item = usize> + '_ {
        let all = [self.success, self.new_authtok_reqd, self.ignore].into_iter().chain(self.failures());
        all.filter_map(|action| match action {
            Action::Jump(count) => Some(count),
            _ => None,
        })
    }
}

fn action_of(word: &str) -> Option<Action> {
    Some(match word {
        "ignore" => Action::Ignore,
        "ok" => Action::Ok,
        "done" => Action::Done,
        "bad" => Action::Bad,
        "die" => Action::Die,
        "reset" => Action::Reset,
        number => Action::Jump(number.parse().ok().filter(|count| *count > 0)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_and_its_list_are_the_same() {
        for (word, list) in [
            ("required", "success=ok new_authtok_reqd=ok ignore=ignore default=bad"),
            ("Requisite", "success = ok new_authtok_reqd=ok ignore=ignore default=die"),
            ("optional", "success=ok new_authtok_reqd=ok default=ignore"),
            ("sufficient", "success=done new_authtok_reqd=done default=ignore"),
        ] {
            assert_eq!(Control::parse(word), Control::parse(list), "{word}");
        }
        assert_eq!(Control::parse("success=2 perm_denied=ignore default=die").failures().count(), 2);
    }

    #[test]
    fn a_control_that_libpam_does_not_understand_is_a_no() {
        for word in ["requierd", "success=0", "success", "sucess=ok", "success=okay"] {
            assert_eq!(Control::parse(word), Control::default(), "{word}");
        }
    }
}
