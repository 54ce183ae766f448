//! Tells who can read a file, by owners and modes: no process is started as another user to find out.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pam_iam_core::config::Config;
use pam_iam_core::{local, paths};

/// A user of pam_iam cannot read the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{user} cannot read {0}, as it has to: chmod 644 {0}, and 755 its folder", .path.display())]
pub struct CannotRead {
    user: String,
    path: PathBuf,
}

/// Returns an error if the resolver's or the key command's user cannot read the configuration.
pub fn cannot_read(config: &Config, path: &Path) -> Option<CannotRead> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    [paths::RESOLVER_USER, &config.keys.user].into_iter().find_map(|user| {
        let is_readable = can_read(user, &path)?;
        (!is_readable).then(|| CannotRead { user: user.to_owned(), path: path.clone() })
    })
}

/// Whether `user` can read a file, by the owners and modes on the way to it. None if there is no such user. Access control lists are
/// ignored.
pub fn can_read(user: &str, path: &Path) -> Option<bool> {
    let account = local::account_by_name(Path::new(paths::PASSWD), user).ok()??;
    let groups = local::groups(Path::new(paths::GROUP)).unwrap_or_default();
    let gids: Vec<u32> = groups
        .iter()
        .filter(|group| group.has(&account))
        .map(|group| group.gid.0)
        .chain([account.gid.0])
        .collect();
    let may = |path: &Path, bit: u32| {
        std::fs::metadata(path).is_ok_and(|found| {
            let shift = match (found.uid() == account.uid.0, gids.contains(&found.gid())) {
                (true, _) => 6,
                (false, true) => 3,
                (false, false) => 0,
            };
            account.uid.0 == 0 || found.mode() >> shift & bit != 0
        })
    };
    // Links are followed: the real place of the file counts.
    let Ok(path) = std::fs::canonicalize(path) else { return Some(false) };
    Some(path.ancestors().skip(1).all(|folder| may(folder, 0o1)) && may(&path, 0o4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_decide_what_a_user_can_read() {
        use std::os::unix::fs::PermissionsExt;
        // nobody exists on every host, and owns nothing here.
        let dir =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("folder/file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
        };
        for (folder_mode, file_mode, can) in
            [(0o755, 0o644, true), (0o755, 0o640, false), (0o700, 0o644, false), (0o711, 0o604, true)]
        {
            set(&folder, folder_mode);
            set(&file, file_mode);
            assert_eq!(can_read("nobody", &file), Some(can), "{folder_mode:o} {file_mode:o}");
            assert_eq!(can_read("root", &file), Some(true));
        }
        assert_eq!(can_read("nobody", Path::new("/nonexistent")), Some(false));
        assert_eq!(can_read("no-such-user-here", &file), None);
    }
}
