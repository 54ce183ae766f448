//! What this host has set up by a name: for a user of that name, or left over from an earlier one. A user who is made anew in
//! IAM, or takes a name over, is somebody else and must not inherit it.

use std::path::{Path, PathBuf};

use crate::id::Uid;
use crate::served::Served;

/// Files with a line `NAME:…` for each user who has subordinate ids.
const SUBORDINATE: [&str; 2] = ["etc/subuid", "etc/subgid"];

/// Where systemd keeps a file for each user who lingers.
const LINGER: &str = "var/lib/systemd/linger";

/// The longest file of sudo's rules that is read, in bytes.
const RULES_MAX: u64 = 1024 * 1024;

/// Returns what the host under `root` has set up for `name`, each as where it is and what it gives. Only root can read
/// all of it.
pub fn of(name: &str, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in SUBORDINATE {
        let text = std::fs::read(root.join(path)).unwrap_or_default();
        let has = String::from_utf8_lossy(&text).lines().any(|line| line.split(':').next() == Some(name));
        found.extend(has.then(|| format!("/{path} gives subordinate ids to {name}")));
    }
    let linger = root.join(LINGER).join(name);
    found.extend(
        linger.exists().then(|| format!("/{LINGER}/{name} has systemd start what {name} left at boot")),
    );
    for path in rules(root) {
        let is_short = std::fs::metadata(&path).is_ok_and(|file| file.len() <= RULES_MAX);
        let text = if is_short { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        if names_in_rules(&String::from_utf8_lossy(&text), name) {
            let shown = Path::new("/").join(path.strip_prefix(root).unwrap_or(&path));
            found.push(format!("{} names {name}", shown.display()));
        }
    }
    found
}

/// What a name brings to a user who has not yet logged in here under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Nothing, or the user has logged in here before.
    None,
    /// This, to the first user of the name: it is probably meant for that user.
    First(Vec<String>),
    /// This, which was set up while another user had the name.
    Inherited(Vec<String>),
}

/// Returns what the host under `root` has set up for `name` that the user with `uid` would get with the first login.
pub fn for_user(name: &str, uid: Uid, served: &Served, root: &Path) -> Leftovers {
    if served.name_of(uid).is_some_and(|known| known.as_str() == name) {
        return Leftovers::None;
    }
    let found = of(name, root);
    // The list is read only where there is something to inherit: it may be long.
    if found.is_empty() {
        Leftovers::None
    } else if served.uids_of(name).is_empty() {
        Leftovers::First(found)
    } else {
        Leftovers::Inherited(found)
    }
}

/// sudo's own files: it reads no name with a dot, and none that ends with `~`.
fn rules(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("etc/sudoers.d")).into_iter().flatten().flatten();
    let is_read = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        !name.contains('.') && !name.ends_with('~')
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_read).collect();
    paths.push(root.join("etc/sudoers"));
    paths.sort();
    paths
}

/// Whether a rule of sudo's names a user: as a word of its own, neither a group's (`%alice`) nor part of a longer one.
fn names_in_rules(text: &str, name: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "_.-%#/@".contains(letter);
    let rules =
        text.lines().map(str::trim_start).filter(|line| !line.starts_with('#') && !line.starts_with('@'));
    rules.flat_map(|line| line.split(|letter| !is_letter(letter))).any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_has_for_a_name_is_found_and_what_only_looks_like_it_is_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/subuid", "alice2:1:2\nbob:100000:65536\n");
        write(
            "etc/sudoers",
            "# alice ALL=(ALL) ALL\n%alice ALL=(ALL) ALL\nroot ALL=(alice2) /bin/alice\n@includedir /etc/alice\n",
        );
        write("etc/sudoers.d/old.bak", "alice ALL=(ALL) ALL\n");
        assert_eq!(of("alice", root.path()), [""; 0]);
        write("etc/subgid", "alice:1:2\n");
        write("var/lib/systemd/linger/alice", "");
        write("etc/sudoers.d/app", "User_Alias OPS = bob, alice\n");
        assert_eq!(
            of("alice", root.path()),
            [
                "/etc/subgid gives subordinate ids to alice",
                "/var/lib/systemd/linger/alice has systemd start what alice left at boot",
                "/etc/sudoers.d/app names alice",
            ]
        );
    }

    #[test]
    fn the_first_owner_of_a_name_inherits_nothing_and_the_next_one_does_until_it_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/subuid"), "alice:1:2\n").unwrap();
        let served = Served::new(&root.path().join("served"));
        let (first, next) = (Uid(crate::id::FIRST), Uid(crate::id::FIRST + 1));
        let found = vec!["/etc/subuid gives subordinate ids to alice".to_owned()];
        let of = |uid| for_user("alice", uid, &served, root.path());
        assert_eq!(of(first), Leftovers::First(found.clone()));
        served.add(first, "alice").unwrap();
        assert_eq!(of(first), Leftovers::None);
        assert_eq!(of(next), Leftovers::Inherited(found));
        std::fs::write(root.path().join("etc/subuid"), "").unwrap();
        assert_eq!(of(next), Leftovers::None);
        // What an administrator sets up for the new owner afterwards is meant.
        served.add(next, "alice").unwrap();
        std::fs::write(root.path().join("etc/subuid"), "alice:1:2\n").unwrap();
        assert_eq!(of(next), Leftovers::None);
    }
}
