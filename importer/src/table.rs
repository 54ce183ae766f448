//! The account files passwd(5), shadow(5), group(5) and gshadow(5), line by line.
//!
//! Lines that make no sense, are not UTF-8, or belong to NIS are kept byte for byte and in their place.

use std::collections::HashMap;

/// One of the files. Each byte is stored as a character, so that any content survives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Option<Row>>,
    /// The index of the first row of each name.
    names: HashMap<String, usize>,
    /// The first line of NIS (it begins with `+` or `-`) and all lines after it, which the C library reads after NIS.
    rest: Vec<String>,
}

/// The fields of a line, the name first.
pub type Row = Vec<String>;

/// All four files. The shadow files may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// passwd(5)
    pub passwd: Table,
    /// shadow(5)
    pub shadow: Option<Table>,
    /// group(5)
    pub group: Table,
    /// gshadow(5)
    pub gshadow: Option<Table>,
}

impl Table {
    /// Parses a file.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = characters(bytes);
        let mut table = Self::default();
        if text.is_empty() {
            return table;
        }
        // `str::lines` would drop carriage returns.
        let mut lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
        for line in lines.by_ref() {
            if line.starts_with(['+', '-']) {
                table.rest.push(line.to_owned());
                break;
            }
            table.push(line.split(':').map(str::to_owned).collect());
        }
        table.rest.extend(lines.map(str::to_owned));
        table
    }

    /// Returns the content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let rows = self.rows.iter().flatten().map(|row| row.join(":"));
        let lines = rows.chain(self.rest.iter().cloned());
        let text: String = lines.map(|line| line + "\n").collect();
        text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
    }

    /// Returns the line of `name`.
    pub fn get(&self, name: &str) -> Option<&Row> {
        self.rows.get(*self.names.get(name)?)?.as_ref()
    }

    /// Returns the line of `name`, to be changed except for its name.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Row> {
        self.rows.get_mut(*self.names.get(name)?)?.as_mut()
    }

    /// Returns all lines.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().flatten()
    }

    /// Returns all lines, to be changed except for their names.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.rows.iter_mut().flatten()
    }

    /// Adds a line after all others but those in `rest`. If there is a line of the same name, [`Self::get`] still returns
    /// that one.
    pub fn push(&mut self, row: Row) {
        let at = self.rows.len();
        if let Some(name) = row.first() {
            self.names.entry(name.clone()).or_insert(at);
        }
        self.rows.push(Some(row));
    }

    /// Removes the line of `name` and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Row> {
        self.rows.get_mut(self.names.remove(name)?)?.take()
    }
}

impl Tables {
    /// Removes every trace of the account `name`: its lines, its private group if that has `gid`, and its memberships.
    pub fn remove_account(&mut self, name: &str, gid: u32) {
        self.passwd.remove(name);
        if let Some(shadow) = &mut self.shadow {
            shadow.remove(name);
        }
        if self.group.get(name).and_then(gid_of) == Some(gid) {
            self.group.remove(name);
            if let Some(gshadow) = &mut self.gshadow {
                gshadow.remove(name);
            }
        }
        for row in self.membership_rows() {
            change_members(row, |members| members.retain(|member| member != name));
        }
    }

    /// Renames an account, its private group and its memberships. If an interrupted run has renamed the group, it has
    /// renamed the memberships with it.
    pub fn rename_account(&mut self, from: &str, to: &str, gid: u32) {
        let renamed = |mut row: Row| {
            if let Some(name) = row.first_mut() {
                to.clone_into(name);
            }
            row
        };
        for table in [Some(&mut self.passwd), self.shadow.as_mut()].into_iter().flatten() {
            if let Some(row) = table.remove(from) {
                // A line of the new name was left by an earlier account.
                table.remove(to);
                table.push(renamed(row));
            }
        }
        if self.group.get(from).and_then(gid_of) != Some(gid) {
            return;
        }
        for table in [Some(&mut self.group), self.gshadow.as_mut()].into_iter().flatten() {
            if let Some(row) = table.remove(from) {
                table.remove(to);
                table.push(renamed(row));
            }
        }
        for row in self.membership_rows() {
            change_members(row, |members| {
                for member in members.iter_mut().filter(|member| *member == from) {
                    to.clone_into(member);
                }
            });
        }
    }

    /// Changes the members of `group`, and copies them to gshadow(5), where an interrupted run may have left others.
    pub fn change_group(&mut self, group: &str, change: impl FnOnce(&mut Vec<String>)) {
        let Some(row) = self.group.get_mut(group) else { return };
        change_members(row, change);
        if let Some(shadow) = self.gshadow.as_mut().and_then(|gshadow| gshadow.get_mut(group)) {
            change_members(shadow, |members| *members = members_of(row).map(str::to_owned).collect());
        }
    }

