//! Replacing a file so that it is there whole, before or after: written beside it, then renamed.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{XattrFlags, fsetxattr, getxattr};

/// Where SELinux has its state, if it is there: without it nobody but who may do everything may write labels.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Where SELinux keeps a file's label (see selinux(8)).
const LABEL: &str = "security.selinux";

/// Writes `bytes` to `unfinished`, completely and to the disk, with the owner, mode and label of `path`.
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

/// Replaces the file `path`, or makes it, so that it holds the old bytes or `bytes` also after a crash. It belongs to the caller and has
/// `mode`. Until it is complete it is called `PATH.new`: only one process may replace a file at a time.
///
/// # Errors
/// Returns an error if it cannot be written. The old file stays, and nothing is left beside it.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    replace_by_way_of(path, Path::new(&unfinished), bytes, mode)
}

fn replace_by_way_of(path: &Path, unfinished: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let replaced = write_new(unfinished, bytes, mode).and_then(|()| std::fs::rename(unfinished, path));
    if let Err(error) = replaced {
        // It would only take room from the next try.
        let _ = std::fs::remove_file(unfinished);
        return Err(error);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

/// Writes `bytes` to `unfinished`, completely and to the disk, with `mode`: for a file that is not there yet.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn write_new(unfinished: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create(unfinished)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Puts a file with `bytes` into `folder`, which is made for whoever runs this alone if it is not there. `unfinished` is its name
/// until it is complete.
///
/// # Errors
/// Returns an error if the folder or the file cannot be written.
pub fn put_private(folder: &Path, name: &str, unfinished: &str, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    replace_by_way_of(&folder.join(name), &folder.join(unfinished), bytes, 0o600)
}

/// Whether `folder` is a folder that nobody but whoever runs this could have written.
pub fn is_private(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
    })
}

/// A file of that name that nobody else has, in the place of what an earlier try left.
fn create(unfinished: &Path) -> io::Result<std::fs::File> {
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(unfinished)
}
