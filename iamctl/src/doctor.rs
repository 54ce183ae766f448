//! `iamctl doctor`: checks the host for causes of failing logins, and says how to mend each.

mod aws;
mod files;
mod machine;
mod map;
mod pam;
mod sshd;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use pam_iam_core::client::ClientError;
use pam_iam_core::config::{Config, Sweep};
use pam_iam_core::deadline::Deadline;
use pam_iam_core::leftovers::{self, Leftovers};
use pam_iam_core::owners::Owners;
use pam_iam_core::resolver::Mode;
use pam_iam_core::wire::{Answer, CLIENT_DEADLINE, Request, Roster, Status, User};
use pam_iam_core::{client, paths};
use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Reply};
use crate::host::command::run as run_program;
use crate::output::Tone;
use crate::swept::{self, Swept};
use crate::{Context, enabled};

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check.
    check: &'static str,
    /// `ok`, `warning` or `wrong`.
    state: State,
    /// What was found.
    message: String,
    /// What to do about it. Empty if nothing is to be done.
    fix: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}; to mend it: {}", self.message, self.fix)
    }
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Warning,
    Wrong,
}

impl Finding {
    fn ok(check: &'static str, message: impl ToString) -> Self {
        Self { check, state: State::Ok, message: message.to_string(), fix: String::new() }
    }

    fn wrong(check: &'static str, message: impl ToString, fix: impl Into<String>) -> Self {
        Self { check, state: State::Wrong, message: message.to_string(), fix: fix.into() }
    }

    fn warning(check: &'static str, message: impl ToString, fix: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::wrong(check, message, fix) }
    }
}

/// Runs all checks. Returns whether nothing is wrong.
pub fn run(context: &Context) -> Result<Reply, Error> {
    let mut findings = Vec::new();
    match context.config() {
        Err(why) => findings.push(Finding::wrong(
            "configuration",
            why,
            format!(
                "mend the file; {} check-config FILE checks it; until then IAM users cannot log in, and open sessions stay",
                paths::RESOLVER
            ),
        )),
        Ok(config) => findings = checks(context, &config),
    }
    let mut text = String::new();
    for Finding { check, state, message, fix } in &findings {
        let (tone, word) = match state {
            State::Ok => (Tone::Good, "ok     "),
            State::Warning => (Tone::Doubtful, "warning"),
            State::Wrong => (Tone::Bad, "WRONG  "),
        };
        let _ = writeln!(text, "{} {check}: {message}", context.output.paint(tone, word));
        if !fix.is_empty() {
            let _ = writeln!(text, "        -> {fix}");
        }
    }
    let sound = findings.iter().all(|finding| finding.state != State::Wrong);
    context.output.show(&json!({ "ok": sound, "findings": findings }), &text);
    Ok(sound.into())
}

/// Returns the findings about a host whose configuration can be used.
fn checks(context: &Context, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(Finding::ok("configuration", context.config_path.display().to_string()));
    let mend = "change it in the configuration, and restart iam-resolver";
    findings.extend(config.warnings().into_iter().map(|why| Finding::warning("configuration", why, mend)));
    if enabled::is_off() {
        let mend = "iamctl enable --dry-run shows what iamctl enable changes";
        findings.push(Finding::wrong("enabled", "nothing of pam_iam is switched on here", mend));
    }
    if let Some(left) = enabled::trial_left() {
        let what = format!("a trial goes on: everything is taken back in {} s", left.as_secs());
        findings.push(Finding::warning(
            "enabled",
            what,
            "log in as an IAM user, then: iamctl enable --confirm",
        ));
    }
    let (resolver, is_silent) = socket(config, &context.config_path);
    findings.push(resolver);
    findings.extend(aws::metadata(config));
    // A daemon that hangs would be waited for again, for minutes.
    let roster = match is_silent {
        true => None,
        false => {
            findings.extend(aws::permissions(context));
            roster(context, config, &mut findings)
        }
    };
    let accounts = files::accounts(roster.as_ref());
    // If the accounts are wrong, what sshd and sudo do with them tells nothing more.
    let managed = roster.as_ref().filter(|_| accounts.state == State::Ok);
    let user = managed.and_then(|roster| roster.users.first()).map(|user| user.name.as_str());
    findings.extend(sshd::effective(config, user));
    findings.extend(pam::stacks(config));
    findings.push(accounts);
    findings.push(files::sudoers(config, managed));
    findings.extend(files::owners(config, &context.config_path));
    findings.extend(files::sudo_group(config));
    findings.extend(files::lastlog());
    findings.extend(map::look(context));
    findings.extend(machine::look(config, roster.as_ref()));
    findings.extend(sweep_service(config));
    findings.extend(sweeps());
    findings
}

