//! The configuration, `/etc/pam_iam/config.toml`.
//!
//! A key that is not known, a value of the wrong kind and a setting that would be dangerous are errors that name the
//! line. Only `access.allow` has no default: a configuration without it allows nobody rather than everybody.
//! `docs/config.example.toml` describes every key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::Uid;
use crate::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use crate::resolver::Mode;

mod parse;
#[cfg(test)]
mod tests;
mod values;

pub use values::{AbsolutePath, ConfigDuration, HomePattern, Pattern, Percent, TagName};

/// The longest configuration that is read, in bytes.
const LENGTH_MAX: u64 = 1024 * 1024;

/// Groups of a host's devices, to which administrators add IAM users by hand: the configuration has to say that IAM gives
/// them, and yet they claim nobody's name.
const DEVICE_GROUPS: [&str; 6] = ["input", "kvm", "lpadmin", "netdev", "render", "video"];

/// The groups of [`PRIVILEGED_GROUPS`] that mean root: a name that one of them lists is nobody else's.
pub fn groups_of_root() -> Vec<&'static str> {
    PRIVILEGED_GROUPS.iter().copied().filter(|group| !DEVICE_GROUPS.contains(group)).collect()
}

/// Local groups whose members are root in all but name; mapping an IAM group to one needs `allow_privileged`.
/// From Debian's and Red Hat's lists of system groups, and from what is known to give root (docker, lxd).
pub const PRIVILEGED_GROUPS: &[&str] = &[
    "adm",
    "admin",
    "bin",
    "crontab",
    "daemon",
    "disk",
    "docker",
    "google-sudoers",
    "incus",
    "incus-admin",
    "input",
    "kmem",
    "kvm",
    "libvirt",
    "lpadmin",
    "lxd",
    "mail",
    "mem",
    "microk8s",
    "netdev",
    "render",
    "root",
    "shadow",
    "ssh_keys",
    "ssl-cert",
    "staff",
    "sudo",
    "sys",
    "systemd-journal",
    "tape",
    "tty",
    "utmp",
    "video",
    "wheel",
];

/// System users that programs of all kinds run as: whoever runs as `keys.user` may ask for keys.
const MANY_RUN_AS: &[&str] =
    &["apache", "bin", "daemon", "mail", "nginx", "nobody", "sys", "systemd-network", "www-data"];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody other than root could have written it.
    #[error("{}: {problem}; run: chown root {} && chmod go-w {}", .path.display(), .path.display(), .path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why it is not trusted.
        problem: &'static str,
    },
    /// Its text is wrong.
    #[error("{}:{line}: {message}", .path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who may do what.
    pub access: Access,
    /// IAM groups and the Linux groups that they stand for.
    #[serde(default)]
    pub groups: BTreeMap<IamName, GroupTarget>,
    /// What accounts look like, and which local ones are adopted.
    #[serde(default)]
    pub accounts: Accounts,
    /// Local accounts that the members of IAM groups share.
    #[serde(default)]
    pub shared: BTreeMap<LinuxName, Shared>,
    /// How home directories are made.
    #[serde(default)]
    pub home: Home,
    /// Who may ask for keys, and further sources of keys.
    #[serde(default)]
    pub keys: Keys,
    /// How IAM is reached.
    #[serde(default)]
    pub aws: Aws,
    /// How old answers may be.
    #[serde(default)]
    pub freshness: Freshness,
    /// What ends an open session.
    #[serde(default)]
    pub sessions: Sessions,
    /// How the importer retires accounts.
    #[serde(default)]
    pub importer: Importer,
    /// How the resolver is reached.
    #[serde(default)]
    pub resolver: Resolver,
}

/// `[access]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Who may log in.
    #[serde(deserialize_with = "parse::allow")]
    pub allow: Allowed,
    /// Who may use sudo.
    #[serde(default = "parse::nobody", deserialize_with = "parse::sudo")]
    pub sudo: Allowed,
    /// IAM groups whose members may do nothing, whatever else lets them.
    #[serde(default, deserialize_with = "parse::denied")]
    pub deny: Vec<IamName>,
}

/// Whom a policy names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// Nobody.
    None,
    /// Every IAM user.
    All,
    /// The members of the IAM groups that a tag of this EC2 instance names.
    #[serde(untagged)]
    Tag(TagRule),
    /// The members of these IAM groups.
    #[serde(untagged)]
    Groups(Vec<IamName>),
}

/// `{ tag = "ssh-groups", within = ["prod-*"] }`: IAM groups that a tag of this EC2 instance names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagRule {
    /// The tag, whose value is a list of groups with commas between them.
    pub tag: TagName,
    /// Only groups that match one of these patterns count: who may write tags must not choose who is root.
    #[serde(deserialize_with = "parse::patterns")]
    pub within: Vec<Pattern>,
}

/// The Linux group that an IAM group stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupTarget {
    /// Its name.
    pub group: LinuxName,
    /// Whether it may be one of [`PRIVILEGED_GROUPS`].
    pub allow_privileged: bool,
}

