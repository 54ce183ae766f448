//! Limits on the calls to IAM that clients cause: one for unknown names and one for revalidations. All clients share them, and each
//! origin has a smaller share.

use std::collections::HashMap;
use std::net::IpAddr;

use pam_iam_core::id::Uid;

use crate::rate_limit::Bucket;

/// Calls that the revalidation of one user costs.
const CALLS_OF_ONE: usize = 3;

/// What the revalidation of a shared account takes at most: less than any of the limits holds.
const SHARED_ACCOUNT_MAX: usize = 34;

/// Revalidations a minute that users of this host and clients of sshd can cause together. Each costs three calls, so that
/// this is 15 calls a second at most. What sshd, cron and the sweep ask by themselves is not limited by it.
pub const REVALIDATIONS_PER_MINUTE: u32 = 300;

/// The part of [`REVALIDATIONS_PER_MINUTE`] that unauthenticated clients of sshd can use together. The rest is left for decisions about
/// users who are logged in, and for sudo.
const REVALIDATIONS_OF_STRANGERS: u32 = 200;

/// The part of [`REVALIDATIONS_PER_MINUTE`] that one origin can use.
const REVALIDATIONS_PER_ORIGIN: u32 = 60;

/// One origin can use the limit of unknown names divided by this: one client who guesses names must not keep new users out.
const UNKNOWN_SHARE: u32 = 3;

/// How many origins are remembered before those that have caused nothing for a minute are forgotten.
const ORIGINS_MAX: usize = 10_000;

/// The client behind a request, whose limit a call to IAM counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A root process of the host that asks for itself.
    Host,
    /// The key command, which sshd runs for an unauthenticated client.
    KeyCommand,
    /// A local user, directly or through a setuid program.
    User(Uid),
    /// A client of sshd, by its IPv4 address or the network half (/64) of its IPv6 address.
    Address(u128),
}

impl Origin {
    /// The client with this address.
    pub fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            // The host itself has as many of these as it likes.
            address if address.is_loopback() => 1,
            IpAddr::V4(address) => u128::from(u32::from(address)),
            // Whoever has an address has the network's other 2^64.
            IpAddr::V6(address) => u128::from(address) >> 64 << 64,
        })
    }

    /// Whether a client of sshd is behind it, whom nobody knows yet.
    fn is_stranger(self) -> bool {
        matches!(self, Self::KeyCommand | Self::Address(_))
    }

    fn has_limit_of_its_own(self) -> bool {
        matches!(self, Self::User(_) | Self::Address(_))
    }
}

/// The limits.
#[derive(Debug)]
pub struct Limits {
    unknown: Limit,
    revalidations: Limit,
    shared_accounts: Limit,
}

#[derive(Debug)]
struct Limit {
    shared: Bucket,
    /// What strangers can take of it together.
    strangers: Bucket,
    per_origin: u32,
    origins: HashMap<Origin, Bucket>,
}

impl Limits {
    /// Returns full limits, with `unknown_per_minute` look-ups of unknown names.
    pub fn new(unknown_per_minute: u32) -> Self {
        let per_origin = unknown_per_minute.div_ceil(UNKNOWN_SHARE);
        let revalidations =
            || Limit::new(REVALIDATIONS_PER_MINUTE, REVALIDATIONS_OF_STRANGERS, REVALIDATIONS_PER_ORIGIN);
        Self {
            unknown: Limit::new(unknown_per_minute, unknown_per_minute, per_origin),
            revalidations: revalidations(),
            shared_accounts: revalidations(),
        }
    }

    /// Whether `origin` may have an unknown name looked up, behind which `candidates` IAM users could stand.
    pub fn take_unknown(&mut self, origin: Origin, candidates: usize) -> bool {
        self.unknown.take(origin, candidates)
    }

    /// Whether `origin` may have a user revalidated.
    pub fn take_revalidation(&mut self, origin: Origin) -> bool {
        origin == Origin::Host || self.revalidations.take(origin, 1)
    }

    /// Whether `origin` may have a shared account revalidated, which costs a call for each of its members. Whoever uses that up
    /// takes nothing from other accounts.
    pub fn take_shared_account(&mut self, origin: Origin, members: usize) -> bool {
        let tokens = members.div_ceil(CALLS_OF_ONE).clamp(1, SHARED_ACCOUNT_MAX);
        origin == Origin::Host || self.shared_accounts.take(origin, tokens)
    }

