//! sshd's effective settings: the result of its files and its command line for one user.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pam_iam_core::paths;

use super::command::{Failure, run, run_within};
use super::units::is_booted;

/// The drop-in of pam_iam.
pub const DROP_IN: &str = "/etc/ssh/sshd_config.d/10-pam_iam.conf";

/// The key command that sshd has to run.
pub const KEY_COMMAND: &str = "/usr/libexec/pam_iam/iam-authorized-keys";

/// sshd's settings for a login, by `sshd -T` with the options of its unit.
#[derive(Debug)]
pub struct Settings {
    /// The values by names in lower case.
    values: HashMap<String, String>,
    /// The options of sshd's command line, which win over every file.
    pub options: Vec<String>,
}

/// Returns sshd's settings for a login of `user` from this host.
///
/// # Errors
/// Returns an error if sshd refuses its configuration or cannot be run.
pub fn effective(user: &str) -> Result<Settings, Failure> {
    let connection = format!("user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22");
    let options = started_with();
    let words: Vec<&str> =
        ["-T", "-C", &connection].into_iter().chain(options.iter().map(String::as_str)).collect();
    let values = Settings::parse(&sshd(&words)?);
    Ok(Settings { values, options })
}

/// Checks sshd's configuration.
///
/// # Errors
/// Returns an error if sshd refuses it, with what sshd says.
pub fn check() -> Result<(), Failure> {
    sshd(&["-t"]).map(drop)
}

/// Runs sshd to test or print its settings. Before its first start, as in an image that is being built or with socket activation, a host
/// may lack the folder and the host keys that sshd requires. They are then made for this run alone.
fn sshd(arguments: &[&str]) -> Result<String, Failure> {
    let mut folder = None;
    let mut folders_made = 0;
    let mut key = None;
    let done = loop {
        let mut words = arguments.to_vec();
        if let Some(HostKey { path, .. }) = &key {
            words.extend(["-h", path]);
        }
        match run_within(LIMIT, "sshd", &words, &[(paths::LOOK_ONLY, "1")]) {
            // Another call may have made the folder, and remove it before sshd has seen it.
            Err(Failure::Failed(why)) if folders_made < FOLDERS_MAX && why.contains(NO_FOLDER) => {
                folders_made += 1;
                // One that was made before is gone, so it must not be removed once more.
                folder.take().into_iter().for_each(std::mem::forget);
                folder = Some(Folder::make(&why)?);
            }
            Err(Failure::Failed(why)) if key.is_none() && why.contains(NO_KEYS) => {
                key = Some(HostKey::make()?);
            }
            done => break done,
        }
    };
    drop((folder, key));
    done
}

/// How long sshd may take. It asks NSS about the user, a directory may not answer, and a sweep waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// How often the folder is made in one call: others make and remove it meanwhile.
const FOLDERS_MAX: u32 = 5;

/// sshd's message if its folder is missing, up to the path.
const NO_FOLDER: &str = "Missing privilege separation directory: ";

/// sshd's message if it has no host key.
const NO_KEYS: &str = "no hostkeys available";

/// sshd's folder under /run, for one run.
struct Folder(Option<PathBuf>);

