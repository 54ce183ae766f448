//! systemd-logind, where it runs. It is asked to end sessions, and nobody waits for it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use pam_iam_core::paths;

use crate::cgroup;

/// How long logind may take, in seconds. It is not waited for.
const LOGIND_SECONDS: &str = "10";

/// Where logind keeps what sd_session_get_leader(3) reads.
const SESSIONS: &str = "/run/systemd/sessions";

/// Starts a request to logind and does not wait for it. A child that is dropped ends by itself.
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

/// Returns the logind session that was made for `pid`: its identifier and its control group. A process that was started from another
/// session is in that one, and has none of its own.
pub fn session_of(pid: i32) -> Option<(String, String)> {
    let path = cgroup::of_process(pid)?;
    let scope = path.split('/').find(|part| part.starts_with("session-") && part.ends_with(".scope"))?;
    let id = scope.strip_prefix("session-")?.strip_suffix(".scope")?.to_owned();
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    // Read, not asked: a user may keep logind busy.
    let session = std::fs::read_to_string(format!("{SESSIONS}/{id}")).ok()?;
    let leader = session.lines().find_map(|line| line.strip_prefix("LEADER="))?;
    let end = path.find(scope)? + scope.len();
    (leader.trim() == pid.to_string()).then(|| (id, path.get(..end).unwrap_or_default().to_owned()))
}
