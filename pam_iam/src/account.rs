//! The account phase: may this user do this now?

use std::path::{Path, PathBuf};

use pam_iam_core::account_kind::{AccountKind, Files, account_kind_or_meant};
use pam_iam_core::ask::Resolver;
use pam_iam_core::audit::Event;
use pam_iam_core::config::{Config, ConfigError};
use pam_iam_core::id::Uid;
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::leftovers::{self, GivenElsewhere, Leftovers, Refusal};
use pam_iam_core::name::LinuxName;
use pam_iam_core::owners::Owners;
use pam_iam_core::wire::{Answer, Decision, Policy, Request};
use users::os::unix::UserExt;

use crate::application::{Application, Outcome, Severity};
use crate::arguments::Arguments;
use crate::sudoer::{Groups, Invoker, NssGroups, refused_for};

/// What the user is told when nobody can tell whether they may.
const UNAVAILABLE: &str = "access cannot be checked with AWS IAM at the moment; try again in a minute";

/// An account as this host knows it, and whose it is.
pub struct TargetAccount {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: Uid,
    /// The primary group.
    pub gid: u32,
    /// The home directory.
    pub home: PathBuf,
    /// Whose the account is.
    pub account_kind: AccountKind,
    /// The configuration, or why there is none.
    pub config: Result<Config, ConfigError>,
    config_path: PathBuf,
}

impl TargetAccount {
    /// The account `name`, by NSS as the application itself sees it. A look-up that fails reads as "no such account",
    /// and that is refused.
    pub fn look_up(name: String, config: &Path) -> Option<Self> {
        let user = users::get_user_by_name(&name)?;
        let uid = Uid(user.uid());
        let loaded = Config::load(config);
        let account_kind = account_kind_or_meant(&name, uid, &loaded, config, &Files::default());
        let (gid, home) = (user.primary_group_id(), user.home_dir().to_owned());
        Some(Self { name, uid, gid, home, account_kind, config: loaded, config_path: config.to_owned() })
    }

    /// What this host has set up by the name of an IAM user, and would give to this one.
    pub fn leftovers(&self) -> Leftovers {
        match self.account_kind {
            AccountKind::Managed => {
                let config = self.config.as_ref().ok();
                leftovers::for_user(&self.name, self.uid, &Owners::of_host(), config, Path::new("/"))
            }
            AccountKind::Adopted | AccountKind::Shared | AccountKind::Local => Leftovers::None,
        }
    }

    /// The resolver, as `config` says how to reach it.
    pub fn resolver(&self, config: &Config) -> Resolver {
        Resolver::new(config.resolver.mode, &self.config_path)
    }
}

/// The body of `pam_sm_acct_mgmt`.
pub fn check(application: &mut impl Application, arguments: &Arguments) -> Outcome {
    let Some(name) = account_name(application, arguments.policy) else {
        let event = refused(begun(arguments.policy, ""), application, "no-user");
        application.audit(Severity::Warning, &event);
        return Outcome::UnknownUser;
    };
    let begun = begun(arguments.policy, &name);
    let Some(account) = TargetAccount::look_up(name, &arguments.config) else {
        let event = refused(begun, application, "no-such-account");
        application.audit(Severity::Warning, &event);
        return Outcome::UnknownUser;
    };
    if arguments.policy == Policy::Sudo && is_of_another(application.process_uid(), &account) {
        return refuse_another(begun, application, &account.name);
    }
    // To a shared account IAM only adds keys; what else it may do, its cron jobs too, is the host's business.
    if let AccountKind::Local | AccountKind::Shared = account.account_kind {
        if arguments.policy == Policy::Sudo
            && let Some(group) = group_without_a_right(application, &account)
        {
            return refuse_group(begun, application, &account.name, &group);
        }
        if arguments.debug {
            application.log(Severity::Debug, &format!("{begun} result=ignore reason=local"));
        }
        return Outcome::Ignore;
    }
    let leftovers = account.leftovers();
    if let Some(refusal) = leftovers.refusal(&account.name) {
        let event = refused(begun, application, refusal.reason);
        application.audit(Severity::Warning, &event);
        tell_of_name(application, &account.name, &refusal);
        return Outcome::Denied;
    }
    if let Leftovers::First(found) = leftovers {
        let (user, what) = (&account.name, found.join("; "));
        let line = format!("{user}, an IAM user, is the first to have this name here, and gets: {what}");
        application.log(Severity::Warning, &line);
    }
    let decided_on = decide(&account, arguments.policy)
        .and_then(|decision| Ok((group_given_elsewhere(application, &account, &decision)?, decision)));
    match decided_on {
        Ok((Some(given), _)) => {
            let event = refused_in(begun, application, "name-claimed", &given.group);
            application.audit(Severity::Warning, &event);
            let user = &account.name;
            application.log(
                Severity::Warning,
                &format!("{}; the group means root, so {user} is refused", given.advice(user)),
            );
            application.message(&format!(
                "{user}: your name is in a group that IAM does not give you and that means root; ask an administrator."
            ));
            Outcome::Denied
        }
        Ok((None, decision)) => {
            let severity = if decision.allow { Severity::Info } else { Severity::Warning };
            let event = decided(begun, application, &decision);
            application.audit(severity, &event);
            if decision.allow {
                return Outcome::Success;
            }
            application.message(&format!(
                "{}: {}.",
                account.name,
                decision.reason.for_user(arguments.policy)
            ));
            Outcome::Denied
        }
        Err(why) => {
            let event = refused(begun, application, "unavailable").with("error", why);
            application.audit(Severity::Error, &event);
            application.message(&format!("{}: {UNAVAILABLE}.", account.name));
            Outcome::Unavailable
        }
    }
}

