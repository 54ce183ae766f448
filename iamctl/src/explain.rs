//! `iamctl explain`: tells why a user may or may not log in or use sudo.

use std::fmt::Write;
use std::path::Path;

use pam_iam_core::fingerprint::Fingerprint;
use pam_iam_core::key::PublicKey;
use pam_iam_core::leftovers::{self, Leftovers, Refusal};
use pam_iam_core::owners::Owners;
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{AccountKind, Decision, Explanation, IamEntry, Policy, Reason, Request};
use serde_json::{Value, json};

use crate::cli::Service;
use crate::error::{Error, Reply};
use crate::host::FileError;
use crate::output::{Output, Tone};
use crate::{Context, here, linux_name};

/// Explains the decision about `user`, and returns whether the user may log in or use sudo.
pub fn run(context: &Context, user: &str, service: Service, key: Option<&str>) -> Result<Reply, Error> {
    let name = match linux_name(user) {
        Ok(name) => name,
        Err(why) => {
            let why = why.to_string();
            let json = json!({ "name": user, "allow": false, "problem": why });
            context.output.show(&json, &why);
            return Ok(Reply::No);
        }
    };
    let key = key.map(fingerprint).transpose()?;
    let explanation: Explanation = context.report(&Request::Explain { name })?;
    let opens = key.as_ref().map(|key| opens(&explanation, key));
    let decision = match service {
        Service::Login => &explanation.login,
        Service::Sudo => &explanation.sudo,
    };
    let here = Here::look(context, &explanation, service);
    let allow = decision.allow && opens != Some(false) && !here.refuses();
    let json = here.json(&explanation, allow, opens)?;
    let text = text(&explanation, key.as_ref().zip(opens), &context.output);
    context.output.show(&json, &(text + &here.text(allow, &context.output)));
    Ok(allow.into())
}

/// What on this host keeps out a user whom IAM lets in.
struct Here {
    /// A mistake in the configuration. PAM and the key command read it themselves, and refuse IAM users for it.
    mistake: Option<String>,
    leftovers: Leftovers,
    refusal: Option<Refusal>,
    obstacles: Vec<String>,
}

impl Here {
    fn look(context: &Context, explanation: &Explanation, service: Service) -> Self {
        let config = context.config();
        let mistake = config
            .as_ref()
            .err()
            .filter(|_| explanation.account_kind != AccountKind::Local)
            .map(ToString::to_string);
        let leftovers = leftovers(context, explanation);
        let refusal = leftovers.refusal(explanation.name.as_str());
        let given = || context.resolver.groups_decided_on(&explanation.name).unwrap_or_default();
        let is_managed = explanation.account_kind == AccountKind::Managed && explanation.login.allow;
        let name = explanation.name.as_str();
        let mut obstacles = match explanation.uid.filter(|_| is_managed) {
            Some(uid) => here::obstacles(name, uid, &given, config.ok().as_ref()),
            None => Vec::new(),
        };
        if is_managed && service == Service::Sudo {
            obstacles.extend(here::groups_left_by_import(name, &given));
        }
        Self { mistake, leftovers, refusal, obstacles }
    }

    fn refuses(&self) -> bool {
        self.mistake.is_some() || self.refusal.is_some() || !self.obstacles.is_empty()
    }

    fn json(
        &self,
        explanation: &Explanation,
        allow: bool,
        opens: Option<bool>,
    ) -> Result<Value, serde_json::Error> {
        let mut json = serde_json::to_value(explanation)?;
        let Some(object) = json.as_object_mut() else { return Ok(json) };
        let mut insert = |key: &str, value: Value| object.insert(key.to_owned(), value);
        insert("allow", json!(allow));
        if let Some(opens) = opens {
            insert("key_opens", json!(opens));
        }
        if let Some(mistake) = &self.mistake {
            insert("configuration", json!(mistake));
        }
        if let Leftovers::First(found) | Leftovers::Inherited(found) | Leftovers::OfGroup(found) =
            &self.leftovers
        {
            insert("set_up_by_name", json!(found));
            insert("refused_for_name", json!(self.refusal.is_some()));
        }
        if !self.obstacles.is_empty() {
            insert("obstacles", json!(self.obstacles));
        }
        Ok(json)
    }

    fn text(&self, allow: bool, output: &Output) -> String {
        let mut text = String::new();
        if let Leftovers::First(found) = &self.leftovers
            && allow
        {
            let _ = writeln!(text, "{:<11}with the first login: {}", "will get", found.join("; "));
        }
        let refusal = self.refusal.iter().map(|refusal| &refusal.why);
        for why in self.mistake.iter().chain(refusal).chain(&self.obstacles) {
            let refused = output.paint(Tone::Bad, "refused all the same");
            let _ = writeln!(text, "{:<11}{refused}: {why}", "but");
        }
        text
    }
}

/// Returns what this host has set up for the name, which PAM checks too.
fn leftovers(context: &Context, explanation: &Explanation) -> Leftovers {
    match explanation.uid.filter(|_| explanation.account_kind == AccountKind::Managed) {
        Some(uid) => {
            let (name, config) = (explanation.name.as_str(), context.config().ok());
            leftovers::for_user(name, uid, &Owners::of_host(), config.as_ref(), Path::new("/"))
        }
        None => Leftovers::None,
    }
}

/// Returns the fingerprint of a key that is given as a file or as a fingerprint.
fn fingerprint(key: &str) -> Result<Fingerprint, Error> {
    if key.starts_with("SHA256:") {
        return key.parse().map_err(|source| Error::Fingerprint { text: key.to_owned(), source });
    }
    let text = std::fs::read_to_string(key).map_err(FileError::of(key))?;
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let parsed = PublicKey::parse(line).map_err(|source| Error::Key { path: key.to_owned(), source })?;
    Ok(parsed.fingerprint())
}

