//! Running `iam-resolver --once`: the same question and the same answer without a daemon.
//!
//! The process gets an environment that holds nothing of the caller's, the root directory to work in and a socket pair
//! for standard input and output (a pipe would raise SIGPIPE in the host). It makes itself a session of its own, and
//! started by root it becomes the resolver's user before it does anything else. Its exit is waited for by pidfd under
//! the same deadline, so that a host that ignores or handles SIGCHLD changes nothing.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::child::Running;
use crate::client::{self, ClientError};
use crate::deadline::Deadline;
use crate::id::Uid;
use crate::wire::{Answer, Request};
use crate::{local, paths};

/// The search path of the process.
const SAFE_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
#[derive(Clone, Debug)]
pub struct Once {
    /// The resolver.
    pub program: PathBuf,
    /// The configuration that it reads.
    pub config: PathBuf,
    /// The file with the `AWS_*` variables.
    pub environment: PathBuf,
}

impl Default for Once {
    fn default() -> Self {
        Self {
            program: paths::RESOLVER.into(),
            config: paths::CONFIG.into(),
            environment: paths::ENVIRONMENT.into(),
        }
    }
}

/// Asks a resolver that is started for this question alone.
///
/// # Errors
/// Returns an error if the process cannot be started, does not answer in time, or answers nonsense.
pub fn ask(once: &Once, request: &Request, deadline: Deadline) -> Result<Answer, ClientError> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let child = start(once, theirs)?;
    let answer = client::exchange(ours.as_fd(), request, client::Behalf::default(), deadline);
    drop(ours);
    child.end(deadline);
    answer
}

/// Starts the resolver, which talks over `socket`.
fn start(once: &Once, socket: OwnedFd) -> io::Result<Running> {
    let mut command = Command::new(&once.program);
    command.arg("--once").arg("--config").arg(&once.config);
    command.env_clear().env("PATH", SAFE_PATH).env("HOME", home()).envs(aws_variables(&once.environment));
    command.current_dir("/");
    // All ids become the effective ones: under sudo the real uid is the invoker's, who could signal the process.
    command.uid(rustix::process::geteuid().as_raw()).gid(rustix::process::getegid().as_raw());
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    command.stdin(Stdio::from(above_standard(&socket)?));
    command.stdout(Stdio::from(above_standard(&socket)?));
    command.stderr(Stdio::from(above_standard(&null)?));
    Running::start(&mut command)
}

/// A copy of `fd` that is none of the three standard descriptors. A host may have closed those, and then a fresh
/// descriptor has one of their numbers and would be overwritten while the child's are put in place.
fn above_standard(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}

/// Where the AWS SDK looks for `.aws/config`: the home directory of the user that the process will run as.
fn home() -> String {
    let uid = Uid(rustix::process::geteuid().as_raw());
    let passwd = Path::new(paths::PASSWD);
    let account = match uid {
        Uid::ROOT => local::account_by_name(passwd, paths::RESOLVER_USER),
        uid => local::account_by_uid(passwd, uid),
    };
    account.ok().flatten().map_or_else(|| "/".to_owned(), |account| account.home)
}

/// The variables that name a proxy for HTTPS, the first that is set counting. No call is made by plain HTTP but to the
/// metadata service, which is never asked through a proxy, and to an `aws.endpoint` on this machine.
pub const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The variables with the hosts that are reached without it.
pub const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What else the resolver heeds of an environment file, beside `AWS_*`.
const OTHER_VARIABLES: [&str; 2] = ["HOME", "SSL_CERT_FILE"];

/// The lines of an environment file that the resolver heeds; nothing if it cannot be read, and the resolver tells what it lacks.
fn aws_variables(path: &Path) -> Vec<(String, String)> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.filter_map(|line| variable(&line)).filter(|(name, _)| is_heeded(name)).collect()
}

fn is_heeded(name: &str) -> bool {
    let named = [PROXY_VARIABLES.as_slice(), &NO_PROXY_VARIABLES, &OTHER_VARIABLES].concat();
    name.starts_with("AWS_") || named.contains(&name)
}

/// `NAME=VALUE`, the value with or without quotes, as systemd.exec(5) has it under EnvironmentFile.
fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.trim().split_once('=')?;
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    let name_ok = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (name_ok && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn resolver(script: &str) -> (tempfile::TempDir, Once) {
        let dir = tempfile::tempdir().unwrap();
        let (program, inner) = (dir.path().join("resolver"), dir.path().join("inner"));
        // As the resolver does it, it makes itself a session of its own.
        std::fs::write(&inner, script).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\nexec setsid sh {} \"$@\"\n", inner.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let environment = dir.path().join("environment");
        std::fs::write(&environment, "AWS_REGION='eu-west-1'\nLD_PRELOAD=/evil.so\n# AWS_X=1\n").unwrap();
        (dir, Once { program, config: "/c.toml".into(), environment })
    }

    /// A script that answers with an error whose message is `shell`'s output.
    fn tells(shell: &str) -> (tempfile::TempDir, Once) {
        // It takes the whole request first: `{"v":1,"ask":"status"}` behind a header of 4 bytes.
        resolver(&format!(
            r#"head -c 26 >/dev/null
message=$({shell})
body='{{"answer":"error","kind":"unavailable","message":"'$message'"}}'
printf "\\000\\000\\000\\$(printf %03o ${{#body}})%s" "$body""#
        ))
    }

    fn told(once: &Once) -> String {
        // A file that another thread's fork still holds open for writing cannot be run yet (ETXTBSY).
        loop {
            match ask(once, &Request::Status, Deadline::after(Duration::from_secs(10))) {
                Ok(Answer::Error { message, .. }) => return message,
                Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_process_is_asked_and_answers() {
        assert_eq!(told(&tells("echo $*").1), "--once --config /c.toml");
    }

    #[test]
    fn nothing_of_the_callers_environment_reaches_it() {
        let (_dir, once) = tells("env | cut -d= -f1 | sort | tr '\\n' ' '");
        assert_eq!(told(&once), "AWS_REGION HOME PATH PWD ");
        assert_eq!(told(&tells("pwd").1), "/");
        assert_eq!(told(&tells("echo $AWS_REGION").1), "eu-west-1");
    }

    #[test]
    fn a_process_that_hangs_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let (_dir, once) = resolver(&format!("sleep 1000 3>{} & sleep 1000", fifo.display()));
        // Opening a fifo for reading waits until somebody writes: the grandchild is then there.
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::read(fifo)
        });
        let error = loop {
            match ask(&once, &Request::Status, Deadline::after(Duration::from_secs(1))) {
                Err(ClientError::Io(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, ClientError::TimedOut), "{error}");
        // Reading ends when the last writer is gone.
        assert_eq!(reader.join().unwrap().unwrap(), b"");
    }

    #[test]
    fn children_of_the_process_end_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::read(fifo)
        });
        let (_dir, once) = tells(&format!("sleep 1000 >{} & echo done", fifo.display()));
        assert_eq!(told(&once), "done");
        // Reading ends when the last writer is gone.
        assert_eq!(reader.join().unwrap().unwrap(), b"");
    }

    #[test]
    fn a_missing_program_and_one_that_dies_are_errors() {
        let once = Once { program: "/nonexistent/resolver".into(), ..Once::default() };
        assert!(ask(&once, &Request::Status, Deadline::after(Duration::from_secs(5))).is_err());
        let (_dir, once) = resolver("exit 1");
        assert!(ask(&once, &Request::Status, Deadline::after(Duration::from_secs(5))).is_err());
    }
}
