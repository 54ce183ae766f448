//! The account that a PAM call is about.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind_or_meant};
use pam_iam_core::client::{ClientError, Line};
use pam_iam_core::config::{Config, ConfigError};
use pam_iam_core::id::Uid;
use pam_iam_core::leftovers::{self, Leftovers};
use pam_iam_core::name::{LinuxName, NameError};
use pam_iam_core::owners::Owners;
use pam_iam_core::resolver::Resolver;
use users::os::unix::UserExt;

/// Why the resolver has no answer about an account.
#[derive(Debug, thiserror::Error)]
pub enum QueryError<'a> {
    /// The configuration cannot be read.
    #[error("{0}")]
    Configuration(&'a ConfigError),
    /// No IAM user can have the name.
    #[error("the name {0}")]
    Name(#[from] NameError),
    /// The resolver did not answer, or answered with an error.
    #[error("{0}")]
    Resolver(#[from] ClientError),
}

/// An account as NSS shows it, with its kind.
pub struct TargetAccount {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: Uid,
    /// The primary group.
    pub gid: u32,
    /// The home directory.
    pub home: PathBuf,
    /// The kind of the account.
    pub account_kind: AccountKind,
    /// The configuration, or the reason that there is none.
    pub config: Result<Config, ConfigError>,
    /// The path of the configuration.
    pub config_path: PathBuf,
    /// The connection to the resolver.
    line: Rc<Line>,
}

impl TargetAccount {
    /// Looks up the account `name` by NSS, as the application does. None if there is no such account or the lookup fails.
    /// The caller refuses the user in both cases. Requests about the account are sent over `line`.
    pub fn look_up(name: String, config: &Path, line: Rc<Line>) -> Option<Self> {
        let user = users::get_user_by_name(&name)?;
        let uid = Uid(user.uid());
        let loaded = Config::load(config);
        let account_kind = account_kind_or_meant(&name, uid, &loaded, config, &Files::default());
        let (gid, home) = (user.primary_group_id(), user.home_dir().to_owned());
        let config_path = config.to_owned();
        Some(Self { name, uid, gid, home, account_kind, config: loaded, config_path, line })
    }

    /// Returns what the user of a managed account would inherit, since this host has set it up for the name.
    /// [`Leftovers::None`] for other accounts.
    pub fn leftovers(&self) -> Leftovers {
        match self.account_kind {
            AccountKind::Managed => {
                let config = self.config.as_ref().ok();
                leftovers::for_user(&self.name, self.uid, &Owners::of_host(), config, Path::new("/"))
            }
            AccountKind::Adopted | AccountKind::Shared | AccountKind::Local => Leftovers::None,
        }
    }

    /// Returns the name and the resolver for a request about the account.
    ///
    /// # Errors
    /// Returns an error if the configuration has a mistake, or no IAM user can have the name.
    pub fn to_ask(&self) -> Result<(LinuxName, Resolver), QueryError<'_>> {
        let config = self.config.as_ref().map_err(QueryError::Configuration)?;
        Ok((LinuxName::new(&self.name)?, self.resolver(config)))
    }

    /// Returns the resolver, reached as `config` says.
    pub fn resolver(&self, config: &Config) -> Resolver {
        Resolver { line: Rc::clone(&self.line), ..Resolver::new(config.resolver.mode, &self.config_path) }
    }
}