impl Folder {
    fn make(why: &str) -> Result<Self, Failure> {
        let path = why
            .split(NO_FOLDER)
            .nth(1)
            .and_then(|rest| rest.split([';', '\r', '\n']).next())
            .unwrap_or_default();
        let path = PathBuf::from(path.trim());
        // A folder elsewhere comes with sshd's package.
        if !path.starts_with("/run") {
            return Err(Failure::Failed(why.to_owned()));
        }
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self(Some(path))),
            // An sshd that has started meanwhile has made it, and needs it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// A host key for one run, in a folder that only root can enter.
struct HostKey {
    folder: PathBuf,
    path: String,
}

impl HostKey {
    fn make() -> Result<Self, Failure> {
        let folder = PathBuf::from(format!("/run/pam_iam-hostkey.{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
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
    fn parse(said: &str) -> HashMap<String, String> {
        let mut all: HashMap<String, String> = HashMap::new();
        for (name, value) in said.lines().filter_map(|line| line.split_once(' ')) {
            // A list has one line for each of its entries.
            let known = all.entry(name.to_owned()).or_default();
            known.push_str(if known.is_empty() { "" } else { " " });
            known.push_str(value);
        }
        all
    }

    /// Returns the value of a setting. Empty if it is not set.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Whether a setting is set at all.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
}

/// Makes sshd read its files again, if it accepts them. Open sessions are processes of their own and go on.
pub fn reload() -> Result<(), Failure> {
    check()?;
    if !is_booted() {
        return Ok(());
    }
    // The unit is `ssh` on Debian and Ubuntu. A socket-activated sshd reads its files at each login anyway.
    let running = ["ssh.service", "sshd.service"]
        .into_iter()
        .find(|unit| run("systemctl", &["is-active", "--quiet", unit]).is_ok());
    running.map_or(Ok(()), |unit| run("systemctl", &["reload", unit]).map(drop))
}

/// The properties of a unit that make its command line.
const PROPERTIES: &str = "--property=ExecStart,Environment,EnvironmentFiles";

/// Returns the options of sshd's command line that set anything, by its unit. They win over every file: on some systems EC2 Instance
/// Connect puts its key command there.
fn started_with() -> Vec<String> {
    let question = ["show", PROPERTIES, "ssh.service", "sshd.service"];
    let said = run_within(LIMIT, "systemctl", &question, &[]).unwrap_or_default();
    // One may be an alias of the other.
    let unit = said.split("\n\n").find(|unit| unit.contains("ExecStart="));
    unit.map(|unit| options_in(unit, &|path| std::fs::read_to_string(path).ok())).unwrap_or_default()
}

/// Returns `-o NAME=VALUE`, `-oNAME=VALUE` and `-f FILE` from the output of `systemctl show` for a unit, with its variables expanded.
/// `file` returns the text of a file.
fn options_in(unit: &str, file: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut variables: HashMap<String, String> = HashMap::new();
    let mut learn = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        for (name, value) in lines.filter_map(|line| line.split_once('=')) {
            variables.insert(name.to_owned(), value.trim_matches(['"', '\'']).to_owned());
        }
    };
    let values = |property: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(property)?.strip_prefix('=')).collect()
    };
    for value in values("Environment") {
        words(value).iter().for_each(|word| learn(word));
    }
    for value in values("EnvironmentFiles") {
        learn(&value.split(" (").next().and_then(file).unwrap_or_default());
    }
    let mut options = Vec::new();
    for value in values("ExecStart") {
        let command = value.split("argv[]=").nth(1).unwrap_or_default();
        let command = command.split(" ; ").next().unwrap_or_default();
        let mut expanded = Vec::new();
        for word in words(command) {
            // `$NAME` is split into words, `${NAME}` is not (systemd.service(5)).
            let whole = word.strip_prefix("${").and_then(|name| name.strip_suffix('}'));
            match (whole, word.strip_prefix('$')) {
                (Some(name), _) => expanded.extend(variables.get(name).cloned()),
                (None, Some(name)) => {
                    expanded.extend(variables.get(name).map(|value| words(value)).unwrap_or_default())
                }
                (None, None) => expanded.push(word),
            }
        }
        options.extend(settings_in(expanded));
    }
    options
}

/// The letters of sshd's options that take a value (sshd(8)).
const WITH_VALUE: &str = "CEbcfghkopu";

/// Returns the options `-o` and `-f` among the words of a command line. systemctl shows no quotes, so all words up to the next option
/// belong to the value: sshd has no other arguments.
fn settings_in(command: Vec<String>) -> Vec<String> {
    let mut options: Vec<(char, Vec<String>)> = Vec::new();
    for word in command.into_iter().skip(1) {
        let Some(letters) = word.strip_prefix('-') else {
            if let Some((_, value)) = options.last_mut() {
                value.push(word);
            }
            continue;
        };
        // Several options may share a dash. The first that takes a value has the rest.
        let (at, letter) = letters
            .char_indices()
            .find(|(_, letter)| WITH_VALUE.contains(*letter))
            .unwrap_or((letters.len(), ' '));
        let rest = letters.get(at + letter.len_utf8()..).unwrap_or_default();
        let value = if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] };
        options.push((letter, value));
    }
    let sets = options.into_iter().filter(|(letter, value)| "of".contains(*letter) && !value.is_empty());
    sets.flat_map(|(letter, value)| [format!("-{letter}"), value.join(" ")]).collect()
}

