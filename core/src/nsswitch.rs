//! nsswitch.conf(5) as glibc reads it: the services from which this host gets accounts and groups.

/// The path of nsswitch.conf(5).
pub const NSSWITCH: &str = "/etc/nsswitch.conf";

/// The name of our NSS module as a service.
pub const SERVICE: &str = "iam";

/// The databases that our module answers, in the order in which a missing line is added. The line of `initgroups` may be
/// missing: then that of `group` says where the groups of a user come from.
pub const DATABASES: [&str; 3] = ["passwd", "group", "initgroups"];

/// The database whose line is changed if it exists, but never added. Its lookup ends at the first service that knows any
/// group of the user (initgroups.c of glibc), unless an action says otherwise.
const OPTIONAL: &str = "initgroups";

/// The action that makes glibc ask the next service even if the service before the action has answered.
const GOES_ON: &str = "[SUCCESS=continue]";

/// A word of a line: a service, or an action, which says how the lookup goes on after the service before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    Service(&'a str),
    /// An action, with its brackets.
    Action(&'a str),
}

/// A word and its position in the line, in bytes.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    word: Word<'a>,
    start: usize,
    end: usize,
}

/// Splits a line into its database and its words. None if the line is empty, a comment or malformed. glibc skips blanks
/// before the database, ends its name at a blank or colon, and ignores everything after a `#`.
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

/// Returns the words of the last line of `database`, which is the line that counts. None if the text has no such line.
fn words_of<'a>(text: &'a str, database: &str) -> Option<Vec<Placed<'a>>> {
    let mut lines = text.lines().filter_map(parse).filter(|(name, _)| *name == database);
    Some(lines.next_back()?.1)
}

/// Returns the names of the services of `database`, in their order. None if the text has no line for it.
pub fn services<'a>(text: &'a str, database: &str) -> Option<Vec<&'a str>> {
    let service = |placed: Placed<'a>| match placed.word {
        Word::Service(name) => Some(name),
        Word::Action(_) => None,
    };
    Some(words_of(text, database)?.into_iter().filter_map(service).collect())
}

/// Whether glibc asks our module for `database`. If there is no line of `initgroups`, that of `group` counts.
pub fn asks_us(text: &str, database: &str) -> bool {
    match words_of(text, database) {
        Some(words) => is_asked(database, &words),
        None => database == OPTIONAL && asks_us(text, "group"),
    }
}

/// Whether `files` is asked for accounts before our module, and beside it no service but `systemd`: then a name that reaches our
/// module is not that of a local account.
pub fn asks_files_first(text: &str) -> bool {
    let words = words_of(text, "passwd").unwrap_or_default();
    let before = words.iter().take_while(|placed| placed.word != Word::Service(SERVICE));
    let mut services = before.filter_map(|placed| match placed.word {
        Word::Service(name) => Some(name),
        Word::Action(_) => None,
    });
    services.next() == Some("files") && services.all(|name| name == "systemd")
}

/// Whether our module is in a line and glibc reaches it; in `initgroups`, also for a user whom an earlier service knows.
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
    // glibc does not reach our module if the "not found" of an earlier service ends the lookup.
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

/// Whether an action ends the lookup when its service does not know the name. `action` is in lower case and without
/// blanks.
fn ends_not_found(action: &str) -> bool {
    let inside = action.trim_start_matches('[').trim_end_matches(']');
    // `!X=return` applies to every result but X.
    inside.contains("notfound=return") && !inside.contains("!notfound=return")
        || ["!success=return", "!unavail=return", "!tryagain=return"]
            .iter()
            .any(|other| inside.contains(other))
}

/// Returns an action in lower case and without blanks.
fn plain(action: &str) -> String {
    action.chars().filter(|letter| !letter.is_whitespace()).collect::<String>().to_ascii_lowercase()
}

/// Whether accounts come from a directory: from any service but those of this host and our own module.
pub fn has_directory(text: &str) -> bool {
    has_services_but(text, &["files", "compat", "systemd", "altfiles", SERVICE])
}

