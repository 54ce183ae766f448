//! The PAM stacks: our line is there, before what would end the stack, and with a control that heeds it.

use std::path::Path;

use pam_iam_core::config::{Config, Who};

use super::{Finding, State};
use crate::enable::{PAM_STACKS, PAM_STACKS_OF_VENDOR};

const MODULE: &str = "pam_iam.so";

/// How deep included files may include others.
const INCLUDES_MAX: usize = 8;

/// A line of pam.d(5), of the kind that is looked at.
struct Line {
    control: String,
    rest: String,
}

/// Stacks that start what belongs to a user again and again, each minute or at boot.
const OF_JOBS: [&str; 4] = ["cron", "crond", "atd", "systemd-user"];

/// Looks at the stacks of sshd, sudo and what starts jobs.
pub fn stacks(config: &Config) -> Vec<Finding> {
    let mut findings = vec![account("sshd", None), session()];
    if config.access.sudo != Who::None {
        let sudo =
            ["sudo", "sudo-i"].into_iter().filter(|service| Path::new(PAM_STACKS).join(service).exists());
        findings.extend(sudo.map(|service| account(service, Some("policy=sudo"))));
    }
    findings.extend(OF_JOBS.into_iter().filter_map(jobs));
    findings
}

/// The stack of a service that starts jobs, where there is one.
fn jobs(service: &'static str) -> Option<Finding> {
    let text = [PAM_STACKS, PAM_STACKS_OF_VENDOR]
        .into_iter()
        .find_map(|folder| std::fs::read_to_string(Path::new(folder).join(service)).ok())?;
    let found = judge_account(service, &text, None, &|name| read(name).unwrap_or_default());
    Some(match found.state {
        State::Ok => found,
        _ => Finding::warning(
            "PAM",
            format!("{}; what a withdrawn user has there starts again and again", found.what),
            "iamctl enable, which may be run again, puts the line there",
        ),
    })
}

fn account(service: &'static str, argument: Option<&str>) -> Finding {
    match read(service) {
        Ok(text) => judge_account(service, &text, argument, &|name| read(name).unwrap_or_default()),
        Err(finding) => finding,
    }
}

fn read(service: &str) -> Result<String, Finding> {
    let path = Path::new(PAM_STACKS).join(service);
    std::fs::read_to_string(&path)
        .map_err(|error| Finding::wrong("PAM", format!("{}: {error}", path.display()), "mend the file"))
}

fn judge_account(
    service: &str,
    text: &str,
    argument: Option<&str>,
    include: &dyn Fn(&str) -> String,
) -> Finding {
    const CHECK: &str = "PAM";
    let family = if text.contains("@include") { "debian" } else { "redhat" };
    let copy = format!(
        "put the account line of /usr/share/pam_iam/pam.d/{family}/{} before the first account line of {PAM_STACKS}/{service}",
        if service.starts_with("sudo") { "sudo" } else { service }
    );
    let accounts = lines(text, "account", include, 0);
    let Some(at) = accounts.iter().position(|line| line.rest.contains(MODULE)) else {
        return Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} is not in the account phase: nobody is asked whether IAM users may"),
            copy,
        );
    };
    let (before, ours) = accounts.split_at(at);
    if let Some(line) = before.iter().find(|line| line.may_pass_over_the_next()) {
        let what = format!("{} {}", line.control, line.rest);
        return Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} comes after `{}`, which may end the stack", what.trim()),
            copy,
        );
    }
    let Some(line) = ours.first() else { return Finding::wrong(CHECK, service, copy) };
    if !line.heeds_a_denial() {
        return Finding::wrong(
            CHECK,
            format!("{service}: the control {} does not heed a denial", line.control),
            copy,
        );
    }
    match argument {
        Some(argument) if !line.rest.contains(argument) => Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} lacks {argument}, so the login policy decides"),
            copy,
        ),
        None if line.rest.contains("policy=sudo") => Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} has policy=sudo, so only who may sudo may log in"),
            copy,
        ),
        _ => Finding::ok(CHECK, format!("{service}: the account phase asks IAM")),
    }
}

impl Line {
    /// The values of a control in brackets (pam.conf(5)).
    fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        let inside = self.control.trim_start_matches('[').trim_end_matches(']');
        inside.split_whitespace().filter_map(|value| value.split_once('='))
    }

    /// Whether what stands after it may not be asked, although nobody was refused.
    fn may_pass_over_the_next(&self) -> bool {
        match self.control.as_str() {
            "required" | "requisite" | "optional" => false,
            control if control.starts_with('[') => {
                self.values().any(|(_, action)| action == "done" || action.parse::<u32>().is_ok())
            }
            _ => true,
        }
    }

    fn heeds_a_denial(&self) -> bool {
        match self.control.as_str() {
            "required" | "requisite" => true,
            control if control.starts_with('[') => {
                // Beside these it has no values of its own, so the default is for every denial.
                let usual = ["success", "new_authtok_reqd", "ignore", "default"];
                self.values().all(|(value, _)| usual.contains(&value))
                    && self
                        .values()
                        .any(|(value, action)| value == "default" && ["die", "bad"].contains(&action))
            }
            _ => false,
        }
    }
}

