use proptest::prelude::*;

use super::*;

const ACCOUNT: &str = "account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so";
const SESSION: &str = "session requisite pam_iam.so";

/// Returns the common parts of Debian and Red Hat, shortened.
fn common(name: &str) -> Option<String> {
    let text = match name {
        "common-account" => {
            "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n\
             account required pam_permit.so\n"
        }
        "common-auth" => "auth [success=1 default=ignore] pam_unix.so\nauth requisite pam_deny.so\n",
        "common-session" => {
            "session [default=1] pam_permit.so\nsession requisite pam_deny.so\nsession required pam_permit.so\n"
        }
        "password-auth" => {
            "account required pam_unix.so\naccount sufficient pam_localuser.so\naccount required pam_permit.so\n\
             session optional pam_keyinit.so revoke\nsession required pam_limits.so\n\
             session [success=1 default=ignore] pam_succeed_if.so service in crond quiet use_uid\nsession required pam_unix.so\n"
        }
        "sudo" => {
            "account [success=ok new_authtok_reqd=ok ignore=ignore default=die] pam_iam.so policy=sudo\naccount include system-auth\n"
        }
        "system-auth" => "account required pam_unix.so\n",
        "odd" => "acount required pam_unix.so\n",
        _ => return None,
    };
    Some(text.to_owned())
}

fn for_login(arguments: &[String]) -> bool {
    arguments.is_empty()
}

fn for_sudo(arguments: &[String]) -> bool {
    arguments == ["policy=sudo"]
}

fn account(text: &str) -> Verdict {
    judge(text, Phase::Account, &common, &for_login)
}

#[test]
fn a_line_is_in_force_if_it_is_always_asked_and_heeded() {
    for text in [
        format!(
            "@include common-auth\naccount required pam_nologin.so\n{ACCOUNT}\n@include common-account\n"
        ),
        format!("{ACCOUNT}\naccount include password-auth\n"),
        "account required pam_iam.so\naccount include password-auth\n".to_owned(),
        "account [success=ok ignore=ignore default=bad] pam_iam.so\n".to_owned(),
        format!("account [success=ok default=ignore] pam_x.so\n{ACCOUNT}\n"),
        // A yes that ends only the substack.
        format!("account substack password-auth\n{ACCOUNT}\n"),
        // Continued after a comment, and by a backslash with blanks behind it.
        "account [success=ok \\ \n# in between\n\n default=die] \\\n /lib/security/pam_iam.so".to_owned(),
        "ACCOUNT Required pam_iam.so".to_owned(),
    ] {
        assert_eq!(account(&text), Verdict::InForce, "{text}");
    }
}

#[test]
fn a_line_that_is_no_entry_of_the_phase_is_missing() {
    for text in [
        "@include common-account\n".to_owned(),
        format!("# {ACCOUNT}\n@include common-account\n"),
        "account required pam_unix.so # was pam_iam.so\n".to_owned(),
        "account required pam_exec.so /usr/bin/x pam_iam.so\n".to_owned(),
        "account required pam_unix.so \\\n account required pam_iam.so\n".to_owned(),
        "session required pam_iam.so\n".to_owned(),
        "account required pam_iam.so policy=sudo\n".to_owned(),
    ] {
        assert_eq!(account(&text), Verdict::Missing, "{text}");
    }
}

