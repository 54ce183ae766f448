//! `iam-resolver --once`: one request from standard input, one answer on standard output.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use pam_iam_core::frame::{self, HEADER, REQUEST_MAX};
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::wire::{Answer, Failure};
use pam_iam_core::{local, paths};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::task::LocalSet;

use crate::answer::Answerer;
use crate::lookup::Directory;
use crate::server;
use crate::source::iam::AwsIam;

/// Answers one request. The exit status is 0 if an answer was written.
///
/// No credentials are checked, since the process gets no rights that the user who starts it does not have. It waits for a
/// request without a limit: the caller has a deadline.
pub fn main(config: &Path) -> ExitCode {
    close_inherited();
    // Leaves the caller's terminal. This fails if the caller has started the process in a session of its own.
    let _ = rustix::process::setsid();
    if let Err(why) = become_resolver() {
        Log::to_syslog("iam-resolver").write(Level::Error, format!("not run as root: {why}"));
        return ExitCode::FAILURE;
    }
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let mut log = Log::to_syslog("iam-resolver");
    let Some(body) = request() else { return ExitCode::FAILURE };
    let answer = match (server::parse(&body), crate::configuration(config, &mut log)) {
        (Err(error), _) => Answer::Error { kind: Failure::BadRequest, message: error.to_string() },
        (_, None) => Answer::Error {
            kind: Failure::Configuration,
            message: format!(
                "{0} has an error; run: {1} check-config {0}",
                config.display(),
                paths::RESOLVER
            ),
        },
        (Ok(envelope), Some(config)) => {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return ExitCode::FAILURE;
            };
            LocalSet::new().block_on(&runtime, async {
                let iam = AwsIam::new(&config.aws).await;
                Answerer::new(Directory::new(iam, config, log)).answer(&envelope.request, Uid::ROOT).await
            })
        }
    };
    let sent = server::encode(&answer).and_then(|frame| io::stdout().write_all(&frame));
    if sent.and_then(|()| io::stdout().flush()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why the process does not run as the resolver's user.
#[derive(Debug, thiserror::Error)]
enum CannotBecomeResolver {
    #[error("{passwd}: {source}", passwd = paths::PASSWD)]
    Passwd { source: io::Error },
    #[error("there is no user {}", paths::RESOLVER_USER)]
    NoUser,
    #[error("the user {} is root", paths::RESOLVER_USER)]
    IsRoot,
    #[error("{0}")]
    System(Errno),
}

/// Becomes the resolver's user if the process runs as root, so that no code that talks to the network does. Otherwise
/// changes nothing.
fn become_resolver() -> Result<(), CannotBecomeResolver> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let account = local::account_by_name(Path::new(paths::PASSWD), paths::RESOLVER_USER);
    let account = account
        .map_err(|source| CannotBecomeResolver::Passwd { source })?
        .ok_or(CannotBecomeResolver::NoUser)?;
    if account.uid == Uid::ROOT || account.gid.0 == 0 {
        return Err(CannotBecomeResolver::IsRoot);
    }
    let (uid, gid) =
        (rustix::process::Uid::from_raw(account.uid.0), rustix::process::Gid::from_raw(account.gid.0));
    let left = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        // The daemon, which has the same user, must not look into this process, and no core dump may have its
        // credentials.
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    left.map_err(CannotBecomeResolver::System)
}

/// Closes descriptors that sshd or sudo had open: logs, pipes, sockets of other users.
#[expect(unsafe_code, reason = "no safe crate has close_range(2)")]
fn close_inherited() {
    // SAFETY: this program has opened no descriptor yet, so it loses none that it uses.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

fn request() -> Option<Vec<u8>> {
    let mut input = io::stdin().lock();
    let mut header = [0; HEADER];
    input.read_exact(&mut header).ok()?;
    let mut body = vec![0; frame::body_length(header, REQUEST_MAX).ok()?];
    input.read_exact(&mut body).ok()?;
    Some(body)
}
