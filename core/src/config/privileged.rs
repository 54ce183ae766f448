//! Linux groups whose members can become root.

/// Groups of a host's devices, to which administrators add IAM users by hand: the configuration has to say that IAM gives
/// them, and yet they claim nobody's name.
const DEVICE_GROUPS: [&str; 6] = ["input", "kvm", "lpadmin", "netdev", "render", "video"];

/// The groups of [`PRIVILEGED_GROUPS`] that mean root: a name that one of them lists is nobody else's.
pub fn groups_of_root() -> Vec<&'static str> {
    PRIVILEGED_GROUPS.iter().copied().filter(|group| !DEVICE_GROUPS.contains(group)).collect()
}

/// Local groups whose members are root in all but name; mapping an IAM group to one needs `allow_privileged`.
/// From Debian's and Red Hat's lists of system groups, and from what is known to give root (docker, lxd).
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
