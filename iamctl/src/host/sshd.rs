//! sshd's effective settings: what its files and its command line come to for one user.

use std::collections::HashMap;

use pam_iam_core::paths;

use super::command::{run, run_with};
use super::units::is_booted;

/// Our drop-in.
pub const DROP_IN: &str = "/etc/ssh/sshd_config.d/10-pam_iam.conf";

/// What sshd is to run.
pub const KEY_COMMAND: &str = "/usr/libexec/pam_iam/iam-authorized-keys";

/// What sshd would do, by `sshd -T`: names in lower case.
#[derive(Debug)]
pub struct Settings(HashMap<String, String>);

/// Asks sshd what it would do for a login of `user` from this host.
///
/// # Errors
/// Returns an error if sshd refuses its configuration or cannot be run.
pub fn effective(user: &str) -> Result<Settings, String> {
    let connection = format!("user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22");
    let said = run_with("sshd", &["-T", "-C", &connection], &[(paths::LOOK_ONLY, "1")])?;
    Ok(Settings::parse(&said))
}

impl Settings {
    fn parse(said: &str) -> Self {
        let pairs = said.lines().filter_map(|line| line.split_once(' '));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Returns the value of a setting; nothing if it is not set.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a setting is set at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Has sshd read its files again, if it would take them. Open sessions are processes of their own and go on.
pub fn reload() -> Result<(), String> {
    run("sshd", &["-t"])?;
    if !is_booted() {
        return Ok(());
    }
    // It is `ssh` on Debian and Ubuntu; socket-activated, it reads its files at each login anyway.
    let running = ["ssh.service", "sshd.service"]
        .into_iter()
        .find(|unit| run("systemctl", &["is-active", "--quiet", unit]).is_ok());
    running.map_or(Ok(()), |unit| run("systemctl", &["reload", unit]).map(drop))
}

/// What sshd's unit says of a key command in the command line of sshd, as EC2 Instance Connect has it on some systems.
pub fn started_with() -> Option<String> {
    let said =
        run("systemctl", &["show", "--property=ExecStart", "--value", "ssh.service", "sshd.service"]).ok()?;
    let command = key_command_in(&said).filter(|command| !command.ends_with("/iam-authorized-keys"))?;
    Some(format!("sshd is started with -o AuthorizedKeysCommand={command}"))
}

/// `-o "AuthorizedKeysCommand /path …"` or `-o AuthorizedKeysCommand=/path`.
fn key_command_in(command_line: &str) -> Option<&str> {
    const OPTION: &str = "AuthorizedKeysCommand";
    let mut words = command_line.split([' ', '=', '"', '\'', '\t', '\n']).filter(|word| !word.is_empty());
    words.find(|word| word.eq_ignore_ascii_case(OPTION))?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_command_in_sshds_command_line_is_found() {
        for (line, command) in [
            (
                "/usr/sbin/sshd -D -o AuthorizedKeysCommand /usr/share/eic %u %f -o AuthorizedKeysCommandUser eic",
                Some("/usr/share/eic"),
            ),
            (
                "argv[]=/usr/sbin/sshd -D -o authorizedkeyscommanduser=x -o \"AuthorizedKeysCommand=/bin/x %u\"",
                Some("/bin/x"),
            ),
            ("/usr/sbin/sshd -D $SSHD_OPTS", None),
        ] {
            assert_eq!(key_command_in(line), command, "{line}");
        }
    }
}
