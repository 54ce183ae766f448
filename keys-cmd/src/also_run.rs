//! Further key commands of the configuration, whose output goes to sshd unchanged.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use pam_iam_core::audit::Event;
use pam_iam_core::child::{OUTPUT_MAX, Running};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::id::Uid;
use pam_iam_core::log::{Level, Log};
use pam_iam_core::wire::CLIENT_DEADLINE;

use crate::Question;

/// The exit status of EC2 Instance Connect's command when the instance metadata has no key for the user, which is the usual case.
const NO_KEY: i32 = 22;

/// Runs `commands` one after the other and prints their output. A command that fails gives no keys, as in sshd. A command
/// that hangs fails after [`CLIENT_DEADLINE`]. A failure is logged and does not affect the other commands.
pub fn run(commands: &[String], question: &Question, uid: Uid, log: &mut Log) {
    for command in commands {
        let mut words = command.split_whitespace().map(|word| expand(word, question, uid));
        let Some(program) = words.next() else { continue };
        let output = output_of(Command::new(&program).args(words));
        let printed = output.and_then(|keys| {
            let mut stdout = io::stdout();
            stdout.write_all(&keys)?;
            // The next command begins a line of its own.
            if keys.last().is_some_and(|last| *last != b'\n') { stdout.write_all(b"\n") } else { Ok(()) }
        });
        if let Err(error) = printed {
            log.event(Level::Warning, &Event::new("also-run").with("command", command).with("error", error));
        }
    }
}

/// Returns the output of a command, or an error if it fails, is too slow or prints too much.
fn output_of(command: &mut Command) -> io::Result<Vec<u8>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let done = Running::start(command)?.output(Deadline::after(CLIENT_DEADLINE))?;
    match done.status.code() {
        Some(0) if done.stdout.len() > OUTPUT_MAX => Err(io::ErrorKind::FileTooLarge.into()),
        Some(0) => Ok(done.stdout),
        Some(NO_KEY) => Ok(Vec::new()),
        _ => Err(io::Error::other(done.status.to_string())),
    }
}

/// Replaces sshd's tokens: `%u` the user, `%U` the uid, `%h` the home directory, `%f` the fingerprint, `%t` the type and
/// `%k` the body of the key, `%%` a percent sign. A word stays one word, and tokens in a replacement, which the client may
/// have chosen, are not replaced.
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
            Some('h') => expanded.push_str(&question.home),
            Some('t') => expanded.push_str(&question.key_type),
            Some('k') => expanded.push_str(&question.key),
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

    fn printed(script: &str) -> io::Result<String> {
        let output = output_of(Command::new("/bin/sh").args(["-c", script]))?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[test]
    fn a_command_that_fails_or_floods_has_no_keys() {
        assert_eq!(printed("echo a; echo b").unwrap(), "a\nb\n");
        assert!(printed("echo a; exit 1").is_err());
        assert!(printed("head -c 2000000 /dev/zero").is_err());
        assert_eq!(printed("echo a; exit 22").unwrap(), "", "EC2 Instance Connect has no key");
        assert!(output_of(&mut Command::new("/nonexistent")).is_err());
    }

    #[test]
    fn tokens_are_replaced_once() {
        let question = Question {
            config: String::new(),
            uid: None,
            user: "%f x".into(),
            fingerprint: Some("SHA256:y".into()),
            home: "/home/x".into(),
            key_type: "ssh-rsa".into(),
            key: "AAAA%u".into(),
        };
        let expand = |word| expand(word, &question, Uid(7));
        assert_eq!(expand("%u"), "%f x");
        assert_eq!(expand("a%f-%U%%%"), "aSHA256:y-7%%");
        assert_eq!(expand("%h:%t:%k"), "/home/x:ssh-rsa:AAAA%u");
        assert_eq!(expand("%z"), "%z");
    }
}
