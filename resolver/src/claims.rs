//! Names that the host needs for itself although it has no account of that name yet. No IAM user gets such a name: a
//! package that finds the name in use creates no account, and its daemon would run under the uid of the IAM user.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pam_iam_core::unit::runs_as;
use tokio::time::Instant;

use crate::watch::Folders;

/// How long the claims are used before they are read again. A change in one of the folders is noticed at once, a change in a folder
/// of drop-ins only after this time.
const SERVES: Duration = Duration::from_secs(60);

/// The folders of packages' units, in which `User=` claims a name. In a unit under /etc it does not: the administrator
/// may mean the IAM user of that name.
const OF_PACKAGES: [&str; 3] =
    ["usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// The folders of all units, in which `DynamicUser=` claims a name.
const UNITS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// The folders of sysusers.d(5).
const SYSUSERS: [&str; 4] =
    ["etc/sysusers.d", "run/sysusers.d", "usr/local/lib/sysusers.d", "usr/lib/sysusers.d"];

/// The names that units and sysusers.d claim, read again when their folders change.
#[derive(Debug)]
pub struct Claims {
    root: PathBuf,
    read: RefCell<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    at: Instant,
    watch: Watched,
    /// The claimed names, each with a text about what claims it.
    names: BTreeMap<String, String>,
}

/// How a change in one of the folders is noticed.
#[derive(Debug)]
enum Watched {
    ByKernel(Folders),
    /// Where a folder may not be watched: by the time of each folder's last change.
    ByTime(Vec<Option<SystemTime>>),
}

impl Claims {
    /// Returns the claims of the host whose files are under `root`.
    pub fn new(root: &Path) -> Self {
        let claims = Self { root: root.to_owned(), read: RefCell::default() };
        claims.refresh();
        claims
    }

    /// Reads the claims again if a folder has changed, or the last read is [`SERVES`] ago. To be called at the start of a request,
    /// since [`Self::of`] does not check. Returns whether the claims have changed.
    pub fn refresh(&self) -> bool {
        let mut read = self.read.borrow_mut();
        let serves = |read: &mut Read| {
            let has_changed = match &mut read.watch {
                Watched::ByKernel(folders) => folders.have_changed(),
                Watched::ByTime(times) => *times != self.times(),
            };
            !has_changed && read.at.elapsed() < SERVES
        };
        if read.as_mut().is_some_and(serves) {
            return false;
        }
        let (watch, before) = read.take().map(|read| (read.watch, read.names)).unzip();
        // The watch begins before the folders are read, so no change falls in between.
        let watch = self.begin_again(watch);
        let names = self.names();
        let has_changed = before.as_ref() != Some(&names);
        *read = Some(Read { at: Instant::now(), watch, names });
        has_changed
    }

    fn begin_again(&self, watch: Option<Watched>) -> Watched {
        let folders = match watch {
            Some(Watched::ByKernel(mut folders)) => folders.begin_again().map(|()| folders),
            Some(Watched::ByTime(_)) | None => Folders::on(self.folders()),
        };
        folders.map_or_else(|_| Watched::ByTime(self.times()), Watched::ByKernel)
    }

    /// Returns the unit or the file of sysusers.d(5) that claims `name`.
    pub fn of(&self, name: &str) -> Option<String> {
        self.read.borrow().as_ref()?.names.get(name).cloned()
    }

    /// Returns the folders whose changes may change the claims.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        UNITS.iter().chain(&SYSUSERS).map(|folder| self.root.join(folder))
    }

    fn times(&self) -> Vec<Option<SystemTime>> {
        self.folders().map(|folder| std::fs::metadata(folder).ok()?.modified().ok()).collect()
    }

    fn names(&self) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        let in_root = |folders: &[&str]| -> Vec<PathBuf> {
            folders.iter().map(|folder| self.root.join(folder)).collect()
        };
        let of_packages = in_root(&OF_PACKAGES);
        for (unit, path) in files(&of_packages, "service") {
            let user =
                runs_as(&of_packages, &unit).and_then(|runs_as| runs_as.literal_user().map(str::to_owned));
            names.extend(user.map(|user| (user, format!("the unit {} runs as that name", path.display()))));
        }
        let units = in_root(&UNITS);
        for (unit, path) in files(&units, "service") {
            let Some(runs_as) = runs_as(&units, &unit).filter(|runs_as| runs_as.is_dynamic) else { continue };
            let name = match &runs_as.user {
                Some(_) => runs_as.literal_user().map(str::to_owned),
                // Each instance of a template unit has another name.
                None => unit.strip_suffix(".service").filter(|name| !name.contains('@')).map(str::to_owned),
            };
            let claim = format!("the unit {} has systemd make a user of that name", path.display());
            names.extend(name.map(|name| (name, claim)));
        }
        for (_, path) in files(&in_root(&SYSUSERS), "conf") {
            let text = std::fs::read(&path).unwrap_or_default();
            for line in String::from_utf8_lossy(&text).lines() {
                if let Some(name) = name_in_sysusers(line) {
                    names.insert(
                        name.to_owned(),
                        format!("{} makes an account or group of that name", path.display()),
                    );
                }
            }
        }
        names
    }
}

