//! `pam_iam.so`: IAM group policy in PAM's account phase, the home directory in its session phase.
//!
//! sshd and sudo load this module. It starts no thread, installs no signal handler, leaves no descriptor or child behind,
//! prints nothing, and lets no panic cross the boundary to PAM: a panic is logged and denies. This file is that boundary.
//! The phases are in [`account`] and [`session`], which know PAM only as [`application::Application`].

#![expect(unsafe_code, reason = "the parts of PAM's C interface that pam-bindings lacks")]

mod account;
mod application;
mod arguments;
mod given;
mod group_refusal;
mod home;
mod session;
mod skeleton;
mod sudoer;
mod target;

use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Once;

use pam::constants::{PAM_ERROR_MSG, PamFlag, PamResultCode};
use pam::conv::Conv;
use pam::items::{Item, RHost, RUser, Service};
use pam::module::{PamHandle, PamHooks};

use pam_iam_core::audit::Event;
use pam_iam_core::client::Line;
use pam_iam_core::deadline::Deadline;
use pam_iam_core::escape::Value;
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::paths;
use pam_iam_core::wire::Request;

use crate::application::{Application, Outcome, Severity};
use crate::arguments::Arguments;

struct PamIam;

mod entry_points {
    use super::PamIam;
    pam::pam_hooks!(PamIam);
}

impl PamHooks for PamIam {
    fn acct_mgmt(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("acct_mgmt", "account", pamh, &args, |application, arguments| {
            account::check(application, arguments)
        })
    }

    fn sm_open_session(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("open_session", "session", pamh, &args, |application, arguments| {
            session::open(application, arguments)
        })
    }

    fn sm_close_session(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("close_session", "session", pamh, &args, |_, _| session::close())
    }

    /// Ignores the call, for a stack that has this module in its auth phase: sshd checks the keys itself.
    fn sm_authenticate(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("authenticate", "auth", pamh, &args, |_, _| Outcome::Ignore)
    }

    fn sm_setcred(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("setcred", "setcred", pamh, &args, |_, _| Outcome::Ignore)
    }

    fn sm_chauthtok(pamh: &mut PamHandle, args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        guard("chauthtok", "chauthtok", pamh, &args, |_, _| Outcome::Ignore)
    }
}

/// Runs the body of an entry point. A panic is logged and denies.
fn guard(
    entry: &str,
    phase: &'static str,
    pamh: &mut PamHandle,
    args: &[&CStr],
    body: impl FnOnce(&mut PamHost<'_>, &Arguments) -> Outcome,
) -> PamResultCode {
    silence_panics();
    let mut application = PamHost { handle: pamh, phase, line: Rc::default() };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        panic_if_tested(entry);
        let (arguments, complaints) = Arguments::parse(args.iter().map(|arg| arg.to_string_lossy()));
        for complaint in complaints {
            application.log(Severity::Warning, &complaint);
        }
        body(&mut application, &arguments)
    }));
    let outcome = outcome.unwrap_or_else(|_| {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            application
                .audit(Severity::Error, &Event::new("panic").with("entry", entry).with("result", "deny"));
        }));
        Outcome::Panic
    });
    match outcome {
        Outcome::Success => PamResultCode::PAM_SUCCESS,
        Outcome::Ignore => PamResultCode::PAM_IGNORE,
        Outcome::Denied => PamResultCode::PAM_PERM_DENIED,
        Outcome::Unavailable => PamResultCode::PAM_AUTHINFO_UNAVAIL,
        Outcome::UnknownUser => PamResultCode::PAM_USER_UNKNOWN,
        Outcome::SessionFailed => PamResultCode::PAM_SESSION_ERR,
        Outcome::Panic => PamResultCode::PAM_ABORT,
    }
}

/// Keeps a panic from being printed on the standard error of sshd or sudo; [`guard`] logs it. The hook is that of the
/// standard library linked into this module, and other Rust code in the process keeps its own hook.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

#[cfg(feature = "test-panic")]
#[expect(clippy::panic, reason = "what the feature is for")]
fn panic_if_tested(entry: &str) {
    if std::env::var("PAM_IAM_TEST_PANIC").is_ok_and(|wanted| wanted == entry) {
        panic!("forced in {entry}");
    }
}

#[cfg(not(feature = "test-panic"))]
fn panic_if_tested(_entry: &str) {}

