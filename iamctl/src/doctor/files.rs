//! Files that decide about logins: nsswitch.conf, sudoers, and the owners and modes on which sshd insists.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pam_iam_core::account_kind::{AccountKind, Files, account_kind};
use pam_iam_core::config::{Allowed, Config};
use pam_iam_core::id::Uid;
use pam_iam_core::name::IAM_SUDO;
use pam_iam_core::nsswitch::{self, NSSWITCH};
use pam_iam_core::wire::Roster;
use pam_iam_core::{local, paths};

use super::Finding;
use crate::enabled::has_accounts_by_nss;
use crate::host::access;
use crate::host::command::run;
use crate::host::sudo::{self, Effective, Rule};
use crate::is_installed;

const SUDOERS: &str = "/etc/sudoers.d/pam_iam";

/// Where the distributions have their libraries.
const LIBRARIES: [&str; 3] = ["/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];

const VISUDO: &str = "/usr/sbin/visudo";

/// Checks where accounts come from: NSS or the importer.
pub fn accounts(roster: Option<&Roster>) -> Finding {
    const CHECK: &str = "accounts";
    let text = std::fs::read_to_string(NSSWITCH).unwrap_or_default();
    let asks = |database: &str| nsswitch::asks_us(&text, database);
    let add =
        format!("add iam at the end of the passwd: and group: lines of {NSSWITCH}, or import: iam-importer");
    if asks("group") && !asks("initgroups") {
        return Finding::wrong(
            CHECK,
            format!(
                "the line initgroups: of {NSSWITCH} does not ask IAM: its users have no groups, so no sudo, and sshd's rules miss them"
            ),
            "iamctl enable, which may be run again, puts iam [SUCCESS=continue] at its beginning",
        );
    }
    match (asks("passwd"), asks("group")) {
        // Whatever the line says, a user who may log in must be found.
        (true, true) => match roster.and_then(|roster| roster.users.first()).map(|user| user.name.as_str()) {
            Some(user) if run("getent", &["passwd", user]).is_err() => Finding::wrong(
                CHECK,
                format!("{NSSWITCH} asks IAM, and yet `getent passwd {user}` finds nobody"),
                "is libnss_iam.so.2 installed, the resolver's daemon running, and nothing before `iam` that ends the search?",
            ),
            _ => Finding::ok(CHECK, format!("{NSSWITCH} asks IAM")),
        },
        (true, false) => Finding::wrong(
            CHECK,
            format!("{NSSWITCH} does not ask IAM for groups: sshd's and sudo's rules need them"),
            add,
        ),
        (false, true) => Finding::wrong(CHECK, format!("{NSSWITCH} does not ask IAM for accounts"), add),
        (false, false) if has_accounts_by_nss() => Finding::wrong(
            CHECK,
            format!("{NSSWITCH} does not ask IAM for accounts any more"),
            "iamctl enable, which may be run again",
        ),
        (false, false) => {
            let accounts = local::accounts(Path::new(paths::PASSWD)).unwrap_or_default();
            let here = |uid: Uid| accounts.iter().any(|account| account.uid == uid);
            let missing = roster.map(|roster| roster.users.iter().filter(|user| !here(user.uid)).count());
            match (accounts.iter().any(|account| account.uid.is_managed()), missing) {
                (true, None | Some(0)) => Finding::ok(CHECK, "imported"),
                (true, Some(missing)) => Finding::warning(
                    CHECK,
                    format!("imported, and {missing} users who may log in have no account yet"),
                    "systemctl enable --now iam-importer.timer, or iam-importer now",
                ),
                (false, Some(0)) => Finding::ok(CHECK, "all are adopted"),
                (false, _) => Finding::wrong(CHECK, "IAM users have no accounts on this host", add),
            }
        }
    }
}

/// Checks sudo's rule if anybody may use sudo: the file, and what all of sudo's files come to for a user who may.
pub fn sudoers(config: &Config, roster: Option<&Roster>) -> Finding {
    const CHECK: &str = "sudoers";
    if config.access.sudo == Allowed::None {
        return Finding::ok(CHECK, "access.sudo is \"none\"");
    }
    if !is_installed(VISUDO) {
        return Finding::ok(CHECK, "there is no sudo here");
    }
    let copy = format!("install -m 0440 /usr/share/pam_iam/sudoers/pam_iam {SUDOERS}");
    match std::fs::metadata(SUDOERS) {
        Err(_) => {
            let what = format!("{SUDOERS} is missing, so nobody of {IAM_SUDO} may use sudo");
            return Finding::wrong(CHECK, what, copy);
        }
        Ok(found) if found.uid() != 0 || found.mode() & 0o022 != 0 => {
            return Finding::wrong(CHECK, format!("sudo does not read {SUDOERS}: wrong owner or mode"), copy);
        }
        Ok(_) => {}
    }
    if let Err(why) = run(VISUDO, &["-c", "-f", SUDOERS]) {
        return Finding::wrong(CHECK, why, copy);
    }
    // Without pam_iam.so sudo runs nothing, which another finding reports.
    let roster = roster.filter(|_| !modules("security/pam_iam.so").is_empty());
    let admins = roster.and_then(|roster| roster.groups.iter().find(|group| group.name.as_str() == IAM_SUDO));
    match admins.and_then(|group| group.members.first()) {
        Some(user) => effective(user.as_str(), is_edited()),
        None => Finding::ok(CHECK, SUDOERS),
    }
}

/// Whether an administrator has changed the rule. What it grants is then the administrator's choice.
fn is_edited() -> bool {
    let shipped = std::fs::read(format!("{}/sudoers/pam_iam", paths::SHARE));
    shipped.is_ok_and(|shipped| std::fs::read(SUDOERS).is_ok_and(|now| now != shipped))
}

/// Checks what sudo would do for a user who may use it.
fn effective(user: &str, is_edited: bool) -> Finding {
    const CHECK: &str = "sudoers";
    let mend = format!("sudo -l -U {user} shows the rules that count: the last one that matches does");
    match sudo::effective(user) {
        Err(why) => Finding::wrong(CHECK, why, format!("{mend}; visudo -c checks the files")),
        Ok(Effective { rule: Rule::None | Rule::AsksForPassword, asks_pam: true }) if is_edited => {
            Finding::ok(
                CHECK,
                format!("{SUDOERS} is edited: sudo -l -U {user} shows what it gives; PAM is asked"),
            )
        }
        Ok(Effective { rule: Rule::None, .. }) => Finding::wrong(
            CHECK,
            format!("sudo has no rule for {user}, who may use it: it does not read {SUDOERS}"),
            format!("/etc/sudoers needs a line @includedir /etc/sudoers.d; {mend}"),
        ),
        Ok(Effective { rule: Rule::AsksForPassword, .. }) => Finding::wrong(
            CHECK,
            format!(
                "sudo asks {user} for a password, which IAM users do not have: a later rule overrides that of pam_iam"
            ),
            mend,
        ),
        Ok(Effective { asks_pam: false, .. }) => Finding::wrong(
            CHECK,
            "sudo does not ask PAM whether an account may be used, so a user whose right to sudo is withdrawn keeps it",
            "take !pam_acct_mgmt, pam_service, pam_login_service and pam_askpass_service out of the Defaults of sudoers",
        ),
        Ok(_) => {
            Finding::ok(CHECK, format!("{SUDOERS} lets {user} use sudo without a password, and PAM is asked"))
        }
    }
}

/// Returns where a library of pam_iam is installed.
fn modules(name: &str) -> Vec<String> {
    LIBRARIES.iter().map(|folder| format!("{folder}/{name}")).filter(|path| is_installed(path)).collect()
}

/// Checks that only root can change the programs, the libraries and the configuration, or any folder on the way to them. sshd refuses a key
/// command that others can change.
pub fn owners(settings: &Config, config: &Path) -> Vec<Finding> {
    const CHECK: &str = "owners";
    let mut paths = modules("security/pam_iam.so");
    let has_module = !paths.is_empty();
    paths.extend(modules("libnss_iam.so.2"));
    let mut findings = Vec::new();
    if !has_module {
        let what = "pam_iam.so is missing, and the PAM stacks that name it let nobody in, root neither";
        findings.push(Finding::wrong(
            CHECK,
            what,
            "install pam_iam again, or take our lines out of /etc/pam.d",
        ));
    }
    paths.extend(["/usr/libexec/pam_iam/iam-authorized-keys", paths::RESOLVER].map(str::to_owned));
    paths.push(config.display().to_string());
    for path in &paths {
        let Some(problem) = Path::new(path).ancestors().find_map(problem_with) else { continue };
        findings.push(Finding::wrong(CHECK, problem.0, problem.1));
    }
    findings.dedup();
    findings.extend(environment(Path::new(paths::ENVIRONMENT)));
    if let Some(why) = access::cannot_read(settings, config) {
        findings.push(Finding::wrong(CHECK, why, "until then no IAM user gets in"));
    }
    findings.extend(aws_files());
    findings.extend(run_folder());
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} files are root's alone", paths.len())));
    }
    findings
}

