//! Groups that a set-group-id program of the host lends to the user who runs it.

use std::os::unix::fs::MetadataExt;

use pam_iam_core::id::Gid;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::PROC;

/// Whether a process runs a setgid program of the host whose file has the group `gid`.
///
/// The program may be on a file system that the user serves, which may lie or never answer. So its mount is read first,
/// which the kernel knows without that file system.
pub(super) fn is_lent(pid: i32, gid: Gid) -> bool {
    const SET_GID: u32 = 0o2000;
    let program = format!("{PROC}/{pid}/exe");
    let Ok(found) = statx(CWD, &program, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID) else { return false };
    // A kernel before 5.8 does not return the mount.
    let mount = (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id);
    is_of_the_host(mount, (found.stx_dev_major, found.stx_dev_minor))
        && std::fs::metadata(program).is_ok_and(|program| {
            program.uid() == 0 && program.gid() == gid.0 && program.mode() & SET_GID != 0
        })
}

/// Whether a file is on a mount of the host where setgid files take effect. If the mount is not one of the host's, as in a
/// session with its own mount namespace (pam_namespace(8)), the device is compared.
fn is_of_the_host(mount: Option<u64>, device: (u32, u32)) -> bool {
    let mounts = std::fs::read(format!("{PROC}/1/mountinfo")).unwrap_or_default();
    gives_groups(&String::from_utf8_lossy(&mounts), mount, device)
}

/// Whether setgid files take effect on a mount or, if it is not listed, on any mount of the device. `mountinfo` is the text
/// of a file described in proc_pid_mountinfo(5). They never do on FUSE, since a user may serve the file system. Any other
/// mount by a user is in a mount namespace of the user's and has its own device.
pub(super) fn gives_groups(mountinfo: &str, mount: Option<u64>, (major, minor): (u32, u32)) -> bool {
    let device = format!("{major}:{minor}");
    let mounts: Vec<(Option<u64>, bool, bool)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let fields: Vec<&str> = before.split(' ').collect();
            let [id, _, of_device, _, _, options, ..] = fields.as_slice() else { return None };
            let gives = !after.starts_with("fuse") && !options.split(',').any(|option| option == "nosuid");
            Some((id.parse().ok(), *of_device == device, gives))
        })
        .collect();
    let by_mount = mounts.iter().find(|(id, ..)| mount.is_some() && *id == mount);
    by_mount.map_or_else(
        || mounts.iter().any(|(_, is_on_device, gives)| *is_on_device && *gives),
        |(.., gives)| *gives,
    )
}
