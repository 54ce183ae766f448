//! The paths of files and folders. Each is defined here once; the packages, the drop-ins and the box use the same paths.

/// The configuration.
pub const CONFIG: &str = "/etc/pam_iam/config.toml";

/// A file of `NAME=VALUE` lines with the `AWS_*` variables for the AWS SDK in the resolver. The resolver's unit has it
/// as its `EnvironmentFile`. A program that starts `iam-resolver --once` reads it and passes the variables on.
pub const ENVIRONMENT: &str = "/etc/pam_iam/environment";

/// The resolver's socket.
pub const SOCKET: &str = "/run/pam_iam/resolver.sock";

/// The map: what NSS may tell anybody about managed accounts. The resolver writes it.
pub const MAP: &str = "/run/pam_iam/map/nss.map";

/// The program of the resolver.
pub const RESOLVER: &str = "/usr/libexec/pam_iam/iam-resolver";

/// The system user that the resolver runs as.
pub const RESOLVER_USER: &str = "iam-resolver";

/// The registry of open sessions: a folder for root alone.
pub const SESSIONS: &str = "/run/pam_iam/sessions";

/// The report of the last sweep, for `iamctl status`.
pub const SWEPT: &str = "/run/pam_iam/sweep.json";

/// The gids of the local groups that IAM groups map to, and of the groups iam-users and iam-sudo if they are local, one
/// a line. Root writes the file: outside the managed range, the NSS module accepts no other gid.
pub const MAPPED_GIDS: &str = "/run/pam_iam/mapped-gids";

/// The shell of managed accounts, as root read it in the configuration. The NSS module accepts no other, but for those of
/// shells(5).
pub const SHELL: &str = "/run/pam_iam/shell";

/// The shells that users may have, see shells(5).
pub const SHELLS: &str = "/etc/shells";

/// The folder with a file `PID-START` for each process that keeps control groups frozen at the moment. The file lists
/// these groups, one a line.
pub const FROZEN: &str = "/run/pam_iam/frozen";

/// The gids of privileged groups that IAM groups map to, or have mapped to since the boot, one a line. Root writes the
/// file for later sweeps.
pub const PRIVILEGED_GIDS: &str = "/run/pam_iam/privileged-gids";

/// The folder with a file for each uid of the managed range that an IAM user has had on this host. The file is called by
/// the uid and holds the user's last Linux name. The folder belongs to root, and is kept when the resolver's cache is
/// removed.
pub const SERVED: &str = "/var/lib/pam_iam/served";

/// The folder with a file for each Linux name that has an owner. The file holds the uid of the user who last opened a
/// session under the name. The folder belongs to root.
pub const OWNERS: &str = "/var/lib/pam_iam/owners";

/// The folder of the resolver's cache, for the resolver alone.
pub const CACHE: &str = "/var/cache/pam_iam";

/// A folder that exists if systemd is the first process (sd_booted(3)).
pub const BOOTED_BY_SYSTEMD: &str = "/run/systemd/system";

/// The socket of journald, see "Journal Native Protocol" in systemd's documentation.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// The folder with the files that the packages install and `iamctl enable` copies.
pub const SHARE: &str = "/usr/share/pam_iam";

/// The record of what `iamctl enable` changed, by which `iamctl disable` takes it back.
pub const ENABLED: &str = "/var/lib/pam_iam/enabled.json";

/// The record that the importer keeps for its next run.
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

/// The environment variable that a program sets for children whose lookups are not logins: they start no revalidation.
pub const LOOK_ONLY: &str = "PAM_IAM_LOOK_ONLY";

/// The record of a trial that `iamctl enable --try` began, with the time at which it ends.
pub const TRIAL: &str = "/var/lib/pam_iam/trial.json";