/// Checks who can read and write the resolver's variables, and that systemd accepts each line.
fn environment(path: &Path) -> Vec<Finding> {
    const CHECK: &str = "owners";
    let (Ok(found), shown) = (std::fs::metadata(path), path.display()) else { return Vec::new() };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut findings = Vec::new();
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        findings.push(Finding::wrong(
            CHECK,
            format!("{shown} can be changed by others than root, who could say which IAM is asked"),
            format!("chown root {shown} && chmod go-w {shown}"),
        ));
    }
    let lines = || text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let has_secret = lines().any(|line| {
        ["AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN="].iter().any(|name| line.starts_with(name))
    });
    if has_secret && found.mode() & 0o007 != 0 {
        findings.push(Finding::wrong(
            CHECK,
            format!("{shown} has a secret key in it, and everybody can read it"),
            format!("chgrp {user} {shown} && chmod 640 {shown}", user = paths::RESOLVER_USER),
        ));
    }
    if let Some(line) = lines().find(|line| line.starts_with("export ")) {
        findings.push(Finding::warning(
            "configuration",
            format!("{shown} has the line {line:?}, which systemd passes over"),
            "write NAME=VALUE, without export",
        ));
    }
    findings
}

/// Checks that the resolver's user can read the files to which the AWS SDK is pointed.
fn aws_files() -> Vec<Finding> {
    const VARIABLES: [&str; 5] = [
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ];
    let environment = std::fs::read_to_string(paths::ENVIRONMENT).unwrap_or_default();
    let named = environment.lines().filter_map(|line| line.trim().split_once('='));
    named
        .filter(|(name, _)| VARIABLES.contains(name))
        .map(|(name, path)| (name, path.trim_matches(['"', '\''])))
        .filter(|(_, path)| access::can_read(paths::RESOLVER_USER, Path::new(path)) == Some(false))
        .map(|(name, path)| {
            let user = paths::RESOLVER_USER;
            Finding::wrong(
                "owners",
                format!("{name} in {} is {path}, which {user} cannot read", paths::ENVIRONMENT),
                format!("chgrp {user} {path} && chmod 640 {path}, and let {user} enter its folder"),
            )
        })
        .collect()
}

