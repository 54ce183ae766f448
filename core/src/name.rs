//! IAM names, Linux names, and the mapping between them.
//!
//! `+ = , @` become `.plus. .equal. .comma. .at.`, as in the scripts that many hosts have used before. The mapping is not unique: `a.at.b` may
//! be the IAM user `a@b` or `a.at.b`. So [`candidates`] lists all IAM names that map to a Linux name, and if two of them exist, both are
//! refused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Characters that IAM allows in a name and Linux does not, and what stands for them.
const ESCAPES: [(char, &str); 4] = [('+', ".plus."), ('=', ".equal."), (',', ".comma."), ('@', ".at.")];

/// The longest Linux user name: `LOGIN_NAME_MAX` counts more, but useradd(8), utmp(5) and `ps` end at 32.
pub const LINUX_NAME_MAX: usize = 32;

/// The longest IAM user name (API reference, `CreateUser`). Group names may have twice as many.
pub const IAM_USER_NAME_MAX: usize = 64;

/// The longest IAM group name (API reference, `CreateGroup`).
pub const IAM_GROUP_NAME_MAX: usize = 128;

/// The most IAM names that may map to one Linux name. Each costs three calls, so a name with more candidates is refused.
pub const CANDIDATES_MAX: usize = 16;

/// The Linux group of every managed account. It restricts: sshd's rule about authorized_keys goes by it.
pub const IAM_USERS: &str = "iam-users";

/// The Linux group of the users who may use sudo.
pub const IAM_SUDO: &str = "iam-sudo";

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("is empty")]
    Empty,
    /// The name is too long.
    #[error("has {0} characters, more than {1}")]
    TooLong(usize, usize),
    /// The name begins with `-` or `.`: programs would take it for an option or a hidden file.
    #[error("begins with '-' or '.'")]
    BadStart,
    /// The name is all digits: programs would take it for a uid.
    #[error("is all digits")]
    AllDigits,
    /// The name has a character that is not allowed.
    #[error("holds the character {0:?}")]
    BadCharacter(char),
    /// More than [`CANDIDATES_MAX`] IAM names map to the name.
    #[error("reads in more than {CANDIDATES_MAX} ways")]
    TooAmbiguous,
}

/// The name of an IAM user or group: letters, digits and `+ = , . @ _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IamName(String);

impl IamName {
    /// Parses the name of an IAM user.
    ///
    /// # Errors
    /// Returns an error if it is no such name.
    pub fn user(name: &str) -> Result<Self, NameError> {
        Self::bounded(name, IAM_USER_NAME_MAX)
    }

    /// Parses the name of an IAM group, which may be longer than a user's.
    ///
    /// # Errors
    /// Returns an error if it is no such name.
    pub fn group(name: &str) -> Result<Self, NameError> {
        Self::bounded(name, IAM_GROUP_NAME_MAX)
    }

    fn bounded(name: &str, max: usize) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if let Some(c) = name.chars().find(|&c| !allowed(c)) {
            return Err(NameError::BadCharacter(c));
        }
        if name.len() > max {
            return Err(NameError::TooLong(name.len(), max));
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name as IAM spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the Linux name of an IAM user. Of `drop_suffixes`, the first that fits is dropped.
    ///
    /// # Errors
    /// Returns an error if no account can have that name.
    pub fn to_linux(&self, drop_suffixes: &[String]) -> Result<LinuxName, NameError> {
        let linux = LinuxName::new(&self.spelled(drop_suffixes))?;
        if candidates(&linux, drop_suffixes).is_empty() {
            return Err(NameError::TooAmbiguous);
        }
        Ok(linux)
    }

    fn spelled(&self, drop_suffixes: &[String]) -> String {
        let stem = drop_suffixes.iter().find_map(|suffix| self.0.strip_suffix(suffix.as_str()));
        ESCAPES.iter().fold(stem.unwrap_or(&self.0).to_owned(), |name, (c, word)| name.replace(*c, word))
    }
}

impl TryFrom<String> for IamName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::group(&name)
    }
}

impl From<IamName> for String {
    fn from(name: IamName) -> Self {
        name.0
    }
}

impl fmt::Display for IamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Linux account or group that pam_iam may make: at most 32 of `A-Z a-z 0-9 . _ -`, not beginning
/// with `-` or `.`, not all digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinuxName(String);

