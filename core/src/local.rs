//! The local accounts and groups, read directly from passwd(5) and group(5).
//!
//! They are not read through NSS: the resolver would ask itself, and the NSS module itself runs inside a lookup. A line
//! counts here exactly if it counts for the C library. If this module skipped an account that glibc has, its name and
//! uid would be taken for free ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use crate::id::{Gid, Uid};

/// A line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: Uid,
    /// The gid of the primary group.
    pub gid: Gid,
    /// The home directory.
    pub home: String,
}

/// A line of group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The name.
    pub name: String,
    /// The gid.
    pub gid: Gid,
    /// The members that the line lists. An account need not be listed in its primary group.
    pub members: Vec<String>,
}

impl Group {
    /// Whether `account` is a member, by the list or by its primary group.
    pub fn has(&self, account: &Account) -> bool {
        self.gid == account.gid || self.lists(&account.name)
    }

    /// Whether `name` is among the listed members.
    pub fn lists(&self, name: &str) -> bool {
        self.members.iter().any(|member| member == name)
    }
}

/// Returns the gids of those `groups` whose names are among `names`, each with that name.
pub fn gids_of(groups: &[Group], names: &[&'static str]) -> BTreeMap<Gid, &'static str> {
    let name_of = |group: &Group| names.iter().find(|name| **name == group.name).copied();
    groups.iter().filter_map(|group| Some((group.gid, name_of(group)?))).collect()
}

/// Returns the account called `name` in the passwd(5) file `path`.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn account_by_name(path: &Path, name: &str) -> io::Result<Option<Account>> {
    find(path, account, |account| account.name == name)
}

/// Returns the account with `uid` in the passwd(5) file `path`.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn account_by_uid(path: &Path, uid: Uid) -> io::Result<Option<Account>> {
    find(path, account, |account| account.uid == uid)
}

/// Returns the group called `name` in the group(5) file `path`.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn group_by_name(path: &Path, name: &str) -> io::Result<Option<Group>> {
    find(path, group, |group| group.name == name)
}

/// A line of subuid(5): uids that a user may map into a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subordinate {
    /// The owner, by name or by uid in decimal digits.
    pub owner: String,
    /// The range of uids.
    pub uids: Range<u32>,
}

/// Returns the ranges of subordinate uids in the subuid(5) file `path`. Empty if the file cannot be read.
pub fn subordinate(path: &Path) -> Vec<Subordinate> {
    let range = |line: &[u8]| {
        let mut fields = fields(line)?;
        let owner = fields.next()?;
        let (start, count) = (number(&fields.next()?)?, number(&fields.next()?)?);
        Some(Subordinate { owner, uids: start..start.saturating_add(count) })
    };
    let text = std::fs::read(path).unwrap_or_default();
    text.split(|&byte| byte == b'\n').filter_map(range).collect()
}

/// Returns all accounts of the passwd(5) file `path`.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn accounts(path: &Path) -> io::Result<Vec<Account>> {
    entries(path, account)?.collect()
}

/// Returns all groups of the group(5) file `path`.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn groups(path: &Path) -> io::Result<Vec<Group>> {
    entries(path, group)?.collect()
}

fn find<T>(
    path: &Path,
    parse: impl Fn(&[u8]) -> Option<T>,
    wanted: impl Fn(&T) -> bool,
) -> io::Result<Option<T>> {
    entries(path, parse)?.find(|entry| entry.as_ref().map_or(true, &wanted)).transpose()
}

