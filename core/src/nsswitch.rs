//! One model of nsswitch.conf(5), as glibc reads it: where accounts and groups come from on this host.

/// The file.
pub const NSSWITCH: &str = "/etc/nsswitch.conf";

/// The name of our module in it.
pub const SERVICE: &str = "iam";

/// The databases that we answer, in the order in which a missing line is added. `initgroups` need not be there: without
/// it the line of `group` says where the groups of a user come from.
pub const DATABASES: [&str; 3] = ["passwd", "group", "initgroups"];

/// The database that is only changed where it is there.
const OPTIONAL: &str = "initgroups";

/// One word of a line: a service, or what to do with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    Service(&'a str),
    /// What stands in brackets.
    Action(&'a str),
}

/// A word and where it stands in its line.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    word: Word<'a>,
    start: usize,
    end: usize,
}

/// Splits a line into its database and its words; None if it is a comment, empty or broken. glibc skips blanks before
/// the database, ends it at a blank or colon, and reads nothing behind a `#`.
fn parse(line: &str) -> Option<(&str, Vec<Placed<'_>>)> {
    let line = line.split('#').next().unwrap_or_default();
    let start = line.len() - line.trim_start().len();
    let rest = line.get(start..)?;
    let end = start + rest.find(|letter: char| letter.is_whitespace() || letter == ':')?;
    let database = line.get(start..end).filter(|name| !name.is_empty())?;
    let mut words = Vec::new();
    let mut at = end;
    while let Some(rest) = line.get(at..).filter(|rest| !rest.is_empty()) {
        let blanks = rest.find(|letter: char| !letter.is_whitespace() && letter != ':').unwrap_or(rest.len());
        let (start, rest) = (at + blanks, rest.get(blanks..).unwrap_or_default());
        if rest.is_empty() {
            break;
        }
        let (length, is_action) = match rest.starts_with('[') {
            true => (rest.find(']').map_or(rest.len(), |at| at + 1), true),
            false => (
                rest.find(|letter: char| letter.is_whitespace() || letter == '[').unwrap_or(rest.len()),
                false,
            ),
        };
        let text = line.get(start..start + length)?;
        let word = if is_action { Word::Action(text) } else { Word::Service(text) };
        words.push(Placed { word, start, end: start + length });
        at = start + length;
    }
    Some((database, words))
}

/// Returns the names of the services of a database, in their order; None if the text has no line for it.
pub fn services<'a>(text: &'a str, database: &str) -> Option<Vec<&'a str>> {
    // The last line counts.
    let mut lines = text.lines().filter_map(parse).filter(|(name, _)| *name == database);
    let words = lines.next_back()?.1;
    let service = |placed: Placed<'a>| match placed.word {
        Word::Service(name) => Some(name),
        Word::Action(_) => None,
    };
    Some(words.into_iter().filter_map(service).collect())
}

/// Whether our module answers a database. Where there is no line of `initgroups`, that of `group` counts.
pub fn asks_us(text: &str, database: &str) -> bool {
    match services(text, database) {
        Some(services) => services.contains(&SERVICE),
        None => database == OPTIONAL && asks_us(text, "group"),
    }
}

/// Whether accounts come from anywhere but this host and our own module.
pub fn has_directory(text: &str) -> bool {
    const OWN: [&str; 5] = ["files", "compat", "systemd", "altfiles", SERVICE];
    services(text, "passwd").is_some_and(|services| services.iter().any(|service| !OWN.contains(service)))
}

/// Adds our module to each database where it is missing: behind all services that are reached in any case.
pub fn with_us(text: &str) -> String {
    let mut lines: Vec<String> =
        text.split('\n').map(|line| line_with_us(line).unwrap_or_else(|| line.to_owned())).collect();
    for database in DATABASES {
        if database != OPTIONAL && services(text, database).is_none() {
            let end = lines.len() - usize::from(lines.last().is_some_and(String::is_empty));
            lines.insert(end, format!("{database}: files {SERVICE}"));
        }
    }
    lines.join("\n")
}

fn line_with_us(line: &str) -> Option<String> {
    let (database, words) = parse(line)?;
    if !DATABASES.contains(&database) || words.iter().any(|placed| placed.word == Word::Service(SERVICE)) {
        return None;
    }
    // An action may end the lookup before it came to us. One that merges goes on, and stays with its service.
    let ends = |placed: &&Placed<'_>| match placed.word {
        Word::Service(_) => false,
        Word::Action(action) => {
            let action: String = action.chars().filter(|letter| !letter.is_whitespace()).collect();
            !action.eq_ignore_ascii_case("[success=merge]")
        }
    };
    let stop = words.iter().position(|placed| ends(&placed)).unwrap_or(words.len());
    let before = words.get(..stop)?.last();
    // Without a service before it: behind the colon.
    let at = before.map_or_else(|| line.find(':').map(|colon| colon + 1), |placed| Some(placed.end))?;
    let (before, after) = line.split_at(at);
    Some(format!("{before} {SERVICE}{after}"))
}

