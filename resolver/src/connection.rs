//! One connection: frames in, frames out.
//!
//! A client sends its request right after connecting and waits for the answer. So recv(2) and send(2) are tried first,
//! and only a socket that is not ready is registered with epoll, which halves the system calls of a request.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Unwatched;

use pam_iam_core::frame::{self, HEADER, REQUEST_MAX};
use pam_iam_core::id::Uid;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream as Watched;

/// The size of the first read, in bytes. Most requests fit.
const FIRST_READ: usize = 1024;

/// An accepted connection. It has one of two streams.
pub struct Connection {
    /// The stream before it first has to wait: not registered with epoll.
    unwatched: Option<Unwatched>,
    /// The stream after it first had to wait: registered with epoll.
    watched: Option<Watched>,
}

impl Connection {
    /// Returns the connection on an accepted socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { unwatched: Some(socket.into()), watched: None }
    }

    /// Returns the uid of the client.
    ///
    /// # Errors
    /// Returns an error if getsockopt(2) fails.
    pub fn peer(&self) -> io::Result<Uid> {
        let credentials = match (&self.unwatched, &self.watched) {
            (Some(stream), _) => socket_peercred(stream)?,
            (None, Some(stream)) => socket_peercred(stream)?,
            (None, None) => return Err(io::ErrorKind::NotConnected.into()),
        };
        Ok(Uid(credentials.uid.as_raw()))
    }

    /// Receives the body of a frame.
    ///
    /// # Errors
    /// Returns an error if the client closes the connection too early, or announces a body longer than [`REQUEST_MAX`].
    pub async fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; FIRST_READ];
        let (mut received, mut wanted) = (0, HEADER);
        while received < wanted {
            match self.read(frame.get_mut(received..).unwrap_or_default()).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => received += count,
            }
            if let Some(header) = frame.first_chunk::<HEADER>().filter(|_| received >= HEADER) {
                wanted = HEADER + frame::body_length(*header, REQUEST_MAX).map_err(io::Error::other)?;
                frame.resize(wanted.max(frame.len()), 0);
            }
        }
        Ok(frame.get(HEADER..wanted).unwrap_or_default().to_vec())
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Returns an error if the client has gone away.
    pub async fn send(&mut self, mut rest: &[u8]) -> io::Result<()> {
        if let Some(stream) = &self.unwatched {
            match send(stream, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if rest.is_empty() { Ok(()) } else { self.watched()?.write_all(rest).await }
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(stream) = &self.unwatched {
            match recv(stream, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, count)) => return Ok(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.watched()?.read(buffer).await
    }

    fn watched(&mut self) -> io::Result<&mut Watched> {
        if let Some(stream) = self.unwatched.take() {
            stream.set_nonblocking(true)?;
            self.watched = Some(Watched::from_std(stream)?);
        }
        self.watched.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Connection::new(server.into()))
    }

    #[tokio::test(flavor = "local")]
    async fn a_request_is_received_in_one_piece_or_in_many() {
        let request = frame::encode(&[b'x'; 3000], REQUEST_MAX).unwrap();
        let (mut client, mut connection) = pair();
        client.write_all(&request).unwrap();
        assert_eq!(connection.receive().await.unwrap(), [b'x'; 3000]);

        let (mut client, mut connection) = pair();
        let writer = std::thread::spawn(move || {
            for byte in request {
                client.write_all(&[byte]).unwrap();
            }
            client
        });
        assert_eq!(connection.receive().await.unwrap(), [b'x'; 3000]);
        writer.join().unwrap();
    }

    #[tokio::test(flavor = "local")]
    async fn a_long_answer_reaches_a_client_that_reads_slowly() {
        let (mut client, mut connection) = pair();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all.len()
        });
        connection.send(&vec![1; 5_000_000]).await.unwrap();
        drop(connection);
        assert_eq!(reader.join().unwrap(), 5_000_000);
    }

    #[tokio::test(flavor = "local")]
    async fn half_a_frame_and_an_endless_one_are_errors() {
        let (mut client, mut connection) = pair();
        client.write_all(b"\0\0\0\x20{").unwrap();
        drop(client);
        assert!(connection.receive().await.is_err());
        let (mut client, mut connection) = pair();
        client.write_all(b"\xff\xff\xff\xff").unwrap();
        assert!(connection.receive().await.is_err());
    }
}
