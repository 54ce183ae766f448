//! Requests to systemd-logind to end sessions. Nothing waits for them.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use pam_iam_core::paths;

use crate::cgroup;

/// The time limit of a request, in seconds.
const LOGIND_SECONDS: &str = "10";

/// Where logind keeps what sd_session_get_leader(3) reads.
const SESSIONS: &str = "/run/systemd/sessions";

/// Starts `loginctl` with `arguments` and does not wait for it. None if systemd did not boot this host. A child that is dropped runs on
/// until its time limit.
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

/// Returns the logind session that `pid` leads: its identifier and its control group. None for a process that was started within another
/// session.
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
