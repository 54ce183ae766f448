//! Why the host cannot be changed so that IAM users log in, or was changed back.

use std::time::Duration;

use pam_iam_core::nsswitch::NSSWITCH;
use pam_iam_core::paths;

use crate::host::FileError;
use crate::host::access::CannotRead;
use crate::host::command::Failure;
use crate::host::pam;
use crate::host::pam_stack::{MODULE, Phase};

/// Why `iamctl enable` or `iamctl disable` changed nothing, or changed everything back.
#[derive(Debug, thiserror::Error)]
pub enum EnableError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program of the host failed.
    #[error(transparent)]
    Program(#[from] Failure),
    /// A user of pam_iam cannot read the configuration.
    #[error(transparent)]
    CannotRead(#[from] CannotRead),
    /// Another call changes the host.
    #[error("another iamctl enable or disable is at work: run it again when that has ended")]
    Busy,
    /// A trial lasts for this time yet.
    #[error(
        "a trial goes on for {} s: iamctl enable --confirm keeps what it changed, iamctl disable takes it back now",
        .0.as_secs()
    )]
    TrialGoesOn(Duration),
    /// `--try` was given, and pam_iam is enabled.
    #[error("it is enabled already, by iamctl or by hand; --try is for the first time")]
    EnabledAlready,
    /// `--try` was given, and no systemd runs.
    #[error("--try needs systemd, which would take the changes back: without it, run iamctl enable")]
    NoSystemd,
    /// `--confirm` was given, and no trial goes on.
    #[error("no trial goes on; one whose time is over was taken back: iamctl doctor says what is in force")]
    NoTrial,
    /// `--confirm` was given before an IAM user logged in.
    #[error(
        "no IAM user has logged in since: log in as one by ssh, keep that session open, and confirm again"
    )]
    NobodyLoggedIn,
    /// sshd refuses its configuration as it is.
    #[error("sshd's configuration has an error already: {0}")]
    SshdBroken(Failure),
    /// sshd does not use PAM.
    #[error(
        "sshd has UsePAM no: with the UsePAM yes that IAM users need, PAM may let others in whom sshd refuses now, by a \
         password or into a locked account; set UsePAM yes yourself if that is what you want, and run it again"
    )]
    UsePamNo,
    /// sshd does not print its settings.
    #[error("sshd -T does not answer")]
    SshdSilent,
    /// sshd does not ask the key command, since another setting won.
    #[error("{0}")]
    NotInForce(String),
    /// A file that has to be there is missing.
    #[error("{path} is missing{advice}")]
    Missing {
        /// The file.
        path: String,
        /// What to do.
        advice: &'static str,
    },
    /// A database of nsswitch.conf ends a lookup before the local files.
    #[error(
        "the line {0}: of {NSSWITCH} ends a lookup before it comes to the local files: put files first, and run it again"
    )]
    LookupEnds(&'static str),
    /// A stack has no entry of a phase.
    #[error(
        "{path} has no entry of the phase {phase:?}, so PAM takes those of the service other; write them down there first"
    )]
    NoEntry {
        /// The stack.
        path: String,
        /// The phase.
        phase: Phase,
    },
    /// PAM would not ask the module, or not heed it.
    #[error(
        "{folder}/{service}: {MODULE} cannot be put in force in the phase {phase:?}: {why}; mend that entry first",
        folder = pam::FOLDER
    )]
    CannotBeInForce {
        /// The PAM service.
        service: &'static str,
        /// The phase.
        phase: Phase,
        /// Which entry is in the way.
        why: String,
    },
    /// A stack that names the module cannot be changed.
    #[error("{0}; take the line of {MODULE} out by hand")]
    TakeOutByHand(FileError),
    /// The record of the changes is damaged.
    #[error("{path}: {0}; remove it, and disable takes out our lines wherever they are", path = paths::ENABLED)]
    Record(serde_json::Error),
    /// A change failed, and all was taken back.
    #[error("{0}; everything is as it was")]
    TakenBack(Box<EnableError>),
    /// A change failed, and so did taking it back.
    #[error("{why}; and not everything could be taken back: {other}")]
    NotTakenBack {
        /// Why the change failed.
        why: Box<EnableError>,
        /// Why it could not be taken back.
        other: Box<EnableError>,
    },
}
