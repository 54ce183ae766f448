//! The process that looks a name up: whether it is sshd, and for which client.
//!
//! sshd looks a name up before the client is authenticated. The resolver limits the calls that each address can cause, so it needs the
//! address.

use std::ffi::{CStr, c_char};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use rustix::net::{SocketAddrAny, getpeername};

/// sshd has the connection at a low number: 0 to 5 in every version since 3.7.
const DESCRIPTORS: std::ops::Range<i32> = 0..10;

unsafe extern "C" {
    /// glibc's: what the program is called, without a path.
    static program_invocation_short_name: *const c_char;
}

/// The address of the client, if this is an sshd of root's that serves one.
pub fn client_of_sshd() -> Option<IpAddr> {
    if !rustix::process::getuid().is_root() || !is_sshd() {
        return None;
    }
    DESCRIPTORS.filter_map(peer).next()
}

/// `sshd`, or since 9.8 `sshd-session` and `sshd-auth`.
fn is_sshd() -> bool {
    // SAFETY: glibc sets it before anything of the program runs, and nobody changes it while we look.
    let name = unsafe { program_invocation_short_name };
    // SAFETY: it is null or a C string that lives as long as the program.
    !name.is_null() && unsafe { CStr::from_ptr(name) }.to_bytes().starts_with(b"sshd")
}

fn peer(number: i32) -> Option<IpAddr> {
    // SAFETY: a number that is no descriptor, or not a socket, makes getpeername(2) fail; it is neither kept nor closed.
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
