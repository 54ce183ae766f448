//! What a command of iamctl ends with: a reply, or the reason that there is none.

use std::io;
use std::time::Duration;

use pam_iam_core::client::ClientError;
use pam_iam_core::config::ConfigError;
use pam_iam_core::fingerprint::NotAFingerprint;
use pam_iam_core::key::KeyError;
use pam_iam_core::name::NameError;

use crate::enabled::error::EnableError;
use crate::host::FileError;
use crate::host::command::Failure;

/// The reply to the question that a command stands for: exit status 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The user may, all is well, everything was done.
    Yes,
    /// The user may not, something is wrong, or something was left undone.
    No,
}

impl From<bool> for Reply {
    fn from(is_yes: bool) -> Self {
        if is_yes { Self::Yes } else { Self::No }
    }
}

/// Why a command has no reply: exit status 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller is not root.
    #[error("must be run as root")]
    NotRoot,
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The resolver did not answer, or answered with an error.
    #[error(transparent)]
    Resolver(#[from] ClientError),
    /// No IAM user can have the name.
    #[error("{name:?} {source}, so no IAM user can have the name")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A file of the host cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program of the host failed.
    #[error(transparent)]
    Program(#[from] Failure),
    /// A result has no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The output cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// The key is neither a fingerprint nor a file with a public key.
    #[error("{path} is no public key in OpenSSH's format: {source}")]
    Key {
        /// The argument.
        path: String,
        /// What is wrong with the file.
        source: KeyError,
    },
    /// The key is a malformed fingerprint.
    #[error("{text} {source}")]
    Fingerprint {
        /// The argument.
        text: String,
        /// What is wrong with it.
        source: NotAFingerprint,
    },
    /// The host cannot be changed, or was changed back.
    #[error(transparent)]
    Enable(#[from] EnableError),
    /// A sweep cannot read the configuration.
    #[error("{0}; the sweep ends nobody until that is mended; to end a user now: iamctl sessions end USER")]
    SweepWithoutConfig(ConfigError),
    /// Another sweep works for longer than the interval between two.
    #[error("another sweep has been at work for {} s, longer than the minute between two sweeps", .0.as_secs())]
    SweepOverrun(Duration),
    /// A sweep that was started cannot be waited for.
    #[error("a sweep cannot be waited for: {0}")]
    SweepLost(io::Error),
    /// `sessions end` was called for a shared account.
    #[error(
        "{0} is a shared account: its sessions end with those of the IAM users who opened them; iamctl sessions names them"
    )]
    SharedAccount(String),
    /// `sessions end` was called for a local account.
    #[error("{0} is a local account: only the processes of IAM users are ended")]
    LocalAccount(String),
    /// `sessions end` was called for a name that nobody here has.
    #[error("there is no user {0:?} here")]
    NoSuchUser(String),
}