#[test]
fn an_entry_that_may_lead_past_the_line_is_named() {
    for (text, entry) in [
        (
            format!("@include common-account\n{ACCOUNT}"),
            "[success=1 new_authtok_reqd=done default=ignore] pam_unix.so",
        ),
        (format!("account sufficient pam_localuser.so\n{ACCOUNT}"), "sufficient pam_localuser.so"),
        (format!("account include password-auth\n{ACCOUNT}"), "sufficient pam_localuser.so"),
        (
            format!("account [success=1 default=ignore] pam_x.so\n{ACCOUNT}\naccount required pam_unix.so"),
            "[success=1 default=ignore] pam_x.so",
        ),
        // Brackets only hold a word together.
        (format!("account [include] password-auth\n{ACCOUNT}"), "sufficient pam_localuser.so"),
        // An entry without a module fails as its control says, and one of no known phase does not fail in this one.
        (format!("account optional\naccount sufficient pam_x.so\n{ACCOUNT}"), "sufficient pam_x.so"),
        (format!("@include odd\naccount sufficient pam_x.so\n{ACCOUNT}"), "sufficient pam_x.so"),
    ] {
        assert_eq!(account(&text), Verdict::PassedOver(entry.to_owned()), "{text}");
    }
    // A jump past the last module is no yes.
    assert_eq!(account(&format!("account [success=2 default=bad] pam_x.so\n{ACCOUNT}")), Verdict::InForce);
    // A line that is there twice counts as the stricter one, and says the same both times.
    assert_eq!(account(&format!("{ACCOUNT}\naccount sufficient pam_iam.so")), Verdict::InForce);
    assert_eq!(account(&format!("{ACCOUNT}\naccount sufficient pam_x.so\n{ACCOUNT}")), Verdict::InForce);
}

#[test]
fn a_no_that_is_not_heeded_is_found() {
    for text in [
        "account optional pam_iam.so\naccount required pam_unix.so",
        "account sufficient pam_iam.so\naccount required pam_unix.so",
        "account [success=ok perm_denied=ignore ignore=ignore default=die] pam_iam.so\naccount required pam_unix.so",
        // A later entry resets everything.
        "account required pam_iam.so\naccount [default=reset] pam_x.so\naccount required pam_unix.so",
    ] {
        assert!(matches!(account(text), Verdict::NotHeeded(_)), "{text}: {:?}", account(text));
    }
}

#[test]
fn sudos_own_line_is_found_through_an_include_too() {
    let sudo = |text: &str| judge(text, Phase::Account, &common, &for_sudo);
    assert_eq!(sudo("account include sudo\n"), Verdict::InForce, "as Red Hat's sudo-i has it");
    assert_eq!(sudo(ACCOUNT), Verdict::Missing);
}

#[test]
fn an_unfinished_entry_and_a_missing_include_let_nobody_past() {
    // The entry is unfinished, or the file that it includes is missing: libpam says no.
    assert_eq!(account(&format!("account include nothing\n{ACCOUNT}")), Verdict::InForce);
    assert_eq!(account(&format!("{ACCOUNT}\naccount required \\")), Verdict::InForce);
    assert_eq!(
        account(&format!("account include odd\naccount sufficient pam_x.so\n{ACCOUNT}")),
        Verdict::InForce
    );
}

#[test]
fn lines_are_added_before_an_entry_that_could_end_the_stack_or_needs_a_home() {
    let add = |text: &str| {
        let with = with_line(text, ACCOUNT, Phase::Account, &common, &for_login);
        with_line(&with, SESSION, Phase::Session, &common, &for_login)
    };
    let debian = "# c\n@include common-auth\naccount    required     pam_nologin.so\n@include common-account\n\
                  session required pam_loginuid.so\n@include common-session\n";
    assert_eq!(
        add(debian),
        format!(
            "# c\n@include common-auth\n{ACCOUNT}\naccount    required     pam_nologin.so\n@include common-account\n\
             session required pam_loginuid.so\n{SESSION}\n@include common-session\n"
        )
    );
    let redhat = "auth substack password-auth\naccount required pam_sepermit.so\nsession required pam_selinux.so close\n\
                  session include password-auth";
    assert!(add(redhat).ends_with(&format!("close\n{SESSION}\nsession include password-auth")));
    assert_eq!(add("@include common-account"), format!("{ACCOUNT}\n@include common-account\n{SESSION}"));
    assert_eq!(add("auth required pam_x.so\n"), format!("auth required pam_x.so\n{ACCOUNT}\n{SESSION}\n"));
    // Not where a jump leads past it, nor where it would change the target of another jump.
    assert_eq!(
        add(
            "session [success=1 default=ignore] pam_a.so\nsession required pam_b.so\n@include common-session\n"
        ),
        format!(
            "session [success=1 default=ignore] pam_a.so\nsession required pam_b.so\n{SESSION}\n@include common-session\n{ACCOUNT}\n"
        )
    );
    assert_eq!(
        with_line(
            "session [success=1 default=ignore] pam_a.so\n@include common-session\n",
            SESSION,
            Phase::Session,
            &common,
            &for_login
        ),
        format!("{SESSION}\nsession [success=1 default=ignore] pam_a.so\n@include common-session\n")
    );
    for text in [debian, redhat] {
        assert_eq!(without_lines(&add(text), &common), text);
        assert_eq!(add(&add(text)), add(text), "twice is once");
    }
}

