//! What enabling asks of the host's programs: systemd, sshd and visudo.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use pam_iam_core::config::Config;
use pam_iam_core::{local, paths};

use super::plan::SSHD_DROP_IN;

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
pub fn sshd_asks_us(key_user: &str) -> Result<(), String> {
    if let Some(command) = started_with() {
        return Err(format!("{command}, which wins over every file: see iamctl doctor"));
    }
    let effective = run("sshd", &["-T", "-C", "user=root,host=localhost,addr=127.0.0.1"])?;
    let settings: HashMap<&str, &str> = effective.lines().filter_map(|line| line.split_once(' ')).collect();
    let setting = |name: &str| settings.get(name).copied().unwrap_or_default();
    // Without PAM nobody would be asked whether who has a key may log in.
    let name = if !setting("authorizedkeyscommand").contains("iam-authorized-keys") {
        "AuthorizedKeysCommand"
    } else if setting("authorizedkeyscommanduser") != key_user {
        "AuthorizedKeysCommandUser"
    } else if setting("usepam") != "yes" {
        "UsePAM"
    } else {
        return Ok(());
    };
    Err(format!(
        "sshd does not take {name} from {SSHD_DROP_IN}: its sshd_config includes that folder late or not at all, or an earlier file sets another"
    ))
}

/// The resolver and the key command read the configuration as users of their own: what is wrong where one of them cannot.
pub fn cannot_read(config: &Config, path: &Path) -> Option<String> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    [paths::RESOLVER_USER, &config.keys.user].into_iter().find_map(|user| {
        let account = local::account_by_name(Path::new(paths::PASSWD), user).ok()??;
        let mut reader = Command::new("/bin/cat");
        let reader = reader.arg("--").arg(&path).uid(account.uid.0).gid(account.gid.0).current_dir("/");
        let read = reader.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let shown = path.display();
        (!read.is_ok_and(|status| status.success())).then(|| {
            format!("{user} cannot read {shown}, as it has to: chmod 644 {shown}, and 755 its folder")
        })
    })
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
