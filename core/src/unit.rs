//! Units of systemd that an administrator or a package wrote, and the users that they run as (systemd.exec(5)).

use std::path::{Path, PathBuf};

/// The folders with the units that an administrator or a package wrote, the first of which takes precedence. /run is not
/// among them: it holds transient units, which a user may have started.
pub const FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The user that a service runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunsAs {
    /// The value of `User=`, if it is set.
    pub user: Option<String>,
    /// Whether `DynamicUser=` is set: systemd then creates the user when the service starts.
    pub is_dynamic: bool,
}

impl RunsAs {
    /// Returns the name in `User=`. None if it contains a specifier like `%i`, whose value the user who starts the
    /// instance can choose.
    pub fn literal_user(&self) -> Option<&str> {
        self.user.as_deref().filter(|user| !user.contains('%'))
    }
}

/// Returns the user that `unit` runs as, from its fragment (its own file) and its drop-ins in `folders`. None if there
/// is no such unit.
pub fn runs_as(folders: &[PathBuf], unit: &str) -> Option<RunsAs> {
    // An instance uses the fragment of its template, unless it has one of its own.
    let template = unit.split_once('@').map(|(prefix, _)| format!("{prefix}@.service"));
    let names = [Some(unit.to_owned()), template];
    let names: Vec<String> = names.into_iter().flatten().collect();
    let mut found = RunsAs::default();
    let fragment = names.iter().find_map(|name| folders.iter().find_map(|folder| read(&folder.join(name))));
    found.read(&fragment?);
    for name in names.iter().rev() {
        for folder in folders.iter().rev() {
            for drop_in in drop_ins(&folder.join(format!("{name}.d"))) {
                found.read(&drop_in);
            }
        }
    }
    Some(found)
}

fn drop_ins(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect());
    let mut paths: Vec<PathBuf> =
        entries.unwrap_or_else(|_| Vec::new()).iter().map(std::fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    paths.iter().filter_map(|path| read(path)).collect()
}

fn read(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned())
}

impl RunsAs {
    /// Applies what a fragment or drop-in sets in its section `[Service]`. An empty `User=` takes back an earlier one.
    fn read(&mut self, text: &str) {
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| section == "[Service]") else {
                continue;
            };
            let value = value.trim();
            match key.trim() {
                "User" => self.user = (!value.is_empty()).then(|| value.to_owned()),
                "DynamicUser" => self.is_dynamic = ["1", "yes", "true", "on"].contains(&value),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_that_an_administrator_wrote_literally_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, lib) = (dir.path().join("etc"), dir.path().join("lib"));
        let folders = [etc.clone(), lib.clone()];
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(lib.join("app.service"), "[Unit]\nUser=no\n[Service]\n User = alice\n");
        write(lib.join("run@.service"), "[Service]\nUser=%i\n");
        write(lib.join("none.service"), "[Service]\nExecStart=/bin/true\n");
        let user = |unit: &str| runs_as(&folders, unit)?.literal_user().map(str::to_owned);
        assert_eq!(user("app.service").as_deref(), Some("alice"));
        assert_eq!(user("run@alice.service"), None, "whoever starts it chooses");
        assert_eq!(user("none.service"), None);
        assert_eq!(user("run-r123.service"), None, "transient");
        write(etc.join("app.service.d/user.conf"), "[Service]\nUser=bob\n");
        assert_eq!(user("app.service").as_deref(), Some("bob"));
        write(etc.join("app.service"), "[Service]\nUser=carol\n");
        write(etc.join("app.service.d/user.conf"), "[Service]\nUser=\n");
        assert_eq!(user("app.service"), None);
        write(etc.join("job.service"), "[Service]\nDynamicUser=yes\n");
        assert!(runs_as(&folders, "job.service").unwrap().is_dynamic);
    }
}
