//! Loads the configuration: checks that no other user could have written it, parses it, and finds contradictions.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Config;
use crate::name::LinuxName;
use crate::name::{IAM_SUDO, IAM_USERS};

/// The number of bytes of the file that are read. The rest of a longer file is ignored.
const LENGTH_MAX: u64 = 1024 * 1024;

/// System users that many programs run as. None of them may be `keys.user`, since every program that runs as that user
/// may ask for keys.
const MANY_RUN_AS: &[&str] =
    &["apache", "bin", "daemon", "mail", "nginx", "nobody", "sys", "systemd-network", "www-data"];

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A user other than root and this process's could have written the file.
    #[error("{}: {problem}; run: chown root {} && chmod go-w {}", .path.display(), .path.display(), .path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why it is not trusted.
        problem: &'static str,
    },
    /// The text has a mistake.
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

impl Config {
    /// Reads the configuration, if only root or the user of this process could have written it.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, could have been written by others, or has a mistake.
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

    /// Returns the Linux groups that IAM groups map to. A Linux group that several IAM groups map to is returned several
    /// times.
    pub fn mapped_groups(&self) -> impl Iterator<Item = &LinuxName> {
        self.groups.values().map(|target| &target.group)
    }

    /// Whether an IAM group maps to the Linux group `name`.
    pub fn is_mapped(&self, name: &str) -> bool {
        self.mapped_groups().any(|group| group.as_str() == name)
    }

    /// Parses the text of a configuration. Errors name `path` as its file.
    ///
    /// # Errors
    /// Returns an error ([`ConfigError::Text`]) if the text has a mistake.
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

    /// Returns the message about a value that is forbidden or contradicts another key, and a word by which the text is
    /// searched for the line to report.
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
        // The members of a mapped group come from IAM: a user who is no longer a member would no longer be adopted, and
        // the account would be local again.
        let group = &self.accounts.adopt_group;
        let is_ours = [IAM_USERS, IAM_SUDO].contains(&group.as_str());
        if is_ours || self.is_mapped(group) {
            return Some((
                "adopt_group",
                format!("IAM groups map to {group}, so its members come from IAM; adopt by another group"),
            ));
        }
        let twice = self.shared.keys().find(|name| self.accounts.adopt.contains(name))?;
        Some(("[shared", format!("{twice} is both adopted and shared; choose one")))
    }

    /// Returns a sentence about each setting that is allowed but probably not intended.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(endpoint) = self.aws.endpoint.as_deref().filter(|endpoint| is_plain_and_far(endpoint)) {
            warnings.push(format!(
                "aws.endpoint is {endpoint}: without TLS whoever is on the way can say who may log in; use https"
            ));
        }
        warnings
    }

    /// Returns `keys.also_run`, even if the configuration has a mistake elsewhere: with these commands the operator may
    /// still get in to correct it. Empty if the file is not TOML, or if other users could have written it.
    pub fn rescue_commands(path: &Path) -> Vec<String> {
        let text = Self::trusted_text(path).unwrap_or_default();
        let table: toml::Table = toml::from_str(&text).unwrap_or_default();
        let commands =
            table.get("keys").and_then(|keys| keys.get("also_run")).and_then(toml::Value::as_array);
        let commands = commands.map(Vec::as_slice).unwrap_or_default();
        commands.iter().filter_map(|command| command.as_str().map(str::to_owned)).collect()
    }
}

/// Whether an endpoint uses plain HTTP and is on another host.
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
