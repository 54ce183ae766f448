//! The configuration, `/etc/pam_iam/config.toml`.
//!
//! A key that is not known, a value of the wrong kind and a setting that would be dangerous are errors that name the
//! line. Only `access.allow` has no default: a configuration without it allows nobody rather than everybody.
//! `docs/config.example.toml` describes every key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Uid;
use crate::name::{IamName, LinuxName};
use crate::resolver::Mode;

mod load;
mod parse;
mod privileged;
#[cfg(test)]
mod tests;
mod values;

pub use load::ConfigError;
pub use privileged::{PRIVILEGED_GROUPS, groups_of_root};
pub use values::{AbsolutePath, ConfigDuration, HomePattern, Pattern, Percent, TagName, ValueError};

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
    /// IAM groups whose members may neither log in nor use sudo, whatever else allows them.
    #[serde(default, deserialize_with = "parse::denied")]
    pub deny: Vec<IamName>,
}

/// The IAM users whom a rule names.
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
    /// Only groups that match one of these patterns count: a principal who may write tags must not choose who is root.
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
    /// uids that the operator assigns, by the immutable ids of the users: for users whose computed uids meet; to be equal on every
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
    /// The folder whose content is copied into a new home directory.
    pub skel: AbsolutePath,
    /// What to do about a home directory that belongs to another user.
    pub on_mismatch: OnMismatch,
}

impl Default for Home {
    fn default() -> Self {
        Self { skel: AbsolutePath("/etc/skel".into()), on_mismatch: OnMismatch::Refuse }
    }
}

/// What to do about a home directory that belongs to another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// It stays, and the login is refused.
    Refuse,
    /// It is renamed to `NAME.UID`, and the user gets a new one.
    Aside,
}

/// `[keys]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// sshd's `AuthorizedKeysCommandUser`: the user who may ask for keys, beside root.
    pub user: String,
    /// Further key commands.
    #[serde(deserialize_with = "parse::commands")]
    pub also_run: Vec<String>,
    /// The accounts for which they are run.
    pub also_run_for: AlsoRunFor,
}

/// The accounts for which further key commands are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlsoRunFor {
    /// The accounts that the host has itself: local, adopted and shared ones.
    Local,
    /// Managed accounts too. A key that IAM does not have then opens them.
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
    /// The address of the IAM API, instead of AWS's own.
    #[serde(deserialize_with = "parse::endpoint")]
    pub endpoint: Option<String>,
    /// The profile of the SDK's configuration files.
    pub profile: Option<String>,
    /// The role to take on before asking.
    #[serde(deserialize_with = "parse::role")]
    pub assume_role: Option<String>,
    /// The external id that the role's trust policy wants.
    pub external_id: Option<String>,
    /// The most time for one connect.
    pub connect_timeout: ConfigDuration,
    /// The most time for one API call.
    pub call_timeout: ConfigDuration,
    /// The most time for one request to the resolver, with all its calls and retries.
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
    /// An older entry is stale: it is revalidated before it decides anything.
    pub max_age: ConfigDuration,
    /// How often the list of allowed users is read again.
    pub roster: ConfigDuration,
    /// How long a stale entry serves logins while IAM cannot be reached.
    pub offline: ConfigDuration,
    /// How long a stale entry serves sudo while IAM cannot be reached.
    pub offline_sudo: ConfigDuration,
    /// Lookups a minute of names that are not on the roster.
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
    /// The time between asking a session to end and killing it.
    pub grace: ConfigDuration,
    /// What to do about a session of a managed account that cannot be registered.
    pub unregistered: Unregistered,
    /// What to do about a session of a managed account by ssh for which sshd names no key.
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

/// What to do about a session that a sweep would not see.
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
    /// What to do with the account of a user who has left.
    pub retire: Retire,
    /// The number of complete rosters in a row in which the user has to be missing.
    pub confirm: u32,
    /// The share of the accounts that one run may retire.
    pub max_retire: Percent,
}

impl Default for Importer {
    fn default() -> Self {
        Self { retire: Retire::Lock, confirm: 2, max_retire: Percent(20) }
    }
}

/// What to do with the account of a user who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retire {
    /// It is locked; everything else stays.
    Lock,
    /// The home directory is archived and the account removed.
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

impl Access {
    /// Returns the groups that are named here, login before sudo.
    pub fn groups(&self) -> impl Iterator<Item = &IamName> {
        [&self.allow, &self.sudo].into_iter().flat_map(Allowed::groups).chain(&self.deny)
    }
}

impl Allowed {
    /// Returns the groups that are named. Which groups an instance tag names is not known here.
    pub fn groups(&self) -> &[IamName] {
        match self {
            Self::Groups(groups) => groups,
            Self::None | Self::All | Self::Tag(_) => &[],
        }
    }
}