fn opens(explanation: &Explanation, fingerprint: &Fingerprint) -> bool {
    let mut keys = explanation.users.iter().flat_map(|user| &user.keys);
    keys.any(|key| key.active && key.fingerprint.as_ref() == Some(fingerprint))
}

/// Returns an explanation as text, with whether `key` opens the account.
pub fn text(explanation: &Explanation, key: Option<(&Fingerprint, bool)>, output: &Output) -> String {
    let mut text = String::new();
    let Explanation { name, account_kind, uid, candidates, claimants, users, groups, claim, login, sudo } =
        explanation;
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(text, "{what:<11}{value}");
    };
    let uid = uid.map_or_else(|| "no uid".to_owned(), |uid| format!("uid {uid}"));
    let account = match account_kind {
        AccountKind::Managed if login.reason == Reason::NoSuchUser => "no account: IAM has no such user",
        AccountKind::Managed if !login.allow => "from IAM, not shown on this host while the login is refused",
        AccountKind::Managed => "from IAM",
        AccountKind::Adopted => "local, adopted",
        AccountKind::Shared => "local, shared",
        AccountKind::Local => "local, none of pam_iam's business",
    };
    line("account", &format!("{name}, {account}, {uid}"));
    if *account_kind == AccountKind::Local {
        return text;
    }
    if !groups.is_empty() {
        line("groups", &groups.iter().map(|group| group.as_str()).collect::<Vec<_>>().join(" "));
    }
    if !candidates.is_empty() {
        line("candidates", &candidates.join(" "));
    }
    if !claimants.is_empty() {
        line("claimed by", &claimants.join(" and "));
    }
    if let Some(claim) = claim {
        line("claim", claim);
    }
    for user in users {
        describe(user, &mut line);
    }
    if let Some((key, opens)) = key {
        let (tone, word) = if opens {
            (Tone::Good, "an active key")
        } else {
            (Tone::Bad, "not an active key, opens nothing")
        };
        line("key", &format!("{key}: {}", output.paint(tone, word)));
    }
    for (what, policy, decision) in [("login", Policy::Login, login), ("sudo", Policy::Sudo, sudo)] {
        let (tone, word) = if decision.allow { (Tone::Good, "allowed") } else { (Tone::Bad, "refused") };
        line(what, &format!("{}: {}", output.paint(tone, word), because(decision, policy)));
    }
    line("source", &format!("{}, {} s old", login.source.as_str(), login.age));
    text
}

fn describe(user: &IamEntry, line: &mut impl FnMut(&str, &str)) {
    line("IAM user", &format!("{} ({}), uid {}", user.iam_name, user.iam_id, user.uid));
    let groups = if user.groups.is_empty() { "none".to_owned() } else { user.groups.join(" ") };
    line("  in", &groups);
    if user.keys.is_empty() {
        line("  key", "none: the user has uploaded no SSH public key");
    }
    for key in &user.keys {
        let state = if key.active { "active" } else { "inactive" };
        let fingerprint =
            key.fingerprint.as_ref().map_or("(not one that sshd would take)", Fingerprint::as_str);
        line("  key", &format!("{} {state} {fingerprint}", key.id));
    }
}

/// Returns the rule behind a decision, as text.
fn because(decision: &Decision, policy: Policy) -> String {
    let rule = match policy {
        Policy::Login => "access.allow",
        Policy::Sudo => "access.sudo",
    };
    let group = decision.group.as_deref().unwrap_or_default();
    match decision.reason {
        Reason::InGroup if group.is_empty() => "in one of its IAM groups".to_owned(),
        Reason::InGroup => format!("in the IAM group {group}, which {rule} names"),
        Reason::All => format!("{rule} is \"all\""),
        Reason::NotInGroup => format!("in none of the IAM groups that {rule} names"),
        Reason::PolicyNone => format!("{rule} is \"none\""),
        Reason::NoLogin => "a user who may not log in may not use sudo".to_owned(),
        Reason::NoSuchUser => "IAM has no such user".to_owned(),
        Reason::Ambiguous => "several IAM users claim the name, so none gets it".to_owned(),
        Reason::UidTaken => "an older IAM user, a local account or a group has the same number".to_owned(),
        Reason::UidMismatch => "the account belongs to an earlier IAM user of the name".to_owned(),
        Reason::Local => "the account is the host's own".to_owned(),
        Reason::Denied => "IAM does not let this host look at the user".to_owned(),
        Reason::NameOfGroup => "the name is that of a group on this host".to_owned(),
        Reason::NameClaimed => "this host needs the name for itself".to_owned(),
        Reason::InDeniedGroup => format!("in the IAM group {group}, which access.deny names"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_by_its_fingerprint_or_its_file() {
        const FINGERPRINT: &str = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";
        assert_eq!(fingerprint(FINGERPRINT).unwrap().as_str(), FINGERPRINT);
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPN9SXhdP7bRkOqa5bisLjehzJ34xLZiv99XZaq9khSe me\n";
        std::fs::write(file.path(), key).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(fingerprint(path).unwrap().as_str(), FINGERPRINT);
        std::fs::write(file.path(), "-----BEGIN OPENSSH PRIVATE KEY-----").unwrap();
        assert!(fingerprint(path).unwrap_err().to_string().contains("is no public key"));
        assert!(fingerprint("/nonexistent").is_err());
        assert!(fingerprint("SHA256:x").unwrap_err().to_string().contains("SHA256:x is not a fingerprint"));
    }
}