/// Splits a text at blanks outside quotes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in text.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            None if ['"', '\''].contains(&letter) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// Returns the key command among the options of a command line, if it is another than [`KEY_COMMAND`].
pub fn key_command_in(options: &[String]) -> Option<&str> {
    let option = |word: &str| word.to_ascii_lowercase().contains("authorizedkeyscommand");
    let set =
        options.iter().find(|word| option(word) && !word.to_ascii_lowercase().contains("commanduser"))?;
    (!set.contains(KEY_COMMAND)).then_some(set.as_str())
}

/// Returns the files of sshd's configuration, apart from [`DROP_IN`], that set `name`.
pub fn files_that_set(name: &str) -> Vec<String> {
    files_where(&|text| !values_in(text, name).is_empty())
}

fn files_where(is_wanted: &dyn Fn(&str) -> bool) -> Vec<String> {
    let folder = Path::new(DROP_IN).parent().unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_read = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "conf");
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| is_read(path) && path != Path::new(DROP_IN)).collect();
    paths.sort();
    paths.push("/etc/ssh/sshd_config".into());
    paths.retain(|path| is_wanted(&std::fs::read_to_string(path).unwrap_or_default()));
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// Returns the values that a text of sshd's configuration gives to `name`, also within a `Match`.
pub fn values_in(text: &str, name: &str) -> Vec<String> {
    let value = |line: &str| {
        let (word, rest) = line.trim().split_once([' ', '\t', '='])?;
        word.eq_ignore_ascii_case(name).then(|| rest.trim_matches([' ', '\t', '=', '"']).to_owned())
    };
    text.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_command_line_are_found_in_variables_too() {
        let show = |command: &str, rest: &str| {
            format!(
                "ExecStart={{ path=/usr/sbin/sshd ; argv[]=/usr/sbin/sshd {command} ; ignore_errors=no ; pid=0 }}\n{rest}"
            )
        };
        let file = |path: &str| {
            (path == "/etc/default/ssh").then(|| "# x\nSSHD_OPTS=\"-o UsePAM=no -f /etc/alt\"\n".to_owned())
        };
        let of = |command: &str, rest: &str| options_in(&show(command, rest), &file);
        assert_eq!(
            of("-D $SSHD_OPTS", "EnvironmentFiles=/etc/default/ssh (ignore_errors=yes)"),
            ["-o", "UsePAM=no", "-f", "/etc/alt"]
        );
        assert_eq!(of("-D $SSHD_OPTS", ""), [""; 0]);
        assert_eq!(of("-D -oUsePAM=no", ""), ["-o", "UsePAM=no"]);
        assert_eq!(of("-Do UsePAM=no -Df/etc/alt -p 22", ""), ["-o", "UsePAM=no", "-f", "/etc/alt"]);
        assert_eq!(of("-D $A ${A}", "Environment=A=-d B=2"), [""; 0]);
        let eic = of("-D -o AuthorizedKeysCommand /usr/share/eic %u %f -o AuthorizedKeysCommandUser=eic", "");
        assert_eq!(key_command_in(&eic), Some("AuthorizedKeysCommand /usr/share/eic %u %f"));
    }

    #[test]
    fn lists_of_several_lines_and_values_of_a_file_are_read() {
        assert_eq!(
            Settings::parse("allowusers ubuntu\nallowusers admin\nport 22\n")["allowusers"],
            "ubuntu admin"
        );
        let text = "# UsePAM no\nUsePAM yes\nMatch User x\n\tkbdinteractiveauthentication = yes\n";
        assert_eq!(values_in(text, "UsePAM"), ["yes"]);
        assert_eq!(values_in(text, "KbdInteractiveAuthentication"), ["yes"]);
    }
}
