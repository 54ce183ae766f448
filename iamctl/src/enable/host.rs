//! What enabling asks of the host's programs: systemd, sshd and visudo.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
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

/// Why the resolver's or the key command's user cannot read the configuration, if so: by owners and modes, since nothing is
/// started as another user.
pub fn cannot_read(config: &Config, path: &Path) -> Option<String> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    [paths::RESOLVER_USER, &config.keys.user].into_iter().find_map(|user| {
        let shown = path.display();
        (!can_read(user, &path)?).then(|| {
            format!("{user} cannot read {shown}, as it has to: chmod 644 {shown}, and 755 its folder")
        })
    })
}

/// Whether `user` can read a file, by the owners and modes on the way to it. None if there is no such user. Access control
/// lists are not looked at.
pub fn can_read(user: &str, path: &Path) -> Option<bool> {
    let account = local::account_by_name(Path::new(paths::PASSWD), user).ok()??;
    let groups = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
    let gids: Vec<u32> = groups
        .iter()
        .filter(|group| group.has(&account))
        .map(|group| group.gid.0)
        .chain([account.gid.0])
        .collect();
    let may = |path: &Path, bit: u32| {
        std::fs::metadata(path).is_ok_and(|found| {
            let shift = match (found.uid() == account.uid.0, gids.contains(&found.gid())) {
                (true, _) => 6,
                (false, true) => 3,
                (false, false) => 0,
            };
            account.uid.0 == 0 || found.mode() >> shift & bit != 0
        })
    };
    // Links are followed: what counts is where the file really lies.
    let Ok(path) = std::fs::canonicalize(path) else { return Some(false) };
    Some(path.ancestors().skip(1).all(|folder| may(folder, 0o1)) && may(&path, 0o4))
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
    fn what_a_user_can_read_is_told_by_owners_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        // The user nobody is everywhere, and owns nothing here.
        let dir =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("folder/file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
        };
        for (folder_mode, file_mode, can) in
            [(0o755, 0o644, true), (0o755, 0o640, false), (0o700, 0o644, false), (0o711, 0o604, true)]
        {
            set(&folder, folder_mode);
            set(&file, file_mode);
            assert_eq!(can_read("nobody", &file), Some(can), "{folder_mode:o} {file_mode:o}");
            assert_eq!(can_read("root", &file), Some(true));
        }
        assert_eq!(can_read("nobody", Path::new("/nonexistent")), Some(false));
        assert_eq!(can_read("no-such-user-here", &file), None);
    }

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