/// Returns the user or group that a line of sysusers.d(5) creates. None if it creates none, or the name has a specifier.
fn name_in_sysusers(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let makes = matches!(words.next()?, "u" | "u!" | "g");
    words.next().filter(|name| makes && !name.contains('%')).map(|name| name.trim_matches('"'))
}

/// Returns the files in `folders` with the extension `ending`, by name. If several have one name, the one in the first
/// folder counts.
fn files(folders: &[PathBuf], ending: &str) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == ending)
            && let Some(name) = entry.file_name().to_str()
        {
            files.entry(name.to_owned()).or_insert(path);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn names_in_packaged_units_and_sysusers_are_claimed_and_those_by_an_administrator_are_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("usr/lib/systemd/system/ci.service", "[Service]\nUser=jenkins\n");
        write("usr/lib/systemd/system/run@.service", "[Service]\nUser=%i\n");
        write("usr/lib/systemd/system/cache.service", "[Service]\nDynamicUser=yes\n");
        write("usr/lib/systemd/system/job@.service", "[Service]\nDynamicUser=yes\n");
        write("etc/systemd/system/own.service", "[Service]\nUser=alice\n");
        write("etc/systemd/system/dynamic.service", "[Service]\nDynamicUser=yes\nUser=worker\n");
        write(
            "usr/lib/sysusers.d/db.conf",
            "# u no\nu postgres 5432 \"db\" /var/lib/pg\ng render -\nm carol render\n",
        );
        let claims = Claims::new(root.path());
        for name in ["jenkins", "cache", "worker", "postgres", "render"] {
            assert!(claims.of(name).is_some(), "{name}");
        }
        for name in ["alice", "carol", "no", "%i", "run@", "job@", "own", "dynamic"] {
            assert_eq!(claims.of(name), None, "{name}");
        }
        write("usr/lib/systemd/system/ci.service", "[Service]\nUser=jenkins\nNice=1\n");
        assert!(!claims.refresh(), "read again, and found to be the same");
        assert!(claims.of("jenkins").unwrap().contains("usr/lib/systemd/system/ci.service"));
        // Packages that are installed later.
        write("usr/lib/systemd/system/bob.service", "[Service]\nUser=bob\n");
        assert!(claims.refresh() && !claims.refresh());
        assert!(claims.of("bob").is_some());
        write("usr/local/lib/systemd/system/ann.service", "[Service]\nUser=ann\n");
        assert!(claims.refresh() && claims.of("ann").is_some(), "a folder that was missing");
        write("usr/lib/systemd/system/ci.service.d/user.conf", "[Service]\nUser=runner\n");
        tokio::time::advance(SERVES).await;
        assert!(claims.refresh() && claims.of("runner").is_some());
    }

    #[test]
    fn a_host_without_systemd_claims_nothing_so() {
        let root = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { assert_eq!(Claims::new(root.path()).of("alice"), None) });
    }
}
