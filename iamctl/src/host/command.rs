//! Runs programs of the host, each with a time limit.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use pam_iam_core::child::Running;
use pam_iam_core::deadline::Deadline;

/// Where the host's programs are. The caller's environment does not count.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// How long a program may take: systemctl waits for a unit to start.
const LIMIT: Duration = Duration::from_secs(120);

/// Why a program gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It did not end in time, so its result is unknown.
    #[error("{0}")]
    Unanswered(String),
    /// It could not be started, or failed.
    #[error("{0}")]
    Failed(String),
}

/// Runs a program without input. Returns its output.
///
/// # Errors
/// Returns an error with the command line and the output if the program cannot be started, takes longer than [`LIMIT`], or fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    run_within(LIMIT, program, arguments, &[])
}

/// Runs a program within `limit`, with further variables in its environment. Returns its output.
///
/// # Errors
/// Returns an error if the program cannot be started, fails, or does not end in time.
pub fn run_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<String, Failure> {
    let mut command = Command::new(program);
    // Programs parse the output, so it must not be translated.
    command.env("PATH", PATH).env("LC_ALL", "C").env_remove("LANGUAGE").envs(variables.iter().copied());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{program} {}", arguments.join(" "));
    let running =
        Running::start(&mut command).map_err(|error| Failure::Failed(format!("{program}: {error}")))?;
    let done = running.output(Deadline::after(limit)).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            Failure::Unanswered(format!("{shown}: did not end within {} s", limit.as_secs()))
        }
        _ => Failure::Failed(format!("{shown}: {error}")),
    })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    if done.status.code().is_none() {
        return Err(Failure::Unanswered(format!("{shown}: {}", done.status)));
    }
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().replace('\n', "; ");
    Err(Failure::Failed(format!("{shown}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_or_fails_is_named() {
        assert_eq!(run("echo", &["a"]).unwrap(), "a\n");
        assert_eq!(
            run("sh", &["-c", "echo no >&2; exit 3"]),
            Err(Failure::Failed("sh -c echo no >&2; exit 3: no".to_owned()))
        );
        let hangs = run_within(Duration::from_secs(1), "sleep", &["1000"], &[]);
        assert_eq!(hangs, Err(Failure::Unanswered("sleep 1000: did not end within 1 s".to_owned())));
        assert!(run("no-such-program-here", &[]).unwrap_err().to_string().contains("no-such-program-here"));
    }
}
