//! The process that looks up a name: whether it is sshd, and which client it serves.
//!
//! sshd looks a name up before the client is authenticated. The resolver limits the calls that each address can cause, so it needs the
//! address.

use std::ffi::{CStr, c_char};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use rustix::net::{SocketAddrAny, getpeername};

/// The descriptors that may be sshd's connection to the client. In every version since 3.7 it is one of 0 to 5.
const DESCRIPTORS: std::ops::Range<i32> = 0..10;

unsafe extern "C" {
    /// The name of the program without a path, set by glibc.
    static program_invocation_short_name: *const c_char;
}

/// Returns the address of the client, if this process is an sshd that runs as root and serves a client.
pub fn client_of_sshd() -> Option<IpAddr> {
    if !rustix::process::getuid().is_root() || !is_sshd() {
        return None;
    }
    DESCRIPTORS.filter_map(peer).next()
}

/// Whether the program is `sshd` or, since version 9.8, `sshd-session` or `sshd-auth`.
fn is_sshd() -> bool {
    // SAFETY: glibc sets the variable before the program's code runs, and nothing changes it during this read.
    let name = unsafe { program_invocation_short_name };
    // SAFETY: `name` is null or a C string that lives as long as the program.
    !name.is_null() && unsafe { CStr::from_ptr(name) }.to_bytes().starts_with(b"sshd")
}

fn peer(number: i32) -> Option<IpAddr> {
    // SAFETY: a number that is no descriptor, or not a socket, makes getpeername(2) fail; the descriptor is neither kept nor
    // closed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let address = getpeername(descriptor).ok()??;
    address_of(&address)
}

fn address_of(address: &SocketAddrAny) -> Option<IpAddr> {
    Some(std::net::SocketAddr::try_from(address.clone()).ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn the_address_is_that_of_an_internet_connection_and_of_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(peer(client.as_raw_fd()), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(peer(listener.as_raw_fd()), None);
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer(unix.as_raw_fd()), None);
        assert_eq!(peer(i32::MAX), None);
        assert_eq!(client_of_sshd(), None, "this is no sshd");
    }
}
