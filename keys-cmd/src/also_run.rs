//! Further key commands, for every account: what they print goes to sshd as it is.

use std::process::{Command, Stdio};

use pam_iam_core::escape::Value;
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};

use crate::Question;

/// Runs `commands` one after the other. One that fails is logged, and the others count all the same.
pub fn run(commands: &[String], question: &Question, uid: Uid, log: &mut Log) {
    for command in commands {
        let mut words = command.split_whitespace().map(|word| expand(word, question, uid));
        let Some(program) = words.next() else { continue };
        let status = Command::new(&program).args(words).stdin(Stdio::null()).stderr(Stdio::null()).status();
        let problem = match status {
            Ok(status) if status.success() => continue,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let line = format!("event=also-run command={} error={}", Value(command), Value(&problem));
        log.write(Level::Warning, line);
    }
}

/// Replaces sshd's tokens: `%u` the user, `%U` the uid, `%f` the fingerprint, `%%` a percent sign. A word never
/// becomes two, and what a client chose is never read for tokens again.
fn expand(word: &str, question: &Question, uid: Uid) -> String {
    let mut expanded = String::new();
    let mut rest = word.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            expanded.push(c);
            continue;
        }
        match rest.next() {
            Some('u') => expanded.push_str(&question.user),
            Some('U') => expanded.push_str(&uid.to_string()),
            Some('f') => expanded.push_str(question.fingerprint.as_deref().unwrap_or_default()),
            Some('%') | None => expanded.push('%'),
            Some(other) => expanded.extend(['%', other]),
        }
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_replaced_once() {
        let question = Question {
            config: String::new(),
            uid: None,
            user: "%f x".into(),
            fingerprint: Some("SHA256:y".into()),
        };
        let expand = |word| expand(word, &question, Uid(7));
        assert_eq!(expand("%u"), "%f x");
        assert_eq!(expand("a%f-%U%%%"), "aSHA256:y-7%%");
        assert_eq!(expand("%z"), "%z");
    }
}