fn session() -> Finding {
    const CHECK: &str = "PAM";
    let text = match read("sshd") {
        Ok(text) => text,
        Err(finding) => return finding,
    };
    let lines = lines(&text, "session", &|name| read(name).unwrap_or_default(), 0);
    match lines.iter().any(|line| line.rest.contains(MODULE)) {
        true => Finding::ok(CHECK, "sshd: the session phase makes home directories"),
        false => Finding::wrong(
            CHECK,
            format!(
                "sshd: {MODULE} is not in the session phase: no home directory is made, and no session is swept"
            ),
            format!("put the session line of /usr/share/pam_iam/pam.d into {PAM_STACKS}/sshd"),
        ),
    }
}

/// The lines of a kind, with those of included files in their places.
fn lines(text: &str, wanted: &str, include: &dyn Fn(&str) -> String, depth: usize) -> Vec<Line> {
    if depth > INCLUDES_MAX {
        return Vec::new();
    }
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((kind, rest)) = line.split_once(char::is_whitespace) else { continue };
        let (kind, rest) = (kind.trim_start_matches('-').to_ascii_lowercase(), rest.trim());
        if kind == "@include" {
            found.append(&mut lines(&include(rest), wanted, include, depth + 1));
            continue;
        }
        if kind != wanted {
            continue;
        }
        let end = if rest.starts_with('[') {
            rest.find(']').map(|end| end + 1)
        } else {
            rest.find(char::is_whitespace)
        };
        let (control, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let (control, rest) = (control.to_ascii_lowercase(), rest.trim());
        if ["include", "substack"].contains(&control.as_str()) {
            found.append(&mut lines(&include(rest), wanted, include, depth + 1));
        } else {
            found.push(Line { control, rest: rest.to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so\n";

    /// As Debian's and Red Hat's stacks are included.
    fn include(name: &str) -> String {
        match name {
            "common-account" => "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n",
            "password-auth" => "account required pam_unix.so\naccount sufficient pam_localuser.so\n",
            "sudo" => OURS_FOR_SUDO,
            _ => "",
        }
        .to_owned()
    }

    const OURS_FOR_SUDO: &str = "account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so policy=sudo\naccount include system-auth\n";

    fn judged(text: &str) -> State {
        judge_account("sshd", text, None, &include).state
    }

    #[test]
    fn our_line_has_to_be_there_in_time_and_with_a_control_that_heeds_it() {
        let debian = "@include common-auth\naccount required pam_nologin.so\n";
        assert_eq!(judged(&format!("{debian}{OURS}@include common-account\n")), State::Ok);
        assert_eq!(judged(&format!("{OURS}account include password-auth\n")), State::Ok);
        assert_eq!(judged("account required pam_iam.so\naccount include password-auth\n"), State::Ok);
        assert_eq!(judged(&format!("{debian}@include common-account\n")), State::Wrong, "not there");
        assert_eq!(judged(&format!("{debian}# {OURS}@include common-account\n")), State::Wrong, "a comment");
        assert_eq!(judged(&format!("@include common-account\n{OURS}")), State::Wrong, "too late");
        assert_eq!(judged(&format!("account sufficient pam_localuser.so\n{OURS}")), State::Wrong, "too late");
        assert_eq!(judged(&format!("account include password-auth\n{OURS}")), State::Wrong, "too late");
        assert_eq!(judged("account optional pam_iam.so\n"), State::Wrong, "not heeded");
        assert_eq!(judged("account sufficient pam_iam.so\n"), State::Wrong, "not heeded");
        let denials = "account [success=ok perm_denied=ignore ignore=ignore default=die] pam_iam.so\n";
        assert_eq!(judged(denials), State::Wrong, "the denial is passed over");
        assert_eq!(judged("account [success=ok ignore=ignore default=bad] pam_iam.so\n"), State::Ok);
        assert_eq!(
            judged(&format!("account [success=ok default=ignore] pam_x.so\n{OURS}")),
            State::Ok,
            "harmless"
        );
        assert_eq!(
            judged(&format!("account [success=1 default=ignore] pam_x.so\n{OURS}")),
            State::Wrong,
            "jumped over"
        );
        assert_eq!(judged("account required pam_iam.so policy=sudo\n"), State::Wrong);
        let sudo = |text: &str| judge_account("sudo-i", text, Some("policy=sudo"), &include).state;
        assert_eq!(
            (sudo(OURS), sudo("account include sudo\n")),
            (State::Wrong, State::Ok),
            "as Red Hat's sudo-i has it"
        );
    }
}
