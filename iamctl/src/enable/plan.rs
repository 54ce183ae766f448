//! Plans the changes of `iamctl enable`.

use std::path::Path;

use pam_iam_core::nsswitch::{self, NSSWITCH};
use pam_iam_core::paths;

use super::Options;
use crate::cli::Accounts;
use crate::enabled::by_hand::{SHIPPED_SSHD, SHIPPED_SUDOERS, SUDOERS};
use crate::enabled::error::EnableError;
use crate::enabled::record::{Change, Record};
use crate::host::pam::{self, Role, SUDO};
use crate::host::pam_stack::Verdict;
use crate::host::sshd::DROP_IN as SSHD_DROP_IN;
use crate::host::{at, pam_stack, read};

/// The plan of `iamctl enable`.
#[derive(Debug)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// Shipped files that somebody has edited. They stay as they are.
    pub kept: Vec<&'static str>,
}

/// Returns what has to be changed under `root`. `before` has the earlier changes.
///
/// # Errors
/// Returns an error if a file is missing, or if a line cannot be put in force in it.
pub fn plan(root: &Path, options: Options, before: Option<&Record>) -> Result<Plan, EnableError> {
    let mut changes = Changes { root, changes: Vec::new() };
    let mut kept = Vec::new();
    if options.accounts == Accounts::Nss {
        changes.add(NSSWITCH, &nsswitch_with_us, None)?;
    }
    for (service, text) in stacks_with_us(root, options.with_su)? {
        changes.add(&path_of(service), &|_| Ok(text.clone()), Some(0o644))?;
    }
    // sshd's comes last, since sshd asks from then on.
    for (path, name, mode) in [(SUDOERS, SHIPPED_SUDOERS, 0o440), (SSHD_DROP_IN, SHIPPED_SSHD, 0o644)] {
        let text = shipped(root, name)?;
        // Without that folder there is no sudo here.
        if path == SUDOERS && !has_folder(root, path) {
            continue;
        }
        if is_edited(root, path, &text, before)? {
            kept.push(path);
            continue;
        }
        changes.add(path, &|_| Ok(text.clone()), Some(mode))?;
    }
    Ok(Plan { changes: changes.changes, kept })
}

/// The changes to files under `root`.
struct Changes<'a> {
    root: &'a Path,
    changes: Vec<Change>,
}

impl Changes<'_> {
    /// Adds a change if `after` makes another text of a file. `new` is the mode for a file that may be missing.
    fn add(
        &mut self,
        path: &str,
        after: &dyn Fn(&str) -> Result<String, EnableError>,
        new: Option<u32>,
    ) -> Result<(), EnableError> {
        let before = read(self.root, path)?;
        if before.is_none() && new.is_none() {
            return Err(EnableError::Missing { path: path.to_owned(), advice: "" });
        }
        let after = after(before.as_deref().unwrap_or_default())?;
        if before.as_deref() != Some(&after) {
            self.changes.push(Change { path: path.into(), before, after, mode: new.unwrap_or(0o644) });
        }
        Ok(())
    }
}

/// Whether a shipped file was edited: it is neither as shipped now nor as `before` put it there.
fn is_edited(root: &Path, path: &str, shipped: &str, before: Option<&Record>) -> Result<bool, EnableError> {
    let Some(now) = read(root, path)? else { return Ok(false) };
    let known = before.is_some_and(|record| {
        record.changes.iter().any(|change| change.path == Path::new(path) && change.after == now)
    });
    Ok(now != shipped && !known)
}

/// Returns a file of the share.
fn shipped(root: &Path, name: &str) -> Result<String, EnableError> {
    let path = format!("{}/{name}", paths::SHARE);
    read(root, &path)?.ok_or(EnableError::Missing { path, advice: ": is the package installed?" })
}

