//! The arguments after the module's name on the PAM line.

use std::path::PathBuf;

use pam_iam_core::escape::Value;
use pam_iam_core::paths;
use pam_iam_core::wire::Policy;

/// The arguments of the PAM line.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// `config=FILE`: the configuration, instead of /etc/pam_iam/config.toml.
    pub config: PathBuf,
    /// `policy=login` (default) or `policy=sudo`: the policy of the account phase.
    pub policy: Policy,
    /// `debug`: more lines in the log.
    pub debug: bool,
    /// `sshd`: sshd uses this stack, although PAM's service has another name. Not needed in the stack `sshd`.
    pub is_sshd: bool,
}

impl Arguments {
    /// Parses the arguments. Returns also a complaint about each unknown one, which is ignored. But an unknown `policy`
    /// counts as `sudo`, the stricter policy: a typo must not let anybody use sudo.
    pub fn parse<S: AsRef<str>>(words: impl Iterator<Item = S>) -> (Self, Vec<String>) {
        let mut arguments =
            Self { config: paths::CONFIG.into(), policy: Policy::Login, debug: false, is_sshd: false };
        let mut complaints = Vec::new();
        for word in words {
            match word.as_ref().split_once('=').unwrap_or((word.as_ref(), "")) {
                ("config", path) if path.starts_with('/') => arguments.config = path.into(),
                ("policy", "login") => arguments.policy = Policy::Login,
                ("policy", value) => {
                    arguments.policy = Policy::Sudo;
                    if value != "sudo" {
                        complaints.push(format!(
                            "policy={} is neither login nor sudo; taken for sudo",
                            Value(value)
                        ));
                    }
                }
                ("debug", "") => arguments.debug = true,
                ("sshd", "") => arguments.is_sshd = true,
                _ => complaints.push(format!("unknown argument {}", Value(word.as_ref()))),
            }
        }
        (arguments, complaints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Arguments, Vec<String>) {
        Arguments::parse(line.split_whitespace())
    }

    #[test]
    fn the_defaults_are_login_and_the_usual_file() {
        let (arguments, complaints) = parse("");
        assert_eq!(arguments.policy, Policy::Login);
        assert_eq!(arguments.config, PathBuf::from(paths::CONFIG));
        assert!(!arguments.debug && complaints.is_empty());
    }

    #[test]
    fn all_arguments_are_understood() {
        let (arguments, complaints) = parse("config=/tmp/c.toml policy=sudo debug sshd");
        let config = "/tmp/c.toml".into();
        assert_eq!(arguments, Arguments { config, policy: Policy::Sudo, debug: true, is_sshd: true });
        assert!(complaints.is_empty());
    }

    #[test]
    fn an_unknown_argument_is_reported_and_not_fatal() {
        let (arguments, complaints) = parse("nullok config=relative x=y");
        assert_eq!(arguments.config, PathBuf::from(paths::CONFIG));
        assert_eq!(complaints.len(), 3);
        let (arguments, complaints) = parse("policy=sduo");
        assert_eq!((arguments.policy, complaints.len()), (Policy::Sudo, 1));
    }
}
