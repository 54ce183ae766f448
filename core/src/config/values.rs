//! The types of values in the configuration. Each is parsed while the file is read, so that an error names its line.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::name::LinuxName;

/// A value in the configuration that does not have the form of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct ValueError {
    expected: &'static str,
    found: String,
}

impl ValueError {
    fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.to_owned() }
    }
}

/// Parses a string or an integer into `T` while the file is read, so that an error names its line.
fn parsed<'de, T: std::str::FromStr<Err = ValueError>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);

    impl<T: std::str::FromStr<Err = ValueError>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            number.to_string().parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Text(PhantomData))
}

/// A duration: "500ms", "10s", "5m", "12h", "7d", or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigDuration(pub Duration);

impl ConfigDuration {
    /// Returns a duration of `seconds` seconds.
    pub(super) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl std::str::FromStr for ConfigDuration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::new(r#"a duration like "10s", "5m" or "12h""#, text);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "d" => 24 * 3600 * 1000,
            "" if number == 0 => 0,
            _ => return Err(wrong()),
        };
        let span = number.checked_mul(milliseconds).ok_or_else(wrong)?;
        Ok(Self(Duration::from_millis(span)))
    }
}

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl Serialize for ConfigDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", self.0.as_millis()))
    }
}

/// An absolute path that passwd(5) can hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AbsolutePath(pub PathBuf);

impl std::str::FromStr for AbsolutePath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if !text.starts_with('/') || text.contains(|c: char| c == ':' || c.is_control()) {
            return Err(ValueError::new("an absolute path", text));
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// The path of home directories: an absolute path whose last part contains `{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HomePattern(pub(super) String);

impl HomePattern {
    /// Returns the home directory of `name`.
    pub fn of(&self, name: &LinuxName) -> String {
        self.0.replace("{name}", name.as_str())
    }
}

impl std::str::FromStr for HomePattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let AbsolutePath(path) = text.parse()?;
        let own = path.file_name().is_some_and(|last| last.to_string_lossy().contains("{name}"));
        let parts = text.split('/').any(|part| part == "." || part == "..");
        if !own || parts || text.ends_with('/') {
            return Err(ValueError::new("an absolute path whose last part holds {name}", text));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for HomePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A percentage from 0 to 100: "20%".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl std::str::FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        number
            .filter(|&number| number <= 100)
            .map(Self)
            .ok_or_else(|| ValueError::new(r#"a share from "0%" to "100%""#, text))
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl Serialize for Percent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}%", self.0))
    }
}

/// A pattern of IAM group names: `*` stands for any number of characters, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the pattern matches the whole `text`.
    pub fn matches(&self, text: &str) -> bool {
        let (first, rest) = match self.0.split_once('*') {
            None => return self.0 == text,
            Some(parts) => parts,
        };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut pieces: Vec<&str> = rest.split('*').collect();
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            let Some((_, after)) = text.split_once(piece) else { return false };
            text = after;
        }
        text.ends_with(last)
    }
}

impl std::str::FromStr for Pattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-*".contains(c);
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(ValueError::new(r#"a pattern of IAM groups like "prod-*""#, text));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The key of an EC2 instance tag that the metadata service can show: 1 to 128 letters, digits and `+ - = . , _ : @`
/// (EC2 user guide, "View tags using instance metadata").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagName(String);

impl TagName {
    /// Returns the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TagName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
        if !(1..=128).contains(&text.len()) || !text.chars().all(allowed) || [".", ".."].contains(&text) {
            return Err(ValueError::new("the key of an instance tag", text));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for TagName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_matches_the_whole_name() {
        let matches = |pattern: &str, name| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("prod-*", "prod-users") && matches("prod-*", "prod-"));
        assert!(
            !matches("prod-*", "xprod-users") && !matches("prod-*", "prod") && !matches("prod-*", "Prod-x")
        );
        assert!(matches("*-ops", "prod-ops") && !matches("*-ops", "prod-ops2"));
        assert!(matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "acb") && !matches("ab*ba", "aba"));
        assert!(matches("exact", "exact") && !matches("exact", "exactly"));
        assert!(matches("*", "anything"));
        for wrong in ["", "a b", "a/b", "[a]"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_for_the_stars_matches(parts in prop::collection::vec(("[ab]{0,3}", "[ab]{0,4}"), 1..4)) {
            let pattern: String = parts.iter().map(|(fixed, _)| format!("{fixed}*")).collect();
            let name: String = parts.iter().map(|(fixed, free)| format!("{fixed}{free}")).collect();
            prop_assert!(pattern.parse::<Pattern>().unwrap().matches(&name));
        }
    }
}
