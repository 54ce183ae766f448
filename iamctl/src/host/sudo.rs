//! sudo's effective rules for one user: the result of all its files, by `sudo -l -U`.

use super::command::{Failure, run};

/// What sudo would do for a user who wants to become root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    pub rule: Rule,
    /// Whether sudo asks the account phase of the PAM services in which pam_iam is (sudoers(5): `pam_acct_mgmt`, `pam_service`,
    /// `pam_login_service`, `pam_askpass_service`).
    pub asks_pam: bool,
}

/// The last rule for all commands as root, which is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// There is none.
    None,
    /// It asks for a password, which IAM users do not have.
    AsksForPassword,
    /// It lets the user become root.
    Lets,
}

/// Returns what sudo lets `user` do.
///
/// # Errors
/// Returns an error if sudo refuses its files or cannot be run.
pub fn effective(user: &str) -> Result<Effective, Failure> {
    Ok(parse(&run("sudo", &["-n", "-l", "-U", user])?))
}

fn parse(listing: &str) -> Effective {
    // Defaults come first, then a line that ends with a colon, then one rule a line.
    let (defaults, rules) = listing.split_once("may run the following commands").unwrap_or((listing, ""));
    let is_otherwise = |word: &str| match word.split_once('=') {
        Some(("pam_service", service)) => service != "sudo",
        Some(("pam_login_service", service)) => !["sudo", "sudo-i"].contains(&service),
        Some(("pam_askpass_service", service)) => service != "sudo",
        _ => word == "!pam_acct_mgmt",
    };
    let asks_pam = !defaults.split([',', ' ', '\n']).any(is_otherwise);
    let mut rules = rules.lines().filter_map(|line| rule(line.trim()));
    Effective { rule: rules.next_back().unwrap_or(Rule::None), asks_pam }
}

/// Parses a line like `(ALL : ALL) NOPASSWD: ALL`. None unless it is about all commands as root.
fn rule(line: &str) -> Option<Rule> {
    let (run_as, commands) = line.strip_prefix('(')?.split_once(')')?;
    let users = run_as.split(':').next().unwrap_or_default();
    let as_root = users.split(',').any(|user| ["ALL", "root"].contains(&user.trim()));
    let mut commands = commands.trim();
    let mut rule = Rule::AsksForPassword;
    // Tags come first.
    while let Some((tag, rest)) =
        commands.split_once(": ").filter(|(tag, _)| tag.chars().all(char::is_uppercase))
    {
        match tag {
            "NOPASSWD" => rule = Rule::Lets,
            "PASSWD" => rule = Rule::AsksForPassword,
            _ => {}
        }
        commands = rest;
    }
    let all = commands.split(',').next().is_some_and(|command| command.trim() == "ALL");
    (as_root && all).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_for_all_commands_as_root_counts() {
        let defaults =
            "Matching Defaults entries for alice on host:\n    env_reset, mail_badpass, use_pty\n\n";
        let head = "User alice may run the following commands on host:\n";
        let listing = |rules: &str| parse(&format!("{defaults}{head}{rules}")).rule;
        assert_eq!(listing("    (ALL : ALL) NOPASSWD: ALL\n"), Rule::Lets);
        assert_eq!(listing("    (ALL : ALL) NOPASSWD: ALL\n    (ALL) ALL\n"), Rule::AsksForPassword);
        assert_eq!(listing("    (ALL) ALL\n    (root) SETENV: NOPASSWD: ALL, !/bin/su\n"), Rule::Lets);
        assert_eq!(listing("    (www-data) NOPASSWD: ALL\n    (root) NOPASSWD: /usr/bin/true\n"), Rule::None);
        assert_eq!(parse("User alice is not allowed to run sudo on host.\n").rule, Rule::None);
        assert!(parse(defaults).asks_pam);
        assert!(parse("    env_reset, pam_service=sudo, pam_login_service=sudo-i\n").asks_pam);
        assert!(!parse("    env_reset, pam_service=corp\n").asks_pam);
        assert!(!parse("    env_reset, pam_askpass_service=other\n").asks_pam);
        assert!(
            !parse("    env_reset, !pam_acct_mgmt, use_pty\nUser alice may run the following commands")
                .asks_pam
        );
    }
}
