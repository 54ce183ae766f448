//! Asking the resolver the way the configuration says: the daemon, a process of one's own, or whichever is there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::{self, AskError};
use crate::deadline::Deadline;
use crate::once::{self, Once};
use crate::paths;
use crate::wire::{Answer, Request};

/// Who answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The daemon on the socket.
    Daemon,
    /// `iam-resolver --once`.
    Once,
    /// The daemon where one listens, else `iam-resolver --once`.
    #[default]
    Auto,
}

/// The ways to the resolver.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Which of them to take.
    pub mode: Mode,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The process.
    pub once: Once,
}

impl Resolver {
    /// The resolver in its usual places. A process that is started reads `config`.
    pub fn new(mode: Mode, config: &Path) -> Self {
        let once = Once { config: config.to_owned(), ..Once::default() };
        Self { mode, socket: paths::SOCKET.into(), once }
    }

    /// Asks, within [`Request::patience`].
    ///
    /// # Errors
    /// Any of [`AskError`]. A daemon that is there and fails is not replaced by a process: whoever can make it fail
    /// could make every login start one.
    pub fn ask(&self, request: &Request) -> Result<Answer, AskError> {
        let deadline = Deadline::after(request.patience());
        match self.mode {
            Mode::Daemon => client::ask(&self.socket, request, deadline),
            Mode::Once => once::ask(&self.once, request, deadline),
            Mode::Auto => match client::ask(&self.socket, request, deadline) {
                Err(AskError::NoListener(_)) => once::ask(&self.once, request, deadline),
                answer => answer,
            },
        }
    }
}
