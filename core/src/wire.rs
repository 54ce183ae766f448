//! Requests and answers. A connection, or a run of `iam-resolver --once`, carries one of each. Root may send
//! another request over the same connection, if the one before said so (`"more":true`).
//!
//! A request is `{"v":1,"ask":"user-by-name","name":"alice"}`, an answer `{"answer":"user",...}`. A request that the
//! resolver does not know is answered with an error, so that an older resolver and a newer client get along.

use std::net::IpAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fingerprint::Fingerprint;
use crate::id::{Gid, Uid};
use crate::name::LinuxName;

mod decision;
mod report;

pub use decision::{AccountKind, Decision, Policy, Reason, Source};
pub use report::{
    Explanation, Finding, Flushed, Holder, IamEntry, KeyState, Linted, Refused, Roster, Route, SelfTested,
    Status, Try,
};

/// The version of the protocol.
pub const VERSION: u32 = 1;

/// The longest `aws.total_timeout` that a configuration may ask for.
pub const TOTAL_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// How long a client waits for its answer. Longer than the resolver ever works on one question, since a client
/// that gives up first denies logins that would have been granted.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

const _: () = assert!(CLIENT_DEADLINE.as_millis() > TOTAL_TIMEOUT_MAX.as_millis());

/// How long one reading of the roster may take: 5,000 users are 5 pages one after the other. No login waits for it.
pub const ROSTER_LIMIT: Duration = Duration::from_secs(60);

/// How long going over all IAM users may take: a call for each who may log in.
pub const LINT_LIMIT: Duration = Duration::from_secs(600);

/// How long a client waits for that.
const LINT_DEADLINE: Duration = Duration::from_secs(605);

/// How long a client waits until an event is recorded. It is in the system's log too.
const RECORD_DEADLINE: Duration = Duration::from_millis(100);

/// How long a client waits for the roster: longer than the resolver ever reads it.
const ROSTER_DEADLINE: Duration = Duration::from_secs(65);

/// A request with the version of its protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the sender.
    pub v: u32,
    /// The real uid of the asking program, if it is another than the effective one: a setuid program asks on behalf of its
    /// user. Believed from root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Uid>,
    /// The address of the client that sshd asks about. Believed from root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Whether the client may send another request over the same connection. Heeded if the client is root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The question.
    #[serde(flatten)]
    pub request: Request,
}

/// A question to the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// getpwnam(3).
    UserByName {
        /// The Linux name.
        name: LinuxName,
    },
    /// getpwuid(3).
    UserByUid {
        /// The uid.
        uid: Uid,
    },
    /// getgrnam(3).
    GroupByName {
        /// The Linux name.
        name: LinuxName,
    },
    /// getgrgid(3).
    GroupByGid {
        /// The gid.
        gid: Gid,
    },
    /// getgrouplist(3): the supplementary groups of a user.
    GroupsOf {
        /// The Linux name.
        name: LinuxName,
        /// Whether IAM is not to be asked, so that a service which starts at boot does not wait for the network.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        known: bool,
    },
    /// To start the revalidation of a user who is about to log in, without waiting for it.
    Revalidate {
        /// The Linux name.
        name: LinuxName,
    },
    /// The active public keys of a user.
    Keys {
        /// The Linux name.
        name: LinuxName,
        /// The uid that the asking program is about to log in. An account that is left over from a deleted user of
        /// the same name gets no keys.
        uid: Uid,
        /// Only the key with this fingerprint, if given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fingerprint: Option<Fingerprint>,
    },
    /// Whether a user may do something.
    Decide {
        /// The Linux name.
        name: LinuxName,
        /// The uid that the asking program saw.
        uid: Uid,
        /// What.
        policy: Policy,
    },
    /// The users who may log in, as IAM says now.
    Roster,
    /// How the resolver is.
    Status,
    /// All that decides about a name.
    Explain {
        /// The Linux name.
        name: LinuxName,
    },
    /// Whose a uid is, though NSS may not show the user.
    WhoIs {
        /// The uid.
        uid: Uid,
    },
    /// To forget what is remembered of one name, or of all.
    Flush {
        /// The Linux name.
        name: Option<LinuxName>,
    },
    /// To try each IAM permission that is needed.
    SelfTest,
    /// To go over all IAM users and name those who cannot log in as they should.
    Lint,
    /// To write an event of the audit trail into the resolver's own journal, numbered.
    Record {
        /// The event as a line.
        line: String,
    },
}

impl Request {
    /// What the request is called on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UserByName { .. } => "user-by-name",
            Self::UserByUid { .. } => "user-by-uid",
            Self::GroupByName { .. } => "group-by-name",
            Self::GroupByGid { .. } => "group-by-gid",
            Self::GroupsOf { .. } => "groups-of",
            Self::Revalidate { .. } => "revalidate",
            Self::Keys { .. } => "keys",
            Self::Decide { .. } => "decide",
            Self::Roster => "roster",
            Self::Status => "status",
            Self::Explain { .. } => "explain",
            Self::WhoIs { .. } => "who-is",
            Self::Flush { .. } => "flush",
            Self::SelfTest => "self-test",
            Self::Lint => "lint",
            Self::Record { .. } => "record",
        }
    }

    /// How often it is asked again when the resolver breaks off, by root or somebody else. A question that kills the resolver
    /// does not kill it for ever.
    pub fn retries(&self, by_root: bool) -> u32 {
        match self {
            // Each costs many calls.
            Self::Roster | Self::SelfTest | Self::Lint => 0,
            // Nobody waits long for it.
            Self::Record { .. } => 1,
            // A login hangs on it: sshd and sudo look up accounts as root.
            Self::Keys { .. } | Self::Decide { .. } => 7,
            _ if by_root => 7,
            // Who is turned away since others are too many is not to wait long for a name.
            _ => 3,
        }
    }

    /// How long a client waits for the answer.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Roster | Self::SelfTest => ROSTER_DEADLINE,
            Self::Lint => LINT_DEADLINE,
            Self::Record { .. } => RECORD_DEADLINE,
            _ => CLIENT_DEADLINE,
        }
    }
}

