//! Writes entries into memory that glibc provides.

use std::ffi::{CStr, c_char, c_long};
use std::mem::{align_of, size_of};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::gid_t;
use pam_iam_core::id::Gid;
use pam_iam_core::wire::{Group, User};

/// The error that the memory does not suffice. glibc calls again with more.
#[derive(Debug, PartialEq, Eq)]
pub struct TooSmall;

/// The unused rest of the caller's buffer, which is handed out from its beginning.
pub struct Area {
    next: *mut u8,
    left: usize,
}

impl Area {
    /// # Safety
    /// `buffer` has `length` bytes that nothing else uses while the area or the memory that it handed out is in use.
    pub unsafe fn new(buffer: *mut c_char, length: usize) -> Self {
        Self { next: buffer.cast(), left: if buffer.is_null() { 0 } else { length } }
    }

    /// Returns `count` bytes, of which the first is aligned to `alignment`.
    fn take(&mut self, count: usize, alignment: usize) -> Result<*mut u8, TooSmall> {
        let padding = self.next.align_offset(alignment);
        let used = padding.checked_add(count).ok_or(TooSmall)?;
        self.left = self.left.checked_sub(used).ok_or(TooSmall)?;
        // SAFETY: at least `used` bytes were left from `next` on.
        let (start, next) = unsafe { (self.next.add(padding), self.next.add(used)) };
        self.next = next;
        Ok(start)
    }

    /// Returns a copy of `text`, up to its first NUL, as a C string.
    fn string(&mut self, text: &str) -> Result<*mut c_char, TooSmall> {
        let bytes = text.as_bytes().split(|&b| b == 0).next().unwrap_or_default();
        let start = self.take(bytes.len() + 1, 1)?;
        // SAFETY: `start` has room for the bytes and the NUL, and is in the caller's memory, which does not overlap `text`.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
            *start.add(bytes.len()) = 0;
        }
        Ok(start.cast())
    }

    /// Returns a null-terminated list of C strings.
    fn strings<'a>(
        &mut self,
        texts: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<*mut *mut c_char, TooSmall> {
        let bytes = (texts.len() + 1).checked_mul(size_of::<*mut c_char>()).ok_or(TooSmall)?;
        let list: *mut *mut c_char = self.take(bytes, align_of::<*mut c_char>())?.cast();
        let end = texts.len();
        for (at, text) in texts.enumerate() {
            let string = self.string(text)?;
            // SAFETY: `at` is below `end`, and the list has room for `end + 1` pointers.
            unsafe { *list.add(at) = string };
        }
        // SAFETY: the list has room for `end + 1` pointers.
        unsafe { *list.add(end) = ptr::null_mut() };
        Ok(list)
    }
}

/// Writes `user` to `result`. The password field is `*`: no password matches, and the account does not count as locked.
///
/// # Safety
/// `result` may be written.
pub unsafe fn passwd(user: &User, result: *mut libc::passwd, mut area: Area) -> Result<(), TooSmall> {
    let entry = libc::passwd {
        pw_name: area.string(user.name.as_str())?,
        pw_passwd: area.string("*")?,
        pw_uid: user.uid.0,
        pw_gid: user.gid.0,
        pw_gecos: area.string(&user.gecos)?,
        pw_dir: area.string(&user.home)?,
        pw_shell: area.string(&user.shell)?,
    };
    // SAFETY: by the caller's contract.
    unsafe { result.write(entry) };
    Ok(())
}

/// Writes `found` to `result`.
///
/// # Safety
/// `result` may be written.
pub unsafe fn group(found: &Group, result: *mut libc::group, mut area: Area) -> Result<(), TooSmall> {
    let entry = libc::group {
        gr_name: area.string(found.name.as_str())?,
        gr_passwd: area.string("*")?,
        gr_gid: found.gid.0,
        gr_mem: area.strings(found.members.iter().map(pam_iam_core::name::LinuxName::as_str))?,
    };
    // SAFETY: by the caller's contract.
    unsafe { result.write(entry) };
    Ok(())
}

/// The list of gids that glibc grows while it asks one service after the other.
pub struct GroupList {
    start: *mut c_long,
    size: *mut c_long,
    groups: *mut *mut gid_t,
    limit: c_long,
}

impl GroupList {
    /// # Safety
    /// `*groups` was allocated by malloc(3) and has room for `*size` gids, of which `*start` are taken.
    pub unsafe fn new(start: *mut c_long, size: *mut c_long, groups: *mut *mut gid_t, limit: c_long) -> Self {
        Self { start, size, groups, limit }
    }

    /// Adds a gid, unless it is 0, is already in the list, or the caller's limit is reached. Gids beyond the limit are
    /// dropped, as by glibc's own services.
    pub fn push(&mut self, gid: Gid) -> Result<(), TooSmall> {
        // SAFETY: by the contract of `new`; `grow` sets `*size` to the room that it has allocated.
        unsafe {
            let taken = usize::try_from(*self.start).map_err(|_| TooSmall)?;
            let known = (0..taken).any(|at| *(*self.groups).add(at) == gid.0);
            if known || gid.0 == 0 || (self.limit > 0 && *self.start >= self.limit) {
                return Ok(());
            }
            if *self.start >= *self.size {
                self.grow()?;
            }
            *(*self.groups).add(taken) = gid.0;
            *self.start += 1;
        }
        Ok(())
    }

