//! The account phase: may this user log in, or use sudo, now?

use std::path::Path;

use pam_iam_core::account_kind::{AccountKind, Files};
use pam_iam_core::audit::Event;
use pam_iam_core::id::Uid;
use pam_iam_core::importer_record::ImporterRecord;
use pam_iam_core::leftovers::{Leftovers, Refusal};
use pam_iam_core::resolver::Queries;
use pam_iam_core::wire::{Decision, Policy};

use crate::application::{Application, Outcome, Severity};
use crate::arguments::Arguments;
use crate::group_refusal::refusal_by_group;
use crate::sudoer::{Invoker, NssGroups, refused_for};
use crate::target::{QueryError, TargetAccount};

/// The message to a user about whom the resolver has no answer.
const UNAVAILABLE: &str = "access cannot be checked with AWS IAM at the moment; try again in a minute";

/// Runs the account phase (`pam_sm_acct_mgmt`).
pub fn check(application: &mut impl Application, arguments: &Arguments) -> Outcome {
    let Some(name) = account_name(application, arguments.policy) else {
        let event = refused(begun(arguments.policy, ""), application, "no-user");
        application.audit(Severity::Warning, &event);
        return Outcome::UnknownUser;
    };
    let begun = begun(arguments.policy, &name);
    let Some(account) = TargetAccount::look_up(name, &arguments.config, application.line()) else {
        let event = refused(begun, application, "no-such-account");
        application.audit(Severity::Warning, &event);
        return Outcome::UnknownUser;
    };
    if arguments.policy == Policy::Sudo && is_of_another(application.process_uid(), &account) {
        return refuse_another(begun, application, &account.name);
    }
    // IAM only adds keys to a shared account. The host alone decides about its logins by other means, and its cron jobs.
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
    match decide(&account, arguments.policy).and_then(|decision| {
        Ok((refusal_by_group(application, &account, arguments.policy, &decision)?, decision))
    }) {
        Ok((Some(refusal), _)) => {
            let event = refused_in(begun, application, refusal.reason, &refusal.group);
            application.audit(Severity::Warning, &event);
            application.log(Severity::Warning, &refusal.why);
            application.message(&format!("{}: {}", account.name, refusal.message));
            Outcome::Denied
        }
        Ok((None, decision)) => tell_decision(begun, application, &account, arguments.policy, &decision),
        Err(why) => {
            let event = refused(begun, application, "unavailable").with("error", why);
            application.audit(Severity::Error, &event);
            application.message(&format!("{}: {UNAVAILABLE}.", account.name));
            Outcome::Unavailable
        }
    }
}

/// Logs a decision, shows the reason to a user who is refused, and returns the outcome for PAM.
fn tell_decision(
    begun: Event,
    application: &mut impl Application,
    account: &TargetAccount,
    policy: Policy,
    decision: &Decision,
) -> Outcome {
    let severity = if decision.allow { Severity::Info } else { Severity::Warning };
    let event = decided(begun, application, decision);
    application.audit(severity, &event);
    if decision.allow {
        return Outcome::Success;
    }
    application.message(&format!("{}: {}.", account.name, decision.reason.for_user(policy)));
    Outcome::Denied
}

/// Whether sudo was invoked by another uid than the account's: another directory has an account of that name, or the name
/// now belongs to another user. For a local or shared account only a managed uid counts, since IAM has no say in the others.
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

/// Logs why a user is refused because of what the host has set up for the name, and shows the user a message.
pub fn tell_of_name(application: &mut impl Application, user: &str, refusal: &Refusal) {
    application.log(Severity::Warning, &format!("{}; take it out, and {user} can log in", refusal.why));
    application.message(&format!(
        "{user}: this host has rights for your name that are not meant for you; ask an administrator."
    ));
}

/// Returns a group that only IAM may give and that `account` holds, although it is local or shared and IAM is not asked
/// about it.
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

/// Returns the name of the account to check. sudo sets `PAM_RUSER` to the user who invoked it. With settings such as
/// `targetpw`, `PAM_USER` is another user.
fn account_name(application: &mut impl Application, policy: Policy) -> Option<String> {
    let requesting = application.requesting_user();
    let name =
        if policy == Policy::Sudo && !requesting.is_empty() { Some(requesting) } else { application.user() };
    name.filter(|name| !name.is_empty())
}

fn decide(account: &TargetAccount, policy: Policy) -> Result<Decision, QueryError<'_>> {
    let (name, resolver) = account.to_ask()?;
    Ok(resolver.decide(&name, account.uid, policy)?)
}

/// Returns an event with the fields that are known before a decision.
fn begun(policy: Policy, user: &str) -> Event {
    Event::new(policy.as_str()).with("user", user)
}

/// Completes the event of a refusal that IAM did not decide.
fn refused(event: Event, application: &impl Application, reason: &str) -> Event {
    refused_in(event, application, reason, "")
}

/// Completes the event of a refusal that IAM did not decide, because of a Linux group.
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
        // sshd gives the key only to the session phase.
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
    use pam_iam_core::client::Line;
    use pam_iam_core::id::Gid;
    use pam_iam_core::wire::{Reason, Source};
    use std::ffi::CStr;
    use std::rc::Rc;

    /// An application that keeps the messages and log lines that it gets.
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
        fn line(&self) -> Rc<Line> {
            Rc::default()
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
    fn the_user_nobody_and_missing_users_are_refused() {
        for user in [None, Some(""), Some("no-such-account-here"), Some("a\0b")] {
            let (outcome, application) = checked(user, Policy::Login);
            assert_eq!(outcome, Outcome::UnknownUser, "{user:?}");
            assert_eq!(application.logged.len(), 1);
        }
    }

    #[test]
    fn sudo_checks_the_invoking_user() {
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
