//! Linux groups whose members can become root.

/// Groups for devices of a host. A mapping to one of them needs `allow_privileged`. But the name of a member is not
/// claimed, since administrators add IAM users to these groups by hand.
const DEVICE_GROUPS: [&str; 6] = ["input", "kvm", "lpadmin", "netdev", "render", "video"];

/// Returns the groups of [`PRIVILEGED_GROUPS`] whose listed members are the host's own users: their names are claimed,
/// and go to no IAM user.
pub fn groups_of_root() -> Vec<&'static str> {
    PRIVILEGED_GROUPS.iter().copied().filter(|group| !DEVICE_GROUPS.contains(group)).collect()
}

/// Local groups whose members can become root. Mapping an IAM group to one of them needs `allow_privileged`. The list
/// combines the system groups of Debian and Red Hat with groups that are known to give root (docker, lxd).
pub const PRIVILEGED_GROUPS: &[&str] = &[
    "adm",
    "admin",
    "bin",
    "crontab",
    "daemon",
    "disk",
    "docker",
    "google-sudoers",
    "incus",
    "incus-admin",
    "input",
    "kmem",
    "kvm",
    "libvirt",
    "lpadmin",
    "lxd",
    "mail",
    "mem",
    "microk8s",
    "netdev",
    "render",
    "root",
    "shadow",
    "ssh_keys",
    "ssl-cert",
    "staff",
    "sudo",
    "sys",
    "systemd-journal",
    "tape",
    "tty",
    "utmp",
    "video",
    "wheel",
];
