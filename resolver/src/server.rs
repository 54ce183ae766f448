//! The socket: accepts connections within limits, and decides which client may send which request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pam_iam_core::frame::{self, ANSWER_MAX};
use pam_iam_core::id::Uid;
use pam_iam_core::wire::{Answer, Envelope, Failure, Request, VERSION};
use pam_iam_core::{local, paths};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::answer::{Answerer, Asker};
use crate::connection::Connection;
use crate::limits::Origin;
use crate::source::Iam;

/// The most connections at once. Each may need a few descriptors; the unit's `LimitNOFILE=` is large enough for all.
const CONNECTIONS_MAX: usize = 512;

/// The most connections at once of one user other than root and the key command's, so that no user takes up all of them.
const CONNECTIONS_PER_UID: usize = 64;

/// The first uid that is looked up in subuid(5). A user with a range in that file owns thousands of uids, which count as
/// one client. System users have smaller uids, and managed uids are not looked up.
const SUBORDINATE_MIN: u32 = 65_536;

/// The number of connections that are kept for root (sshd, sudo) and the key command.
const CONNECTIONS_RESERVED: usize = 128;

/// How long root or the key command may take to send a request, and again to receive the answer. The programs of pam_iam
/// need less than 1 ms.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long any other client may take to send a request, and again to receive the answer.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_millis(500);

/// The pause after a failed accept(2), for example when no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers clients of `socket` until the future is dropped.
pub async fn serve<I: Iam>(socket: AsyncFd<OwnedFd>, answerer: Rc<Answerer<I>>) {
    let listener = Listener::new(&socket);
    loop {
        let client = listener.admit(|peer| answerer.is_key_user(peer)).await;
        let answerer = Rc::clone(&answerer);
        spawn_local(async move {
            // An error ends the connection, and there is no client to report it to.
            let _ = converse(client, &answerer).await;
        });
    }
}

/// Answers every request with `frame`, until the future is dropped.
pub async fn refuse(listener: &Listener<'_>, frame: &[u8]) {
    loop {
        let client = listener.admit(|_| false).await;
        let frame = frame.to_vec();
        spawn_local(async move {
            let Client { mut connection, slots: _slots, .. } = client;
            // The request is read and ignored: a client that is still sending when the connection is closed would get
            // EPIPE.
            let told = async {
                connection.receive().await?;
                connection.send(&frame).await
            };
            let _ = timeout(PATIENCE_WITH_OTHERS, told).await;
        });
    }
}

/// Accepts connections within the limits.
pub struct Listener<'a> {
    socket: &'a AsyncFd<OwnedFd>,
    slots: Arc<Semaphore>,
    users: Users,
}

/// The number of connections of each user, by the uid that [`counted_as`] returns.
type Users = Rc<RefCell<HashMap<Uid, usize>>>;

/// A client whose connection was accepted.
struct Client {
    connection: Connection,
    peer: Uid,
    /// Whether the client is root or the key command's user.
    trusted: bool,
    /// The client's share of [`CONNECTIONS_MAX`] and of its user's connections, held until the client is dropped.
    slots: (OwnedSemaphorePermit, ConnectionSlot),
}

impl<'a> Listener<'a> {
    /// Returns a listener on `socket`.
    pub fn new(socket: &'a AsyncFd<OwnedFd>) -> Self {
        Self { socket, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)), users: Rc::default() }
    }

    /// Waits for the next client within the limits. Closes connections beyond the limits without an answer.
    async fn admit(&self, is_key_user: impl Fn(Uid) -> bool) -> Client {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { continue };
            let Ok(connection) = accept(self.socket).await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(peer) = connection.peer() else { continue };
            let trusted = peer == Uid::ROOT || is_key_user(peer);
            if !trusted && self.slots.available_permits() < CONNECTIONS_RESERVED {
                continue;
            }
            let Some(slots) = ConnectionSlot::take(&self.users, peer, trusted) else { continue };
            return Client { connection, peer, trusted, slots: (slot, slots) };
        }
    }
}

/// Returns the uid that a client counts as: for a subordinate uid, the first of its range.
fn counted_as(uid: Uid, subuid: &Path) -> Uid {
    if uid.0 < SUBORDINATE_MIN || uid.is_managed() {
        return uid;
    }
    let ranges = local::subordinate(subuid);
    ranges.into_iter().find(|range| range.uids.contains(&uid.0)).map_or(uid, |range| Uid(range.uids.start))
}

/// One connection in the count of its user. Dropping it lowers the count.
struct ConnectionSlot {
    users: Users,
    uid: Uid,
}

impl ConnectionSlot {
    fn take(users: &Users, uid: Uid, trusted: bool) -> Option<Self> {
        let uid = counted_as(uid, Path::new(paths::SUBUID));
        let mut all = users.borrow_mut();
        let count = all.entry(uid).or_default();
        if !trusted && *count >= CONNECTIONS_PER_UID {
            return None;
        }
        *count += 1;
        Some(Self { users: Rc::clone(users), uid })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut all = self.users.borrow_mut();
        if let Some(count) = all.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.uid);
            }
        }
    }
}

