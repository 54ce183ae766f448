//! The kind of an account: managed, adopted, shared or local. It follows from the configuration, passwd(5) and group(5)
//! alone.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};
use crate::id::Uid;
use crate::local;
use crate::paths;
pub use crate::wire::AccountKind;

/// The files with the local accounts and groups.
#[derive(Clone, Debug)]
pub struct Files {
    /// The passwd(5) file.
    pub passwd: PathBuf,
    /// The group(5) file.
    pub group: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { passwd: paths::PASSWD.into(), group: paths::GROUP.into() }
    }
}

/// Returns the kind of the account `name` with `uid`. Only an account that passwd(5) lists with this uid is adopted or shared.
///
/// # Errors
/// Returns an error if passwd(5) or group(5) cannot be read and the configuration could adopt or share the account. A
/// caller that only asks the resolver then treats the account as adopted; a caller that would grant something grants
/// nothing.
pub fn account_kind(name: &str, uid: Uid, config: &Config, files: &Files) -> io::Result<AccountKind> {
    if uid == Uid::ROOT {
        return Ok(AccountKind::Local);
    }
    if uid.is_managed() {
        return Ok(AccountKind::Managed);
    }
    let accounts = &config.accounts;
    let shared = config.shared.keys().any(|shared| shared.as_str() == name);
    let listed = accounts.adopt.iter().any(|adopted| adopted.as_str() == name);
    if !shared && !listed && accounts.adopt_group.is_empty() {
        return Ok(AccountKind::Local);
    }
    let account = local::account_by_name(&files.passwd, name)?;
    let Some(account) = account.filter(|account| account.uid == uid) else { return Ok(AccountKind::Local) };
    if shared {
        return Ok(AccountKind::Shared);
    }
    let group = || local::group_by_name(&files.group, &accounts.adopt_group);
    let adopted = listed || group()?.is_some_and(|group| group.has(&account));
    Ok(if adopted { AccountKind::Adopted } else { AccountKind::Local })
}

/// Returns the kind of the account `name` with `uid`, even if the configuration cannot be used. `config` is the result
/// of loading `config_path`. An account whose kind cannot be determined counts as adopted, so that the resolver is
/// asked, and refuses.
pub fn account_kind_or_meant(
    name: &str,
    uid: Uid,
    config: &Result<Config, ConfigError>,
    config_path: &Path,
    files: &Files,
) -> AccountKind {
    match config {
        // uid 0 belongs to the host, whatever the configuration says.
        _ if uid == Uid::ROOT => AccountKind::Local,
        Ok(config) => account_kind(name, uid, config, files).unwrap_or(AccountKind::Adopted),
        Err(_) if uid.is_managed() => AccountKind::Managed,
        Err(_) => {
            let text = std::fs::read(config_path).unwrap_or_default();
            match could_be_adopted(name, uid, &String::from_utf8_lossy(&text), files) {
                true => AccountKind::Adopted,
                false => AccountKind::Local,
            }
        }
    }
}

/// Whether a configuration that cannot be used might adopt an account. Such an account counts as adopted, so that its
/// logins are refused. Every other local account stays local, so that a mistake keeps no administrator out.
///
/// Only `accounts.adopt`, `accounts.adopt_group` and `[shared]` count. They are read from the table if `broken_config`
/// is TOML, otherwise from the text that follows these keys.
pub fn could_be_adopted(name: &str, uid: Uid, broken_config: &str, files: &Files) -> bool {
    if uid == Uid::ROOT || uid.is_managed() {
        return false;
    }
    let meant = match toml::from_str::<toml::Table>(broken_config) {
        Ok(table) => Meant::from_table(&table),
        Err(_) => Meant::from_text(broken_config),
    };
    if meant.shared.iter().any(|shared| shared == name) {
        return false;
    }
    let listed = meant.adopt.iter().any(|adopted| adopted == name);
    if !listed && meant.adopt_groups.is_empty() {
        return false;
    }
    // As with a valid configuration, only an account that passwd(5) has with this uid is adopted.
    let account = local::account_by_name(&files.passwd, name).ok().flatten();
    let Some(account) = account.filter(|account| account.uid == uid) else { return false };
    listed
        || local::groups(&files.group)
            .unwrap_or_default()
            .iter()
            .any(|group| meant.adopt_groups.contains(&group.name) && group.has(&account))
}

/// The local accounts that a configuration with a mistake names as adopted or shared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Meant {
    adopt: Vec<String>,
    adopt_groups: Vec<String>,
    shared: Vec<String>,
}

