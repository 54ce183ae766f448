//! The application that called PAM (pam(3)): sshd, sudo, cron.

use std::ffi::CStr;
use std::rc::Rc;

use pam_iam_core::audit::Event;
use pam_iam_core::client::Line;
use pam_iam_core::id::{Gid, Uid};

/// The calls of this module to the application. Tests have a fake.
pub trait Application {
    /// Returns `PAM_USER`, if set.
    fn user(&mut self) -> Option<String>;
    /// Returns `PAM_RUSER`: with sudo, the user who invoked it. Empty if not set.
    fn requesting_user(&self) -> String;
    /// Returns `PAM_SERVICE`. Empty if not set.
    fn service(&self) -> String;
    /// Returns `PAM_RHOST`. Empty if not set.
    fn remote_host(&self) -> String;
    /// Returns a variable of PAM's environment.
    fn environment(&mut self, name: &CStr) -> Option<String>;
    /// Returns the real uid of the calling process: with sudo, that of the user who invoked it.
    fn process_uid(&self) -> Uid;
    /// Returns the gids of the calling process.
    fn process_gids(&self) -> Vec<Gid>;
    /// Returns the gids that initgroups(3) would give `user` with the primary group `gid`.
    fn gids_of(&self, user: &str, gid: u32) -> Vec<Gid>;
    /// Returns the connection to the resolver that this call into the module uses.
    fn line(&self) -> Rc<Line>;
    /// Shows a message to the user.
    fn message(&mut self, message: &str);
    /// Writes an event to the journal or, if that fails, as a line to syslog (authpriv). The resolver gets it too.
    fn audit(&mut self, severity: Severity, event: &Event);
    /// Writes a line to syslog (authpriv).
    fn log(&mut self, severity: Severity, line: &str);
}

/// The severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// An administrator has to act.
    Error,
    /// Something was refused, or went wrong and was handled.
    Warning,
    /// Something worth knowing happened.
    Info,
    /// Only logged with `debug` on the PAM line.
    Debug,
}

/// The outcome of an entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed.
    Success,
    /// Not a managed or adopted account: the module has no opinion.
    Ignore,
    /// Denied.
    Denied,
    /// The resolver has no answer, so denied.
    Unavailable,
    /// There is no such account, so denied.
    UnknownUser,
    /// The session cannot be opened.
    SessionFailed,
    /// A bug, so denied.
    Panic,
}