/// Answers a request, and those of root that follow it over the same connection.
async fn converse<I: Iam>(client: Client, answerer: &Answerer<I>) -> io::Result<()> {
    let Client { mut connection, peer, trusted, slots } = client;
    let patience = if trusted { PATIENCE } else { PATIENCE_WITH_OTHERS };
    // The place of the user who runs the setuid program that asks. Its connection counts as one of that user's.
    let mut place_of_user = None;
    loop {
        let request = timeout(patience, connection.receive()).await??;
        let envelope = parse(&request);
        let more = peer == Uid::ROOT && envelope.as_ref().is_ok_and(|envelope| envelope.more);
        let answer = match envelope {
            Ok(envelope) if may_ask(peer, trusted, &envelope.request) => {
                let asker = asker(peer, trusted, &envelope);
                // An event is recorded however many connections its user has.
                if let Origin::User(user) = asker.origin
                    && peer == Uid::ROOT
                    && !matches!(envelope.request, Request::Record { .. })
                    && place_of_user.as_ref().is_none_or(|place: &ConnectionSlot| place.uid != user)
                {
                    let place = ConnectionSlot::take(&slots.1.users, user, false);
                    place_of_user = Some(place.ok_or(io::ErrorKind::ConnectionRefused)?);
                }
                answerer.answer(&envelope.request, asker).await
            }
            Ok(_) => {
                Answer::Error { kind: Failure::Forbidden, message: format!("uid {peer} may not ask this") }
            }
            Err(error) => Answer::Error { kind: Failure::BadRequest, message: error.to_string() },
        };
        let frame = encode(&answer).or_else(|error| {
            encode(&Answer::Error { kind: Failure::Unavailable, message: error.to_string() })
        })?;
        timeout(patience, connection.send(&frame)).await??;
        if !more {
            return Ok(());
        }
    }
}

async fn accept(socket: &AsyncFd<OwnedFd>) -> io::Result<Connection> {
    socket
        .async_io(Interest::READABLE, |fd| Ok(accept_with(fd, SocketFlags::CLOEXEC)?))
        .await
        .map(Connection::new)
}

/// Returns the client and the origin of a request. Only root may name another user or a client of sshd as the origin.
fn asker(peer: Uid, trusted: bool, envelope: &Envelope) -> Asker {
    let origin = match (peer == Uid::ROOT, envelope.caller, envelope.client) {
        (true, Some(user), _) if user != Uid::ROOT => {
            Origin::User(counted_as(user, Path::new(paths::SUBUID)))
        }
        (true, _, Some(client)) => Origin::of_address(client),
        (true, ..) => Origin::Host,
        (false, ..) if trusted => Origin::KeyCommand,
        (false, ..) => Origin::User(counted_as(peer, Path::new(paths::SUBUID))),
    };
    Asker { is_root: peer == Uid::ROOT, origin }
}

/// Parses a request.
///
/// # Errors
/// Returns an error, with a text for the client, if the request is malformed or of another protocol version.
pub fn parse(body: &[u8]) -> Result<Envelope, RequestError> {
    let envelope: Envelope = serde_json::from_slice(body)?;
    if envelope.v != VERSION {
        return Err(RequestError::Version(envelope.v));
    }
    Ok(envelope)
}

/// Why a frame is not a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A body that is not the JSON of a request.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    /// A request of another protocol version.
    #[error("protocol version {0}, where this resolver speaks {VERSION}")]
    Version(u32),
}

/// Returns an answer as a frame.
///
/// # Errors
/// Returns an error if the answer is longer than [`ANSWER_MAX`].
pub fn encode(answer: &Answer) -> io::Result<Vec<u8>> {
    frame::encode(&serde_json::to_vec(answer)?, ANSWER_MAX).map_err(io::Error::other)
}

/// Returns whether a client may send a request. Every client may look up names, as in /etc/passwd; root and the key
/// command may get keys; only root may send the other requests.
fn may_ask(peer: Uid, trusted: bool, request: &Request) -> bool {
    match request {
        Request::UserByName { .. }
        | Request::UserByUid { .. }
        | Request::GroupByName { .. }
        | Request::GroupByGid { .. }
        | Request::GroupsOf { .. } => true,
        Request::Keys { .. } => trusted,
        Request::Revalidate { .. }
        | Request::Decide { .. }
        | Request::Roster
        | Request::Status
        | Request::Explain { .. }
        | Request::WhoIs { .. }
        | Request::Flush { .. }
        | Request::SelfTest
        | Request::Lint
        | Request::Record { .. } => peer == Uid::ROOT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_so_many_places_under_whatever_uids() {
        let users = Rc::default();
        let take = |uid: u32, trusted| ConnectionSlot::take(&users, Uid(uid), trusted);
        let mut held: Vec<ConnectionSlot> = (0..).map_while(|_| take(1000, false)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_UID);
        assert!(take(1001, false).is_some() && take(1000, true).is_some());
        held.pop();
        assert!(take(1000, false).is_some());

        let dir = tempfile::tempdir().unwrap();
        let subuid = dir.path().join("subuid");
        assert_eq!(counted_as(Uid(100_001), &subuid), Uid(100_001), "a user of a directory");
        std::fs::write(&subuid, "ann:100000:65536\nnonsense\n1001:165536:65536\n").unwrap();
        let counted = |uid| counted_as(Uid(uid), &subuid).0;
        assert_eq!(
            [99_999, 100_000, 165_535, 165_536, 300_000].map(counted),
            [99_999, 100_000, 100_000, 165_536, 300_000]
        );
    }
}
