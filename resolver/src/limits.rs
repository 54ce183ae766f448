//! Limits on the calls to IAM that clients cause: for unknown names, for revalidations of users, and for revalidations of
//! shared accounts. All clients share each limit, and one origin can use only a part of it.

use std::collections::HashMap;
use std::net::IpAddr;

use pam_iam_core::id::Uid;

use crate::rate_limit::Bucket;

/// The number of calls to IAM for the revalidation of one user.
const CALLS_OF_ONE: usize = 3;

/// The most tokens that the revalidation of a shared account takes. Every bucket holds more, so that no account is too
/// large.
const SHARED_ACCOUNT_MAX: usize = 34;

/// The revalidations per minute that users of this host and clients of sshd can cause together. Each costs three calls,
/// so these are 15 calls a second, after a burst of 900. Requests that sshd, cron and the sweep send for themselves are
/// not limited.
pub const REVALIDATIONS_PER_MINUTE: u32 = 300;

/// The part of [`REVALIDATIONS_PER_MINUTE`] that unauthenticated clients of sshd can use together. The rest is left for decisions about
/// users who are logged in, and for sudo.
const REVALIDATIONS_OF_STRANGERS: u32 = 200;

/// The part of [`REVALIDATIONS_PER_MINUTE`] that one origin can use.
const REVALIDATIONS_PER_ORIGIN: u32 = 60;

/// The divisor of the limit of unknown names that gives the part of one origin: a client who guesses names must not keep
/// new users out.
const UNKNOWN_SHARE: u32 = 3;

/// The most origins that are remembered. When there are as many, those with a full bucket are forgotten.
const ORIGINS_MAX: usize = 10_000;

/// The client whose limits a request counts against.
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
    /// Returns the origin of a client of sshd with `address`.
    pub fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            // A process of this host can use any loopback address, so all of them are one origin.
            address if address.is_loopback() => 1,
            IpAddr::V4(address) => u128::from(u32::from(address)),
            // A client with one IPv6 address can usually use all 2^64 of its network.
            IpAddr::V6(address) => u128::from(address) >> 64 << 64,
        })
    }

    /// Returns whether the origin is a client of sshd, which may not have authenticated.
    fn is_stranger(self) -> bool {
        matches!(self, Self::KeyCommand | Self::Address(_))
    }

    fn has_limit_of_its_own(self) -> bool {
        matches!(self, Self::User(_) | Self::Address(_))
    }
}

/// The limits, and how much of each is left.
#[derive(Debug)]
pub struct Limits {
    unknown: Limit,
    revalidations: Limit,
    shared_accounts: Limit,
}

#[derive(Debug)]
struct Limit {
    shared: Bucket,
    /// The part of `shared` that unauthenticated clients of sshd can take together.
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

    /// Takes a token for each of the `candidates`, the IAM users whose name would map to an unknown name. Returns whether
    /// `origin` may have the name looked up.
    pub fn take_unknown(&mut self, origin: Origin, candidates: usize) -> bool {
        self.unknown.take(origin, candidates)
    }

    /// Takes a token for the revalidation of a user. Returns whether `origin` may cause it.
    pub fn take_revalidation(&mut self, origin: Origin) -> bool {
        origin == Origin::Host || self.revalidations.take(origin, 1)
    }

    /// Takes tokens for the revalidation of a shared account, which costs a call for each member. Returns whether
    /// `origin` may cause it. These tokens are not those of users: a client who uses them up stops no revalidation of a
    /// user.
    pub fn take_shared_account(&mut self, origin: Origin, members: usize) -> bool {
        let tokens = members.div_ceil(CALLS_OF_ONE).clamp(1, SHARED_ACCOUNT_MAX);
        origin == Origin::Host || self.shared_accounts.take(origin, tokens)
    }

    /// Returns the number of look-ups of unknown names that may be made now.
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
            // There is no room for another origin, so only the shared limits hold.
            return self.take_shared(origin, tokens);
        }
        if !origin.has_limit_of_its_own() {
            return self.take_shared(origin, tokens);
        }
        let own = self.origins.entry(origin).or_insert_with(|| Bucket::new(self.per_origin));
        // A name with more candidates than an origin's bucket can hold takes the whole bucket.
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
