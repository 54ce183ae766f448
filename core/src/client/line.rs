//! A connection that is kept from one request to the next.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::{Behalf, ClientError, Following, check_owner, exchange_one, is_broken_off, open};
use crate::deadline::Deadline;
use crate::wire::{Answer, Request};

/// A connection to the resolver for the requests of one root program, one after the other. It is opened at the first
/// request. The resolver closes it after a pause, and a client other than root gets one answer per connection; the next
/// request then opens a new connection.
#[derive(Debug, Default)]
pub struct Line {
    /// The connection, if the last request over it was answered.
    kept: RefCell<Option<OwnedFd>>,
}

impl Line {
    /// Sends `request` to the resolver that listens on `socket`, and returns its answer. The connection is kept, except after a
    /// request that is not repeated if the connection breaks.
    ///
    /// # Errors
    /// Returns an error if nothing listens, an untrusted user listens, or no valid answer comes in time.
    pub fn ask(&self, socket: &Path, request: &Request, deadline: Deadline) -> Result<Answer, ClientError> {
        let retries = request.retries(rustix::process::geteuid().is_root());
        let following = if retries > 0 { Following::Maybe } else { Following::Nothing };
        let exchange = |connection: OwnedFd| {
            let answer = exchange_one(connection.as_fd(), request, Behalf::default(), following, deadline)?;
            self.kept.replace(Some(connection).filter(|_| following == Following::Maybe));
            Ok(answer)
        };
        if let Some(connection) = self.kept.take().filter(|_| retries > 0) {
            match exchange(connection) {
                // The resolver closed the connection, or was restarted.
                Err(ClientError::Io(error)) if is_broken_off(&error) => {}
                outcome => return outcome,
            }
        }
        super::persistently(retries, deadline, || {
            let connection = open(socket, deadline)?;
            check_owner(&connection, socket)?;
            exchange(connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, ANSWER_MAX};
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    fn answer(stream: &mut UnixStream) -> String {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).unwrap();
        stream.write_all(&frame::encode(br#"{"answer":"not-found"}"#, ANSWER_MAX).unwrap()).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn requests_share_a_connection_until_the_resolver_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let resolver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream);
            answer(&mut stream);
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream);
            (answer(&mut stream), listener)
        });
        let line = Line::default();
        let ask = || line.ask(&path, &Request::Status, Deadline::after(Duration::from_secs(20)));
        for _ in 0..3 {
            assert_eq!(ask().unwrap(), Answer::NotFound);
        }
        let record = Request::Record { line: "event=login".into() };
        line.ask(&path, &record, Deadline::after(Duration::from_secs(20))).unwrap();
        let (recorded, _listener) = resolver.join().unwrap();
        assert!(
            recorded.contains(r#""line":"event=login""#),
            "over the connection of the request before it: {recorded}"
        );
    }
}
