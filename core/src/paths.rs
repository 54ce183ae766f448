//! Where things are. Each path stands here once; the packages, the drop-ins and the box follow it.

/// The configuration.
pub const CONFIG: &str = "/etc/pam_iam/config.toml";

/// `NAME=VALUE` lines with the `AWS_*` variables that the AWS SDK in the resolver is to see. The unit reads it as
/// its `EnvironmentFile`; whoever runs `iam-resolver --once` reads it in its place.
pub const ENVIRONMENT: &str = "/etc/pam_iam/environment";

/// The resolver's socket.
pub const SOCKET: &str = "/run/pam_iam/resolver.sock";

/// The resolver.
pub const RESOLVER: &str = "/usr/libexec/pam_iam/iam-resolver";

/// The system user that the resolver runs as.
pub const RESOLVER_USER: &str = "iam-resolver";

/// Where the open sessions are registered, for root alone.
pub const SESSIONS: &str = "/run/pam_iam/sessions";

/// What the last sweep did, for `iamctl status`.
pub const SWEPT: &str = "/run/pam_iam/sweep.json";

/// The gids of the local groups that the configuration maps IAM groups to, one a line, written by root: the NSS module
/// believes no other gid outside our range.
pub const MAPPED_GIDS: &str = "/run/pam_iam/mapped-gids";

/// Which control groups a process has standing still now, one a line: in it a file for each process, called by its number.
pub const FROZEN: &str = "/run/pam_iam/frozen";

/// The gids of groups as good as root that IAM groups map to, or did since the boot, one a line, written by root for later
/// sweeps.
pub const PRIVILEGED_GIDS: &str = "/run/pam_iam/privileged-gids";

/// Whose uids of our range were ever served on this host: a file for each, called by the uid, with the user's last Linux
/// name in it. It is root's, and outlives the resolver's cache.
pub const SERVED: &str = "/var/lib/pam_iam/served";

/// Who last opened a session under each Linux name: a file for each name, with the uid in it. It is root's.
pub const OWNERS: &str = "/var/lib/pam_iam/owners";

/// Where the resolver keeps what it learned, for itself alone.
pub const CACHE: &str = "/var/cache/pam_iam";

/// Is there where systemd is the first process (sd_booted(3)).
pub const BOOTED_BY_SYSTEMD: &str = "/run/systemd/system";

/// journald's own socket, see "Journal Native Protocol" in systemd's documentation.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// The files that the packages put in place and `iamctl enable` copies.
pub const SHARE: &str = "/usr/share/pam_iam";

/// What `iamctl enable` changed, so that `iamctl disable` takes it back.
pub const ENABLED: &str = "/var/lib/pam_iam/enabled.json";

/// What one run of the importer tells the next.
pub const IMPORTER_STATE: &str = "/var/lib/pam_iam/importer.json";

/// The local accounts, see passwd(5).
pub const PASSWD: &str = "/etc/passwd";

/// The subordinate uids, see subuid(5).
pub const SUBUID: &str = "/etc/subuid";

/// The local groups, see group(5).
pub const GROUP: &str = "/etc/group";

/// The shell of an account that may not log in.
pub const NOLOGIN: &str = "/usr/sbin/nologin";

/// Defaults for new accounts, see login.defs(5).
pub const LOGIN_DEFS: &str = "/etc/login.defs";

/// The variable that a program sets for its children whose lookups are no login: IAM is not asked anew because of them.
pub const LOOK_ONLY: &str = "PAM_IAM_LOOK_ONLY";

/// Until when `iamctl enable --try` is on trial.
pub const TRIAL: &str = "/var/lib/pam_iam/trial.json";