#[test]
fn only_entries_of_the_module_are_taken_out() {
    for (before, after) in [
        ("# see \\\naccount required pam_iam.so\nx", "# see \\\nx"),
        (
            "account required pam_unix.so # y \\\naccount required pam_iam.so\nx",
            "account required pam_unix.so # y \\\nx",
        ),
        ("account [success=ok \\ \n default=die] pam_iam.so\nx", "x"),
        (
            "account [success=ok \\\n default=die] \\\n pam_iam.so\n# account pam_iam.so\naccount required pam_unix.so",
            "# account pam_iam.so\naccount required pam_unix.so",
        ),
        ("account required pam_exec.so /bin/pam_iam.so", "account required pam_exec.so /bin/pam_iam.so"),
        ("-session optional pam_iam.so\n", ""),
        // An administrator's jump over the line lands where it did.
        (
            "account [success=2 default=ignore] pam_access.so\naccount required pam_iam.so\naccount requisite pam_deny.so\naccount required pam_permit.so",
            "account [success=2 default=ignore] pam_access.so\naccount [default=ignore] pam_permit.so\naccount requisite pam_deny.so\naccount required pam_permit.so",
        ),
    ] {
        assert_eq!(without_lines(before, &common), after);
    }
}

#[test]
fn the_line_of_a_phase_is_found_in_a_shipped_file() {
    let file = include_str!("../../../../pam.d/debian/sshd");
    assert!(line_of(file, Phase::Account).is_some_and(|line| line.contains("default=die")));
    assert_eq!(line_of(file, Phase::Session), Some("session    requisite    pam_iam.so"));
    assert_eq!(line_of(include_str!("../../../../pam.d/debian/sudo"), Phase::Session), None);
}

/// Generates lines as administrators and distributions write them, good and bad.
fn lines() -> impl Strategy<Value = String> {
    let control = prop_oneof![
        Just("required".to_owned()),
        Just("requisite".to_owned()),
        Just("sufficient".to_owned()),
        Just("optional".to_owned()),
        Just("[default=ignore]".to_owned()),
        Just("[success=done default=reset]".to_owned()),
        Just("[success=ok \\\n  default=bad]".to_owned()),
        (1..4_usize).prop_map(|count| format!("[success={count} default=ignore]")),
    ];
    let entry =
        ("(auth|account|session|-session|Account)", control, "pam_(unix|x|permit|deny)\\.so( debug)?( # c)?")
            .prop_map(|(kind, control, module)| format!("{kind}\t{control} {module}"));
    let line = prop_oneof![
        6 => entry,
        1 => "(account|session) (include|substack) (common-account|password-auth|common-session|nothing)",
        1 => "@include common-(auth|account|session)",
        1 => "(#.{0,9}|[ \t]{0,2}|nonsense|account|session required \\\\)",
    ];
    (prop::collection::vec(line, 0..8), any::<bool>())
        .prop_map(|(lines, ends)| format!("{}{}", lines.join("\n"), if ends { "\n" } else { "" }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_added_line_is_in_force_and_is_taken_out_byte_for_byte(text in lines()) {
        for (line, phase) in [(ACCOUNT, Phase::Account), (SESSION, Phase::Session)] {
            let with = with_line(&text, line, phase, &common, &for_login);
            prop_assert_eq!(judge(&with, phase, &common, &for_login), Verdict::InForce, "{}", with);
            prop_assert_eq!(without_lines(&with, &common), text.clone(), "{}", with);
            prop_assert_eq!(with_line(&with, line, phase, &common, &for_login), with.clone(), "twice is once");
            prop_assert_eq!(jumps(&with, phase, &common), jumps(&text, phase, &common), "{}", with);
        }
    }
}
