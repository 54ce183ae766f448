//! sshd's effective settings: does sshd run the key command and ask PAM, or has another setting won?

use std::path::Path;

use pam_iam_core::config::Config;
use pam_iam_core::name::IAM_USERS;

use super::{Finding, State};
use crate::host::command::Failure;
use crate::host::sshd::{self, KEY_COMMAND, Settings};

/// The signature algorithms of RSA keys, the only keys that IAM has.
const RSA: [&str; 2] = ["rsa-sha2-512", "rsa-sha2-256"];

/// The shortest RSA key that IAM accepts, in bits.
const RSA_BITS: u32 = 2048;

/// Other programs that set sshd's one key command, and what to do about each.
const RIVALS: [(&str, &str); 3] = [
    ("eic_run_authorized_keys", "EC2 Instance Connect: keep it by keys.also_run in our configuration"),
    ("userdbctl", "systemd's userdb: our drop-in must come before 20-systemd-userdb.conf"),
    ("google_authorized_keys", "Google's guest agent"),
];

const CHECK: &str = "sshd";

/// Checks what sshd would do for `user`, who has an account here, or for root if there is no such user.
pub fn effective(config: &Config, user: Option<&str>) -> Vec<Finding> {
    let settings = match sshd::effective(user.unwrap_or("root")) {
        Ok(settings) => settings,
        Err(failure) => return vec![refused(&failure)],
    };
    let mut findings = judge(&settings, config, user.is_some());
    findings.extend(lists(&settings));
    findings.extend(methods(&settings));
    findings.extend(key_types(settings.get("pubkeyacceptedalgorithms"), settings.get("requiredrsasize")));
    findings
}

/// Returns what keeps sshd from asking pam_iam, or from relying on it alone, for enable and the sweep. `managed_user` has an account here.
/// None if sshd does not answer in time: it asks NSS, which any user can keep busy.
pub fn not_in_force(config: &Config, managed_user: Option<&str>) -> Option<Vec<Finding>> {
    let findings = match sshd::effective(managed_user.unwrap_or("root")) {
        Ok(settings) => judge(&settings, config, managed_user.is_some()),
        Err(Failure::Unanswered(_)) => return None,
        Err(failure) => vec![refused(&failure)],
    };
    Some(findings.into_iter().filter(|finding| finding.state != State::Ok).collect())
}

/// Checks the lists in sshd's configuration that decide who gets in.
fn lists(settings: &Settings) -> Vec<Finding> {
    let has_iam_users =
        |list: &str| settings.get(list).split(' ').any(|group| [IAM_USERS, "*"].contains(&group));
    let mends = [
        (
            "AllowUsers",
            "take it out: AllowGroups with iam-users and the groups of your local administrators does the same",
        ),
        ("AllowGroups", "add iam-users to it, and keep your own groups there"),
        ("DenyUsers", "see that it names no IAM user"),
        ("DenyGroups", "see that it names neither iam-users nor a group of theirs"),
    ];
    let set = mends.into_iter().filter(|(name, _)| settings.has(&name.to_ascii_lowercase()));
    let keeps_out = set.filter(|(name, _)| *name != "AllowGroups" || !has_iam_users("allowgroups"));
    keeps_out
        .map(|(name, mend)| {
            let lower = name.to_ascii_lowercase();
            let what = format!(
                "sshd's {lower} is set to {}{}, beside what IAM says",
                settings.get(&lower),
                by(name)
            );
            Finding::warning(CHECK, what, mend)
        })
        .collect()
}

/// Checks whether sshd asks for more than a key.
fn methods(settings: &Settings) -> Option<Finding> {
    let methods = settings.get("authenticationmethods");
    let suffices = methods.is_empty() || methods.split(' ').any(|list| ["any", "publickey"].contains(&list));
    (!suffices).then(|| {
        Finding::wrong(
            CHECK,
            format!(
                "sshd's authenticationmethods is {methods}{}: IAM users have a key and nothing else",
                by("AuthenticationMethods")
            ),
            "add publickey to it, in a Match Group iam-users",
        )
    })
}