/// Checks the resolver. Returns also whether there is a daemon that does not answer.
fn socket(config: &Config, config_path: &Path) -> (Finding, bool) {
    let answer = match config.resolver.mode {
        Mode::Once => None,
        Mode::Daemon | Mode::Auto => {
            Some(client::ask(Path::new(paths::SOCKET), &Request::Status, Deadline::after(CLIENT_DEADLINE)))
        }
    };
    let is_silent = matches!(answer, Some(Err(ClientError::TimedOut)));
    (resolver(config, config_path, answer), is_silent)
}

/// Returns the finding about the resolver. `answer` is what the daemon said about its state; None if there is to be none.
fn resolver(config: &Config, config_path: &Path, answer: Option<Result<Answer, ClientError>>) -> Finding {
    const CHECK: &str = "resolver";
    let program = Path::new(paths::RESOLVER);
    let no_program =
        || Finding::wrong(CHECK, format!("{} is missing", paths::RESOLVER), "install pam_iam again");
    let Some(answer) = answer else {
        return if program.exists() {
            Finding::ok(CHECK, "a process for each question")
        } else {
            no_program()
        };
    };
    let start =
        "systemctl enable --now iam-resolver.socket; journalctl -u iam-resolver says why it does not run";
    match answer {
        Ok(answer) if is_older(&answer, config_path) => Finding::warning(
            CHECK,
            "the daemon is older than the configuration, and still decides by the former one",
            "systemctl restart iam-resolver",
        ),
        Ok(Answer::Error { message, .. }) => Finding::wrong(
            CHECK,
            message,
            "journalctl -u iam-resolver says more; systemctl restart iam-resolver when it is mended",
        ),
        Ok(_) => Finding::ok(CHECK, format!("answers on {}", paths::SOCKET)),
        Err(ClientError::NoListener(_)) if config.resolver.mode == Mode::Auto => {
            if !program.exists() {
                return no_program();
            }
            Finding::warning(CHECK, "no daemon: a process for each question, and NSS shows nobody", start)
        }
        Err(error @ ClientError::NoListener(_)) => Finding::wrong(CHECK, error.to_string(), start),
        Err(error @ ClientError::Impostor { .. }) => Finding::wrong(
            CHECK,
            error.to_string(),
            format!("find out who listens there, end it, remove {} and start the resolver", paths::SOCKET),
        ),
        Err(error) => Finding::wrong(CHECK, error.to_string(), "systemctl restart iam-resolver"),
    }
}

/// Returns what keeps sshd from asking pam_iam, each with what to do, for enable and the sweep. `managed_user` has an account here. None if
/// sshd does not answer in time.
pub fn sshd_not_in_force(config: &Config, managed_user: Option<&str>) -> Option<Vec<String>> {
    Some(sshd::not_in_force(config, managed_user)?.iter().map(ToString::to_string).collect())
}

/// Returns what keeps IAM users from having accounts, and what to do, on a host where accounts come from NSS.
pub fn nss_not_in_force() -> Option<String> {
    let finding = files::accounts(None);
    (finding.state == State::Wrong).then(|| finding.to_string())
}

/// Returns which PAM stacks do not ask pam_iam, each with what to do.
pub fn pam_not_in_force(config: &Config) -> Vec<String> {
    let findings = pam::stacks(config);
    findings.iter().filter(|finding| finding.state != State::Ok).map(ToString::to_string).collect()
}

