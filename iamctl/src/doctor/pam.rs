//! The PAM stacks: checks that pam_iam.so is in force in each, by the same model that enable uses to add it.

use std::path::Path;

use pam_iam_core::config::{Allowed, Config};

use super::Finding;
use crate::host::pam::{self, BECOMING, FOLDER, Role, SERVICES, SUDO, Service};
use crate::host::pam_stack::{MODULE, Phase, Verdict};
use crate::is_installed;

const CHECK: &str = "PAM";

/// Checks the stacks of sshd, of sudo, and of the programs that start jobs.
pub fn stacks(config: &Config) -> Vec<Finding> {
    let is_wanted = |service: &&Service| service.role != Role::Sudo || config.access.sudo != Allowed::None;
    let asked = SERVICES.iter().filter(is_wanted).flat_map(|service| findings(service, Path::new("/")));
    asked.chain(becoming(Path::new("/"))).collect()
}

/// Tells whether a user who comes by su or sudo gets a home directory. That is the operator's choice, so it is never wrong.
fn becoming(root: &Path) -> Option<Finding> {
    let is_without = |service: &&Service| {
        let text = pam::stack(root, service.name).ok().flatten();
        text.is_some_and(|text| service.judge(root, &text, Phase::Session) != Verdict::InForce)
    };
    let without: Vec<&str> = BECOMING.iter().filter(is_without).map(|service| service.name).collect();
    (!without.is_empty()).then(|| {
        let what = format!(
            "{}: a user who comes this way before the first login by ssh has no home directory; iamctl enable --with-su changes that",
            without.join(", ")
        );
        Finding::ok(CHECK, what)
    })
}

/// Checks the stack of a service. Returns nothing if the host has no such service.
fn findings(service: &Service, root: &Path) -> Vec<Finding> {
    let text = match pam::stack(root, service.name) {
        Ok(Some(text)) => text,
        Ok(None) if service.role == Role::Login => {
            let what = format!("{FOLDER}/{} is missing", service.name);
            return vec![Finding::wrong(CHECK, what, "install openssh-server again")];
        }
        Ok(None) if service.role == Role::Sudo && is_installed(SUDO) => {
            let what = format!(
                "{FOLDER}/{} is missing, so PAM takes the stack other, which does not ask IAM",
                service.name
            );
            return vec![Finding::wrong(
                CHECK,
                what,
                "iamctl enable, which may be run again, writes it like sudo's",
            )];
        }
        Ok(None) => return Vec::new(),
        Err(why) => return vec![Finding::wrong(CHECK, why, "mend the file")],
    };
    service.phases.iter().map(|phase| finding(service, *phase, &text, root)).collect()
}

fn finding(service: &Service, phase: Phase, text: &str, root: &Path) -> Finding {
    let name = service.name;
    let what = match service.judge(root, text, phase) {
        Verdict::InForce => {
            let done = if phase == Phase::Account {
                "account phase asks IAM"
            } else {
                "session phase makes home directories"
            };
            return Finding::ok(CHECK, format!("{name}: the {done}"));
        }
        Verdict::Missing => missing(service, phase, text, root),
        Verdict::PassedOver(entry) if entry.is_empty() => format!("{name}: {MODULE} is not always asked"),
        Verdict::PassedOver(entry) => format!("{name}: {MODULE} is not always asked, because of `{entry}`"),
        Verdict::NotHeeded(entry) => format!("{name}: the control of `{entry}` does not heed a denial"),
    };
    let mend = format!(
        "iamctl enable, which may be run again, puts the {} line of /usr/share/pam_iam/pam.d/{}/{} into {FOLDER}/{name}",
        if phase == Phase::Account { "account" } else { "session" },
        pam::distribution(text),
        service.lines,
    );
    match service.role {
        Role::Jobs => {
            Finding::warning(CHECK, format!("{what}; jobs of a withdrawn user keep starting"), mend)
        }
        Role::Login | Role::Sudo | Role::Becoming => Finding::wrong(CHECK, what, mend),
    }
}

/// Describes that the entry is missing. There may be one with the arguments of another service.
fn missing(service: &Service, phase: Phase, text: &str, root: &Path) -> String {
    let name = service.name;
    let other_role = if service.role == Role::Sudo { Role::Login } else { Role::Sudo };
    let as_other = Service { name, lines: service.lines, phases: service.phases, role: other_role };
    let has_other = as_other.judge(root, text, phase) != Verdict::Missing;
    match (phase, service.role) {
        (Phase::Session, _) => format!(
            "{name}: {MODULE} is not in the session phase: no home directory is made, and no session is swept"
        ),
        (Phase::Account, Role::Sudo) if has_other => {
            format!("{name}: {MODULE} lacks policy=sudo, so the login policy decides")
        }
        (Phase::Account, _) if has_other => {
            format!("{name}: {MODULE} has policy=sudo, so only users who may use sudo may log in")
        }
        _ => format!("{name}: {MODULE} is not in the account phase: IAM is not asked about its users"),
    }
}