    /// Doubles the room, up to the limit.
    ///
    /// # Safety
    /// The contract of `new` holds.
    unsafe fn grow(&mut self) -> Result<(), TooSmall> {
        // SAFETY: `*groups` came from malloc(3), and realloc(3) keeps what is in it.
        unsafe {
            let doubled = (*self.size).max(8).checked_mul(2).ok_or(TooSmall)?;
            let room = if self.limit > 0 { doubled.min(self.limit) } else { doubled };
            let bytes = usize::try_from(room).map_err(|_| TooSmall)?.checked_mul(size_of::<gid_t>());
            let grown = libc::realloc((*self.groups).cast(), bytes.ok_or(TooSmall)?);
            if grown.is_null() {
                return Err(TooSmall);
            }
            *self.groups = grown.cast();
            *self.size = room;
        }
        Ok(())
    }
}

/// Keeps a panic from being printed on the standard error of the program that has loaded this library; [`log_panic`] logs
/// it. The hook is that of the standard library linked into this library, and other Rust code in the process keeps its own
/// hook.
pub fn silence_panics() {
    // Not a `Once`: in a child that was forked while another thread executed it, a `Once` would wait for ever.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(|_| {}));
    }
}

/// Logs to syslog that an entry point panicked.
pub fn log_panic(entry: &str) {
    const FORMAT: &CStr = c"libnss_iam: %.*s panicked; answered \"unavailable\"";
    let length = i32::try_from(entry.len()).unwrap_or(0);
    // SAFETY: the format takes a length and that many bytes.
    unsafe { libc::syslog(libc::LOG_AUTHPRIV | libc::LOG_CRIT, FORMAT.as_ptr(), length, entry.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use pam_iam_core::id::Uid;
    use pam_iam_core::name::LinuxName;

    fn name(text: &str) -> LinuxName {
        LinuxName::new(text).unwrap()
    }

    fn alice() -> User {
        User {
            name: name("alice"),
            uid: Uid(2_100_000_000),
            gid: Gid(2_100_000_000),
            gecos: "alice".into(),
            home: "/home/alice".into(),
            shell: "/bin/bash".into(),
        }
    }

    /// Returns the length of the smallest buffer that suffices, at `shift` bytes from the start of an allocation.
    fn smallest(fill: impl Fn(Area) -> Result<(), TooSmall>, shift: usize) -> usize {
        let mut buffer = vec![0xaa_u8; 4096];
        (0..4000)
            .find(|&length| {
                buffer.fill(0xaa);
                // SAFETY: the buffer has more than `shift + length` bytes.
                let area = unsafe { Area::new(buffer.as_mut_ptr().add(shift).cast(), length) };
                let filled = fill(area).is_ok();
                assert!(buffer[shift + length..].iter().all(|&b| b == 0xaa), "wrote past {length} bytes");
                filled
            })
            .unwrap()
    }

    #[test]
    fn an_account_fills_just_the_bytes_it_needs_and_never_more() {
        let needed = "alice\0*\0alice\0/home/alice\0/bin/bash\0".len();
        for shift in 0..8 {
            let fill = |area: Area| {
                // SAFETY: all zeros is a `struct passwd`.
                let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
                // SAFETY: `entry` may be written.
                unsafe { passwd(&alice(), &raw mut entry, area) }?;
                // SAFETY: the entry was filled, and its buffer is alive.
                assert_eq!(unsafe { CStr::from_ptr(entry.pw_dir) }, c"/home/alice");
                assert_eq!(entry.pw_uid, 2_100_000_000);
                Ok(())
            };
            assert_eq!(smallest(fill, shift), needed);
        }
    }

    #[test]
    fn a_groups_members_are_aligned_and_null_terminated() {
        let found =
            Group { name: name("dev"), gid: Gid(2_100_000_001), members: vec![name("a"), name("bb")] };
        for shift in 0..8 {
            let fill = |area: Area| {
                // SAFETY: all zeros is a `struct group`.
                let mut entry: libc::group = unsafe { std::mem::zeroed() };
                // SAFETY: `entry` may be written.
                unsafe { group(&found, &raw mut entry, area) }?;
                assert_eq!(entry.gr_mem.align_offset(align_of::<*mut c_char>()), 0);
                // SAFETY: the entry was filled with two members, and its buffer is alive.
                unsafe {
                    assert_eq!(CStr::from_ptr(*entry.gr_mem), c"a");
                    assert_eq!(CStr::from_ptr(*entry.gr_mem.add(1)), c"bb");
                    assert!((*entry.gr_mem.add(2)).is_null());
                }
                Ok(())
            };
            smallest(fill, shift);
        }
    }

    #[test]
    fn the_list_of_gids_grows_to_its_limit_and_holds_each_once_and_never_root() {
        let (mut start, mut size): (c_long, c_long) = (1, 1);
        // SAFETY: an allocation of one gid.
        let mut groups: *mut gid_t = unsafe { libc::malloc(size_of::<gid_t>()) }.cast();
        // SAFETY: just allocated.
        unsafe { *groups = 7 };
        // SAFETY: a list as glibc makes it.
        let mut list = unsafe { GroupList::new(&raw mut start, &raw mut size, &raw mut groups, 40) };
        for gid in [7, 0, 8, 8].into_iter().chain(100..200) {
            list.push(Gid(gid)).unwrap();
        }
        // SAFETY: `start` gids were written.
        let gids = unsafe { std::slice::from_raw_parts(groups, usize::try_from(start).unwrap()) };
        assert_eq!(gids.len(), 40);
        assert_eq!(gids[..4], [7, 8, 100, 101]);
        assert!(size >= start);
        // SAFETY: allocated above.
        unsafe { libc::free(groups.cast()) };
    }
}
