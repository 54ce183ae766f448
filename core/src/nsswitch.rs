//! One model of nsswitch.conf(5), as glibc reads it: where accounts and groups come from on this host.

/// The file.
pub const NSSWITCH: &str = "/etc/nsswitch.conf";

/// The name of our module in it.
pub const SERVICE: &str = "iam";

/// The databases that we answer, in the order in which a missing line is added. `initgroups` need not be there: without
/// it the line of `group` says where the groups of a user come from.
pub const DATABASES: [&str; 3] = ["passwd", "group", "initgroups"];

/// The database that is only changed where it is there. A service that knows any group of a user ends the lookup in it
/// (initgroups.c of glibc), unless an action says otherwise.
const OPTIONAL: &str = "initgroups";

/// What makes glibc ask the next service although one has answered.
const GOES_ON: &str = "[SUCCESS=continue]";

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

/// Returns the words of a database's line, of which the last counts; None if the text has no line for it.
fn words_of<'a>(text: &'a str, database: &str) -> Option<Vec<Placed<'a>>> {
    let mut lines = text.lines().filter_map(parse).filter(|(name, _)| *name == database);
    Some(lines.next_back()?.1)
}

/// Returns the names of the services of a database, in their order; None if the text has no line for it.
pub fn services<'a>(text: &'a str, database: &str) -> Option<Vec<&'a str>> {
    let service = |placed: Placed<'a>| match placed.word {
        Word::Service(name) => Some(name),
        Word::Action(_) => None,
    };
    Some(words_of(text, database)?.into_iter().filter_map(service).collect())
}

/// Whether our module answers a database. Where there is no line of `initgroups`, that of `group` counts.
pub fn asks_us(text: &str, database: &str) -> bool {
    match words_of(text, database) {
        Some(words) => is_asked(database, &words),
        None => database == OPTIONAL && asks_us(text, "group"),
    }
}

/// Whether our module is among the words of a line, and in `initgroups` reached also for a user whom an earlier service knows.
fn is_asked(database: &str, words: &[Placed<'_>]) -> bool {
    let Some(at) = words.iter().position(|placed| placed.word == Word::Service(SERVICE)) else {
        return false;
    };
    let before = words.get(..at).unwrap_or_default();
    let goes_on = |placed: Option<&Placed<'_>>| {
        placed.is_some_and(|placed| match placed.word {
            Word::Action(action) => {
                ["success=continue", "success=merge"].iter().any(|wanted| plain(action).contains(wanted))
            }
            Word::Service(_) => false,
        })
    };
    // glibc asks nobody further where an earlier service's "not found" ends the lookup.
    let ends = |placed: &Placed<'_>| match placed.word {
        Word::Action(action) => ends_not_found(&plain(action)),
        Word::Service(_) => false,
    };
    if before.iter().any(ends) {
        return false;
    }
    let mut services =
        before.iter().enumerate().filter(|(_, placed)| matches!(placed.word, Word::Service(_)));
    database != OPTIONAL || services.all(|(at, _)| goes_on(words.get(at + 1)))
}

/// Whether an action, in lower case and without blanks, ends the lookup when its service does not know the name.
fn ends_not_found(action: &str) -> bool {
    let inside = action.trim_start_matches('[').trim_end_matches(']');
    // `!X=return` is about all but X.
    inside.contains("notfound=return") && !inside.contains("!notfound=return")
        || ["!success=return", "!unavail=return", "!tryagain=return"]
            .iter()
            .any(|other| inside.contains(other))
}

/// An action in lower case and without blanks.
fn plain(action: &str) -> String {
    action.chars().filter(|letter| !letter.is_whitespace()).collect::<String>().to_ascii_lowercase()
}

/// Whether accounts come from anywhere but this host and our own module.
pub fn has_directory(text: &str) -> bool {
    has_services_but(text, &["files", "compat", "systemd", "altfiles", SERVICE])
}

/// Whether accounts come from anything but /etc/passwd and our own module: a directory, or another file of this host.
pub fn has_others(text: &str) -> bool {
    has_services_but(text, &["files", "compat", SERVICE])
}

fn has_services_but(text: &str, known: &[&str]) -> bool {
    services(text, "passwd").is_some_and(|services| services.iter().any(|service| !known.contains(service)))
}