fn nsswitch_with_us(text: &str) -> Result<String, EnableError> {
    let with = nsswitch::with_us(text);
    let is_missing = |database: &&&str| !nsswitch::asks_us(&with, database);
    match ["passwd", "group"].iter().find(is_missing) {
        None => Ok(with),
        Some(database) => Err(EnableError::LookupEnds(database)),
    }
}

/// Returns the stacks that need lines, each with its new text.
fn stacks_with_us(root: &Path, with_su: bool) -> Result<Vec<(&'static str, String)>, EnableError> {
    // A later stack may include one that is already planned.
    let mut planned: Vec<(&str, String)> = Vec::new();
    let becoming = if with_su { pam::BECOMING.as_slice() } else { &[] };
    for service in pam::SERVICES.iter().chain(becoming) {
        let stack_of = |name: &str| match planned.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Some(text.clone()),
            None => pam::stack(root, name).ok().flatten(),
        };
        pam::stack(root, service.name)?;
        let Some(text) = stack_with_us(root, service, &stack_of)? else { continue };
        match planned.iter_mut().find(|(known, _)| *known == service.name) {
            Some((_, planned)) => *planned = text,
            None => planned.push((service.name, text)),
        }
    }
    Ok(planned)
}

/// Returns the stack of a service with its lines, or None if it stays as it is.
fn stack_with_us(
    root: &Path,
    service: &pam::Service,
    stack_of: pam_stack::Stacks<'_>,
) -> Result<Option<String>, EnableError> {
    let path = path_of(service.name);
    let needs_us = matches!(service.role, Role::Login | Role::Sudo);
    let has_sudo = at(root, SUDO).exists();
    let own = stack_of(service.name);
    let is_new = own.is_none();
    // For sudo -i PAM would take the stack `other`, which does not ask IAM, so sudo's own is copied.
    let Some(text) = own.or_else(|| stack_of("sudo").filter(|_| service.role == Role::Sudo && has_sudo))
    else {
        if service.role == Role::Login || service.role == Role::Sudo && has_sudo {
            let advice = ": install the package that it is from again";
            return Err(EnableError::Missing { path, advice });
        }
        return Ok(None);
    };
    if let Some(phase) = service.phases.iter().find(|phase| !pam_stack::has_entries(&text, **phase, stack_of))
    {
        if !needs_us {
            return Ok(None);
        }
        return Err(EnableError::NoEntry { path, phase: *phase });
    }
    let shipped = shipped(root, &format!("pam.d/{}/{}", pam::distribution(&text), service.lines))?;
    let with_us = service.phases.iter().fold(text.clone(), |text, phase| {
        let Some(line) = pam_stack::line_of(&shipped, *phase) else { return text };
        pam_stack::with_line(&text, line, *phase, stack_of, &|arguments| service.has_policy(arguments))
    });
    if needs_us {
        is_in_force(service, &with_us, stack_of)?;
    }
    Ok((with_us != text || is_new).then_some(with_us))
}

/// Checks that the module is always asked, and its denial heeded.
fn is_in_force(service: &pam::Service, text: &str, stacks: pam_stack::Stacks<'_>) -> Result<(), EnableError> {
    for phase in service.phases {
        let judged = pam_stack::judge(text, *phase, stacks, &|arguments| service.has_policy(arguments));
        let why = match judged {
            Verdict::InForce => continue,
            Verdict::Missing => "there is no place for our line".to_owned(),
            Verdict::PassedOver(entry) => format!("`{entry}` may keep PAM from asking it"),
            Verdict::NotHeeded(entry) => format!("the control of `{entry}` does not heed a denial"),
        };
        return Err(EnableError::CannotBeInForce { service: service.name, phase: *phase, why });
    }
    Ok(())
}

fn path_of(service: &str) -> String {
    format!("{}/{service}", pam::FOLDER)
}

