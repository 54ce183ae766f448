//! A connection that is kept from one request to the next.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{SendFlags, send};

use super::{Behalf, ClientError, Following, ask, check_owner, encode, exchange_one, is_broken_off, open};
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
    /// Sends `request` to the resolver that listens on `socket`, and returns its answer.
    ///
    /// # Errors
    /// Returns an error if nothing listens, an untrusted user listens, or no valid answer comes in time.
    pub fn ask(&self, socket: &Path, request: &Request, deadline: Deadline) -> Result<Answer, ClientError> {
        if let Some(connection) = self.kept.take() {
            match exchange_one(connection.as_fd(), request, Behalf::default(), Following::Maybe, deadline) {
                // The resolver closed the connection, or was restarted.
                Err(ClientError::Io(error)) if is_broken_off(&error) => {}
                Err(error) => return Err(error),
                Ok(answer) => {
                    self.kept.replace(Some(connection));
                    return Ok(answer);
                }
            }
        }
        let retries = request.retries(rustix::process::geteuid().is_root());
        super::persistently(retries, deadline, || {
            let connection = open(socket, deadline)?;
            check_owner(&connection, socket)?;
            let answer =
                exchange_one(connection.as_fd(), request, Behalf::default(), Following::Maybe, deadline)?;
            self.kept.replace(Some(connection));
            Ok(answer)
        })
    }

    /// Sends `request`, whose answer says nothing. Over a kept connection, which is closed by this, it does not wait.
    ///
    /// # Errors
    /// Returns an error if nothing listens, an untrusted user listens, or the resolver does not take the request in time.
    pub fn tell(&self, socket: &Path, request: &Request) -> Result<(), ClientError> {
        if let Some(connection) = self.kept.take() {
            let frame = encode(request, Behalf::default(), Following::Nothing)?;
            if send(&connection, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) == Ok(frame.len()) {
                return Ok(());
            }
        }
        ask(socket, request, Deadline::after(request.patience())).map(drop)
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
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            (rest, answer(&mut stream))
        });
        let line = Line::default();
        let ask = || line.ask(&path, &Request::Status, Deadline::after(Duration::from_secs(20)));
        for _ in 0..3 {
            assert_eq!(ask().unwrap(), Answer::NotFound);
        }
        line.tell(&path, &Request::Record { line: "first".into() }).unwrap();
        line.tell(&path, &Request::Record { line: "second".into() }).unwrap();
        let (first, second) = resolver.join().unwrap();
        assert!(first.contains(r#""line":"first""#), "over the kept connection: {first}");
        assert!(second.contains(r#""line":"second""#), "over a new one: {second}");
    }
}
