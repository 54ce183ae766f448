//! The configuration, `/etc/pam_iam/config.toml`.
//!
//! A key that is not known, a value of the wrong kind and a dangerous setting are errors that name the line. Only
//! `access.allow` has no default: a configuration without it is an error, and nobody may log in.
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
    /// The rules for logging in and for sudo.
    pub access: Access,
    /// The Linux groups that IAM groups map to, by IAM group.
    #[serde(default)]
    pub groups: BTreeMap<IamName, GroupTarget>,
    /// The properties of accounts, and the local accounts that are adopted.
    #[serde(default)]
    pub accounts: Accounts,
    /// The shared accounts, by Linux name.
    #[serde(default)]
    pub shared: BTreeMap<LinuxName, Shared>,
    /// The settings for new home directories.
    #[serde(default)]
    pub home: Home,
    /// The user who may ask for keys, and further sources of keys.
    #[serde(default)]
    pub keys: Keys,
    /// The connection to IAM.
    #[serde(default)]
    pub aws: Aws,
    /// The ages up to which answers are used.
    #[serde(default)]
    pub freshness: Freshness,
    /// The rules by which open sessions are ended.
    #[serde(default)]
    pub sessions: Sessions,
    /// The rules by which the importer retires accounts.
    #[serde(default)]
    pub importer: Importer,
    /// The way in which clients reach the resolver.
    #[serde(default)]
    pub resolver: Resolver,
}

/// The section `[access]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The users who may log in.
    #[serde(deserialize_with = "parse::allow")]
    pub allow: Allowed,
    /// The users who may use sudo. They must also be allowed to log in.
    #[serde(default = "parse::nobody", deserialize_with = "parse::sudo")]
    pub sudo: Allowed,
    /// IAM groups whose members may neither log in nor use sudo, even if another rule allows them.
    #[serde(default, deserialize_with = "parse::denied")]
    pub deny: Vec<IamName>,
}

/// The IAM users whom a rule allows.
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
    /// The key of the tag. Its value is a list of IAM groups, separated by commas.
    pub tag: TagName,
    /// The patterns of the groups that may count. Without them, a principal who may write tags could allow any IAM group.
    #[serde(deserialize_with = "parse::patterns")]
    pub within: Vec<Pattern>,
}

/// The Linux group that an IAM group maps to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupTarget {
    /// The name of the Linux group.
    pub group: LinuxName,
    /// Whether the Linux group may be one of [`PRIVILEGED_GROUPS`].
    pub allow_privileged: bool,
}

/// The section `[accounts]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    /// The home directory, with `{name}` for the Linux name.
    pub home: HomePattern,
    /// The login shell.
    pub shell: AbsolutePath,
    /// The endings of IAM names that are dropped for the Linux name.
    pub drop_suffix: Vec<String>,
    /// The local accounts that are adopted: the IAM users of the same names may use them.
    pub adopt: Vec<LinuxName>,
    /// The local group whose members are adopted too. Empty for no group.
    pub adopt_group: String,
    /// The uids that the operator assigns, by the immutable ids of the users: for users whose computed uids collide. The
    /// assignments must be equal on all hosts.
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

/// The section `[shared.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// The IAM groups whose members log in to the account with their own keys.
    #[serde(deserialize_with = "parse::groups")]
    pub groups: Vec<IamName>,
}

/// The section `[home]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Home {
    /// The folder whose content is copied into a new home directory.
    pub skel: AbsolutePath,
    /// The action if the home directory belongs to another user.
    pub on_mismatch: OnMismatch,
}

impl Default for Home {
    fn default() -> Self {
        Self { skel: AbsolutePath("/etc/skel".into()), on_mismatch: OnMismatch::Refuse }
    }
}

/// The action if the home directory belongs to another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// The login is refused, and the directory stays.
    Refuse,
    /// The directory is renamed to `NAME.UID`, and the user gets a new one.
    Aside,
}

/// The section `[keys]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// sshd's `AuthorizedKeysCommandUser`: the user who may ask for keys, beside root.
    pub user: String,
    /// The command lines of further key commands.
    #[serde(deserialize_with = "parse::commands")]
    pub also_run: Vec<String>,
    /// The accounts for which the further key commands are run.
    pub also_run_for: AlsoRunFor,
}

