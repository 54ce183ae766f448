use super::*;
use pam_iam_core::config::AbsolutePath;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

struct Host {
    dir: tempfile::TempDir,
    settings: Home,
    owner: Owner,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let skel = dir.path().join("skel");
        fs::create_dir_all(skel.join(".config")).unwrap();
        fs::write(skel.join(".bashrc"), "alias ll='ls -l'\n").unwrap();
        fs::write(skel.join(".config/x"), "x").unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        fs::set_permissions(dir.path().join("home"), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = Home { skel: AbsolutePath(skel), on_mismatch: OnMismatch::Refuse };
        let owner = Owner { uid: rustix::process::geteuid(), gid: rustix::process::getegid() };
        Self { dir, settings, owner }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn ensure(&self, home: &str) -> Result<Made, HomeError> {
        ensure(&self.path(home), self.owner, &self.settings)
    }

    /// Returns the names in the parent of the home directories.
    fn homes(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("home"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_home_directory_is_made_with_the_skeleton_in_it() {
    let host = Host::new();
    assert_eq!(host.ensure("home/alice").unwrap(), Made::New);
    assert_eq!(fs::read_to_string(host.path("home/alice/.bashrc")).unwrap(), "alias ll='ls -l'\n");
    assert_eq!(fs::read_to_string(host.path("home/alice/.config/x")).unwrap(), "x");
    assert_eq!(host.homes(), ["alice"]);
    assert_eq!(host.ensure("home/alice").unwrap(), Made::WasThere);
}

#[test]
fn a_missing_parent_is_made() {
    let host = Host::new();
    assert_eq!(host.ensure("home/iam/staff/alice").unwrap(), Made::New);
    assert_eq!(fs::metadata(host.path("home/iam")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn links_special_files_and_setuid_bits_of_the_skeleton_do_no_harm() {
    let host = Host::new();
    let skel = host.path("skel");
    symlink("/etc/shadow", skel.join("link")).unwrap();
    rustix::fs::mknodat(CWD, skel.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::set_permissions(skel.join(".bashrc"), fs::Permissions::from_mode(0o6755)).unwrap();
    assert_eq!(host.ensure("home/alice").unwrap(), Made::New);
    assert_eq!(fs::read_link(host.path("home/alice/link")).unwrap(), Path::new("/etc/shadow"));
    assert!(!host.path("home/alice/fifo").exists());
    assert_eq!(fs::metadata(host.path("home/alice/.bashrc")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_file_or_link_in_the_place_of_the_home_is_not_touched() {
    let host = Host::new();
    fs::write(host.path("home/alice"), "a file").unwrap();
    assert!(matches!(host.ensure("home/alice"), Err(HomeError::NotADirectory)));
    symlink(host.path("nowhere"), host.path("home/bob")).unwrap();
    assert!(host.ensure("home/bob").is_err());
    assert!(!host.path("nowhere").exists());
    assert_eq!(host.homes(), ["alice", "bob"]);
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let mut host = Host::new();
    fs::create_dir(host.path("home/alice")).unwrap();
    fs::write(host.path("home/alice/secret"), "old").unwrap();
    // A directory of root is accepted, so if root runs the test, the directory gets another owner.
    let other = if host.owner.uid.is_root() { Uid::from_raw(4242) } else { host.owner.uid };
    rustix::fs::chown(host.path("home/alice"), Some(other), None).unwrap();
    host.owner.uid = Uid::from_raw(other.as_raw() + 1);
    // Only a directory of an earlier IAM user is moved aside. This one belongs to a local user.
    for on_mismatch in [OnMismatch::Refuse, OnMismatch::Aside] {
        host.settings.on_mismatch = on_mismatch;
        assert!(matches!(host.ensure("home/alice"), Err(HomeError::Foreign { owner }) if owner == other));
        assert_eq!(host.homes(), ["alice"]);
    }
    assert_eq!(fs::read_to_string(host.path("home/alice/secret")).unwrap(), "old");
}

#[test]
fn a_directory_that_others_write_to_is_no_place_for_homes() {
    let host = Host::new();
    fs::set_permissions(host.path("home"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(host.ensure("home/alice"), Err(HomeError::Exposed(path)) if path == host.path("home")));
    assert!(host.homes().is_empty());
    // As on a network file system whose folder belongs to its server: an existing directory of the owner is used.
    fs::create_dir(host.path("home/alice")).unwrap();
    assert_eq!(host.ensure("home/alice").unwrap(), Made::WasThere);
    fs::write(host.path("home/bob"), "a file").unwrap();
    assert!(matches!(host.ensure("home/bob"), Err(HomeError::Exposed(_))));
}

#[test]
fn the_remains_of_a_crash_are_removed_and_a_home_in_the_making_is_not() {
    let host = Host::new();
    let left = host.path("home/.pam_iam-alice-0123456789abcdef");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(".bashrc"), "half").unwrap();
    let building = host.path("home/.pam_iam-alice-fedcba9876543210");
    fs::create_dir(&building).unwrap();
    let lock = fs::File::open(&building).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let namesake = host.path("home/.pam_iam-alice-b-0123456789abcdef");
    fs::create_dir(&namesake).unwrap();
    assert_eq!(host.ensure("home/alice").unwrap(), Made::New);
    let names = [".pam_iam-alice-b-0123456789abcdef", ".pam_iam-alice-fedcba9876543210", "alice"];
    assert_eq!(host.homes(), names);
}

#[test]
fn of_many_first_logins_at_once_one_makes_the_directory_and_all_have_it() {
    for _ in 0..20 {
        let host = Host::new();
        let made: Vec<Made> = std::thread::scope(|scope| {
            let logins: Vec<_> =
                (0..16).map(|_| scope.spawn(|| host.ensure("home/alice").unwrap())).collect();
            logins.into_iter().map(|login| login.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| **made == Made::New).count(), 1);
        assert_eq!(host.homes(), ["alice"]);
        assert!(host.path("home/alice/.config/x").exists());
    }
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let mut host = Host::new();
    host.settings.skel = AbsolutePath(host.path("no-skeleton"));
    assert!(matches!(host.ensure("home/alice"), Err(HomeError::Skeleton(_))));
    assert!(host.homes().is_empty());
}

#[test]
fn paths_that_make_no_sense_are_refused() {
    let host = Host::new();
    for path in ["", "/", "relative/alice", "/../../.."] {
        assert!(ensure(Path::new(path), host.owner, &host.settings).is_err(), "{path}");
    }
    assert!(host.ensure("home/../home/alice").is_err());
}

#[test]
fn the_mode_is_that_of_login_defs() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mode = |text: &str| {
        fs::write(file.path(), text).unwrap();
        home_mode(file.path())
    };
    assert_eq!(mode("UMASK 022\n"), 0o755);
    assert_eq!(mode("#HOME_MODE 0750\nUMASK\t\t077\n"), 0o700);
    assert_eq!(mode("UMASK 022\nHOME_MODE 0750\n"), 0o750);
    assert_eq!(mode("HOME_MODE rubbish\n"), 0o755);
    assert_eq!(home_mode(Path::new("/nonexistent")), 0o755);
}