impl Meant {
    fn from_table(table: &toml::Table) -> Self {
        let accounts = table.get("accounts");
        let strings = |key: &str| match accounts.and_then(|accounts| accounts.get(key)) {
            Some(toml::Value::String(word)) => vec![word.clone()],
            Some(toml::Value::Array(words)) => {
                words.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let shared = table.get("shared").and_then(toml::Value::as_table);
        Self {
            adopt: strings("adopt"),
            adopt_groups: strings("adopt_group"),
            shared: shared.map(|shared| shared.keys().cloned().collect()).unwrap_or_default(),
        }
    }

    /// Reads a text that is not TOML, line by line. The words between a key and the next key or section are its values.
    fn from_text(text: &str) -> Self {
        let (mut meant, mut key, mut is_closed) = (Self::default(), Key::Other, false);
        for line in text.split(['\n', '\r']).map(str::trim) {
            let line = line.split('#').next().unwrap_or_default();
            let mut values = line;
            if let Some(section) = line.strip_prefix('[').filter(|_| !line.contains('=')) {
                // A line inside an array may begin with a bracket too, but not with a bare word after it.
                let path = section.split(']').next().unwrap_or_default();
                if path.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    let name =
                        path.trim().strip_prefix("shared").and_then(|rest| rest.trim().strip_prefix('.'));
                    meant.shared.extend(name.and_then(|name| words(name).next()));
                    key = Key::Other;
                    continue;
                }
            }
            // After the end of a value, the line is a remark, another key or a broken header. Only a list may go on with
            // a further word.
            let goes_on = matches!(key, Key::Adopt) && line.starts_with(['"', '\'']);
            if is_closed && !line.is_empty() && !goes_on {
                key = Key::Other;
            }
            // An inline table has several keys in one line.
            while let Some((before, after)) = values.split_once('=') {
                let before = before.trim_end();
                let separates = |c: char| c == ',' || c == '{' || c.is_whitespace();
                let last = before.rsplit(separates).next().unwrap_or_default();
                meant.take(&key, before.strip_suffix(last).unwrap_or_default());
                key = Key::of(last);
                values = after;
                is_closed = !values.trim().is_empty() && !values.contains('[');
            }
            meant.take(&key, values);
            is_closed |= values.contains(']');
        }
        meant
    }

    fn take(&mut self, key: &Key, values: &str) {
        match key {
            Key::Adopt => self.adopt.extend(words(values)),
            Key::AdoptGroup => self.adopt_groups.extend(words(values)),
            Key::Other => {}
        }
    }
}

/// The key that a value belongs to.
enum Key {
    Adopt,
    AdoptGroup,
    Other,
}

impl Key {
    /// Returns the key in the last part of `word`, which may be dotted and quoted.
    fn of(word: &str) -> Self {
        match word.rsplit('.').next().unwrap_or_default().trim_matches(['"', '\'', ' ']) {
            "adopt" => Self::Adopt,
            "adopt_group" => Self::AdoptGroup,
            _ => Self::Other,
        }
    }
}

/// Returns the names in a piece of text, without the quotes and brackets around them.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id;

    fn config(text: &str) -> Config {
        Config::parse(&format!("[access]\nallow = 'all'\n{text}"), "config.toml".as_ref()).unwrap()
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { passwd: dir.path().join("passwd"), group: dir.path().join("group") };
        let line = |name: &str, uid: u32, gid: u32| format!("{name}:x:{uid}:{gid}::/home/{name}:/bin/sh\n");
        let accounts = [("root", 0, 0), ("bob", 1001, 1001), ("ann", 1002, 1002), ("dave", 1003, 2000)];
        let accounts = accounts.map(|(name, uid, gid)| line(name, uid, gid)).concat();
        std::fs::write(&files.passwd, accounts + &line("ec2-user", 1000, 1000)).unwrap();
        std::fs::write(&files.group, "synced:x:2000:ann,root\n").unwrap();
        (dir, files)
    }

    #[test]
    fn an_account_is_managed_by_its_uid_alone() {
        let none = config("");
        let nowhere = Files { passwd: "/nonexistent".into(), group: "/nonexistent".into() };
        assert_eq!(account_kind("x", Uid(id::FIRST), &none, &nowhere).unwrap(), AccountKind::Managed);
        assert_eq!(account_kind("ec2-user", Uid(1000), &none, &nowhere).unwrap(), AccountKind::Local);
    }

    #[test]
    fn accounts_are_adopted_by_name_or_group_and_root_never() {
        let (_dir, files) = files();
        let listed = config("[accounts]\nadopt = ['bob', 'root', 'ghost']");
        assert_eq!(account_kind("bob", Uid(1001), &listed, &files).unwrap(), AccountKind::Adopted);
        assert_eq!(
            account_kind("bob", Uid(1009), &listed, &files).unwrap(),
            AccountKind::Local,
            "another bob"
        );
        assert_eq!(
            account_kind("ghost", Uid(1005), &listed, &files).unwrap(),
            AccountKind::Local,
            "not in passwd(5)"
        );
        assert_eq!(account_kind("root", Uid(0), &listed, &files).unwrap(), AccountKind::Local);
        let grouped = config("[accounts]\nadopt_group = 'synced'");
        assert_eq!(account_kind("ann", Uid(1002), &grouped, &files).unwrap(), AccountKind::Adopted);
        assert_eq!(
            account_kind("dave", Uid(1003), &grouped, &files).unwrap(),
            AccountKind::Adopted,
            "by the primary group"
        );
        assert_eq!(account_kind("bob", Uid(1001), &grouped, &files).unwrap(), AccountKind::Local);
        assert_eq!(account_kind("root", Uid(0), &grouped, &files).unwrap(), AccountKind::Local);
        let blind = Files { group: "/nonexistent".into(), ..files };
        assert!(account_kind("bob", Uid(1001), &grouped, &blind).is_err(), "nobody can tell");
        assert_eq!(account_kind("root", Uid(0), &grouped, &blind).unwrap(), AccountKind::Local);
    }

