//! The application behind PAM, as far as this module wants anything of it.

use std::ffi::CStr;

use pam_iam_core::audit::Event;
use pam_iam_core::id::{Gid, Uid};

/// The application that called.
pub trait Application {
    /// `PAM_USER`, unless there is none.
    fn user(&mut self) -> Option<String>;
    /// `PAM_RUSER`: with sudo, who invoked it. Empty if not set.
    fn requesting_user(&self) -> String;
    /// `PAM_SERVICE`. Empty if not set.
    fn service(&self) -> String;
    /// `PAM_RHOST`. Empty if not set.
    fn remote_host(&self) -> String;
    /// A variable of PAM's environment.
    fn environment(&mut self, name: &CStr) -> Option<String>;
    /// The real uid of the calling process: with sudo, that of who invoked it.
    fn process_uid(&self) -> Uid;
    /// The gids of the calling process.
    fn process_gids(&self) -> Vec<Gid>;
    /// The gids that initgroups(3) would give `user` with the primary group `gid`.
    fn gids_of(&self, user: &str, gid: u32) -> Vec<Gid>;
    /// Tells the user something.
    fn message(&mut self, message: &str);
    /// Writes an event to the journal, or as a line to syslog, authpriv.
    fn audit(&mut self, severity: Severity, event: &Event);
    /// Writes a line to syslog, authpriv.
    fn log(&mut self, severity: Severity, line: &str);
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Somebody has to act.
    Error,
    /// Something was refused or went wrong and was coped with.
    Warning,
    /// Worth knowing.
    Info,
    /// With `debug` on the PAM line only.
    Debug,
}

/// What an entry point returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Yes.
    Success,
    /// Not our account.
    Ignore,
    /// No.
    Denied,
    /// Nobody can tell, so no.
    Unavailable,
    /// There is no such account, so no.
    UnknownUser,
    /// The session lacks something.
    SessionFailed,
    /// A bug, so no.
    Panic,
}