/// Whether sudo is invoked by a uid that is not the account's: another directory has an account of that name, or the name has
/// changed hands. Of accounts that IAM has no part in that is the host's business.
fn is_of_another(invoker: Uid, account: &TargetAccount) -> bool {
    let is_local = matches!(account.account_kind, AccountKind::Local | AccountKind::Shared);
    invoker != Uid::ROOT && invoker != account.uid && (!is_local || invoker.is_managed())
}

fn refuse_another(begun: Event, application: &mut impl Application, user: &str) -> Outcome {
    let invoker = application.process_uid();
    let event = refused(begun, application, "uid-mismatch");
    application.audit(Severity::Warning, &event);
    let why = format!(
        "{user}: sudo was invoked by uid {invoker}, which is not the uid of that account; an administrator can look for two \
         accounts of that name: getent passwd {user}; getent passwd {invoker}"
    );
    application.log(Severity::Warning, &why);
    application.message(&format!("{why}."));
    Outcome::Denied
}

/// Says why a user is refused for what the host has set up by the name.
pub fn tell_of_name(application: &mut impl Application, user: &str, refusal: &Refusal) {
    application.log(Severity::Warning, &format!("{}; take it out, and {user} can log in", refusal.why));
    application.message(&format!(
        "{user}: this host has rights for your name that are not meant for you; ask an administrator."
    ));
}

