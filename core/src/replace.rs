//! Replaces files atomically: the new content is written to a second file in the same folder, which is then renamed.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{XattrFlags, fsetxattr, getxattr};

/// A file that exists if SELinux is enabled. Without SELinux, only a process with CAP_SYS_ADMIN may write labels.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// The extended attribute that holds the SELinux label of a file (selinux(8)).
const LABEL: &str = "security.selinux";

/// Writes `bytes` to the file `unfinished` and to the disk (fsync(2)), with the owner, mode and label of `path`.
///
/// # Errors
/// Returns an error if `path` cannot be read or `unfinished` cannot be written.
pub fn write_like(path: &Path, unfinished: &Path, bytes: &[u8]) -> io::Result<()> {
    let model = std::fs::metadata(path)?;
    let mut file = create(unfinished)?;
    file.write_all(bytes)?;
    std::os::unix::fs::fchown(file.as_fd(), Some(model.uid()), Some(model.gid()))?;
    file.set_permissions(Permissions::from_mode(model.mode() & 0o7777))?;
    let mut label = [0; 1024];
    if Path::new(SELINUX).exists()
        && let Ok((label, _)) = getxattr(path, LABEL, &mut label[..]).map(|length| label.split_at(length))
    {
        fsetxattr(&file, LABEL, label, XattrFlags::empty())?;
    }
    file.sync_all()
}

/// Creates or replaces the file `path`. After a crash it holds either the old bytes or `bytes`. It belongs to this
/// process's user and has `mode`. Until it is complete it is called `PATH.new`, so only one process may replace it at a
/// time.
///
/// # Errors
/// Returns an error if the file or its folder cannot be written. Nothing is left beside the file, which is the old one
/// unless only the final fsync(2) of the folder failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    replace_by_way_of(path, Path::new(&unfinished), bytes, mode)
}

fn replace_by_way_of(path: &Path, unfinished: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let replaced = write_new(unfinished, bytes, mode).and_then(|()| std::fs::rename(unfinished, path));
    if let Err(error) = replaced {
        // An unfinished file would only take up the space that the next attempt needs.
        let _ = std::fs::remove_file(unfinished);
        return Err(error);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

/// Writes `bytes` to the file `unfinished` and to the disk (fsync(2)), with `mode`. For a target that does not exist
/// yet.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_new(unfinished: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create(unfinished)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Writes a file called `name` with `bytes` into `folder`, which is created for this process's user alone if it does not
/// exist. Until the file is complete it is called `unfinished`.
///
/// # Errors
/// Returns an error if the folder or the file cannot be written.
pub fn put_private(folder: &Path, name: &str, unfinished: &str, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    replace_by_way_of(&folder.join(name), &folder.join(unfinished), bytes, 0o600)
}

/// Whether `folder` is a folder that belongs to this process's user and that no other user may write.
pub fn is_private(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
    })
}

/// Creates the file `unfinished`, which no other process has open. A file that an earlier attempt left is removed first.
fn create(unfinished: &Path) -> io::Result<std::fs::File> {
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(unfinished)
}