    #[test]
    fn an_account_is_shared_by_name_before_it_is_adopted_by_group() {
        let (_dir, files) = files();
        let shared = config("[accounts]\nadopt_group = 'synced'\n[shared.ann]\ngroups = ['ops']");
        assert_eq!(account_kind("ann", Uid(1002), &shared, &files).unwrap(), AccountKind::Shared);
        assert_eq!(
            account_kind("ann", Uid(1009), &shared, &files).unwrap(),
            AccountKind::Local,
            "another ann"
        );
        assert_eq!(account_kind("ann", Uid(id::FIRST), &shared, &files).unwrap(), AccountKind::Managed);
        assert_eq!(account_kind("dave", Uid(1003), &shared, &files).unwrap(), AccountKind::Adopted);
    }

    #[test]
    fn a_broken_configuration_frees_no_account_that_it_adopts() {
        let (_dir, files) = files();
        let broken = "# ec2-user stays local\n[accounts\nadopt = [\"bob\"]\nadopt_group = 'synced'";
        for (name, uid) in [("bob", 1001), ("ann", 1002), ("dave", 1003)] {
            assert!(could_be_adopted(name, Uid(uid), broken, &files), "{name}");
        }
        for text in [
            "adopt = [bob]",
            "adopt = ['bob]",
            "adopt = [\n  'ann', # of the old script\n  'bob',\n",
            "accounts.adopt = ['bob'",
            "accounts = { adopt_group = '', adopt = ['bob' }",
            "accounts = { adopt = ['bob'], shell = '/bin/bash }",
            "accounts = { adopt = ['bob'] , home\t= '/home }",
            "adopt = ['ann'],\n  'bob']",
            "adopt = [\n  'ann'\n  bob",
            "adopt =\n  ['bob']",
            "[accounts]\radopt = ['bob'\rshell = '/bin/sh'",
            "[access]\nalow = 1\n[accounts]\nadopt = 'bob'",
            "[access]\nallow = []\n[accounts]\nadopt = ['bob', 7]",
        ] {
            assert!(could_be_adopted("bob", Uid(1001), text, &files), "{text}");
        }
        assert!(!could_be_adopted("bob", Uid(1009), broken, &files), "another bob");
        assert!(!could_be_adopted("ec2-user", Uid(1000), broken, &files));
        assert!(!could_be_adopted("root", Uid(0), "adopt = ['root']", &files));
        let shared = "alow = 1\n[shared.\"bob\"]\ngroups = [\"bob\"]";
        assert!(!could_be_adopted("bob", Uid(1001), shared, &files), "shared, whatever else is wrong");
    }

    #[test]
    fn a_broken_configuration_takes_no_account_that_it_only_mentions() {
        let (_dir, files) = files();
        for text in [
            "[access]\nallow = ['bob']\nsudo = ['synced'\n",
            "[groups]\nbob = { group = 'synced', allow_privileged = true\n",
            "[keys]\nalso_run = ['/opt/bob/bin/keys']\n[aws\n",
            "[access]\nallow = ['ssh-users\\u0041']\nbob\n",
            "[accounts]\nadopt = []\nhome = '/home/bob\n",
            "[accounts]\nadopt = []\nadopt_group = ''\n[shared.deploy]\ngroups = ['bob', 'synced'\n",
            "[accounts]\nadopt = ['eve']\nkeep bob, ann and dave local",
            "[accounts]\nadopt = [\n  'eve'\n]\nkeep bob local\n",
            "[accounts]\nadopt = 'eve'\nshell '/bin/bob'\nbob and ann = local",
            "[accounts]\nadpot = ['bob']\nadoptgroup = 'synced'",
            "[accounts]\nadopt_group = 'none'\n[[synced]\n",
            "[accounts]\nadopt_group = 'none'\n\"[synced]\n",
            "[accounts]\nadopt = ['eve']\n[[bob]\n",
            "",
        ] {
            for (name, uid) in [("bob", 1001), ("ann", 1002), ("dave", 1003)] {
                assert!(!could_be_adopted(name, Uid(uid), text, &files), "{name}: {text}");
            }
        }
    }
}