/// Checks that the sweep runs, unless it is switched off.
fn sweep_service(config: &Config) -> Option<Finding> {
    const CHECK: &str = "sweep";
    let by_systemd = Path::new(paths::BOOTED_BY_SYSTEMD).exists();
    if config.sessions.sweep == Sweep::Off || !by_systemd || Path::new("/etc/cron.d/iam-sweep").exists() {
        return None;
    }
    let is = |word: &str| run_program("systemctl", &[word, "--quiet", "iam-sweep.service"]);
    Some(match is("is-enabled").and_then(|_| is("is-active")) {
        Ok(_) => Finding::ok(CHECK, "iam-sweep.service is enabled and runs"),
        Err(_) => Finding::warning(
            CHECK,
            "nobody ends the sessions that IAM withdraws",
            "systemctl enable --now iam-sweep.service, or sessions.sweep = \"off\"",
        ),
    })
}

/// Returns the local accounts in iam-sudo, each with what to do about it, for enable.
pub fn unmanaged_sudo_members(config: &Config) -> Vec<String> {
    files::sudo_group(config)
        .into_iter()
        .map(|finding| format!("{}: {}", finding.message, finding.fix))
        .collect()
}

/// Returns the names of users who may log in and have not yet done so, each with what this host has set up by the name.
pub fn leftovers_of(config: &Config, roster: &Roster) -> Vec<(String, String)> {
    let describe = |user: &User| {
        let name = user.name.as_str();
        let leftovers = leftovers::for_user(name, user.uid, &Owners::of_host(), Some(config), Path::new("/"));
        let what = match (leftovers.refusal(name), leftovers) {
            (Some(refusal), _) => format!("{name} is refused: {}", refusal.why),
            (None, Leftovers::First(found)) => {
                format!("{name} may log in, has not yet done so, and will get: {}", found.join("; "))
            }
            (None, _) => return None,
        };
        Some((name.to_owned(), what))
    };
    roster.users.iter().filter_map(describe).collect()
}

/// Checks what the sweeps found or failed to do.
fn sweeps() -> Vec<Finding> {
    const CHECK: &str = "sweep";
    let swept = Swept::load();
    let mut findings = Vec::new();
    if let Some(running) = swept.running_for().filter(|running| *running > swept::INTERVAL) {
        findings.push(Finding::wrong(
            CHECK,
            format!("a sweep has been at work for {} s, so that withdrawn users stay in", running.as_secs()),
            "journalctl -t iamctl says what it does; systemctl restart iam-sweep.service",
        ));
    }
    if swept.incomplete > 0 {
        findings.push(Finding::wrong(
            CHECK,
            format!("the last sweep could not end {} withdrawals", swept.incomplete),
            "journalctl -t iamctl names the processes that live on",
        ));
    }
    for uid in &swept.unknown_uids {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "uid {uid} runs processes, is in the range of IAM users, and nothing here tells whose it is"
            ),
            "if another directory has such uids, give it another range; else end them: pkill -U UID",
        ));
    }
    findings
}

/// Whether the resolver was started before the configuration was last changed.
fn is_older(status: &Answer, config: &Path) -> bool {
    let Some(Status { uptime, .. }) = status.clone().into_report() else { return false };
    let changed = std::fs::metadata(config).and_then(|found| found.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|ago| ago < Duration::from_secs(uptime)))
}

/// Returns the roster, and adds what it says about names to `findings`.
fn roster(context: &Context, config: &Config, findings: &mut Vec<Finding>) -> Option<Roster> {
    const CHECK: &str = "names";
    let roster: Roster = context.report(&Request::Roster).ok()?;
    for group in &roster.missing {
        findings.push(Finding::wrong(
            CHECK,
            format!("access names the IAM group {group}, which does not exist"),
            "make the group, or mend its name in the configuration: case counts",
        ));
    }
    for refused in &roster.refused {
        findings.push(Finding::warning(
            CHECK,
            format!("the IAM user {} may log in and gets no account: {}", refused.iam_name, refused.why),
            "rename the IAM user, or adopt the local account of the name",
        ));
    }
    let leftovers = leftovers_of(config, &roster);
    let (is_empty, mend) = (leftovers.is_empty(), "take out what is not meant for that user");
    findings.extend(leftovers.into_iter().map(|(_, what)| Finding::warning(CHECK, what, mend)));
    if is_empty && roster.missing.is_empty() && roster.refused.is_empty() {
        let count = roster.users.len() + roster.adopted.len();
        findings.push(Finding::ok(CHECK, format!("{count} IAM users may log in, and each has a name")));
    }
    Some(roster)
}
