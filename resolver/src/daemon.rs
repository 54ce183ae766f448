//! `iam-resolver serve`: the daemon's life from the socket to SIGTERM.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::Config;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::paths;
use pam_iam_core::wire::{Answer, Failure};
use sd_notify::NotifyState;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::answer::Answerer;
use crate::lookup::Directory;
use crate::persist::CacheWriter;
use crate::publish::Publisher;
use crate::server::{self, Listener};
use crate::source::Iam;
use crate::source::iam::AwsIam;
use crate::watch::{Watch, readable};

/// The mode of the socket: every user may connect, and the server reads the client's credentials.
const SOCKET_MODE: u32 = 0o666;

/// The most time that the last write of the cache, after SIGTERM, may take.
const LAST_SAVE_MAX: Duration = Duration::from_secs(2);

/// The most time that the last events of the audit trail, after SIGTERM, may take.
const LAST_EVENTS_MAX: Duration = Duration::from_secs(1);

/// How often a configuration that has an error is read again.
const MENDED_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is checked whether the map has to be written although nothing was reported to have changed.
const MAP_INTERVAL: Duration = Duration::from_secs(10);

/// The same if the folders of the host's own names cannot be watched.
const MAP_INTERVAL_UNWATCHED: Duration = Duration::from_secs(1);

/// The folder of passwd(5), group(5) and nsswitch.conf(5).
const ETC: &str = "/etc";

/// The pause after a failed read of the roster.
const ROSTER_RETRY: Duration = Duration::from_secs(30);

/// Each pause between two reads of the roster varies at random by up to this share, so that hosts of a fleet that were
/// started together do not call IAM together.
const JITTER: f64 = 0.1;

/// Serves until SIGTERM or SIGINT, with the cache in the folder `cache`. If the configuration has an error, refuses every
/// request instead, until the error is corrected.
pub fn main(config_path: &Path, socket: &Path, cache: &Path) -> ExitCode {
    let mut log = log();
    let config = crate::configuration(config_path, &mut log);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&mut log, "starting", &error),
    };
    let outcome = LocalSet::new().block_on(&runtime, async {
        let (listener, bound) = listen(socket)?;
        spawn_local(tell_watchdog());
        let Some(config) = config else {
            let _ = sd_notify::notify(&[
                NotifyState::Ready,
                NotifyState::Status("the configuration has an error"),
            ]);
            return refuse_all(listener, config_path).await;
        };
        let iam = AwsIam::new(&config.aws).await;
        if let Some(why) = iam.route().proxy_error {
            self::log().write(Level::Error, format!("{why}; IAM is asked without a proxy"));
        }
        let directory = Directory::new(iam, config, self::log());
        let (stop, stopped) = oneshot::channel::<()>();
        let writer = CacheWriter::new(Rc::clone(&directory), cache, self::log());
        let writing = spawn_local(writer.run(async { drop(stopped.await) }));
        let map = Publisher::beside(socket, self::log());
        let answerer = Rc::new(Answerer::new(Rc::clone(&directory)).with_map(map));
        // Before the first answer, the map is that of this resolver's cache and configuration.
        directory.changes.mark_all();
        answerer.publish();
        spawn_local(keep_map(Rc::clone(&directory), Rc::clone(&answerer)));
        spawn_local(keep_roster(directory, Rc::clone(&answerer)));
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        tokio::select! {
            () = server::serve(listener, Rc::clone(&answerer)) => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        drop(stop);
        // A disk that hangs must not delay the start of the next resolver.
        let _ = timeout(LAST_SAVE_MAX, writing).await;
        answerer.finish_trail(LAST_EVENTS_MAX);
        if bound {
            // The next resolver makes its own socket. Until then, connect(2) fails at once.
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    });
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&mut log, &socket.display().to_string(), &error),
    }
}

/// Returns the log: standard error, which is the journal under systemd.
fn log() -> Log {
    Log::to_stderr()
}

fn failed(log: &mut Log, what: &str, error: &io::Error) -> ExitCode {
    log.write(Level::Error, format!("{what}: {error}"));
    ExitCode::FAILURE
}