/// `[accounts]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    /// The home directory, with `{name}` for the Linux name.
    pub home: HomePattern,
    /// The shell.
    pub shell: AbsolutePath,
    /// Endings of IAM names that are dropped for the Linux name.
    pub drop_suffix: Vec<String>,
    /// Local accounts that IAM users of the same name may use.
    pub adopt: Vec<LinuxName>,
    /// The local group whose members are adopted too; none if empty.
    pub adopt_group: String,
    /// uids that the operator assigns, by the immutable ids of the users: for users whose computed uids meet. The same on every
    /// host.
    #[serde(deserialize_with = "parse::assigned_uids")]
    pub uids: BTreeMap<String, Uid>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            home: HomePattern("/home/{name}".to_owned()),
            shell: AbsolutePath("/bin/bash".into()),
            drop_suffix: Vec::new(),
            adopt: Vec::new(),
            adopt_group: String::new(),
            uids: BTreeMap::new(),
        }
    }
}

/// `[shared.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// The IAM groups whose members log in to the account with their own keys.
    #[serde(deserialize_with = "parse::groups")]
    pub groups: Vec<IamName>,
}

/// `[home]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Home {
    /// What a new home directory is filled with.
    pub skel: AbsolutePath,
    /// What becomes of a home directory that belongs to somebody else.
    pub on_mismatch: OnMismatch,
}

impl Default for Home {
    fn default() -> Self {
        Self { skel: AbsolutePath("/etc/skel".into()), on_mismatch: OnMismatch::Refuse }
    }
}

/// What becomes of a home directory that belongs to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// It stays, and the user goes without.
    Refuse,
    /// It is renamed to `NAME.UID`, and the user gets a new one.
    Aside,
}

/// `[keys]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// sshd's `AuthorizedKeysCommandUser`: who beside root may ask for keys.
    pub user: String,
    /// Further key commands.
    #[serde(deserialize_with = "parse::commands")]
    pub also_run: Vec<String>,
    /// For which accounts they are run.
    pub also_run_for: AlsoRunFor,
}

/// For which accounts further key commands are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlsoRunFor {
    /// Those that this host has itself: local, adopted and shared ones.
    Local,
    /// Those of IAM users too. A key that IAM does not have then opens them.
    All,
}

impl Keys {
    /// Whether keys that IAM does not have may open the account of an IAM user.
    pub fn others_open_managed_accounts(&self) -> bool {
        !self.also_run.is_empty() && self.also_run_for == AlsoRunFor::All
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self { user: "pam-iam".to_owned(), also_run: Vec::new(), also_run_for: AlsoRunFor::Local }
    }
}

/// `[aws]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aws {
    /// The region; the SDK's own chain if none.
    #[serde(deserialize_with = "parse::region")]
    pub region: Option<String>,
    /// Where the IAM API is, instead of AWS's own address.
    #[serde(deserialize_with = "parse::endpoint")]
    pub endpoint: Option<String>,
    /// The profile of the SDK's configuration files.
    pub profile: Option<String>,
    /// The role to take on before asking.
    #[serde(deserialize_with = "parse::role")]
    pub assume_role: Option<String>,
    /// The external id that the role's trust policy wants.
    pub external_id: Option<String>,
    /// Limit of one connect.
    pub connect_timeout: ConfigDuration,
    /// Limit of one API call.
    pub call_timeout: ConfigDuration,
    /// Limit of one question, with all its calls and retries.
    #[serde(deserialize_with = "parse::total_timeout")]
    pub total_timeout: ConfigDuration,
}

impl Default for Aws {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            profile: None,
            assume_role: None,
            external_id: None,
            connect_timeout: ConfigDuration::seconds(1),
            call_timeout: ConfigDuration::seconds(2),
            total_timeout: ConfigDuration::seconds(3),
        }
    }
}

/// `[freshness]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Freshness {
    /// Older answers are checked with IAM before they are used.
    pub max_age: ConfigDuration,
    /// How often the list of allowed users is read again.
    pub roster: ConfigDuration,
    /// How long a last answer serves logins while IAM cannot be reached.
    pub offline: ConfigDuration,
    /// The same for sudo.
    pub offline_sudo: ConfigDuration,
    /// IAM look-ups a minute of names that are not on the roster.
    pub unknown_per_minute: u32,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            max_age: ConfigDuration::seconds(10),
            roster: ConfigDuration::seconds(5 * 60),
            offline: ConfigDuration::seconds(12 * 3600),
            offline_sudo: ConfigDuration::seconds(3600),
            unknown_per_minute: 30,
        }
    }
}

/// `[sessions]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// What the sweep looks at.
    pub sweep: Sweep,
    /// Between asking a session to end and killing it.
    pub grace: ConfigDuration,
    /// What becomes of a managed user's session that cannot be registered.
    pub unregistered: Unregistered,
    /// What becomes of a managed user's ssh session of which sshd names no key.
    pub without_key: Unregistered,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            sweep: Sweep::Key,
            grace: ConfigDuration::seconds(10),
            unregistered: Unregistered::Refuse,
            without_key: Unregistered::Refuse,
        }
    }
}