/// Returns which files set `name`, as the end of a message.
fn by(name: &str) -> String {
    let files = sshd::files_that_set(name);
    if files.is_empty() { String::new() } else { format!(" (in {})", files.join(", ")) }
}

fn refused(failure: &Failure) -> Finding {
    Finding::wrong(CHECK, failure.to_string(), "mend sshd's configuration: sshd -t")
}

/// Returns a finding if sshd's command line sets another key command.
fn started(settings: &Settings) -> Option<Finding> {
    let mend = "systemctl edit its unit: an empty ExecStart= and then one without that option; \
                keep EC2 Instance Connect by keys.also_run in our configuration";
    let command = sshd::key_command_in(&settings.options)?;
    Some(Finding::wrong(
        CHECK,
        format!("sshd is started with -o {command}, which wins over every file"),
        mend,
    ))
}

/// Checks the settings that decide whether sshd asks pam_iam, and nothing else.
fn judge(settings: &Settings, config: &Config, is_managed: bool) -> Vec<Finding> {
    if let Some(started) = started(settings) {
        return vec![started];
    }
    let mut findings = vec![command(settings.get("authorizedkeyscommand"))];
    // Where the drop-in is not in force, the rest of it is not either.
    if !settings.get("authorizedkeyscommand").starts_with(KEY_COMMAND) {
        return findings;
    }
    findings.extend(tokens(settings.get("authorizedkeyscommand"), config));
    let runs_as = settings.get("authorizedkeyscommanduser");
    if runs_as != config.keys.user {
        findings.push(Finding::wrong(
            CHECK,
            format!("the key command runs as {runs_as:?}, and keys.user is {:?}", config.keys.user),
            format!("set AuthorizedKeysCommandUser {} in sshd's drop-in", config.keys.user),
        ));
    }
    for (name, wanted) in [("usepam", "UsePAM yes"), ("pubkeyauthentication", "PubkeyAuthentication yes")] {
        if settings.get(name) != "yes" {
            let what = format!(
                "{name} is {:?}{}: without it no IAM user can log in, or IAM is not asked about them",
                settings.get(name),
                by(name)
            );
            findings.push(Finding::wrong(CHECK, what, format!("set {wanted}, before any other file does")));
        }
    }
    // OpenSSH has this setting since 9.8; before, the service was always sshd.
    let service = settings.get("pamservicename");
    if !service.is_empty() && service != "sshd" {
        findings.push(Finding::wrong(
            CHECK,
            format!("PAMServiceName is {service}, so sshd asks another PAM stack than the one that asks IAM"),
            "take PAMServiceName out of sshd's configuration",
        ));
    }
    if is_managed && settings.get("authorizedkeysfile") != "none" {
        findings.push(Finding::wrong(
            CHECK,
            format!("sshd also takes keys from {} for IAM users", settings.get("authorizedkeysfile")),
            "keep `Match Group iam-users` with `AuthorizedKeysFile none` of our drop-in, and the group in NSS",
        ));
        return findings;
    }
    // Without pam_iam's session phase, these would let an IAM user in without a key.
    for other in ["gssapiauthentication", "hostbasedauthentication", "kerberosauthentication"] {
        if is_managed && settings.get(other) == "yes" {
            findings.push(Finding::warning(
                CHECK,
                format!("sshd's {other} is yes for IAM users, whom IAM lets in by their keys alone"),
                "take `Match Group iam-users` from /usr/share/pam_iam/sshd/10-pam_iam.conf; KerberosAuthentication no",
            ));
        }
    }
    findings
}

