//! The PAM stacks: our line is there, before what would end the stack, and with a control that heeds it.

use std::path::Path;

use pam_iam_core::config::{Config, Who};

use super::Finding;

const PAM_D: &str = "/etc/pam.d";

const MODULE: &str = "pam_iam.so";

/// A line of pam.d(5).
struct Line {
    kind: String,
    control: String,
    rest: String,
}

/// Looks at the stacks of sshd and sudo.
pub fn stacks(config: &Config) -> Vec<Finding> {
    let mut findings = vec![account("sshd", None), session()];
    if config.access.sudo != Who::None {
        let sudo = ["sudo", "sudo-i"].into_iter().filter(|service| Path::new(PAM_D).join(service).exists());
        findings.extend(sudo.map(|service| account(service, Some("policy=sudo"))));
    }
    findings
}

fn account(service: &'static str, argument: Option<&str>) -> Finding {
    match read(service) {
        Ok(text) => judge_account(service, &text, argument),
        Err(finding) => finding,
    }
}

fn read(service: &str) -> Result<String, Finding> {
    let path = Path::new(PAM_D).join(service);
    std::fs::read_to_string(&path)
        .map_err(|error| Finding::wrong("PAM", format!("{}: {error}", path.display()), "mend the file"))
}

fn judge_account(service: &str, text: &str, argument: Option<&str>) -> Finding {
    const CHECK: &str = "PAM";
    let family = if text.contains("@include") { "debian" } else { "redhat" };
    let copy = format!(
        "put the account line of /usr/share/pam_iam/pam.d/{family}/{} before the first account line of {PAM_D}/{service}",
        if service.starts_with("sudo") { "sudo" } else { service }
    );
    let lines = lines(text);
    let is_account = |line: &&Line| line.kind == "account" || line.kind == "@include";
    let accounts: Vec<&Line> = lines.iter().filter(is_account).collect();
    let Some(at) = accounts.iter().position(|line| line.rest.contains(MODULE)) else {
        return Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} is not in the account phase: nobody is asked whether IAM users may"),
            copy,
        );
    };
    let (before, ours) = accounts.split_at(at);
    // One that can end the stack with a yes must not come first. What stands in @include is not known here.
    let ends = before.iter().find(|line| {
        !["required", "requisite", "optional"].contains(&line.control.as_str())
            && !line.rest.contains("common-auth")
    });
    if let Some(line) = ends {
        let what = format!("{} {}", line.control, line.rest);
        return Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} comes after `{}`, which may end the stack", what.trim()),
            copy,
        );
    }
    let Some(line) = ours.first() else { return Finding::wrong(CHECK, service, copy) };
    let heeds = ["required", "requisite"].contains(&line.control.as_str())
        || line.control.contains("default=die") && line.control.contains("ignore=ignore");
    if !heeds {
        return Finding::wrong(
            CHECK,
            format!("{service}: the control {} does not heed a denial", line.control),
            copy,
        );
    }
    if let Some(argument) = argument.filter(|argument| !line.rest.contains(*argument)) {
        return Finding::wrong(
            CHECK,
            format!("{service}: {MODULE} lacks {argument}, so the login policy decides"),
            copy,
        );
    }
    Finding::ok(CHECK, format!("{service}: the account phase asks IAM"))
}

fn session() -> Finding {
    const CHECK: &str = "PAM";
    match read("sshd") {
        Ok(text) if lines(&text).iter().any(|line| line.kind == "session" && line.rest.contains(MODULE)) => {
            Finding::ok(CHECK, "sshd: the session phase makes home directories")
        }
        Ok(_) => Finding::wrong(
            CHECK,
            format!(
                "sshd: {MODULE} is not in the session phase: no home directory is made, and no session is swept"
            ),
            format!("put the session line of /usr/share/pam_iam/pam.d into {PAM_D}/sshd"),
        ),
        Err(finding) => finding,
    }
}

fn lines(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (kind, rest) = line.split_once(char::is_whitespace)?;
        let kind = kind.trim_start_matches('-').to_owned();
        let rest = rest.trim();
        if kind == "@include" {
            // It stands for an account line if it is called so.
            let about = rest.contains("account") || !rest.starts_with("common-");
            return about.then(|| Line { kind, control: "@include".to_owned(), rest: rest.to_owned() });
        }
        let end = if rest.starts_with('[') { rest.find(']')? + 1 } else { rest.find(char::is_whitespace)? };
        let (control, rest) = rest.split_at(end);
        Some(Line { kind, control: control.to_owned(), rest: rest.trim().to_owned() })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    const OURS: &str = "account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so\n";

    fn judged(text: &str) -> State {
        judge_account("sshd", text, None).state
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
        assert_eq!(judge_account("sudo", OURS, Some("policy=sudo")).state, State::Wrong);
    }
}