/// What becomes of a session that cannot be registered, and that a sweep would not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unregistered {
    /// It is refused.
    Refuse,
    /// It is allowed, with an error in the log.
    Allow,
}

/// What ends an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sweep {
    /// The user or the key was withdrawn.
    Key,
    /// The user was withdrawn.
    Login,
    /// Nothing.
    Off,
}

/// `[importer]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Importer {
    /// What becomes of the account of a user who left.
    pub retire: Retire,
    /// In how many complete rosters in a row the user has to be missing.
    pub confirm: u32,
    /// The share of the accounts that one run may retire.
    pub max_retire: Percent,
}

impl Default for Importer {
    fn default() -> Self {
        Self { retire: Retire::Lock, confirm: 2, max_retire: Percent(20) }
    }
}

/// What becomes of the account of a user who left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retire {
    /// Nobody can log in to it; all else stays.
    Lock,
    /// The home directory is packed away and the account removed.
    Archive,
    /// The account and its home directory are removed.
    Delete,
}

/// `[resolver]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resolver {
    /// Who answers.
    pub mode: Mode,
}

impl Config {
    /// Reads the configuration, if nobody but root (or who runs this) can have written it.
    ///
    /// # Errors
    /// Any of [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::trusted_text(path)?, path)
    }

    fn trusted_text(path: &Path) -> Result<String, ConfigError> {
        let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let untrusted = |problem| Err(ConfigError::Untrusted { path: path.to_owned(), problem });
        if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
            return untrusted("does not belong to root");
        }
        if metadata.mode() & 0o022 != 0 {
            return untrusted("can be written by others than its owner");
        }
        let mut text = String::new();
        file.take(LENGTH_MAX).read_to_string(&mut text).map_err(unreadable)?;
        Ok(text)
    }

    /// Parses the text of a configuration; `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Text`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |start: usize, message: &str| {
            let before = text.get(..start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigError::Text { path: path.to_owned(), line, message: message.replace('\n', " ") }
        };
        let config: Self = toml::from_str(text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message()))?;
        match config.contradiction() {
            Some((word, message)) => Err(wrong(text.find(word).unwrap_or_default(), &message)),
            None => Ok(config),
        }
    }

    /// What cannot be seen in one place alone, and a word of the text near it.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        if MANY_RUN_AS.contains(&self.keys.user.as_str()) {
            let user = &self.keys.user;
            return Some((
                "user",
                format!("other programs run as {user}, and each of them could ask for keys; use pam-iam"),
            ));
        }
        if self.shared.keys().any(|name| name.as_str() == "root") {
            return Some(("[shared", "root is shared with nobody".to_owned()));
        }
        // To leave the mapped group would end the adoption, and so leave the account to itself.
        let group = &self.accounts.adopt_group;
        let is_ours = [IAM_USERS, IAM_SUDO].contains(&group.as_str());
        if is_ours || self.groups.values().any(|target| target.group.as_str() == group) {
            return Some((
                "adopt_group",
                format!("IAM groups map to {group}, so its members come from IAM; adopt by another group"),
            ));
        }
        let twice = self.shared.keys().find(|name| self.accounts.adopt.contains(name))?;
        Some(("[shared", format!("{twice} is both adopted and shared; choose one")))
    }

    /// What is allowed and probably not meant, each in one sentence.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(endpoint) = self.aws.endpoint.as_deref().filter(|endpoint| is_plain_and_far(endpoint)) {
            warnings.push(format!(
                "aws.endpoint is {endpoint}: without TLS whoever is on the way can say who may log in; use https"
            ));
        }
        warnings
    }

    /// `keys.also_run` of a configuration that has a mistake elsewhere: those commands may be how the operator gets in
    /// to mend it. Nothing, if the file is not even TOML or not to be trusted.
    pub fn rescue_commands(path: &Path) -> Vec<String> {
        let text = Self::trusted_text(path).unwrap_or_default();
        let table: toml::Table = toml::from_str(&text).unwrap_or_default();
        let commands =
            table.get("keys").and_then(|keys| keys.get("also_run")).and_then(toml::Value::as_array);
        let commands = commands.map(Vec::as_slice).unwrap_or_default();
        commands.iter().filter_map(|command| command.as_str().map(str::to_owned)).collect()
    }
}

/// Whether an endpoint is asked without TLS and is not on this machine.
fn is_plain_and_far(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.strip_prefix('[').map_or_else(
        || host.split(':').next().unwrap_or_default(),
        |address| address.split(']').next().unwrap_or_default(),
    );
    let is_here = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    !is_here && host != "localhost"
}

impl Access {
    /// The groups that are named here, login before sudo.
    pub fn groups(&self) -> impl Iterator<Item = &IamName> {
        [&self.allow, &self.sudo].into_iter().flat_map(Allowed::groups).chain(&self.deny)
    }
}

impl Allowed {
    /// The groups that are named, if any. Those of a tag are not known here.
    pub fn groups(&self) -> &[IamName] {
        match self {
            Self::Groups(groups) => groups,
            Self::None | Self::All | Self::Tag(_) => &[],
        }
    }
}