/// Checks whether the key command is passed every token that a further key command needs.
fn tokens(set: &str, config: &Config) -> Option<Finding> {
    let is_missing = |(token, _): &&(&str, &str)| {
        !set.contains(token) && config.keys.also_run.iter().any(|command| command.contains(token))
    };
    let (token, option) = [("%h", "--home"), ("%t", "--type"), ("%k", "--key")].iter().find(is_missing)?;
    Some(Finding::wrong(
        CHECK,
        format!("keys.also_run has {token}, which sshd does not pass to our key command"),
        format!(
            "add {option} {token} to AuthorizedKeysCommand, as /usr/share/pam_iam/sshd/10-pam_iam.conf has it"
        ),
    ))
}

fn command(set: &str) -> Finding {
    if set.starts_with(KEY_COMMAND) {
        return match set.contains("%u") {
            true => Finding::ok(CHECK, format!("runs {set}")),
            false => Finding::wrong(
                CHECK,
                format!("the key command is not told the user: {set}"),
                format!(
                    "write AuthorizedKeysCommand {KEY_COMMAND} --uid %U --home %h --type %t --key %k %u %f"
                ),
            ),
        };
    }
    let others = sshd::files_that_set("AuthorizedKeysCommand");
    let drop_in = match (Path::new(sshd::DROP_IN).exists(), others.first()) {
        (false, _) => "iamctl enable, which may be run again, puts our drop-in there".to_owned(),
        (true, Some(other)) => format!(
            "take AuthorizedKeysCommand out of {other}: sshd takes the first value that it reads (a Match comes before all)"
        ),
        (true, None) => "write Include /etc/ssh/sshd_config.d/*.conf as the first line of /etc/ssh/sshd_config: sshd does not read \
                         our drop-in"
            .to_owned(),
    };
    match RIVALS.iter().find(|(word, _)| set.contains(word)) {
        Some((_, rival)) => Finding::wrong(CHECK, format!("{rival}; sshd runs {set}"), drop_in),
        None if set == "none" || set.is_empty() => Finding::wrong(CHECK, "sshd runs no key command", drop_in),
        None => Finding::wrong(CHECK, format!("another key command is in force: {set}"), drop_in),
    }
}

/// Checks that sshd accepts RSA keys: IAM has no others.
fn key_types(accepted: &str, required_bits: &str) -> Vec<Finding> {
    const CHECK: &str = "key types";
    let mut findings = Vec::new();
    if !RSA.iter().any(|kind| accepted.split(',').any(|accepted| accepted == *kind)) {
        findings.push(Finding::wrong(
            CHECK,
            "sshd takes no RSA keys, and IAM has no others",
            "set PubkeyAcceptedAlgorithms +rsa-sha2-512,rsa-sha2-256 (or the crypto policy that sets it)",
        ));
    }
    if required_bits.parse().is_ok_and(|bits: u32| bits > RSA_BITS) {
        findings.push(Finding::warning(
            CHECK,
            format!("sshd wants RSA keys of {required_bits} bits, and IAM takes shorter ones"),
            "tell your users, or lower RequiredRSASize",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "sshd takes RSA keys"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_command_is_named() {
        let state = |set: &str| (command(set).state, command(set).message);
        assert_eq!(state(&format!("{KEY_COMMAND} --uid %U --key %k %u %f")).0, State::Ok);
        assert_eq!(state(KEY_COMMAND).0, State::Wrong);
        assert!(
            state("/usr/share/ec2-instance-connect/eic_run_authorized_keys %u %f")
                .1
                .contains("EC2 Instance Connect")
        );
        assert!(state("/usr/bin/userdbctl ssh-authorized-keys %u").1.contains("systemd's userdb"));
        assert!(state("none").1.contains("runs no key command"));
        assert!(state("/opt/keys %u").1.contains("another key command"));
    }

    #[test]
    fn a_host_that_accepts_no_rsa_keys_is_found() {
        assert_eq!(key_types("ssh-ed25519,rsa-sha2-256", "1024")[0].state, State::Ok);
        assert_eq!(key_types("ssh-ed25519,rsa-sha2-256-cert-v01@openssh.com", "")[0].state, State::Wrong);
        assert_eq!(key_types("rsa-sha2-512", "3072")[0].state, State::Warning);
    }
}
