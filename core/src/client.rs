//! The blocking client: a request, its answer, a deadline. A [`Line`] keeps the connection for more than one request.
//!
//! It runs inside sshd, sudo and every program that looks up a user. So it closes its descriptor before it returns (a
//! [`Line`] when it is dropped), never raises SIGPIPE, and bounds connect(2) too, which blocks while a socket's backlog is full.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with,
};

use crate::deadline::Deadline;
use crate::frame::{self, ANSWER_MAX, HEADER, REQUEST_MAX};
use crate::id::Uid;
use crate::wire::{Answer, Envelope, Failure, Request, VERSION};
use crate::{local, paths};

mod line;

pub use line::Line;

/// The size of the first read, in bytes: room for an account, a decision or a few keys, with the header.
const FIRST_READ: usize = 8 * 1024;

/// The pause before a request is sent again after the connection was cut. Each further pause is twice as long.
const BROKEN_OFF_PAUSE: Duration = Duration::from_millis(10);

/// Why there is no answer. No caller takes any of these for permission.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no resolver listens on {}", .0.display())]
    NoListener(PathBuf),
    /// A user other than root and the resolver's listens on the socket.
    #[error("{} belongs to uid {owner}, not to root or {}", .path.display(), paths::RESOLVER_USER)]
    Impostor {
        /// The socket.
        path: PathBuf,
        /// The user whose process listens.
        owner: Uid,
    },
    /// The resolver did not answer in time.
    #[error("the resolver did not answer in time")]
    TimedOut,
    /// The connection was cut, or another I/O error occurred.
    #[error("talking to the resolver: {0}")]
    Io(io::Error),
    /// The bytes received are not a valid answer.
    #[error("the resolver's answer makes no sense: {0}")]
    Malformed(String),
    /// The resolver answered with an error.
    #[error("{message}")]
    Failed {
        /// The kind of failure.
        kind: Failure,
        /// The message, for the log.
        message: String,
    },
    /// The answer is not of the type that belongs to the request.
    #[error("the resolver answered another question")]
    OtherAnswer,
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut { Self::TimedOut } else { Self::Io(error) }
    }
}

impl From<Errno> for ClientError {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Sends `request` to the resolver that listens on `socket`, and returns its answer.
///
/// # Errors
/// Returns an error if nothing listens, an untrusted user listens, or no valid answer comes in time.
pub fn ask(socket: &Path, request: &Request, deadline: Deadline) -> Result<Answer, ClientError> {
    ask_on_behalf(socket, request, Behalf::default(), deadline)
}

/// The user or client on whose behalf a program sends a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behalf {
    /// The address of the client that this sshd process serves.
    pub client: Option<IpAddr>,
    /// The uid whose limits the request counts against. None for the real uid of this process.
    pub caller: Option<Uid>,
}

/// Sends `request` to the resolver that listens on `socket`, on behalf of another user or a client of sshd, and returns
/// its answer.
///
/// # Errors
/// Returns an error if nothing listens, an untrusted user listens, or no valid answer comes in time.
pub fn ask_on_behalf(
    socket: &Path,
    request: &Request,
    behalf: Behalf,
    deadline: Deadline,
) -> Result<Answer, ClientError> {
    persistently(request.retries(rustix::process::geteuid().is_root()), deadline, || {
        let connection = open(socket, deadline)?;
        check_owner(&connection, socket)?;
        exchange(connection.as_fd(), request, behalf, deadline)
    })
}

/// Sends `request` without waiting for the answer, which the resolver then cannot deliver. Never blocks.
///
/// # Errors
/// Returns an error if nothing listens, an untrusted user listens, or the resolver cannot take another request at once.
pub fn notify(socket: &Path, request: &Request, behalf: Behalf) -> Result<(), ClientError> {
    let address = SocketAddrUnix::new(socket)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&connection, &address).map_err(|errno| not_connected(errno, socket))?;
    check_owner(&connection, socket)?;
    let frame = encode(request, behalf, Following::Nothing)?;
    match send(&connection, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) if sent == frame.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(ClientError::TimedOut),
        Err(errno) => Err(errno.into()),
    }
}

