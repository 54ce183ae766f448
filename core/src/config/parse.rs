//! Parsers for single keys of the configuration, with the error for each wrong value.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::{Allowed, ConfigDuration, GroupTarget, PRIVILEGED_GROUPS, Pattern, TagRule};
use crate::id::{LAST, LAST_HASHED, Uid};
use crate::name::{IAM_SUDO, IAM_USERS, IamName, LinuxName};
use crate::wire::TOTAL_TIMEOUT_MAX;

pub(super) fn nobody() -> Allowed {
    Allowed::None
}

pub(super) fn allow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Allowed, D::Error> {
    match access(deserializer)? {
        Allowed::None => Err(de::Error::custom(r#"expected "all" or a list of IAM groups, found "none""#)),
        policy => Ok(policy),
    }
}

pub(super) fn sudo<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Allowed, D::Error> {
    access(deserializer)
}

fn access<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Allowed, D::Error> {
    struct Words;

    impl<'de> Visitor<'de> for Words {
        type Value = Allowed;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(r#""all", a list of IAM groups, or { tag = "TAG", within = ["PATTERN"] }"#)
        }

        fn visit_str<E: de::Error>(self, word: &str) -> Result<Allowed, E> {
            match word {
                "all" => Ok(Allowed::All),
                "none" => Ok(Allowed::None),
                _ => Err(E::custom(format!(r#"expected "all" or a list, found {word:?}; write [{word:?}]"#))),
            }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Allowed, A::Error> {
            groups(de::value::SeqAccessDeserializer::new(list)).map(Allowed::Groups)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Allowed, A::Error> {
            TagRule::deserialize(de::value::MapAccessDeserializer::new(map)).map(Allowed::Tag)
        }
    }

    deserializer.deserialize_any(Words)
}

pub(super) fn groups<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IamName>, D::Error> {
    let groups = denied(deserializer)?;
    if groups.is_empty() {
        return Err(de::Error::custom("an empty list would allow nobody"));
    }
    Ok(groups)
}

/// Parses a list of IAM groups, which may be empty.
pub(super) fn denied<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IamName>, D::Error> {
    let group = |name: String| {
        IamName::group(&name).map_err(|why| de::Error::custom(format!("IAM group {name:?} {why}")))
    };
    Vec::<String>::deserialize(deserializer)?.into_iter().map(group).collect()
}

pub(super) fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pattern>, D::Error> {
    let patterns = Vec::<Pattern>::deserialize(deserializer)?;
    if patterns.is_empty() {
        return Err(de::Error::custom("an empty list would allow nobody"));
    }
    Ok(patterns)
}

impl<'de> Deserialize<'de> for GroupTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            group: String,
            #[serde(default)]
            allow_privileged: bool,
        }

        struct Target;

        impl<'de> Visitor<'de> for Target {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"the name of a Linux group, or { group = "NAME", allow_privileged = true }"#)
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Table, E> {
                Ok(Table { group: name.to_owned(), allow_privileged: false })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Table, A::Error> {
                Table::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }

        let Table { group, allow_privileged } = deserializer.deserialize_any(Target)?;
        let name = LinuxName::new(&group);
        let group = name.map_err(|why| de::Error::custom(format!("Linux group {group:?} {why}")))?;
        if [IAM_USERS, IAM_SUDO].contains(&group.as_str()) {
            return Err(de::Error::custom(format!("{group} is given by [access] alone")));
        }
        if group.as_str() == "root" {
            return Err(de::Error::custom("no IAM group maps to the group root"));
        }
        // sudo compares names of groups without regard to case.
        let is_privileged = PRIVILEGED_GROUPS.iter().any(|known| known.eq_ignore_ascii_case(group.as_str()));
        if is_privileged && !allow_privileged {
            return Err(de::Error::custom(format!(
                r#"members of {group} are as good as root; if that is meant, write {{ group = "{group}", allow_privileged = true }}"#
            )));
        }
        Ok(Self { group, allow_privileged })
    }
}

/// The letters of those tokens of sshd_config(5) that a command in `keys.also_run` may use. Every supported version of
/// sshd has them, but not %C and %D.
const COMMAND_TOKENS: &str = "uUhftk%";

/// Parses command lines that begin with an absolute path and use no tokens but those in [`COMMAND_TOKENS`].
pub(super) fn commands<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let commands = Vec::<String>::deserialize(deserializer)?;
    for command in &commands {
        if !command.starts_with('/') {
            return Err(de::Error::custom(format!(
                "the command {command:?} does not begin with an absolute path"
            )));
        }
        let mut rest = command.chars();
        while let Some(letter) = rest.next() {
            let token = if letter == '%' { rest.next().unwrap_or(' ') } else { '%' };
            if !COMMAND_TOKENS.contains(token) {
                return Err(de::Error::custom(format!(
                    "the command {command:?} has %{token}, which is not passed on; there are %u, %U, %h, %f, %t, %k and %%"
                )));
            }
        }
    }
    Ok(commands)
}

/// Parses a region of AWS, like `eu-central-1`.
pub(super) fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let is_region = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    word(deserializer, is_region, "a region is lower-case letters, digits and hyphens, like \"eu-central-1\"")
}

/// Parses the address of an API, with its scheme.
pub(super) fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let is_address = |word: &str| {
        let host = word.strip_prefix("https://").or_else(|| word.strip_prefix("http://"));
        host.is_some_and(|host| !host.is_empty() && !host.starts_with(['/', ':', '?', '#']))
            && !word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    word(deserializer, is_address, "an endpoint begins with https:// or http://, and then names a host")
}

/// Parses the ARN of a role.
pub(super) fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let is_role = |word: &str| {
        let parts: Vec<&str> = word.splitn(6, ':').collect();
        matches!(parts.as_slice(), ["arn", partition, "iam", "", account, role]
            if partition.starts_with("aws") && account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit())
                && role.strip_prefix("role/").is_some_and(|name| !name.is_empty() && !name.contains(char::is_whitespace)))
    };
    word(deserializer, is_role, "a role is given by its ARN, like \"arn:aws:iam::123456789012:role/NAME\"")
}

/// Parses a string that `is_right` accepts. The error for any other string ends with `rule`.
fn word<'de, D: Deserializer<'de>>(
    deserializer: D,
    is_right: impl Fn(&str) -> bool,
    rule: &str,
) -> Result<Option<String>, D::Error> {
    let word = String::deserialize(deserializer)?;
    match is_right(&word) {
        true => Ok(Some(word)),
        false => Err(de::Error::custom(format!("{word:?}: {rule}"))),
    }
}

/// Parses uids by immutable ids: each must be in the range for operators, and no two may be equal.
pub(super) fn assigned_uids<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Uid>, D::Error> {
    let uids = BTreeMap::<String, Uid>::deserialize(deserializer)?;
    let mut taken: BTreeMap<Uid, &str> = BTreeMap::new();
    for (id, uid) in &uids {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
            return Err(de::Error::custom(format!(
                "{id:?} is no immutable id, like \"AIDACKCEVSQ6C2EXAMPLE\""
            )));
        }
        if !uid.may_be_assigned() {
            let (first, last) = (LAST_HASHED + 1, LAST);
            return Err(de::Error::custom(format!(
                "{id}: a uid that is assigned lies in {first}..={last}, and {uid} does not"
            )));
        }
        if let Some(other) = taken.insert(*uid, id) {
            return Err(de::Error::custom(format!("{other} and {id} have the same uid {uid}")));
        }
    }
    Ok(uids)
}

pub(super) fn total_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ConfigDuration, D::Error> {
    let span = ConfigDuration::deserialize(deserializer)?;
    if span.0 > TOTAL_TIMEOUT_MAX || span.0.is_zero() {
        let max = TOTAL_TIMEOUT_MAX.as_secs();
        return Err(de::Error::custom(format!(
            "must be more than 0 and at most {max}s, since a login waits for it"
        )));
    }
    Ok(span)
}