/// Returns the socket that systemd passes and false, or a new socket at `path` and true. This process has to remove a
/// socket that it has made.
fn listen(path: &Path) -> io::Result<(AsyncFd<OwnedFd>, bool)> {
    let (listener, ours) = match sd_notify::listen_fds()?.next() {
        Some(fd) => (UnixListener::from(passed(fd)), false),
        None => {
            remove_stale(path)?;
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
            (listener, true)
        }
    };
    listener.set_nonblocking(true)?;
    Ok((readable(listener.into())?, ours))
}

#[expect(unsafe_code, reason = "there is no safe way from a passed number to a descriptor")]
fn passed(fd: RawFd) -> OwnedFd {
    // SAFETY: systemd passed the descriptor to this process (sd_listen_fds(3)), and only `listen` takes it, once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Removes a socket at `path` on which no process listens: the resolver that made it was killed.
///
/// # Errors
/// Returns an error if a resolver listens on the socket, if `path` is no socket, or if the socket cannot be removed.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no socket"))
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another resolver listens there"))
        }
        Ok(_) => std::fs::remove_file(path),
    }
}

/// Answers every client that the configuration has an error, so that no client waits for a timeout. Returns once the
/// error is corrected: systemd then starts the next resolver.
async fn refuse_all(listener: AsyncFd<OwnedFd>, config: &Path) -> io::Result<()> {
    let message = format!("{0} has an error; run: {1} check-config {0}", config.display(), paths::RESOLVER);
    let frame = server::encode(&Answer::Error { kind: Failure::Configuration, message })?;
    let listener = Listener::new(&listener);
    loop {
        let mended = timeout(MENDED_INTERVAL, server::refuse(&listener, &frame)).await.is_err();
        if mended && Config::load(config).is_ok() {
            return Ok(());
        }
    }
}

/// Notifies systemd's watchdog, if the unit has one, as long as the one thread of this program is not blocked.
async fn tell_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::time::sleep(limit / 3).await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

/// Reads the roster every `freshness.roster`, and [`ROSTER_RETRY`] after a failed read.
async fn keep_roster<I: Iam>(directory: Rc<Directory<I>>, answerer: Rc<Answerer<I>>) {
    loop {
        let pause = match directory.read_roster().await {
            Ok(roster) => {
                answerer.log_ineligible(&roster);
                directory.config.freshness.roster.0
            }
            Err(_) => ROSTER_RETRY,
        };
        tokio::time::sleep(pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * random())).await;
    }
}

/// Keeps the map up to date when something changes without a request: a revalidation ends, the roster was read, or the host's own
/// names change.
async fn keep_map<I: Iam>(directory: Rc<Directory<I>>, answerer: Rc<Answerer<I>>) {
    // Two watches: a folder of units that may not be watched takes nothing from the other one.
    let local = watch([PathBuf::from(ETC)].into_iter().chain(answerer.map_folder()));
    let claiming = watch(answerer.claiming_folders());
    let interval = if local.is_some() && claiming.is_some() { MAP_INTERVAL } else { MAP_INTERVAL_UNWATCHED };
    loop {
        tokio::select! {
            () = directory.changes.marked() => {}
            () = change_in(local.as_ref()) => {}
            () = change_in(claiming.as_ref()) => {}
            () = tokio::time::sleep(answerer.map_pause().unwrap_or(interval).min(interval)) => {}
        }
        answerer.refresh();
        answerer.publish();
        answerer.publish_ages();
    }
}

/// Watches `folders`, or logs why that is not possible.
fn watch(folders: impl Iterator<Item = PathBuf>) -> Option<Watch> {
    let watch = Watch::on(folders);
    let watch = watch.inspect_err(|error| {
        log().write(
            Level::Warning,
            format!("the folders of this host's own names cannot be watched, so they are read every second: {error}"),
        );
    });
    watch.ok()
}

/// Waits for a change in a watched folder; for ever if there is no watch.
async fn change_in(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Returns a random number from 0 to 1.
fn random() -> f64 {
    let mut byte = [0];
    match rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(_) => f64::from(byte[0]) / f64::from(u8::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_abandoned_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolver.sock");
        remove_stale(&path).unwrap();
        let living = UnixListener::bind(&path).unwrap();
        assert_eq!(remove_stale(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(remove_stale(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }
}
