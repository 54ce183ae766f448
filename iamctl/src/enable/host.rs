//! What enabling asks of the host's programs: systemd, sshd and visudo.

use std::path::Path;
use std::process::{Command, Stdio};

use pam_iam_core::paths;

use super::SSHD_DROP_IN;

/// Starts the units and has each boot start them; of an image that is being made, only the latter.
pub fn start(units: &[&str]) -> Result<(), String> {
    if is_booted() {
        run("systemctl", &["daemon-reload"])?;
    }
    switch("enable", units)
}

/// The reverse of [`start`].
pub fn stop(units: &[&str]) -> Result<(), String> {
    switch("disable", units)
}

fn switch(verb: &str, units: &[&str]) -> Result<(), String> {
    let words: &[&str] = match is_booted() {
        true => &[verb, "--now", "--quiet"],
        false if !crate::is_installed("/usr/bin/systemctl") => return Ok(()),
        false => &[verb, "--quiet"],
    };
    run("systemctl", &[words, units].concat()).map(drop)
}

fn is_booted() -> bool {
    Path::new(paths::BOOTED_BY_SYSTEMD).exists()
}

/// Has sshd read its files again, if it would take them. Open sessions are processes of their own and go on.
pub fn reload_sshd() -> Result<(), String> {
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

/// The first value counts in sshd's files, so another's may have won.
pub fn sshd_asks_us() -> Result<(), String> {
    if let Some(command) = started_with() {
        return Err(format!("{command}, which wins over every file: see iamctl doctor"));
    }
    let effective = run("sshd", &["-T", "-C", "user=root,host=localhost,addr=127.0.0.1"])?;
    let asks =
        |line: &str| line.starts_with("authorizedkeyscommand ") && line.contains("iam-authorized-keys");
    if effective.lines().any(asks) {
        return Ok(());
    }
    Err(format!(
        "sshd does not take AuthorizedKeysCommand from {SSHD_DROP_IN}: its sshd_config includes that folder late or not at all, or an earlier file sets another"
    ))
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

/// What a program prints.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
    let done = command.args(arguments).env("PATH", path).stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().replace('\n', "; ");
    Err(format!("{program} {}: {said}", arguments.join(" ")))
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