/// Takes our module out of each database. All other words stay, and so do blanks and comments.
pub fn without_us(text: &str) -> String {
    let line = |line: &str| {
        let mut line = line.to_owned();
        while let Some(shorter) = line_without_us(&line) {
            line = shorter;
        }
        line
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn line_without_us(line: &str) -> Option<String> {
    let (database, words) = parse(line)?;
    let ours = words
        .iter()
        .find(|placed| placed.word == Word::Service(SERVICE))
        .filter(|_| DATABASES.contains(&database))?;
    let (before, after) = (line.get(..ours.start)?, line.get(ours.end..)?);
    // The blanks before it go with it.
    Some(format!("{}{after}", before.trim_end()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nsswitch_gets_a_word_in_two_lines_and_loses_it_again() {
        for (before, after) in [
            ("passwd: files\ngroup: files\n", "passwd: files iam\ngroup: files iam\n"),
            (
                "# x\npasswd:         files systemd  # y\ngroup:\tfiles [NOTFOUND=return] nis\nshadow: files\n",
                "# x\npasswd:         files systemd iam  # y\ngroup:\tfiles iam [NOTFOUND=return] nis\nshadow: files\n",
            ),
            // Red Hat's, whose local groups get systemd's members too.
            (
                "passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\n",
                "passwd: files systemd iam\ngroup: files [SUCCESS=merge] systemd iam\n",
            ),
            (
                "passwd: files\ngroup: files [ success=merge ] systemd [NOTFOUND=return] nis\n",
                "passwd: files iam\ngroup: files [ success=merge ] systemd iam [NOTFOUND=return] nis\n",
            ),
            // A line of its own for the groups of a user; a name that ends in ours; no blanks at all.
            (
                "passwd:files\n group : iamx files\ninitgroups: files# x\n",
                "passwd:files iam\n group : iamx files iam\ninitgroups: files iam# x\n",
            ),
            ("passwd:\ngroup:[NOTFOUND=return]", "passwd: iam\ngroup: iam[NOTFOUND=return]"),
        ] {
            assert_eq!(with_us(before), after);
            assert_eq!(with_us(after), after, "twice is once");
            assert_eq!(without_us(after), before, "everything else is as it was");
        }
        assert_eq!(with_us("hosts: files"), "hosts: files\npasswd: files iam\ngroup: files iam");
        assert_eq!(without_us("passwd: files\tiam\nhosts: iam\n"), "passwd: files\nhosts: iam\n");
        assert_eq!(without_us("group: files iamx  iam # iam"), "group: files iamx # iam");
    }

    #[test]
    fn groups_follow_the_line_of_initgroups_where_there_is_one() {
        assert!(asks_us("group: files iam", "initgroups"));
        assert!(!asks_us("group: files iam\ninitgroups: files", "initgroups"));
        assert!(!asks_us("passwd: files iam\npasswd: files", "passwd"), "the last line counts");
    }

    #[test]
    fn a_directory_is_a_service_that_is_neither_a_file_nor_systemd_nor_ours() {
        for own in
            ["passwd: files systemd iam # sss", "passwd:\tcompat [NOTFOUND = return] iam", "group: sss", ""]
        {
            assert!(!has_directory(own), "{own}");
        }
        for other in ["passwd: files sss", " passwd : files [!UNAVAIL = return] ldap", "passwd:winbind"] {
            assert!(has_directory(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn words_other_than_ours_never_change(
            lines in prop::collection::vec(
                "[ \t]{0,2}(passwd|group|initgroups|hosts|#passwd)[ \t]{0,1}:[ \t]{0,2}((files|iamx|xiam|sss|nis|\\[NOTFOUND=return\\]|\\[ success=merge \\])[ \t]{0,2}){0,4}(#.{0,6})?",
                0..6,
            ),
            ends in any::<bool>(),
        ) {
            let text = format!("{}{}", lines.join("\n"), if ends { "\n" } else { "" });
            let with = with_us(&text);
            prop_assert_eq!(with_us(&with), with.clone(), "twice is once");
            for database in DATABASES {
                prop_assert!(asks_us(&with, database), "{} in {:?}", database, with);
            }
            // Lines that were added stay, without our word.
            let without = without_us(&with);
            prop_assert!(without.starts_with(text.trim_end_matches('\n')), "{:?} became {:?}", text, without);
        }
    }
}
