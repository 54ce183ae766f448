//! The local accounts and groups, read from passwd(5) and group(5) themselves.
//!
//! Not through NSS: the resolver would ask itself, and the NSS module runs inside such a question. Lines that make
//! no sense are passed over, as the C library does.

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
    /// The primary group.
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
    /// Who is listed in it; those who have it as their primary group are not.
    pub members: Vec<String>,
}

impl Group {
    /// Whether `account` is in it: listed, or with it as the primary group.
    pub fn has(&self, account: &Account) -> bool {
        self.gid == account.gid || self.members.contains(&account.name)
    }
}

/// The account called `name` in the passwd(5) file `path`.
///
/// # Errors
/// Those of reading the file.
pub fn account_by_name(path: &Path, name: &str) -> io::Result<Option<Account>> {
    find(path, account, |account| account.name == name)
}

/// The account with `uid` in the passwd(5) file `path`.
///
/// # Errors
/// Those of reading the file.
pub fn account_by_uid(path: &Path, uid: Uid) -> io::Result<Option<Account>> {
    find(path, account, |account| account.uid == uid)
}

/// The group called `name` in the group(5) file `path`.
///
/// # Errors
/// Those of reading the file.
pub fn group_by_name(path: &Path, name: &str) -> io::Result<Option<Group>> {
    find(path, group, |group| group.name == name)
}

/// The ranges of subordinate uids (subuid(5)); none where they cannot be read.
pub fn subordinate(path: &Path) -> Vec<Range<u32>> {
    let text = std::fs::read(path).unwrap_or_default();
    let range = |line: &str| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u32>().ok());
        let (start, count) = (fields.next()??, fields.next()??);
        Some(start..start.saturating_add(count))
    };
    String::from_utf8_lossy(&text).lines().filter_map(range).collect()
}

/// All accounts of the passwd(5) file `path`.
///
/// # Errors
/// Those of reading the file.
pub fn accounts(path: &Path) -> io::Result<Vec<Account>> {
    entries(path, account)?.collect()
}

/// All groups of the group(5) file `path`.
///
/// # Errors
/// Those of reading the file.
pub fn groups(path: &Path) -> io::Result<Vec<Group>> {
    entries(path, group)?.collect()
}

fn find<T>(
    path: &Path,
    parse: impl Fn(&str) -> Option<T>,
    wanted: impl Fn(&T) -> bool,
) -> io::Result<Option<T>> {
    entries(path, parse)?.find(|entry| entry.as_ref().map_or(true, &wanted)).transpose()
}

/// The lines of a file that make sense.
fn entries<T>(
    path: &Path,
    parse: impl Fn(&str) -> Option<T>,
) -> io::Result<impl Iterator<Item = io::Result<T>>> {
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    Ok(lines.filter_map(move |line| match line {
        Ok(line) => std::str::from_utf8(&line).ok().and_then(&parse).map(Ok),
        Err(error) => Some(Err(error)),
    }))
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let (_gecos, home) = (fields.next()?, fields.next()?);
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    Some(Account { name: name.to_owned(), uid: Uid(uid), gid: Gid(gid), home: home.to_owned() })
}

fn group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
    Some(Group { name: name.to_owned(), gid: Gid(gid.parse().ok()?), members })
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
}