unsafe extern "C" {
    fn pam_getenv(pamh: *mut PamHandle, name: *const c_char) -> *const c_char;
    fn pam_syslog(pamh: *const PamHandle, priority: c_int, format: *const c_char, ...);
}

/// The application that called this module, reached through PAM's handle.
struct PamHost<'a> {
    handle: &'a mut PamHandle,
    /// The name that pam_syslog(3) has for the phase.
    phase: &'static str,
    /// Closed when the phase ends.
    line: Rc<Line>,
}

impl PamHost<'_> {
    fn item<'a, T: Item<'a> + std::ops::Deref<Target = &'a CStr>>(&'a self) -> String {
        let item = self.handle.get_item::<T>().ok().flatten();
        item.map(|item| item.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl Application for PamHost<'_> {
    fn user(&mut self) -> Option<String> {
        self.handle.get_user(None).ok()
    }

    fn requesting_user(&self) -> String {
        self.item::<RUser>()
    }

    fn service(&self) -> String {
        self.item::<Service>()
    }

    fn remote_host(&self) -> String {
        self.item::<RHost>()
    }

    fn environment(&mut self, name: &CStr) -> Option<String> {
        // SAFETY: the handle is PAM's, and the name is a C string.
        let value = unsafe { pam_getenv(&raw mut *self.handle, name.as_ptr()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: pam_getenv(3) returns a C string, which is copied before the next call to PAM.
        Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }

    fn process_uid(&self) -> Uid {
        Uid(rustix::process::getuid().as_raw())
    }

    fn process_gids(&self) -> Vec<Gid> {
        let mut gids = vec![rustix::process::getgid().as_raw(), rustix::process::getegid().as_raw()];
        gids.extend(rustix::process::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()));
        gids.into_iter().map(Gid).collect()
    }

    fn gids_of(&self, user: &str, gid: u32) -> Vec<Gid> {
        let gids = CString::new(user).map(|user| group_list(&user, gid)).unwrap_or_default();
        gids.into_iter().map(Gid).collect()
    }

    fn line(&self) -> Rc<Line> {
        Rc::clone(&self.line)
    }

    fn message(&mut self, message: &str) {
        if let Ok(Some(conversation)) = self.handle.get_item::<Conv<'_>>() {
            let _ = conversation.send(PAM_ERROR_MSG, message);
        }
    }

    fn audit(&mut self, severity: Severity, event: &Event) {
        let service = self.service();
        // The line begins like those of pam_syslog(3).
        let message = format!("pam_iam({}:{}): {event}", Value(&service), self.phase);
        let priority = u8::try_from(priority(severity)).unwrap_or_default();
        if !event.to_journal(Path::new(paths::JOURNAL), priority, &service, &message) {
            self.log(severity, &event.to_string());
        }
        // journald may drop the line above in a flood. The resolver logs it too, and its unit has no rate limit.
        let request = Request::Record { line: event.to_string() };
        let _ = self.line.ask(Path::new(paths::SOCKET), &request, Deadline::after(request.patience()));
    }

    fn log(&mut self, severity: Severity, line: &str) {
        let Ok(line) = CString::new(line.replace(['\0', '\n'], " ")) else { return };
        let priority = priority(severity);
        // SAFETY: the handle is PAM's, and the format takes one C string. pam_syslog(3) adds LOG_AUTHPRIV.
        unsafe { pam_syslog(&raw const *self.handle, priority, c"%s".as_ptr(), line.as_ptr()) };
    }
}

/// Returns the groups that a login of `user` would get, by getgrouplist(3).
fn group_list(user: &CStr, gid: u32) -> Vec<u32> {
    let mut count: c_int = 64;
    loop {
        let mut gids = vec![0; usize::try_from(count).unwrap_or_default()];
        let room = count;
        // SAFETY: `user` is a C string, and `gids` has room for `count` gids.
        let listed = unsafe { libc::getgrouplist(user.as_ptr(), gid, gids.as_mut_ptr(), &raw mut count) };
        if listed >= 0 {
            gids.truncate(usize::try_from(count).unwrap_or_default());
            return gids;
        }
        // `count` is now the number of all groups, and `gids` has those for which there was room.
        if count <= room {
            return Vec::new();
        }
        if count > 65_536 {
            return gids;
        }
    }
}

fn priority(severity: Severity) -> c_int {
    match severity {
        Severity::Error => libc::LOG_ERR,
        Severity::Warning => libc::LOG_WARNING,
        Severity::Info => libc::LOG_INFO,
        Severity::Debug => libc::LOG_DEBUG,
    }
}
