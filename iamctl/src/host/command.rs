//! Programs of the host, and the one way to run them.

use std::process::{Command, Stdio};

/// Where the host's programs are, whatever the caller's environment says.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Runs a program without input. Returns what it prints.
///
/// # Errors
/// Returns an error if it cannot be started or its exit status is not 0: the command line and what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    run_with(program, arguments, &[])
}

/// [`run`] with further variables in the environment.
///
/// # Errors
/// Those of [`run`].
pub fn run_with(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", PATH).envs(variables.iter().copied());
    let done = command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().replace('\n', "; ");
    Err(format!("{program} {}: {said}", arguments.join(" ")))
}