/// Adds our module to each database where it is missing: behind all services that are reached in any case. In `initgroups` it
/// comes first, with an action that has the others asked too, since they need not go on.
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
    if !DATABASES.contains(&database) || is_asked(database, &words) {
        return None;
    }
    if let Some(without) = line_without_us(line) {
        // It is there where nobody asks it.
        return line_with_us(&without).or(Some(without));
    }
    if database == OPTIONAL
        && let Some(first) = words.first()
    {
        let (before, after) = line.split_at(first.start);
        return Some(format!("{before}{SERVICE} {GOES_ON} {after}"));
    }
    // An action may end the lookup before it came to us. One that goes on stays with its service.
    let ends = |placed: &Placed<'_>| match placed.word {
        Word::Service(_) => false,
        Word::Action(action) => plain(action).contains("=return"),
    };
    let stop = words.iter().position(ends).unwrap_or(words.len());
    // Where the local files come after that, our "not found" would end the lookup before them.
    let is_files = |placed: &Placed<'_>| matches!(placed.word, Word::Service("files" | "compat"));
    if words.get(stop..)?.iter().any(is_files) {
        return None;
    }
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
    let at = words.iter().position(|placed| placed.word == Word::Service(SERVICE));
    let at = at.filter(|_| DATABASES.contains(&database))?;
    let (ours, next) = (words.get(at)?, words.get(at + 1));
    if database == OPTIONAL && next.is_some_and(|next| next.word == Word::Action(GOES_ON)) {
        // The action is ours too, and so are the blanks up to the next word.
        let end =
            words.get(at + 2).map_or_else(|| next.map_or(ours.end, |next| next.end), |after| after.start);
        return Some(format!("{}{}", line.get(..ours.start)?, line.get(end..)?));
    }
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
                "passwd:files iam\n group : iamx files iam\ninitgroups: iam [SUCCESS=continue] files# x\n",
            ),
            // What goes on stays where it is: a directory behind it is asked as before.
            (
                "passwd: files [UNAVAIL=continue] sss\ngroup: files [!SUCCESS=return] sss\ninitgroups: files [SUCCESS=continue] sss\n",
                "passwd: files [UNAVAIL=continue] sss iam\ngroup: files iam [!SUCCESS=return] sss\n\
                 initgroups: iam [SUCCESS=continue] files [SUCCESS=continue] sss\n",
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
        // glibc ends the lookup with the first service that knows a group of the user.
        assert!(!asks_us("initgroups: files iam", "initgroups"));
        assert!(asks_us("initgroups: files [ success = continue ] iam", "initgroups"));
        assert_eq!(
            with_us("initgroups: files iam").lines().next(),
            Some("initgroups: iam [SUCCESS=continue] files")
        );
        assert!(!asks_us("passwd: files iam\npasswd: files", "passwd"), "the last line counts");
    }

    #[test]
    fn a_service_is_a_directory_unless_it_is_files_systemd_or_iam() {
        for own in
            ["passwd: files systemd iam # sss", "passwd:\tcompat [NOTFOUND = return] iam", "group: sss", ""]
        {
            assert!(!has_directory(own), "{own}");
        }
        for other in ["passwd: files sss", " passwd : files [!UNAVAIL = return] ldap", "passwd:winbind"] {
            assert!(has_directory(other), "{other}");
        }
    }

    #[test]
    fn a_line_that_ends_before_the_local_files_stays_as_it_is() {
        // With our word in it, nobody would find root where the directory does not answer.
        let text = "passwd: sss [NOTFOUND=return] files\ngroup: files [NOTFOUND=return] sss\n";
        let with = with_us(text);
        assert_eq!(with, "passwd: sss [NOTFOUND=return] files\ngroup: files iam [NOTFOUND=return] sss\n");
        assert!(!asks_us(&with, "passwd") && asks_us(&with, "group"));
    }

    proptest! {
        #[test]
        fn words_other_than_ours_never_change(
            lines in prop::collection::vec(
                "[ \t]{0,2}(passwd|group|initgroups|hosts|#passwd)[ \t]{0,1}:[ \t]{0,2}((files|iamx|xiam|sss|nis|\\[NOTFOUND=return\\]|\\[ success=merge \\]|\\[SUCCESS=continue\\])[ \t]{0,2}){0,4}(#.{0,6})?",
                0..6,
            ),
            ends in any::<bool>(),
        ) {
            let text = format!("{}{}", lines.join("\n"), if ends { "\n" } else { "" });
            let with = with_us(&text);
            prop_assert_eq!(with_us(&with), with.clone(), "twice is once");
            let ends_before_files = |line: &String| {
                line.split_once("[NOTFOUND=return]").is_some_and(|(_, rest)| rest.contains("files"))
            };
            for database in DATABASES {
                let asks = asks_us(&with, database) || lines.iter().any(ends_before_files);
                prop_assert!(asks, "{} in {:?}", database, with);
            }
            // Lines that were added stay, without our word.
            let without = without_us(&with);
            prop_assert!(without.starts_with(text.trim_end_matches('\n')), "{:?} became {:?}", text, without);
        }
    }
}