/// Calls `ask` again if the connection was cut, up to `retries` times. systemd restarts a resolver that was killed,
/// behind the same socket. The number is bounded, so that a request which crashes the resolver cannot crash it in a
/// loop.
fn persistently<T>(
    retries: u32,
    deadline: Deadline,
    mut ask: impl FnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut broken_off = 0;
    loop {
        match ask() {
            Err(ClientError::Io(error)) if broken_off < retries && is_broken_off(&error) => {
                let pause = BROKEN_OFF_PAUSE * 2_u32.pow(broken_off);
                std::thread::sleep(pause.min(deadline.left()?));
                broken_off += 1;
            }
            outcome => return outcome,
        }
    }
}

fn is_broken_off(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Sends a request over `connection` and receives its answer.
///
/// # Errors
/// Returns an error if the exchange fails, does not end in time, or brings no valid answer.
pub fn exchange(
    connection: BorrowedFd<'_>,
    request: &Request,
    behalf: Behalf,
    deadline: Deadline,
) -> Result<Answer, ClientError> {
    exchange_one(connection, request, behalf, Following::Nothing, deadline)
}

/// Whether another request may follow over the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Following {
    Nothing,
    Maybe,
}

fn exchange_one(
    connection: BorrowedFd<'_>,
    request: &Request,
    behalf: Behalf,
    following: Following,
    deadline: Deadline,
) -> Result<Answer, ClientError> {
    send_all(connection, &encode(request, behalf, following)?, deadline)?;
    let body = receive(connection, deadline)?;
    serde_json::from_slice(&body).map_err(|error| ClientError::Malformed(error.to_string()))
}

/// Returns a request as a frame.
fn encode(request: &Request, behalf: Behalf, following: Following) -> Result<Vec<u8>, ClientError> {
    let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
    let caller = behalf.caller.or_else(|| (real != effective).then(|| Uid(real.as_raw())));
    let more = following == Following::Maybe;
    let envelope = Envelope { v: VERSION, caller, client: behalf.client, more, request: request.clone() };
    let body = serde_json::to_vec(&envelope).map_err(|error| ClientError::Malformed(error.to_string()))?;
    frame::encode(&body, REQUEST_MAX).map_err(|error| ClientError::Malformed(error.to_string()))
}

/// Returns the error that a failed connect(2) stands for.
fn not_connected(errno: Errno, path: &Path) -> ClientError {
    match errno {
        Errno::NOENT | Errno::CONNREFUSED => ClientError::NoListener(path.to_owned()),
        // The backlog of the socket is full, or stayed full until the timeout.
        Errno::AGAIN => ClientError::TimedOut,
        errno => errno.into(),
    }
}

fn open(path: &Path, deadline: Deadline) -> Result<OwnedFd, ClientError> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(deadline.left()?))?;
    connect(&socket, &address).map_err(|errno| not_connected(errno, path))?;
    Ok(socket)
}

/// Returns an error unless the socket was made by root, as systemd does, or by the resolver's user.
fn check_owner(socket: &OwnedFd, path: &Path) -> Result<(), ClientError> {
    /// The uid of the resolver's user. It does not change while a process runs. A failed lookup is repeated.
    static RESOLVER: OnceCell<Uid> = OnceCell::new();

    let owner = Uid(socket_peercred(socket)?.uid.as_raw());
    let look_up = || local::account_by_name(Path::new(paths::PASSWD), paths::RESOLVER_USER).ok().flatten();
    let resolver = || RESOLVER.get_or_try_init(|| look_up().map(|account| account.uid).ok_or(())).ok();
    if owner == Uid::ROOT || resolver() == Some(&owner) {
        return Ok(());
    }
    Err(ClientError::Impostor { path: path.to_owned(), owner })
}

