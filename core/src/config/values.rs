//! The kinds of values in the configuration, each parsed as it is read, so that an error names its line.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::name::LinuxName;

/// Parses a string into `T` as it is read, so that an error names its line.
fn parsed<'de, T: std::str::FromStr<Err = String>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);

    impl<T: std::str::FromStr<Err = String>> Visitor<'_> for Text<T> {
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
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub(super) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!(r#"expected a duration like "10s", "5m" or "12h", found {text:?}"#);
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

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", self.0.as_millis()))
    }
}

/// An absolute path that passwd(5) can hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AbsolutePath(pub PathBuf);

impl std::str::FromStr for AbsolutePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') || text.contains(|c: char| c == ':' || c.is_control()) {
            return Err(format!("expected an absolute path, found {text:?}"));
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// Where home directories are: an absolute path whose last part holds `{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HomePattern(pub(super) String);

impl HomePattern {
    /// The home directory of `name`.
    pub fn of(&self, name: &LinuxName) -> String {
        self.0.replace("{name}", name.as_str())
    }
}

impl std::str::FromStr for HomePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let AbsolutePath(path) = text.parse()?;
        let own = path.file_name().is_some_and(|last| last.to_string_lossy().contains("{name}"));
        let parts = text.split('/').any(|part| part == "." || part == "..");
        if !own || parts || text.ends_with('/') {
            return Err(format!("expected an absolute path whose last part holds {{name}}, found {text:?}"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for HomePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A share of a whole: "20%".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl std::str::FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        number
            .filter(|&number| number <= 100)
            .map(Self)
            .ok_or_else(|| format!(r#"expected a share from "0%" to "100%", found {text:?}"#))
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
