//! `libnss_iam.so.2`: makes users and groups of IAM exist on this host as soon as IAM has them.
//!
//! glibc loads this library into every process that looks up a user or group, sshd and sudo among them. It connects only to
//! the resolver's socket, starts no process and no thread, keeps no descriptor, and lets no panic cross the boundary. glibc
//! does not ask it about local accounts, since `files` stands before `iam` in nsswitch.conf. This file is the C interface of
//! nss(5). [`lookup`] finds the answer: [`map`] reads it in the map, or the resolver gives it. [`filter`] decides what may be passed
//! on, and [`reply`] writes it into the caller's memory.

#![expect(unsafe_code, reason = "the C interface of nss(5)")]

mod filter;
mod frequency;
mod host;
mod kept;
mod lookup;
mod map;
mod recent;
mod reply;

use std::ffi::{CStr, c_char, c_int, c_long};
use std::panic::catch_unwind;

use libc::{gid_t, group, passwd, size_t, uid_t};
use lookup::Found;
use pam_iam_core::id::{Gid, Uid};
use reply::{Area, GroupList};

/// `enum nss_status` of nss.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The buffer is too small: `errno` is ERANGE, and glibc calls again with a larger one.
    TryAgain = -2,
    /// This service cannot answer now. glibc asks the next one.
    Unavailable = -1,
    /// There is no such entry.
    NotFound = 0,
    /// The entry was found.
    Success = 1,
}

/// Implements getpwnam_r(3).
///
/// # Safety
/// As nss(5) requires: `name` is a C string, `result` and `errnop` may be written, `buffer` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_iam_getpwnam_r(
    name: *const c_char,
    result: *mut passwd,
    buffer: *mut c_char,
    length: size_t,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: `errnop` may be written.
    let errno = unsafe { errnop.as_mut() };
    guard("getpwnam_r", errno, || {
        // SAFETY: `name` is a C string, and `buffer` has `length` bytes that nothing else uses during the call.
        let (name, area) = unsafe { (text(name), Area::new(buffer, length)) };
        // SAFETY: `result` is a `struct passwd` that may be written.
        answer(lookup::user_by_name(name), |user| unsafe { reply::passwd(&user, result, area) })
    })
}

/// Implements getpwuid_r(3).
///
/// # Safety
/// As nss(5) requires: `result` and `errnop` may be written, `buffer` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_iam_getpwuid_r(
    uid: uid_t,
    result: *mut passwd,
    buffer: *mut c_char,
    length: size_t,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: `errnop` may be written.
    let errno = unsafe { errnop.as_mut() };
    guard("getpwuid_r", errno, || {
        // SAFETY: `buffer` has `length` bytes that nothing else uses during the call.
        let area = unsafe { Area::new(buffer, length) };
        // SAFETY: `result` is a `struct passwd` that may be written.
        answer(lookup::user_by_uid(Uid(uid)), |user| unsafe { reply::passwd(&user, result, area) })
    })
}

/// Implements getgrnam_r(3).
///
/// # Safety
/// As nss(5) requires: `name` is a C string, `result` and `errnop` may be written, `buffer` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_iam_getgrnam_r(
    name: *const c_char,
    result: *mut group,
    buffer: *mut c_char,
    length: size_t,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: `errnop` may be written.
    let errno = unsafe { errnop.as_mut() };
    guard("getgrnam_r", errno, || {
        // SAFETY: `name` is a C string, and `buffer` has `length` bytes that nothing else uses during the call.
        let (name, area) = unsafe { (text(name), Area::new(buffer, length)) };
        // SAFETY: `result` is a `struct group` that may be written.
        answer(lookup::group_by_name(name), |found| unsafe { reply::group(&found, result, area) })
    })
}

/// Implements getgrgid_r(3).
///
/// # Safety
/// As nss(5) requires: `result` and `errnop` may be written, `buffer` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_iam_getgrgid_r(
    gid: gid_t,
    result: *mut group,
    buffer: *mut c_char,
    length: size_t,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: `errnop` may be written.
    let errno = unsafe { errnop.as_mut() };
    guard("getgrgid_r", errno, || {
        // SAFETY: `buffer` has `length` bytes that nothing else uses during the call.
        let area = unsafe { Area::new(buffer, length) };
        // SAFETY: `result` is a `struct group` that may be written.
        answer(lookup::group_by_gid(Gid(gid)), |found| unsafe { reply::group(&found, result, area) })
    })
}

/// Adds the supplementary groups of `user`, whose primary group is `group`, for initgroups(3) and getgrouplist(3).
///
/// # Safety
/// As nss(5) requires: `user` is a C string; `*groups` was allocated by malloc(3) and has room for `*size` gids, of which
/// `*start` are taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _nss_iam_initgroups_dyn(
    user: *const c_char,
    group: gid_t,
    start: *mut c_long,
    size: *mut c_long,
    groups: *mut *mut gid_t,
    limit: c_long,
    errnop: *mut c_int,
) -> Status {
    // SAFETY: `errnop` may be written.
    let errno = unsafe { errnop.as_mut() };
    guard("initgroups_dyn", errno, || {
        // SAFETY: `user` is a C string.
        let user = unsafe { text(user) };
        answer(lookup::groups_of(user, Gid(group)), |gids| {
            // SAFETY: the pointers are those of glibc's growing list of gids, as nss(5) requires.
            let mut list = unsafe { GroupList::new(start, size, groups, limit) };
            gids.iter().filter(|gid| gid.0 != group).try_for_each(|gid| list.push(*gid))
        })
    })
}

/// Runs the body of an entry point, catches a panic, and sets `errno` to the value that glibc expects with the status.
fn guard(
    entry: &str,
    errno: Option<&mut c_int>,
    body: impl FnOnce() -> Status + std::panic::UnwindSafe,
) -> Status {
    reply::silence_panics();
    let status = catch_unwind(|| {
        lookup::panic_if_tested(entry);
        frequency::count();
        body()
    });
    let status = status.unwrap_or_else(|_| {
        reply::log_panic(entry);
        Status::Unavailable
    });
    let meaning = match status {
        Status::Success => return status,
        Status::TryAgain => libc::ERANGE,
        Status::NotFound => libc::ENOENT,
        Status::Unavailable => libc::EAGAIN,
    };
    if let Some(errno) = errno {
        *errno = meaning;
    }
    status
}

fn answer<T>(found: Found<T>, fill: impl FnOnce(T) -> Result<(), reply::TooSmall>) -> Status {
    match found {
        Found::Yes(entry) => fill(entry).map_or(Status::TryAgain, |()| Status::Success),
        Found::No => Status::NotFound,
        Found::Unknown => Status::Unavailable,
    }
}

/// Returns a C string as a name. Empty if it is null or not UTF-8, since no account has such a name.
///
/// # Safety
/// `name` is null or a C string that outlives the call.
unsafe fn text<'a>(name: *const c_char) -> &'a str {
    if name.is_null() {
        return "";
    }
    // SAFETY: by the caller's contract.
    unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default()
}
