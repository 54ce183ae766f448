//! The state that one run saves for the next: which users were missing, and which changes have to be undone one day.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use pam_iam_core::id::Uid;
use pam_iam_core::replace::replace;
use serde::{Deserialize, Serialize};

/// The version of the file's format.
const VERSION: u32 = 1;

/// The state between two runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// The number of complete rosters in a row in which an account's user was missing, by uid.
    #[serde(default)]
    missing: BTreeMap<u32, u32>,
    /// Locked accounts, with the expiry dates that they had before.
    #[serde(default)]
    pub locked: BTreeMap<String, String>,
    /// Adopted accounts that were added to groups.
    #[serde(default)]
    pub joined: BTreeSet<String>,
    /// Every group whose members any run has set.
    #[serde(default)]
    pub groups: BTreeSet<String>,
    /// The refusals of the last run, so that only new ones are logged.
    #[serde(default)]
    pub refused: Vec<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            missing: BTreeMap::new(),
            locked: BTreeMap::new(),
            joined: BTreeSet::new(),
            groups: BTreeSet::new(),
            refused: Vec::new(),
        }
    }
}

impl State {
    /// Returns the state of the last run, or an empty state before the first one. If the file is broken, returns an empty
    /// state and a warning, and renames the file unless `look_only`. Then missing users are counted from zero, so that
    /// nobody is retired too early.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or renamed.
    pub fn load(path: &Path, look_only: bool) -> io::Result<(Self, Option<String>)> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Self::default(), None)),
            Err(error) => return Err(error),
        };
        let wrong = match serde_json::from_slice::<Self>(&bytes) {
            Ok(state) if state.version == VERSION => return Ok((state, None)),
            Ok(state) => format!("version {}, where this importer writes {VERSION}", state.version),
            Err(error) => error.to_string(),
        };
        let aside = path.with_extension("broken");
        if !look_only {
            std::fs::rename(path, &aside)?;
        }
        let warning = format!(
            "{} cannot be used ({wrong}) and is moved to {}; missing users are counted anew, and adopted accounts that are \
             locked have to be unlocked by hand",
            path.display(),
            aside.display()
        );
        Ok((Self::default(), Some(warning)))
    }

    /// Saves the state for the next run. The file is complete on the disk before it replaces the old one.
    ///
    /// # Errors
    /// Returns an error if it cannot be written. The old file stays.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        replace(path, &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Counts one complete roster: adds one for each uid of `managed` that is not `present`, and drops the counts of all
    /// others.
    pub fn count(&mut self, managed: impl IntoIterator<Item = Uid>, present: impl Fn(Uid) -> bool) {
        let absent = managed.into_iter().filter(|uid| !present(*uid));
        self.missing = absent
            .map(|Uid(uid)| (uid, self.missing.get(&uid).copied().unwrap_or_default().saturating_add(1)))
            .collect();
    }

    /// Returns from how many complete rosters in a row the user with `uid` was missing.
    pub fn missing(&self, uid: Uid) -> u32 {
        self.missing.get(&uid.0).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_user_is_counted_until_the_user_is_back() {
        let mut state = State::default();
        let managed = [Uid(1), Uid(2)];
        state.count(managed, |uid| uid == Uid(1));
        state.count(managed, |uid| uid == Uid(1));
        assert_eq!((state.missing(Uid(1)), state.missing(Uid(2))), (0, 2));
        state.count(managed, |_| true);
        assert_eq!(state.missing(Uid(2)), 0);
        state.count(managed, |_| false);
        assert_eq!((state.missing(Uid(1)), state.missing(Uid(2))), (1, 1));
    }

    #[test]
    fn a_saved_state_is_loaded_and_a_broken_one_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/importer.json");
        assert_eq!(State::load(&path, false).unwrap(), (State::default(), None));
        let mut state = State::default();
        state.count([Uid(7)], |_| false);
        state.locked.insert("ann".into(), "20000".into());
        state.save(&path).unwrap();
        assert_eq!(State::load(&path, false).unwrap(), (state, None));
        for broken in ["", "{", "{\"version\": 2}", "{\"version\": 1, \"more\": 1}"] {
            std::fs::write(&path, broken).unwrap();
            assert!(State::load(&path, true).unwrap().1.is_some() && path.exists(), "{broken}");
            let (state, warning) = State::load(&path, false).unwrap();
            assert_eq!(state, State::default(), "{broken}");
            assert!(warning.unwrap().contains("importer.broken"), "{broken}");
            assert!(!path.exists());
        }
    }
}
