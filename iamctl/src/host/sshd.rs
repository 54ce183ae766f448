//! sshd's effective settings: what its files and its command line come to for one user.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use pam_iam_core::paths;

use super::command::{Failure, run, run_within};
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
pub fn effective(user: &str) -> Result<Settings, Failure> {
    let connection = format!("user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22");
    Ok(Settings::parse(&sshd(&["-T", "-C", &connection])?))
}

/// Checks sshd's configuration.
///
/// # Errors
/// Returns an error if sshd refuses it, with what sshd says.
pub fn check() -> Result<(), String> {
    sshd(&["-t"]).map(drop).map_err(|failure| failure.to_string())
}

/// Runs sshd to test or print its settings. Before its first start, as in an image that is being made or with socket
/// activation, a host may lack the folder and the keys that sshd insists on: then it gets them for this run alone.
fn sshd(arguments: &[&str]) -> Result<String, Failure> {
    let mut folder = None;
    let mut key = None;
    let done = loop {
        let mut words = arguments.to_vec();
        if let Some(HostKey { path, .. }) = &key {
            words.extend(["-h", path]);
        }
        match run_within(LIMIT, "sshd", &words, &[(paths::LOOK_ONLY, "1")]) {
            Err(Failure::Failed(why)) if folder.is_none() && why.contains(NO_FOLDER) => {
                folder = Some(Folder::make(&why).map_err(Failure::Failed)?);
            }
            Err(Failure::Failed(why)) if key.is_none() && why.contains(NO_KEYS) => {
                key = Some(HostKey::make().map_err(Failure::Failed)?);
            }
            done => break done,
        }
    };
    drop((folder, key));
    done
}

/// How long sshd may take. It asks NSS about the user, and a directory may not answer; a sweep waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// What sshd says without its folder, before its path.
const NO_FOLDER: &str = "Missing privilege separation directory: ";

/// What sshd says without a host key.
const NO_KEYS: &str = "no hostkeys available";

/// sshd's folder under /run, for one run.
struct Folder(PathBuf);

impl Folder {
    fn make(why: &str) -> Result<Self, String> {
        let path = why
            .split(NO_FOLDER)
            .nth(1)
            .and_then(|rest| rest.split([';', '\r', '\n']).next())
            .unwrap_or_default();
        let path = PathBuf::from(path.trim());
        // Elsewhere its package brings it.
        if !path.starts_with("/run") {
            return Err(why.to_owned());
        }
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A host key for one run, in a folder that is root's alone.
struct HostKey {
    folder: PathBuf,
    path: String,
}

impl HostKey {
    fn make() -> Result<Self, String> {
        let folder = PathBuf::from(format!("/run/pam_iam-hostkey.{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let path = folder.join("key").display().to_string();
        let key = Self { folder, path };
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key.path])?;
        Ok(key)
    }
}

impl Drop for HostKey {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
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
    check()?;
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
    let question = ["show", "--property=ExecStart", "--value", "ssh.service", "sshd.service"];
    let said = run_within(LIMIT, "systemctl", &question, &[]).ok()?;
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
