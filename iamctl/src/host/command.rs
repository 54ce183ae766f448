//! Programs of the host, and the one way to run them.

use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the host's programs are, whatever the caller's environment says.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// How long a program may take: systemd starts a unit meanwhile.
const LIMIT: Duration = Duration::from_secs(120);

/// What timeout(1) exits with when it has killed its program.
const KILLED: i32 = 137;

/// Why a program did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It did not end in time. Nothing is known of what it would have said.
    #[error("{0}")]
    TimedOut(String),
    /// It could not be started, or failed.
    #[error("{0}")]
    Failed(String),
}

/// Runs a program without input. Returns what it prints.
///
/// # Errors
/// Returns an error if it cannot be started, takes longer than [`LIMIT`], or its exit status is not 0: the command line and
/// what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    run_within(LIMIT, program, arguments, &[])
}

/// [`run`] with a limit, and further variables in the environment.
///
/// # Errors
/// Returns an error if the program cannot be run, fails, or does not end in time.
pub fn run_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<String, Failure> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &limit.as_secs().to_string(), program]).args(arguments);
    // What it says is read by programs too.
    command.env("PATH", PATH).env("LC_ALL", "C").env_remove("LANGUAGE").envs(variables.iter().copied());
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Failed(format!("{program}: {error}")))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let shown = format!("{program} {}", arguments.join(" "));
    // timeout(1) kills itself as it killed the program.
    if done.status.code().is_none_or(|code| code == KILLED) {
        return Err(Failure::TimedOut(format!("{shown}: did not end within {} s", limit.as_secs())));
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
        assert_eq!(hangs, Err(Failure::TimedOut("sleep 1000: did not end within 1 s".to_owned())));
        assert!(run("no-such-program-here", &[]).unwrap_err().to_string().contains("no-such-program-here"));
    }
}
