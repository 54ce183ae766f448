//! Requests to systemd-logind to end sessions, which nothing waits for, and the session that a process leads.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use pam_iam_core::paths;

use crate::cgroup;

/// The time limit of a request, in seconds.
const LOGIND_SECONDS: &str = "10";

/// The folder in which logind keeps a file about each session, which sd_session_get_leader(3) reads.
const SESSIONS: &str = "/run/systemd/sessions";

/// Starts `loginctl` with `arguments` and does not wait for it. None if systemd did not boot this host or the program cannot
/// be started. A dropped child keeps running until its time limit.
pub fn begin(arguments: &[&str]) -> Option<Child> {
    command(arguments)?.stdout(Stdio::null()).spawn().ok()
}

fn command(arguments: &[&str]) -> Option<Command> {
    if !Path::new(paths::BOOTED_BY_SYSTEMD).exists() {
        return None;
    }
    let mut command = Command::new("timeout");
    command.args([LOGIND_SECONDS, "loginctl"]).args(arguments);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    Some(command)
}

/// Returns the logind session that `pid` leads: its identifier and its control group. None if another process leads the
/// session that `pid` is in.
pub fn session_of(pid: i32) -> Option<(String, String)> {
    let path = cgroup::of_process(pid)?;
    let scope = path.split('/').find(|part| part.starts_with("session-") && part.ends_with(".scope"))?;
    let id = scope.strip_prefix("session-")?.strip_suffix(".scope")?.to_owned();
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    // Read from its file: a user can keep logind too busy to answer.
    let session = std::fs::read_to_string(format!("{SESSIONS}/{id}")).ok()?;
    let leader = session.lines().find_map(|line| line.strip_prefix("LEADER="))?;
    let end = path.find(scope)? + scope.len();
    (leader.trim() == pid.to_string()).then(|| (id, path.get(..end).unwrap_or_default().to_owned()))
}
