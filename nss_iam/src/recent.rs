//! What this process has asked the resolver a moment ago, so that it does not ask again: names that do not exist, and users
//! whose revalidation it has started.

use std::sync::Mutex;

use pam_iam_core::map::BootTime;
use pam_iam_core::wire::Request;

use crate::frequency::{SERVES, is_frequent, try_lock};

/// The number of requests of each kind that are remembered.
const REMEMBERED: usize = 16;

/// The last requests, each with the moment until which it counts as answered.
struct Recent(Mutex<Ring>);

struct Ring {
    next: usize,
    requests: [Option<(Request, BootTime)>; REMEMBERED],
}

static NOT_FOUND: Recent = Recent::new();
static REVALIDATED: Recent = Recent::new();

impl Recent {
    const fn new() -> Self {
        Self(Mutex::new(Ring { next: 0, requests: [const { None }; REMEMBERED] }))
    }

    fn has(&self, request: &Request, now: BootTime) -> bool {
        let Some(recent) = try_lock(&self.0) else { return false };
        recent.requests.iter().flatten().any(|(known, until)| *until > now && known == request)
    }

    fn add(&self, request: Request, until: BootTime) {
        let Some(mut recent) = try_lock(&self.0) else { return };
        let Ring { next, requests } = &mut *recent;
        if let Some(oldest) = requests.get_mut(*next % REMEMBERED) {
            *oldest = Some((request, until));
        }
        *next = next.wrapping_add(1);
    }
}

/// Returns whether the resolver answered `request` with "not found" less than a second ago. A process that asks seldom always
/// asks again.
pub fn is_not_found(request: &Request, now: BootTime) -> bool {
    is_frequent() && NOT_FOUND.has(request, now)
}

/// Notes that the resolver answered `request` with "not found".
pub fn note_not_found(request: &Request, now: BootTime) {
    NOT_FOUND.add(request.clone(), BootTime(now.0.saturating_add(SERVES)));
}

/// Returns whether this process has to send `request`, which starts a revalidation, and notes it: it is sent once in `max_age`
/// milliseconds.
pub fn is_due(request: &Request, max_age: u32, now: BootTime) -> bool {
    let is_due = !REVALIDATED.has(request, now);
    if is_due {
        REVALIDATED.add(request.clone(), BootTime(now.0.saturating_add(u64::from(max_age))));
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;
    use pam_iam_core::id::Uid;

    #[test]
    fn a_request_counts_as_answered_until_its_moment() {
        let request = |uid| Request::UserByUid { uid: Uid(uid) };
        assert!(is_due(&request(1), 10, BootTime(100)));
        assert!(!is_due(&request(1), 10, BootTime(109)));
        assert!(is_due(&request(2), 10, BootTime(109)), "another one");
        assert!(is_due(&request(1), 10, BootTime(110)));
    }

    #[test]
    fn the_oldest_of_many_requests_is_forgotten() {
        let recent = Recent::new();
        let request = |uid| Request::UserByUid { uid: Uid(uid) };
        for uid in 0..=16 {
            recent.add(request(uid), BootTime(10));
        }
        let has = |uid| recent.has(&request(uid), BootTime(9));
        assert_eq!([has(0), has(1), has(16)], [false, true, true]);
    }
}