/// The accounts for which further key commands are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlsoRunFor {
    /// Local, adopted and shared accounts.
    Local,
    /// All accounts: a key that IAM does not have can then open a managed account.
    All,
}

impl Keys {
    /// Whether keys that IAM does not have may open managed accounts.
    pub fn others_open_managed_accounts(&self) -> bool {
        !self.also_run.is_empty() && self.also_run_for == AlsoRunFor::All
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self { user: "pam-iam".to_owned(), also_run: Vec::new(), also_run_for: AlsoRunFor::Local }
    }
}

/// The section `[aws]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aws {
    /// The region. If None, the SDK determines it.
    #[serde(deserialize_with = "parse::region")]
    pub region: Option<String>,
    /// The address of the IAM API. If None, the address of AWS.
    #[serde(deserialize_with = "parse::endpoint")]
    pub endpoint: Option<String>,
    /// The profile in the SDK's configuration files.
    pub profile: Option<String>,
    /// The ARN of the role that the resolver assumes before it calls IAM.
    #[serde(deserialize_with = "parse::role")]
    pub assume_role: Option<String>,
    /// The external id that the role's trust policy requires.
    pub external_id: Option<String>,
    /// The longest time for making one connection.
    pub connect_timeout: ConfigDuration,
    /// The longest time for one API call.
    pub call_timeout: ConfigDuration,
    /// The longest time for one request to the resolver, with all its calls and retries.
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

/// The section `[freshness]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Freshness {
    /// The age above which an entry is stale: it is revalidated before it decides anything.
    pub max_age: ConfigDuration,
    /// The interval at which the roster is read again.
    pub roster: ConfigDuration,
    /// The age up to which a stale entry is used for logins while IAM cannot be reached.
    pub offline: ConfigDuration,
    /// The age up to which a stale entry is used for sudo while IAM cannot be reached.
    pub offline_sudo: ConfigDuration,
    /// The number of lookups per minute of names that are not on the roster.
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

/// The section `[sessions]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// The reasons for which the sweep ends an open session.
    pub sweep: Sweep,
    /// The time between asking a session to end and killing it.
    pub grace: ConfigDuration,
    /// The action if a session of a managed account cannot be registered.
    pub unregistered: Unregistered,
    /// The action if sshd names no key for an ssh session of a managed account.
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

/// The action for a session that the sweep could not judge, since it is not registered or has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unregistered {
    /// The session is refused.
    Refuse,
    /// The session is allowed. If it cannot be registered, an error is logged.
    Allow,
}

/// The reasons for which the sweep ends an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sweep {
    /// The user or the key was withdrawn.
    Key,
    /// The user was withdrawn.
    Login,
    /// None: the sweep ends no session.
    Off,
}

/// The section `[importer]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Importer {
    /// The action for the account of a user who has left.
    pub retire: Retire,
    /// The number of complete rosters in a row that must lack the user before the account is retired.
    pub confirm: u32,
    /// The largest share of the accounts that one run may retire.
    pub max_retire: Percent,
}

impl Default for Importer {
    fn default() -> Self {
        Self { retire: Retire::Lock, confirm: 2, max_retire: Percent(20) }
    }
}

/// The action for the account of a user who has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retire {
    /// The account is locked, and otherwise left as it is.
    Lock,
    /// The home directory is archived and the account removed.
    Archive,
    /// The account and its home directory are removed.
    Delete,
}

/// The section `[resolver]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resolver {
    /// The resolver that clients use: the daemon, a process for each request, or whichever is there.
    pub mode: Mode,
}

impl Access {
    /// Returns the IAM groups that `allow`, `sudo` and `deny` list, in this order. Groups that an instance tag names are
    /// not known here.
    pub fn groups(&self) -> impl Iterator<Item = &IamName> {
        [&self.allow, &self.sudo].into_iter().flat_map(Allowed::groups).chain(&self.deny)
    }
}

impl Allowed {
    /// Returns the IAM groups that the rule lists. Groups that an instance tag names are not known here.
    pub fn groups(&self) -> &[IamName] {
        match self {
            Self::Groups(groups) => groups,
            Self::None | Self::All | Self::Tag(_) => &[],
        }
    }
}