/// Checks that the folder of the socket and of the session registry belongs to root alone.
fn run_folder() -> Option<Finding> {
    let folder = Path::new(paths::SESSIONS).parent()?;
    let found = std::fs::metadata(folder).ok()?;
    (found.uid() != 0 || found.mode() & 0o022 != 0).then(|| {
        let shown = folder.display();
        Finding::wrong(
            "owners",
            format!("{shown} can be changed by others than root, who could hide sessions from the sweep; none is registered"),
            format!("chown root:root {shown} && chmod 755 {shown}"),
        )
    })
}

/// Checks for lastlog(8)'s file, which has a place for each uid: with a managed uid it looks like 500 GB, and programs that do not know
/// sparse files copy all of that.
pub fn lastlog() -> Option<Finding> {
    const LASTLOG: &str = "/var/log/lastlog";
    let definitions = std::fs::read_to_string(paths::LOGIN_DEFS).unwrap_or_default();
    let is_limited = definitions.lines().any(|line| line.trim_start().starts_with("LASTLOG_UID_MAX"));
    (is_installed(LASTLOG) && !is_limited).then(|| {
        Finding::warning(
            "lastlog",
            format!("{LASTLOG} grows to an apparent size of 500 GB with the first login of an IAM user"),
            format!("add LASTLOG_UID_MAX 60000 to {}", paths::LOGIN_DEFS),
        )
    })
}

/// Returns the members of iam-sudo who are not IAM users. PAM denies them sudo.
pub fn sudo_group(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "sudo group";
    let groups = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
    let accounts = local::accounts(Path::new(paths::PASSWD)).unwrap_or_default();
    let members = groups.iter().filter(|group| group.name == IAM_SUDO).flat_map(|group| {
        accounts
            .iter()
            .filter(|account| group.has(account))
            .map(|account| (account.name.as_str(), account.uid))
    });
    let unmanaged = members.filter(|(name, uid)| {
        *uid != Uid::ROOT
            && matches!(
                account_kind(name, *uid, config, &Files::default()),
                Ok(AccountKind::Local | AccountKind::Shared)
            )
    });
    unmanaged
        .map(|(name, _)| {
            Finding::warning(
                CHECK,
                format!("the local account {name} is in {IAM_SUDO}, which grants sudo to IAM users alone; PAM denies it"),
                format!("gpasswd -d {name} {IAM_SUDO}"),
            )
        })
        .collect()
}

fn problem_with(path: &Path) -> Option<(String, String)> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => Some((format!("{shown}: {error}"), "install pam_iam again".to_owned())),
        Ok(found) if found.uid() != 0 || found.mode() & 0o022 != 0 => Some((
            format!("{shown} can be changed by others than root, so sshd does not run what is in it"),
            format!("chown root {shown} && chmod go-w {shown}"),
        )),
        Ok(_) => None,
    }
}