    /// Adds a group without members.
    pub fn push_group(&mut self, name: &str, gid: u32) {
        self.group.push([name, "x", &gid.to_string(), ""].map(str::to_owned).to_vec());
        if let Some(gshadow) = &mut self.gshadow {
            // A line of this name was left by an earlier group.
            gshadow.remove(name);
            gshadow.push([name, "!", "", ""].map(str::to_owned).to_vec());
        }
    }

    fn membership_rows(&mut self) -> impl Iterator<Item = &mut Row> {
        let gshadow = self.gshadow.as_mut().map(Table::rows_mut).into_iter().flatten();
        self.group.rows_mut().chain(gshadow)
    }
}

/// Returns the gid in a line of group(5).
pub fn gid_of(group: &Row) -> Option<u32> {
    group.get(2)?.parse().ok()
}

/// Returns the uid in a line of passwd(5).
pub fn uid_of(account: &Row) -> Option<u32> {
    account.get(2)?.parse().ok()
}

/// Returns the members of a group, by its line in group(5) or gshadow(5).
pub fn members_of(group: &Row) -> impl Iterator<Item = &str> {
    let members = group.get(3).map(String::as_str).unwrap_or_default();
    members.split(',').filter(|member| !member.is_empty())
}

fn change_members(row: &mut Row, change: impl FnOnce(&mut Vec<String>)) {
    let before: Vec<String> = members_of(row).map(str::to_owned).collect();
    let mut members = before.clone();
    change(&mut members);
    // If the members do not change, a line stays as it is, even one whose field is missing or malformed.
    if members != before
        && let Some(field) = row.get_mut(3)
    {
        *field = members.join(",");
    }
}

/// Returns a value in the form that the tables store: one character for each byte.
pub fn characters(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tables(group: &str) -> Tables {
        Tables {
            passwd: Table::parse(b"root:x:0:0::/root:/bin/sh\nann:x:7:7::/h:/bin/sh\n"),
            shadow: Some(Table::parse(b"root:*:1::::::\nann:*:1::::::\n")),
            group: Table::parse(group.as_bytes()),
            gshadow: Some(Table::parse(b"dev:!::ann,bob\n")),
        }
    }

    fn text(table: &Table) -> String {
        String::from_utf8(table.to_bytes()).unwrap()
    }

    #[test]
    fn an_added_line_comes_before_nis() {
        let mut table = Table::parse(b"root:x:0:0:::\n+::::::\nafter:x:1:1:::\n");
        table.push(vec!["new".into(), "x".into()]);
        assert_eq!(text(&table), "root:x:0:0:::\nnew:x\n+::::::\nafter:x:1:1:::\n");
        assert_eq!(table.get("after"), None, "NIS may have another");
    }

    #[test]
    fn the_first_of_two_lines_with_one_name_counts() {
        let mut table = Table::parse(b"ann:x:7\nann:x:8\n");
        assert_eq!(uid_of(table.get("ann").unwrap()), Some(7));
        table.remove("ann");
        assert_eq!(text(&table), "ann:x:8\n");
    }

    #[test]
    fn an_account_is_removed_with_its_group_and_its_memberships() {
        let mut all = tables("ann:x:7:\ndev:x:9:ann,bob\nanna:x:8:anna\nodd\n");
        all.remove_account("ann", 7);
        assert_eq!(text(&all.passwd), "root:x:0:0::/root:/bin/sh\n");
        assert_eq!(text(all.shadow.as_ref().unwrap()), "root:*:1::::::\n");
        assert_eq!(text(&all.group), "dev:x:9:bob\nanna:x:8:anna\nodd\n");
        assert_eq!(text(all.gshadow.as_ref().unwrap()), "dev:!::bob\n");
        let mut all = tables("ann:x:70:\n");
        all.remove_account("ann", 7);
        assert_eq!(text(&all.group), "ann:x:70:\n", "a group of that name with another gid");
    }

    #[test]
    fn an_account_is_renamed_with_its_group_and_its_memberships() {
        let mut all = tables("ann:x:7:\ndev:x:9:ann,bob\n");
        all.rename_account("ann", "anna", 7);
        assert_eq!(text(&all.passwd), "root:x:0:0::/root:/bin/sh\nanna:x:7:7::/h:/bin/sh\n");
        assert_eq!(text(all.shadow.as_ref().unwrap()), "root:*:1::::::\nanna:*:1::::::\n");
        assert_eq!(text(&all.group), "dev:x:9:anna,bob\nanna:x:7:\n");
        assert_eq!(text(all.gshadow.as_ref().unwrap()), "dev:!::anna,bob\n");
    }

    proptest! {
        #[test]
        fn any_line_survives(lines in prop::collection::vec("[^\n]{0,12}", 0..8)) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(Table::parse(text.as_bytes()).to_bytes(), text.into_bytes());
        }

        #[test]
        fn bytes_that_are_not_utf8_survive(mut bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            bytes.push(b'\n');
            prop_assert_eq!(Table::parse(&bytes).to_bytes(), bytes);
        }
    }
}
