//! Lookups of accounts in every service of nsswitch.conf, within a time limit: a directory that does not answer must not delay the end of
//! a session.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pam_iam_core::id::Uid;
use pam_iam_core::nsswitch;

/// The most time for one lookup.
const LOOKUP_MAX: Duration = Duration::from_millis(300);

/// The most time for all lookups of this process together.
const LOOKUPS_MAX: Duration = Duration::from_secs(1);

/// The time spent on lookups so far, in microseconds.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Whether any lookup had no answer in time.
static UNANSWERED: AtomicBool = AtomicBool::new(false);

/// Whether any lookup of this process had no answer in time.
pub fn was_unanswered() -> bool {
    UNANSWERED.load(Ordering::Relaxed)
}

/// Whether any service has an account with this uid. None if no answer comes in time, or if there is no such account but
/// nsswitch.conf lists a directory: the C library reports a directory that is down like a uid without an account.
pub fn is_account(uid: Uid) -> Option<bool> {
    let is_account = in_time(&SPENT, move || users::get_user_by_uid(uid.0).is_some())?;
    let may_be_down = || {
        let text = std::fs::read_to_string(nsswitch::NSSWITCH).unwrap_or_default();
        nsswitch::has_directory(&text)
    };
    (is_account || !may_be_down()).then_some(is_account)
}

/// Returns the uid of the account of this name in any service. None if no answer comes in time; the inner value is None if there is no
/// such account.
pub fn uid_of(name: &str) -> Option<Option<Uid>> {
    let name = name.to_owned();
    in_time(&SPENT, move || users::get_user_by_name(&name).map(|account| Uid(account.uid())))
}

/// Calls `ask` in a thread and waits for a limited time. A lookup cannot be cancelled, so a late thread is left running,
/// which only a program that ends soon can afford. `spent` is the time of all calls, in microseconds.
fn in_time<T: Send + 'static>(spent: &AtomicU64, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let left = LOOKUPS_MAX.saturating_sub(Duration::from_micros(spent.load(Ordering::Relaxed)));
    let began = Instant::now();
    let (answer, answered) = mpsc::sync_channel(1);
    // Sending fails if the receiver has stopped waiting.
    let asked = !left.is_zero() && thread::Builder::new().spawn(move || drop(answer.send(ask()))).is_ok();
    let found = asked.then(|| answered.recv_timeout(left.min(LOOKUP_MAX)).ok()).flatten();
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    spent.fetch_add(took, Ordering::Relaxed);
    UNANSWERED.fetch_or(found.is_none(), Ordering::Relaxed);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_services_delay_all_lookups_together_by_a_limited_time() {
        assert_eq!(is_account(Uid::ROOT), Some(true));
        assert_eq!(uid_of("root"), Some(Some(Uid::ROOT)));
        let spent = AtomicU64::new(0);
        let (_hold, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        // Each lookup waits until the test is over.
        let answers = (0..1000).filter_map(|_| {
            let held = std::sync::Arc::clone(&held);
            in_time(&spent, move || held.lock().is_ok_and(|held| held.recv().is_ok()))
        });
        assert_eq!(answers.count(), 0);
        assert!(Duration::from_micros(spent.load(Ordering::Relaxed)) >= LOOKUPS_MAX);
        assert_eq!(in_time(&spent, || true), None, "no time is left to ask");
    }
}