/// Whether accounts come from any service but /etc/passwd and our own module: a directory, or another file of this host.
pub fn has_others(text: &str) -> bool {
    has_services_but(text, &["files", "compat", SERVICE])
}

fn has_services_but(text: &str, known: &[&str]) -> bool {
    services(text, "passwd").is_some_and(|services| services.iter().any(|service| !known.contains(service)))
}

/// Adds our module to each database that lacks it, behind all services that are reached in any case. A line whose lookup
/// may end before the local files is left as it is. In `initgroups` our module comes first, with an action that makes
/// glibc ask the other services too: any of them may end the lookup.
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
        // Our module is in the line, but glibc does not reach it there.
        return line_with_us(&without).or(Some(without));
    }
    if database == OPTIONAL
        && let Some(first) = words.first()
    {
        let (before, after) = line.split_at(first.start);
        return Some(format!("{before}{SERVICE} {GOES_ON} {after}"));
    }
    // An action may end the lookup before it reaches our module. Any other action stays with its service.
    let ends = |placed: &Placed<'_>| match placed.word {
        Word::Service(_) => false,
        Word::Action(action) => plain(action).contains("=return"),
    };
    let stop = words.iter().position(ends).unwrap_or(words.len());
    // If the local files come after that action, the "not found" of our module would end the lookup before them.
    let is_files = |placed: &Placed<'_>| matches!(placed.word, Word::Service("files" | "compat"));
    if words.get(stop..)?.iter().any(is_files) {
        return None;
    }
    let before = words.get(..stop)?.last();
    // If no word comes before our module, it is added behind the colon.
    let at = before.map_or_else(|| line.find(':').map(|colon| colon + 1), |placed| Some(placed.end))?;
    let (before, after) = line.split_at(at);
    Some(format!("{before} {SERVICE}{after}"))
}

/// Removes our module, and the action that [`with_us`] adds to it, from each database. Other words and comments stay.
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
        // The action was added with our module, and so were the blanks up to the next word.
        let end =
            words.get(at + 2).map_or_else(|| next.map_or(ours.end, |next| next.end), |after| after.start);
        return Some(format!("{}{}", line.get(..ours.start)?, line.get(end..)?));
    }
    let (before, after) = (line.get(..ours.start)?, line.get(ours.end..)?);
    // The blanks before our module are removed with it.
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
            // Red Hat's lines, where systemd adds members to local groups.
            (
                "passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\n",
                "passwd: files systemd iam\ngroup: files [SUCCESS=merge] systemd iam\n",
            ),
            (
                "passwd: files\ngroup: files [ success=merge ] systemd [NOTFOUND=return] nis\n",
                "passwd: files iam\ngroup: files [ success=merge ] systemd iam [NOTFOUND=return] nis\n",
            ),
            // A line of `initgroups`, a service whose name begins with ours, and a line without blanks.
            (
                "passwd:files\n group : iamx files\ninitgroups: files# x\n",
                "passwd:files iam\n group : iamx files iam\ninitgroups: iam [SUCCESS=continue] files# x\n",
            ),
            // An action that does not end the lookup stays where it is, so that the directory behind it is asked as
            // before.
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
    fn a_name_that_reaches_our_module_is_not_local_if_files_alone_is_asked_before() {
        for first in
            ["passwd: files iam", "passwd: files systemd iam sss", "passwd: files [SUCCESS=merge] iam"]
        {
            assert!(asks_files_first(first), "{first}");
        }
        for other in
            ["passwd: iam files", "passwd: sss files iam", "passwd: files sss iam", "group: files iam", ""]
        {
            assert!(!asks_files_first(other), "{other}");
        }
    }

    #[test]
    fn a_line_that_ends_before_the_local_files_stays_as_it_is() {
        // With our module in this line, nobody would find root while the directory does not answer.
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
            // Lines that were added stay, without our module.
            let without = without_us(&with);
            prop_assert!(without.starts_with(text.trim_end_matches('\n')), "{:?} became {:?}", text, without);
        }
    }
}
