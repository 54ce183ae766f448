//! How often this process looks up names. From its fifth lookup on, a process keeps private copies of what it reads, and may get
//! an answer that is up to a second old. A process that asks once or twice, such as `id`, always gets the present one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use pam_iam_core::map::BootTime;

/// The number of lookups after which a process counts as one that asks often.
const FEW: u32 = 4;

/// How long a copy serves before it is checked whether there is something newer, in milliseconds.
pub const SERVES: u64 = 1000;

/// How often a thread tries to get a copy that another thread holds. A thread holds it for less than a microsecond.
const TRIES: usize = 64;

static LOOKUPS: AtomicU32 = AtomicU32::new(0);

/// Counts a lookup.
pub fn count() {
    // The number must not wrap around to 0.
    if LOOKUPS.load(Ordering::Relaxed) <= FEW {
        LOOKUPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns whether this process asks often.
pub fn is_frequent() -> bool {
    LOOKUPS.load(Ordering::Relaxed) > FEW
}

/// Returns whether what was checked at `checked` still serves at `now`.
pub fn serves(checked: BootTime, now: BootTime) -> bool {
    now.0.checked_sub(checked.0).is_some_and(|age| age < SERVES)
}

/// Returns what `mutex` protects. Never blocks: None if another thread holds it, or held it when this process was forked.
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    (0..TRIES).find_map(|_| {
        let guard = mutex.try_lock().ok();
        if guard.is_none() {
            std::hint::spin_loop();
        }
        guard
    })
}