impl LinuxName {
    /// Parses a name.
    ///
    /// # Errors
    /// Returns an error if no account can have that name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(c) = name.chars().find(|&c| !allowed(c)) {
            return Err(NameError::BadCharacter(c));
        }
        if name.starts_with(['-', '.']) {
            return Err(NameError::BadStart);
        }
        if name.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NameError::AllDigits);
        }
        if name.len() > LINUX_NAME_MAX {
            return Err(NameError::TooLong(name.len(), LINUX_NAME_MAX));
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinuxName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<LinuxName> for String {
    fn from(name: LinuxName) -> Self {
        name.0
    }
}

impl fmt::Display for LinuxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns all IAM user names that map to `linux`. Empty if there are more than [`CANDIDATES_MAX`]: then the name is refused.
pub fn candidates(linux: &LinuxName, drop_suffixes: &[String]) -> Vec<IamName> {
    let mut readings = vec![String::new()];
    read(linux.as_str(), &mut readings);
    let ends = std::iter::once("").chain(drop_suffixes.iter().map(String::as_str));
    let mut found: Vec<IamName> = ends
        .flat_map(|end| readings.iter().map(move |reading| format!("{reading}{end}")))
        .filter_map(|name| IamName::user(&name).ok())
        .filter(|name| name.spelled(drop_suffixes) == linux.as_str())
        .collect();
    found.sort();
    found.dedup();
    if found.len() > CANDIDATES_MAX {
        found.clear();
    }
    found
}

/// Extends every one of `readings` by each way to read `rest`.
///
/// A name of 32 characters holds at most 10 words that could be read as an escape (`.at.at.at…` shares its dots),
/// so this ends after a few hundred readings at the most.
fn read(rest: &str, readings: &mut Vec<String>) {
    let Some(first) = rest.chars().next() else { return };
    let mut all = Vec::new();
    for (c, word) in ESCAPES {
        if let Some(after) = rest.strip_prefix(word) {
            let mut taken: Vec<String> = readings.iter().map(|reading| format!("{reading}{c}")).collect();
            read(after, &mut taken);
            all.append(&mut taken);
        }
    }
    let mut literal: Vec<String> = readings.iter().map(|reading| format!("{reading}{first}")).collect();
    read(rest.get(first.len_utf8()..).unwrap_or_default(), &mut literal);
    all.append(&mut literal);
    *readings = all;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn linux(iam: &str, suffixes: &[&str]) -> Result<String, NameError> {
        let suffixes: Vec<String> = suffixes.iter().map(|s| (*s).to_owned()).collect();
        IamName::user(iam)?.to_linux(&suffixes).map(String::from)
    }

    fn ways_back(name: &str, suffixes: &[&str]) -> Vec<String> {
        let suffixes: Vec<String> = suffixes.iter().map(|s| (*s).to_owned()).collect();
        candidates(&LinuxName::new(name).unwrap(), &suffixes).into_iter().map(String::from).collect()
    }

    #[test]
    fn the_four_characters_that_linux_lacks_become_words() {
        assert_eq!(linux("a+b=c,d@e", &[]).unwrap(), "a.plus.b.equal.c.comma.d.at.e");
        assert_eq!(linux("Alice_B-c.d", &[]).unwrap(), "Alice_B-c.d");
    }

    #[test]
    fn a_configured_suffix_is_dropped_and_no_other() {
        assert_eq!(linux("alice@example.com", &["@example.com"]).unwrap(), "alice");
        assert_eq!(linux("alice@example.org", &["@example.com"]).unwrap(), "alice.at.example.org");
        assert_eq!(linux("@example.com", &["@example.com"]), Err(NameError::Empty));
    }

    #[test]
    fn names_that_programs_misread_are_refused() {
        assert_eq!(linux("-oProxyCommand=x", &[]), Err(NameError::BadStart));
        assert_eq!(linux(".", &[]), Err(NameError::BadStart));
        assert_eq!(linux("..", &[]), Err(NameError::BadStart));
        assert_eq!(linux("@a", &[]), Err(NameError::BadStart));
        assert_eq!(linux("12345", &[]), Err(NameError::AllDigits));
        assert_eq!(linux("a b", &[]), Err(NameError::BadCharacter(' ')));
        assert_eq!(linux("", &[]), Err(NameError::Empty));
        assert_eq!(linux(&"a".repeat(33), &[]), Err(NameError::TooLong(33, 32)));
        assert_eq!(linux("abcdefghijklmnopqrstuvwxyz1@5", &[]).unwrap().len(), 32);
        assert_eq!(linux("abcdefghijklmnopqrstuvwxyz12@5", &[]), Err(NameError::TooLong(33, 32)));
        assert_eq!(LinuxName::new("a/b"), Err(NameError::BadCharacter('/')));
        assert_eq!(LinuxName::new("a\nb"), Err(NameError::BadCharacter('\n')));
        assert_eq!(LinuxName::new("a:b"), Err(NameError::BadCharacter(':')));
    }

    #[test]
    fn the_way_back_names_every_iam_user_it_could_be() {
        assert_eq!(ways_back("alice", &[]), ["alice"]);
        assert_eq!(ways_back("a.at.b", &[]), ["a.at.b", "a@b"]);
        assert_eq!(ways_back("a.at.at.b", &[]), ["a.at.at.b", "a.at@b", "a@at.b"]);
        assert_eq!(ways_back("alice", &["@example.com"]), ["alice", "alice@example.com"]);
        // With the suffix dropped, alice@example.com is called alice and nothing else.
        assert_eq!(ways_back("alice.at.example.com", &["@example.com"])[0], "alice.at.example.com");
        assert!(!ways_back("alice.at.example.com", &["@example.com"]).contains(&"alice@example.com".into()));
    }

    #[test]
    fn a_name_that_reads_in_too_many_ways_is_refused() {
        assert_eq!(linux("a@@@@@@", &[]), Err(NameError::TooAmbiguous));
        assert!(ways_back("a.at..at..at..at..at..at.", &[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_iam_name_maps_to_a_name_that_leads_back_or_is_refused(
            name in "([A-Za-z0-9+=,.@_-]|\\.at\\.|\\.plus\\.){1,64}",
            suffix in prop::option::of("@[a-z.]{1,6}"),
        ) {
            let suffixes: Vec<String> = suffix.into_iter().collect();
            if let Ok(iam) = IamName::user(&name)
                && let Ok(linux) = iam.to_linux(&suffixes)
            {
                prop_assert!(LinuxName::new(linux.as_str()).is_ok());
                prop_assert!(candidates(&linux, &suffixes).contains(&iam));
            }
        }

        #[test]
        fn every_candidate_maps_to_the_name_it_was_asked_for(name in "([a-z]|\\.at\\.|\\.comma\\.){1,8}") {
            if let Ok(linux) = LinuxName::new(&name) {
                for iam in candidates(&linux, &[]) {
                    prop_assert_eq!(iam.to_linux(&[]).unwrap(), linux.clone());
                }
            }
        }
    }
}