/// The resolver's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// An account.
    User(User),
    /// A group.
    Group(Group),
    /// The supplementary groups of a user.
    Groups {
        /// Their gids.
        gids: Vec<Gid>,
    },
    /// The active public keys of a user, maybe none.
    Keys {
        /// The keys.
        keys: Vec<Key>,
    },
    /// Whether a user may do something.
    Decision(Decision),
    /// A report for the operator's programs: [`Roster`], [`Status`], [`Explanation`] and so on, which the client parses. The modules in sshd
    /// and sudo do not carry the code for it.
    Report {
        /// The report.
        report: Value,
    },
    /// Done.
    Done,
    /// There is no such account or group.
    NotFound,
    /// No answer.
    Error {
        /// What kind of failure.
        kind: Failure,
        /// For the log.
        message: String,
    },
}

impl Answer {
    /// Returns a report as an answer.
    pub fn report(report: &impl Serialize) -> Self {
        match serde_json::to_value(report) {
            Ok(report) => Self::Report { report },
            Err(error) => Self::Error { kind: Failure::BadRequest, message: error.to_string() },
        }
    }

    /// The report, if it is one, and of this kind.
    pub fn into_report<T: DeserializeOwned>(self) -> Option<T> {
        match self {
            Self::Report { report } => serde_json::from_value(report).ok(),
            _ => None,
        }
    }
}

/// Why there is no answer. None of these is ever a yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// IAM cannot be reached and no earlier answer serves.
    Unavailable,
    /// The request makes no sense to this resolver.
    BadRequest,
    /// The peer may not ask this.
    Forbidden,
    /// The configuration does not allow an answer.
    Configuration,
}

/// An account, as passwd(5) would have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The Linux name.
    pub name: LinuxName,
    /// The uid.
    pub uid: Uid,
    /// The user's own group.
    pub gid: Gid,
    /// The IAM name.
    pub gecos: String,
    /// The home directory.
    pub home: String,
    /// The shell.
    pub shell: String,
}

/// A group, as group(5) would have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The Linux name.
    pub name: LinuxName,
    /// The gid.
    pub gid: Gid,
    /// The members, as far as the roster knows them.
    pub members: Vec<LinuxName>,
}

/// An active public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// IAM's id of it (`APKA...`).
    pub id: String,
    /// The IAM user whose key it is.
    pub iam_name: String,
    /// `TYPE BASE64`. A program that prints it parses it first (`key::PublicKey`).
    pub line: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_looks_as_documented() {
        let request = Request::UserByName { name: LinuxName::new("alice").unwrap() };
        let text = serde_json::to_string(&Envelope {
            v: VERSION,
            caller: None,
            client: None,
            more: false,
            request: request.clone(),
        })
        .unwrap();
        assert_eq!(text, r#"{"v":1,"ask":"user-by-name","name":"alice"}"#);
        assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap().request, request);
    }

    #[test]
    fn a_request_has_one_name_on_the_wire_and_in_the_counters() {
        let name = LinuxName::new("alice").unwrap();
        for request in [
            Request::UserByName { name: name.clone() },
            Request::UserByUid { uid: Uid(1) },
            Request::GroupByName { name: name.clone() },
            Request::GroupByGid { gid: Gid(1) },
            Request::GroupsOf { name: name.clone(), known: false },
            Request::Revalidate { name: name.clone() },
            Request::Keys { name: name.clone(), uid: Uid(1), fingerprint: None },
            Request::Decide { name: name.clone(), uid: Uid(1), policy: Policy::Login },
            Request::Roster,
            Request::Status,
            Request::Explain { name: name.clone() },
            Request::WhoIs { uid: Uid(1) },
            Request::Flush { name: Some(name) },
            Request::SelfTest,
            Request::Lint,
        ] {
            assert_eq!(serde_json::to_value(&request).unwrap()["ask"], request.kind());
        }
    }

    #[test]
    fn a_name_that_cannot_be_is_no_request() {
        assert!(serde_json::from_str::<Envelope>(r#"{"v":1,"ask":"user-by-name","name":"a/b"}"#).is_err());
        assert!(serde_json::from_str::<Envelope>(r#"{"v":1,"ask":"make-coffee"}"#).is_err());
    }

    #[test]
    fn a_reason_has_one_name_on_the_wire_and_in_the_log() {
        for reason in [
            Reason::InGroup,
            Reason::All,
            Reason::NotInGroup,
            Reason::PolicyNone,
            Reason::NoLogin,
            Reason::NoSuchUser,
            Reason::Ambiguous,
            Reason::UidTaken,
            Reason::UidMismatch,
            Reason::Local,
            Reason::Denied,
            Reason::NameOfGroup,
            Reason::NameClaimed,
            Reason::InDeniedGroup,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for source in [Source::Iam, Source::Cache, Source::Offline] {
            assert_eq!(serde_json::to_value(source).unwrap(), source.as_str());
        }
    }
}