fn send_all(socket: BorrowedFd<'_>, mut rest: &[u8], deadline: Deadline) -> Result<(), ClientError> {
    while !rest.is_empty() {
        match send(socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(Errno::AGAIN) => deadline.wait(socket, PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// How long the client polls for the answer before it blocks. An answer without a call to IAM comes within this time,
/// and blocking would double that (`tests/bench nss` measures it). Each poll yields the processor, so that the resolver
/// can run meanwhile on a host with only one processor.
const EAGER: Duration = Duration::from_micros(80);

/// Polls until there is something to read, or [`EAGER`] has passed.
fn await_eagerly(socket: BorrowedFd<'_>) {
    let began = Instant::now();
    let mut first = [0];
    while began.elapsed() < EAGER {
        match recv(socket, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => rustix::thread::sched_yield(),
            _ => return,
        }
    }
}

/// Receives a frame and returns its body. The first read has room for all but long answers, so that one read usually
/// suffices.
fn receive(socket: BorrowedFd<'_>, deadline: Deadline) -> Result<Vec<u8>, ClientError> {
    let mut frame = vec![0; FIRST_READ];
    let (mut received, mut wanted) = (0, HEADER);
    await_eagerly(socket);
    while received < wanted {
        set_socket_timeout(socket, Timeout::Recv, Some(deadline.left()?))?;
        match recv(socket, frame.get_mut(received..).unwrap_or_default(), RecvFlags::empty()) {
            Ok((_, 0)) => return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok((_, count)) => received += count,
            Err(Errno::AGAIN) => return Err(ClientError::TimedOut),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some(header) = frame.first_chunk::<HEADER>().filter(|_| received >= HEADER) {
            let length = frame::body_length(*header, ANSWER_MAX);
            wanted = HEADER + length.map_err(|error| ClientError::Malformed(error.to_string()))?;
            frame.resize(wanted.max(frame.len()), 0);
        }
    }
    Ok(frame.get(HEADER..wanted).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn serve_once(reply: impl FnOnce(&mut UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; HEADER];
            stream.read_exact(&mut header).unwrap();
            let mut body = vec![0; frame::body_length(header, REQUEST_MAX).unwrap()];
            stream.read_exact(&mut body).unwrap();
            reply(&mut stream);
        });
        (dir, path)
    }

    fn talk(path: &Path, span: Duration) -> Result<Answer, ClientError> {
        let deadline = Deadline::after(span);
        let connection = open(path, deadline)?;
        exchange(connection.as_fd(), &Request::Status, Behalf::default(), deadline)
    }

    #[test]
    fn a_cut_connection_is_retried_a_bounded_number_of_times() {
        const RETRIES: u32 = 3;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = std::thread::spawn(move || {
            let answer = frame::encode(br#"{"answer":"not-found"}"#, ANSWER_MAX).unwrap();
            // The first request is answered at its third attempt, the second one never.
            for at in 0..=3 + RETRIES {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                if at == 2 {
                    stream.write_all(&answer).unwrap();
                }
            }
            listener
        });
        let deadline = Deadline::after(Duration::from_secs(20));
        let one = |path: &Path| {
            persistently(RETRIES, deadline, || {
                let connection = open(path, deadline)?;
                exchange(connection.as_fd(), &Request::Status, Behalf::default(), deadline)
            })
        };
        assert_eq!(one(&path).unwrap(), Answer::NotFound);
        assert!(matches!(one(&path).unwrap_err(), ClientError::Io(_)));
        let listener = asked.join().unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody asks once more");
    }

    #[test]
    fn an_answer_comes_back() {
        let (_dir, path) = serve_once(|stream| {
            stream.write_all(&frame::encode(br#"{"answer":"not-found"}"#, ANSWER_MAX).unwrap()).unwrap();
        });
        assert_eq!(talk(&path, Duration::from_secs(5)).unwrap(), Answer::NotFound);
    }

    #[test]
    fn a_missing_listener_is_a_failure_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let error = talk(&dir.path().join("nothing"), Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, ClientError::NoListener(_)), "{error}");
    }

    #[test]
    fn a_resolver_that_says_nothing_costs_the_deadline_and_no_more() {
        let (_dir, path) = serve_once(|stream| {
            let _ = stream.read(&mut [0]);
        });
        assert!(matches!(talk(&path, Duration::from_millis(50)).unwrap_err(), ClientError::TimedOut));
    }

    #[test]
    fn a_full_backlog_costs_the_deadline_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match open(&path, Deadline::after(Duration::from_millis(50))) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ClientError::TimedOut), "{error}");
    }

    #[test]
    fn half_an_answer_an_endless_one_and_rubbish_are_errors() {
        for reply in [&b"\0\0"[..], b"\0\0\0\x20{\"answer\"", b"\xff\xff\xff\xff", b"\0\0\0\x04null"] {
            let (_dir, path) = serve_once(move |stream| stream.write_all(reply).unwrap());
            assert!(talk(&path, Duration::from_secs(5)).is_err(), "{reply:?}");
        }
    }

    #[test]
    fn a_listener_of_another_user_is_not_believed() {
        let (_dir, path) = serve_once(|_| {});
        let deadline = Deadline::after(Duration::from_secs(5));
        let connection = open(&path, deadline).unwrap();
        let me = Uid(rustix::process::getuid().as_raw());
        // If root runs this test, root listens; otherwise an untrusted user does.
        assert_eq!(check_owner(&connection, &path).is_ok(), me == Uid::ROOT);
    }
}
