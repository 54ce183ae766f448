//! The changes to the text of each file, as pure functions. Each changes nothing in a text that has it already.

/// The module that a PAM line is about.
pub const MODULE: &str = "pam_iam.so";

/// The name of our module in nsswitch.conf(5).
const SERVICE: &str = "iam";

/// The phases of pam.d(5) that we are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Our line comes before the first that says who may.
    Account,
    /// Our line comes before those that expect a home directory.
    Session,
}

/// nsswitch.conf(5) with `iam` for accounts and groups, where local files do not suffice.
pub fn nsswitch(text: &str) -> String {
    let mut lines: Vec<String> = text.split('\n').map(with_service).collect();
    for database in ["passwd:", "group:"] {
        if !lines.iter().any(|line| line.trim_start().starts_with(database)) {
            let at = lines.len() - usize::from(lines.last().is_some_and(String::is_empty));
            lines.insert(at, format!("{database} files {SERVICE}"));
        }
    }
    lines.join("\n")
}

fn with_service(line: &str) -> String {
    let (entry, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
    let words: Vec<&str> = entry.split_whitespace().collect();
    let wanted = matches!(words.first(), Some(&"passwd:" | &"group:")) && !words.contains(&SERVICE);
    if !wanted {
        return line.to_owned();
    }
    // An action like [NOTFOUND=return] would end the look-up before it came to us; one that merges goes on, and stays with the
    // service that it is about.
    let stops = |at: usize| {
        let action = entry.get(at..).filter(|rest| rest.starts_with('['));
        let action = action.map(|rest| rest.split(']').next().unwrap_or_default().replace([' ', '\t'], ""));
        action.is_some_and(|action| !action.eq_ignore_ascii_case("[success=merge"))
    };
    let stop = (0..entry.len()).find(|at| stops(*at)).unwrap_or(entry.len());
    let (before, after) = entry.split_at(stop);
    let kept = before.trim_end();
    let space = if comment.is_empty() && after.is_empty() {
        before.get(kept.len()..).unwrap_or_default()
    } else {
        " "
    };
    format!("{kept} {SERVICE}{space}{after}{comment}")
}

/// nsswitch.conf(5) without it.
pub fn without_nsswitch(text: &str) -> String {
    let line = |line: &str| {
        let ours = ["passwd:", "group:"].iter().any(|database| line.trim_start().starts_with(database));
        if ours { line.replacen(&format!(" {SERVICE}"), "", 1) } else { line.to_owned() }
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// A stack of pam.d(5) with `line` in its phase.
pub fn pam(text: &str, line: &str, phase: Phase) -> String {
    let there = |known: &str| is_of(known, phase) && known.contains(MODULE);
    if text.lines().any(there) {
        return text.to_owned();
    }
    let is_before = |known: &str| match phase {
        Phase::Account => is_of(known, phase),
        // Debian's and Red Hat's common part.
        Phase::Session => {
            let mut words = known.split_whitespace();
            let first = words.next().unwrap_or_default();
            first == "@include" && words.next() == Some("common-session")
                || first == "session" && matches!(words.next(), Some("include" | "substack"))
        }
    };
    let mut lines: Vec<&str> = text.split('\n').collect();
    let end = lines.len() - usize::from(lines.last().is_some_and(|last| last.is_empty()));
    let at = lines.iter().position(|known| is_before(known)).unwrap_or(end);
    lines.insert(at, line);
    lines.join("\n")
}

/// Whether a line of pam.d(5) belongs to a phase, or includes lines that do.
fn is_of(line: &str, phase: Phase) -> bool {
    let mut words = line.split_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (word, common) = match phase {
        Phase::Account => ("account", "common-account"),
        Phase::Session => ("session", "common-session"),
    };
    first.trim_start_matches('-') == word || first == "@include" && second == common
}

/// What PAM takes of a line: nothing from a `#` on, and no blanks at its end.
fn effective(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim_end()
}

/// A stack of pam.d(5) without lines of ours. One that ends with a backslash goes on in the next.
pub fn without_pam(text: &str) -> String {
    let mut continues = false;
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for line in text.split('\n') {
        match entries.last_mut().filter(|_| continues) {
            Some(entry) => entry.push(line),
            None => entries.push(vec![line]),
        }
        continues = effective(line).ends_with('\\');
    }
    entries.retain(|entry| !entry.iter().any(|line| effective(line).contains(MODULE)));
    entries.concat().join("\n")
}

/// The line of a phase in a file of ours under `pam.d`.
pub fn line_of(text: &str, phase: Phase) -> Option<&str> {
    let word = match phase {
        Phase::Account => "account",
        Phase::Session => "session",
    };
    text.lines().find(|line| line.split_whitespace().next() == Some(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nsswitch_gets_a_word_in_two_lines_and_loses_it_again() {
        for (before, after) in [
            ("passwd: files\ngroup: files\n", "passwd: files iam\ngroup: files iam\n"),
            (
                "# x\npasswd:         files systemd  # y\ngroup:\tfiles [NOTFOUND=return] nis\nshadow: files\n",
                "# x\npasswd:         files systemd iam # y\ngroup:\tfiles iam [NOTFOUND=return] nis\nshadow: files\n",
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
            ("hosts: files", "hosts: files\npasswd: files iam\ngroup: files iam"),
        ] {
            assert_eq!(nsswitch(before), after);
            assert_eq!(nsswitch(after), after, "twice is once");
        }
        assert_eq!(without_nsswitch("passwd: files iam\nhosts: iam\n"), "passwd: files\nhosts: iam\n");
    }

    #[test]
    fn our_lines_come_before_what_could_end_the_stack_and_before_what_wants_a_home() {
        let debian = "# c\n@include common-auth\naccount    required     pam_nologin.so\n@include common-account\n\
                      session required pam_loginuid.so\n@include common-session\n";
        let ours =
            pam(&pam(debian, "account X pam_iam.so", Phase::Account), "session Y pam_iam.so", Phase::Session);
        assert_eq!(
            ours,
            "# c\n@include common-auth\naccount X pam_iam.so\naccount    required     pam_nologin.so\n@include common-account\n\
             session required pam_loginuid.so\nsession Y pam_iam.so\n@include common-session\n"
        );
        assert_eq!(pam(&ours, "account X pam_iam.so", Phase::Account), ours);
        assert_eq!(without_pam(&ours), debian);
        let redhat = "auth substack password-auth\naccount required pam_sepermit.so\nsession required pam_selinux.so close\n\
                      session include password-auth";
        let ours = pam(redhat, "session Y pam_iam.so", Phase::Session);
        assert!(ours.ends_with("close\nsession Y pam_iam.so\nsession include password-auth"), "{ours}");
        assert_eq!(
            pam("@include common-account", "account X pam_iam.so", Phase::Account),
            "account X pam_iam.so\n@include common-account"
        );
        assert_eq!(pam("auth x\n", "account X pam_iam.so", Phase::Account), "auth x\naccount X pam_iam.so\n");
        let spread = "account [success=ok \\\n default=die] \\\n pam_iam.so\n# account pam_iam.so\naccount required pam_unix.so";
        // A comment does not go on, whatever it ends with, and blanks after a backslash do not count.
        for (before, after) in [
            ("# see \\\naccount required pam_iam.so\nx", "# see \\\nx"),
            (
                "account required pam_unix.so # y \\\naccount required pam_iam.so\nx",
                "account required pam_unix.so # y \\\nx",
            ),
            ("account [success=ok \\ \n default=die] pam_iam.so\nx", "x"),
        ] {
            assert_eq!(without_pam(before), after);
        }
        assert_eq!(without_pam(spread), "# account pam_iam.so\naccount required pam_unix.so");
    }

    #[test]
    fn the_shipped_lines_are_found() {
        let file = include_str!("../../../pam.d/debian/sshd");
        assert!(line_of(file, Phase::Account).is_some_and(|line| line.contains("default=die")));
        assert_eq!(line_of(file, Phase::Session), Some("session    required    pam_iam.so"));
        assert_eq!(line_of(include_str!("../../../pam.d/debian/sudo"), Phase::Session), None);
    }
}