/// Returns the lines of a file as `parse` returns them, without those for which it returns None.
fn entries<T>(
    path: &Path,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<impl Iterator<Item = io::Result<T>>> {
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    Ok(lines.filter_map(move |line| match line {
        Ok(line) => parse(&line).map(Ok),
        Err(error) => Some(Err(error)),
    }))
}

/// Splits a line into fields as glibc's `files` service does (nss/nss_files/files-parse.c): white space before the name
/// is skipped, a `#` there makes the line a comment, and a NUL byte ends the line. Bytes that are not UTF-8 become
/// U+FFFD, so that the line still counts, but its name never equals an ASCII name.
fn fields(line: &[u8]) -> Option<impl Iterator<Item = String>> {
    let line = line.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii_start();
    if line.is_empty() || line.starts_with(b"#") {
        return None;
    }
    Some(line.split(|&byte| byte == b':').map(|field| String::from_utf8_lossy(field).into_owned()))
}

/// Parses a number as glibc does with strtoul(3): white space and a sign may stand before the digits. Returns None,
/// which makes the line invalid, if the number is negative, does not fit into 32 bits, or is followed by anything.
fn number(field: &str) -> Option<u32> {
    let field = field.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
    let (negative, digits) = match field.as_bytes().first()? {
        b'-' => (true, field.get(1..)?),
        b'+' => (false, field.get(1..)?),
        _ => (false, field),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u32 = digits.parse().ok()?;
    (!negative || value == 0).then_some(value)
}

fn account(line: &[u8]) -> Option<Account> {
    let mut fields = fields(line)?;
    let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let (uid, gid) = (Uid(number(&uid)?), Gid(number(&gid)?));
    let home = fields.nth(1).unwrap_or_default();
    Some(Account { name, uid, gid, home })
}

fn group(line: &[u8]) -> Option<Group> {
    let mut fields = fields(line)?;
    let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').map(str::trim_start).filter(|member| !member.is_empty());
    Some(Group { name, gid: Gid(number(&gid)?), members: members.map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn accounts_are_found_by_name_and_uid() {
        let passwd =
            file(b"root:x:0:0:root:/root:/bin/bash\n# no\n\xff\xfe:x:1:1::/:\nann:x:7:8:A,,:/h/ann:/bin/sh");
        let ann = Account { name: "ann".into(), uid: Uid(7), gid: Gid(8), home: "/h/ann".into() };
        assert_eq!(account_by_name(passwd.path(), "ann").unwrap(), Some(ann.clone()));
        assert_eq!(account_by_uid(passwd.path(), Uid(7)).unwrap(), Some(ann));
        assert_eq!(account_by_name(passwd.path(), "an").unwrap(), None);
        assert_eq!(account_by_name(passwd.path(), "# no").unwrap(), None);
        assert!(account_by_name(Path::new("/nonexistent"), "ann").is_err());
    }

    #[test]
    fn groups_are_found_with_their_members() {
        let groups = file(b"adm:x:4:syslog,ann\nempty:x:5:\nshort:x:6\nbad:x:y:\n");
        let members = |name| group_by_name(groups.path(), name).unwrap().map(|group| group.members);
        assert_eq!(members("adm").unwrap(), ["syslog", "ann"]);
        assert_eq!(members("empty").unwrap(), [""; 0]);
        assert_eq!(members("short").unwrap(), [""; 0]);
        assert_eq!(members("bad"), None);
    }

    #[test]
    fn a_line_counts_exactly_if_it_counts_for_glibc() {
        // The uids are those that getpwuid(3) of glibc 2.36 found for these lines.
        for (line, uid) in [
            (b"x:x:1:1:M\xfcller:/h:/bin/sh".as_slice(), Some(1)),
            (b"\xff:x:1:1", Some(1)),
            (b" x:x:1:1::/h:/bin/sh", Some(1)),
            (b"x:x: +1:1::/h:/bin/sh", Some(1)),
            (b"x:x:1:1\0rest", Some(1)),
            (b"x:x:4294967295:1::/h:", Some(u32::MAX)),
            (b"x:x:-0:1::/h:", Some(0)),
            (b"x:x:4294967296:1::/h:", None),
            (b"x:x:-1:1::/h:", None),
            (b"x:x:1x:1::/h:/bin/sh", None),
            (b"x:x::1::/h:/bin/sh", None),
            (b"x:x:0x1:1::/h:/bin/sh", None),
            (b"#x:x:1:1::/h:/bin/sh", None),
            (b"x:x:1", None),
        ] {
            let found = accounts(file(line).path()).unwrap();
            assert_eq!(found.first().map(|account| account.uid.0), uid, "{}", String::from_utf8_lossy(line));
        }
        let members = groups(file(b"g:x:1: a,,b").path()).unwrap().remove(0).members;
        assert_eq!(members, ["a", "b"]);
    }

    #[test]
    fn subordinate_uids_have_owners() {
        let ranges = subordinate(file(b"ann:100000:65536\n1002:200000:10\nbad\n").path());
        let of =
            |owner: &str| ranges.iter().find(|range| range.owner == owner).map(|range| range.uids.clone());
        assert_eq!((of("ann"), of("1002")), (Some(100_000..165_536), Some(200_000..200_010)));
        assert_eq!(ranges.len(), 2);
    }
}