fn has_folder(root: &Path, path: &str) -> bool {
    at(root, path).parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Accounts;
    use crate::enabled::by_hand::made_by_hand;

    #[test]
    fn a_file_that_is_as_planned_is_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let options = |accounts| Options { accounts, dry_run: false, with_su: false, trial: None };
        let planned = |accounts| plan(root.path(), options(accounts), None);
        assert!(planned(Accounts::Nss).unwrap_err().to_string().contains("nsswitch.conf is missing"));
        write("etc/nsswitch.conf", "passwd: files\ngroup: files\n");
        std::fs::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        write("etc/pam.d/sshd", "@include common-account\n@include common-session\n");
        assert!(planned(Accounts::Nss).unwrap_err().to_string().contains("is the package installed?"));
        for (name, text) in [
            ("pam.d/debian/sshd", include_str!("../../../pam.d/debian/sshd")),
            ("pam.d/debian/sudo", include_str!("../../../pam.d/debian/sudo")),
            ("sshd/10-pam_iam.conf", include_str!("../../../packaging/sshd/10-pam_iam.conf")),
            ("sudoers/pam_iam", include_str!("../../../packaging/sudoers/pam_iam")),
        ] {
            write(&format!("usr/share/pam_iam/{name}"), text);
        }
        let all = planned(Accounts::Nss).unwrap().changes;
        let paths: Vec<&str> = all.iter().filter_map(|change| change.path.to_str()).collect();
        assert_eq!(paths, [NSSWITCH, "/etc/pam.d/sshd", SUDOERS, SSHD_DROP_IN]);
        assert_eq!(planned(Accounts::Importer).unwrap().changes.len(), 3);
        for change in &all {
            write(change.path.to_str().unwrap().trim_start_matches('/'), &change.after);
        }
        assert!(planned(Accounts::Nss).unwrap().changes.is_empty());
        let back = made_by_hand(root.path()).unwrap();
        assert_eq!(back.len(), 4);
        assert!(
            back.iter().all(|change| all
                .iter()
                .any(|made| made.path == change.path && made.before == change.before))
        );
        // Lines may be in any stack. One that cannot be taken out is an error.
        write("etc/pam.d/su", "account required pam_iam.so\nauth required pam_unix.so\n");
        let with_su = made_by_hand(root.path()).unwrap();
        let su = with_su.iter().find(|change| change.path.ends_with("su")).unwrap();
        assert_eq!(su.before.as_deref(), Some("auth required pam_unix.so\n"));
        let latin1 = [b"# M\xfcller\n".as_slice(), b"account required pam_iam.so\n"].concat();
        std::fs::write(root.path().join("etc/pam.d/su"), latin1).unwrap();
        let why = made_by_hand(root.path()).unwrap_err().to_string();
        assert!(why.contains("/etc/pam.d/su") && why.contains("take the line"), "{why}");
        std::fs::write(root.path().join("etc/pam.d/su"), b"# M\xfcller: no pam_iam.so here\n").unwrap();
        assert!(made_by_hand(root.path()).is_ok(), "a comment is no line");
        std::fs::remove_file(root.path().join("etc/pam.d/su")).unwrap();
        // Without sudo there is no rule for it.
        std::fs::remove_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        assert!(planned(Accounts::Nss).unwrap().changes.is_empty());
        // An administrator's rule stays, but one that an older package is known to have put there is replaced.
        write("etc/sudoers.d/pam_iam", "%ssh-ops ALL=(root) /usr/bin/systemctl restart app");
        let edited = planned(Accounts::Nss).unwrap();
        assert!(edited.changes.is_empty() && edited.kept == [SUDOERS], "{edited:?}");
        let record = Record {
            changes: vec![Change {
                path: SUDOERS.into(),
                before: None,
                after: "%ssh-ops ALL=(root) /usr/bin/systemctl restart app".into(),
                mode: 0o440,
            }],
        };
        let upgrade = plan(root.path(), options(Accounts::Nss), Some(&record)).unwrap();
        assert!(upgrade.kept.is_empty() && upgrade.changes.len() == 1, "{upgrade:?}");
    }
}