/// The group that means root and that a managed user has by the name alone, from another directory or an earlier import. Asked
/// only about a user who may do what is asked.
///
/// # Errors
/// Returns an error if there is such a group and the resolver does not tell whether it is IAM's.
fn group_given_elsewhere(
    application: &impl Application,
    account: &TargetAccount,
    decision: &Decision,
) -> Result<Option<GivenElsewhere>, String> {
    if account.account_kind != AccountKind::Managed || !decision.allow {
        return Ok(None);
    }
    let gids = application.gids_of(&account.name, account.gid);
    let name_of = |gid| NssGroups.name_of(gid);
    let elsewhere = leftovers::groups_given_elsewhere(&account.name, &gids, &name_of, Path::new("/"));
    if elsewhere.is_empty() {
        return Ok(None);
    }
    let config = account.config.as_ref().map_err(ToString::to_string)?;
    let name = LinuxName::new(&account.name).map_err(|why| format!("the name {why}"))?;
    let given = match account.resolver(config).ask(&Request::GroupsOf { name, known: true }) {
        Ok(Answer::Groups { gids }) => gids,
        Ok(Answer::NotFound) => Vec::new(),
        Ok(Answer::Error { message, .. }) => return Err(message),
        Ok(_) => return Err("the resolver answered another question".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    Ok(elsewhere.into_iter().find(|found| !given.contains(&found.gid)))
}

/// The group that grants sudo by what IAM says and that `account`, about whom IAM is not asked, holds all the same.
fn group_without_a_right(application: &impl Application, account: &TargetAccount) -> Option<String> {
    let (process_gids, account_gids) =
        (application.process_gids(), application.gids_of(&account.name, account.gid));
    let invoker = Invoker {
        name: &account.name,
        uid: account.uid,
        process_gids: &process_gids,
        account_gids: &account_gids,
    };
    let config = account.config.as_ref().ok();
    refused_for(&invoker, config, &NssGroups, &Files::default(), &ImporterRecord::load(Path::new("/")))
}

fn refuse_group(begun: Event, application: &mut impl Application, user: &str, group: &str) -> Outcome {
    let event = refused_in(begun, application, "unmanaged-member", group);
    application.audit(Severity::Warning, &event);
    application.message(&format!(
        "{user}: the group {group} grants sudo to IAM users alone, and this account is not one; an administrator can take \
         it out: gpasswd -d {user} {group}."
    ));
    Outcome::Denied
}

/// Whose account is checked. sudo sets `PAM_RUSER` to who invoked it; with `targetpw` and the like `PAM_USER` is
/// somebody else.
fn account_name(application: &mut impl Application, policy: Policy) -> Option<String> {
    let requesting = application.requesting_user();
    let name =
        if policy == Policy::Sudo && !requesting.is_empty() { Some(requesting) } else { application.user() };
    name.filter(|name| !name.is_empty())
}

fn decide(account: &TargetAccount, policy: Policy) -> Result<Decision, String> {
    let config = account.config.as_ref().map_err(ToString::to_string)?;
    let name = LinuxName::new(&account.name).map_err(|why| format!("the name {why}"))?;
    let request = Request::Decide { name, uid: account.uid, policy };
    match account.resolver(config).ask(&request) {
        Ok(Answer::Decision(decision)) => Ok(decision),
        Ok(Answer::Error { message, .. }) => Err(message),
        Ok(_) => Err("the resolver answered another question".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The event of an account decision, as far as it is known before it is made.
fn begun(policy: Policy, user: &str) -> Event {
    Event::new(policy.as_str()).with("user", user)
}

/// The event of a refusal that IAM has no part in.
fn refused(event: Event, application: &impl Application, reason: &str) -> Event {
    refused_in(event, application, reason, "")
}

/// The event of a refusal that IAM has no part in, because of a Linux group.
fn refused_in(event: Event, application: &impl Application, reason: &str, group: &str) -> Event {
    let nothing = ["iam_name", "iam_id", "key"];
    nothing
        .into_iter()
        .fold(event, |event, field| event.with(field, ""))
        .with("group", group)
        .with("service", application.service())
        .with("rhost", application.remote_host())
        .with("result", "deny")
        .with("reason", reason)
        .with("source", "")
        .with("age", "")
}

fn decided(event: Event, application: &impl Application, decision: &Decision) -> Event {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    event
        .with("iam_name", text(&decision.iam_name))
        .with("iam_id", text(&decision.iam_id))
        // sshd tells it to the session only.
        .with("key", "")
        .with("group", text(&decision.group))
        .with("service", application.service())
        .with("rhost", application.remote_host())
        .with("result", if decision.allow { "allow" } else { "deny" })
        .with("reason", decision.reason.as_str())
        .with("source", decision.source.as_str())
        .with("age", decision.age)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use pam_iam_core::id::Gid;
    use pam_iam_core::wire::{Reason, Source};
    use std::ffi::CStr;

    /// A host that remembers what it was told.
    #[derive(Default)]
    pub struct FakeApplication {
        pub user: Option<String>,
        pub requesting: String,
        pub uid: u32,
        pub gids: Vec<Gid>,
        pub told: Vec<String>,
        pub logged: Vec<String>,
    }

    impl Application for FakeApplication {
        fn user(&mut self) -> Option<String> {
            self.user.clone()
        }
        fn requesting_user(&self) -> String {
            self.requesting.clone()
        }
        fn service(&self) -> String {
            "sshd".into()
        }
        fn remote_host(&self) -> String {
            "192.0.2.1 result=allow".into()
        }
        fn environment(&mut self, _: &CStr) -> Option<String> {
            None
        }
        fn process_uid(&self) -> Uid {
            Uid(self.uid)
        }
        fn process_gids(&self) -> Vec<Gid> {
            self.gids.clone()
        }
        fn gids_of(&self, _: &str, gid: u32) -> Vec<Gid> {
            vec![Gid(gid)]
        }
        fn message(&mut self, message: &str) {
            self.told.push(message.to_owned());
        }
        fn audit(&mut self, _: Severity, event: &Event) {
            self.logged.push(event.to_string());
        }
        fn log(&mut self, _: Severity, line: &str) {
            self.logged.push(line.to_owned());
        }
    }

    fn arguments(policy: Policy) -> Arguments {
        Arguments { config: "/nonexistent/config.toml".into(), policy, debug: false, is_sshd: false }
    }

    fn checked(user: Option<&str>, policy: Policy) -> (Outcome, FakeApplication) {
        let mut application = FakeApplication { user: user.map(str::to_owned), ..FakeApplication::default() };
        (check(&mut application, &arguments(policy)), application)
    }

    #[test]
    fn local_accounts_are_left_alone_even_without_a_configuration() {
        for name in ["root", "daemon"] {
            let (outcome, application) = checked(Some(name), Policy::Login);
            assert_eq!((outcome, application.logged.len()), (Outcome::Ignore, 0), "{name}");
        }
    }

    #[test]
    fn nobody_and_who_does_not_exist_are_refused() {
        for user in [None, Some(""), Some("no-such-account-here"), Some("a\0b")] {
            let (outcome, application) = checked(user, Policy::Login);
            assert_eq!(outcome, Outcome::UnknownUser, "{user:?}");
            assert_eq!(application.logged.len(), 1);
        }
    }

    #[test]
    fn sudo_checks_who_invoked_it() {
        let mut application = FakeApplication {
            user: Some("root".into()),
            requesting: "no-such-account-here".into(),
            ..FakeApplication::default()
        };
        assert_eq!(check(&mut application, &arguments(Policy::Sudo)), Outcome::UnknownUser);
        assert_eq!(check(&mut application, &arguments(Policy::Login)), Outcome::Ignore);
    }

    #[test]
    fn a_local_account_with_the_gid_of_iam_sudo_is_refused_and_root_never() {
        let with_the_group = |name: &str| FakeApplication {
            user: Some("root".into()),
            requesting: name.into(),
            gids: vec![Gid::IAM_SUDO],
            ..FakeApplication::default()
        };
        let mut daemon = with_the_group("daemon");
        assert_eq!(check(&mut daemon, &arguments(Policy::Sudo)), Outcome::Denied);
        assert!(
            daemon.logged[0].contains("group=iam-sudo")
                && daemon.logged[0].contains("reason=unmanaged-member")
        );
        assert!(daemon.told[0].contains("gpasswd -d daemon iam-sudo"), "{:?}", daemon.told);
        assert_eq!(check(&mut with_the_group("root"), &arguments(Policy::Sudo)), Outcome::Ignore);
        assert_eq!(check(&mut with_the_group("daemon"), &arguments(Policy::Login)), Outcome::Ignore);
    }

    #[test]
    fn a_managed_uid_uses_no_sudo_by_the_name_of_a_local_account() {
        let invoked_by = |uid: u32| FakeApplication {
            user: Some("root".into()),
            requesting: "daemon".into(),
            uid,
            ..FakeApplication::default()
        };
        let mut managed = invoked_by(pam_iam_core::id::FIRST);
        assert_eq!(check(&mut managed, &arguments(Policy::Sudo)), Outcome::Denied);
        assert!(managed.logged[0].contains("reason=uid-mismatch"), "{:?}", managed.logged);
        assert!(managed.told[0].contains("getent passwd daemon"), "{:?}", managed.told);
        assert_eq!(check(&mut invoked_by(5000), &arguments(Policy::Sudo)), Outcome::Ignore, "the host's own");
        assert_eq!(check(&mut managed, &arguments(Policy::Login)), Outcome::Ignore);
    }

    #[test]
    fn no_value_forges_a_field() {
        let decision = Decision {
            allow: false,
            reason: Reason::NotInGroup,
            iam_name: Some("alice".into()),
            iam_id: Some("AIDA1".into()),
            group: None,
            source: Source::Cache,
            age: 3,
        };
        assert_eq!(
            decided(begun(Policy::Login, "al ice"), &FakeApplication::default(), &decision).to_string(),
            "event=login user=\"al ice\" iam_name=alice iam_id=AIDA1 key= group= service=sshd \
             rhost=\"192.0.2.1 result=allow\" result=deny reason=not-in-group source=cache age=3"
        );
    }
}