    /// How many look-ups of unknown names may be made now.
    pub fn unknown_left(&mut self) -> u32 {
        self.unknown.shared.level()
    }
}

impl Limit {
    fn new(per_minute: u32, of_strangers: u32, per_origin: u32) -> Self {
        let (shared, strangers) = (Bucket::new(per_minute), Bucket::new(of_strangers));
        Self { shared, strangers, per_origin, origins: HashMap::new() }
    }

    fn take(&mut self, origin: Origin, tokens: usize) -> bool {
        if self.origins.len() >= ORIGINS_MAX {
            let per_origin = self.per_origin;
            self.origins.retain(|_, bucket| bucket.level() < per_origin);
        }
        if self.origins.len() >= ORIGINS_MAX {
            // Too many at once: the shared limits hold for them.
            return self.take_shared(origin, tokens);
        }
        if !origin.has_limit_of_its_own() {
            return self.take_shared(origin, tokens);
        }
        let own = self.origins.entry(origin).or_insert_with(|| Bucket::new(self.per_origin));
        // A name with more candidates than one origin's limit holds is looked up alone.
        own.take(tokens.min(usize::try_from(self.per_origin).unwrap_or(usize::MAX)))
            && self.take_shared(origin, tokens)
    }

    fn take_shared(&mut self, origin: Origin, tokens: usize) -> bool {
        (!origin.is_stranger() || self.strangers.take(tokens)) && self.shared.take(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn one_origin_does_not_exhaust_the_common_limit() {
        let mut limits = Limits::new(30);
        let (mallory, alice) = (Origin::User(Uid(1001)), Origin::of_address("192.0.2.1".parse().unwrap()));
        assert_eq!((0..1000).filter(|_| limits.take_unknown(mallory, 1)).count(), 10);
        assert_eq!((0..1000).filter(|_| limits.take_unknown(alice, 1)).count(), 10);
        assert_eq!((0..1000).filter(|_| limits.take_unknown(Origin::Host, 1)).count(), 10);
        assert!(!limits.take_unknown(Origin::User(Uid(1002)), 1), "together they have used it up");
        assert!(limits.take_revalidation(mallory), "which says nothing about users who are known");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_host_itself_revalidates_as_it_must() {
        let mut limits = Limits::new(30);
        assert_eq!((0..10_000).filter(|_| limits.take_revalidation(Origin::User(Uid(1001)))).count(), 60);
        assert!((0..1000).all(|_| limits.take_revalidation(Origin::Host)));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_request_takes_a_part_of_the_limit_for_each_call() {
        let mut limits = Limits::new(30);
        let shared = (0..1000).filter(|_| limits.take_shared_account(Origin::KeyCommand, 60)).count();
        assert_eq!(u32::try_from(shared * 20).unwrap(), REVALIDATIONS_OF_STRANGERS);
        assert!(limits.take_revalidation(Origin::KeyCommand), "which takes nothing from others");
        let (mut limits, mallory) = (Limits::new(30), Origin::User(Uid(1001)));
        assert!(limits.take_shared_account(mallory, 5000), "however many they are");
        assert!(!limits.take_shared_account(mallory, 5000));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn unknown_clients_leave_a_part_of_the_limit_for_sessions() {
        let mut limits = Limits::new(30);
        let by_keys = (0..10_000).filter(|_| limits.take_revalidation(Origin::KeyCommand)).count();
        assert_eq!(u32::try_from(by_keys).unwrap(), REVALIDATIONS_OF_STRANGERS);
        let address = |at: u8| Origin::of_address([192, 0, 2, at].into());
        assert!(!(0..200).any(|at| limits.take_revalidation(address(at))), "they count together");
        assert!((0..60).all(|_| limits.take_revalidation(Origin::User(Uid(1001)))));
    }

    #[test]
    fn an_address_counts_with_its_network() {
        let origin = |address: &str| Origin::of_address(address.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:2"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("127.0.0.1"), origin("127.1.2.3"));
        assert_eq!(origin("127.0.0.1"), origin("::1"));
    }
}
