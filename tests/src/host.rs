//! The box as a Linux host: its files, accounts and processes, and PAM and NSS as programs use them.

use serde_json::json;

use crate::{Done, Machine};

/// A file or folder in the box.
#[derive(Clone)]
pub struct File<'machine> {
    machine: &'machine Machine,
    path: String,
}

/// A user of the box, to run commands as.
pub struct AsUser<'machine> {
    machine: &'machine Machine,
    user: String,
    gid: Option<u32>,
    groups: Vec<String>,
}

/// A PAM application, pamtester(1), for one service and user. Each call is a transaction of its own.
pub struct Pam<'machine> {
    machine: &'machine Machine,
    words: Vec<String>,
    service: String,
    user: String,
}

/// An entry of passwd(5) that NSS has returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Passwd {
    /// The name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The id of the primary group.
    pub gid: u32,
    /// The path of the home directory.
    pub home: String,
    /// The path of the login shell.
    pub shell: String,
}

/// An entry of group(5) that NSS has returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The name.
    pub name: String,
    /// The group id.
    pub gid: u32,
    /// The names of the members that the entry lists.
    pub members: Vec<String>,
}

impl Machine {
    /// Runs `iamctl` as root. `words` are its arguments, separated by spaces.
    pub fn iamctl(&self, words: &str) -> Done {
        let mut argv = vec!["iamctl"];
        argv.extend(words.split_whitespace());
        self.run(&argv)
    }

    /// Asserts that `iamctl doctor` prints `text`.
    #[track_caller]
    pub fn doctor_says(&self, text: &str) {
        let said = self.iamctl("doctor").stdout;
        assert!(said.contains(text), "{text}\n--- is not in\n{said}");
    }

    /// Asserts that `iamctl doctor` does not print `text`.
    #[track_caller]
    pub fn doctor_does_not_say(&self, text: &str) {
        let said = self.iamctl("doctor").stdout;
        assert!(!said.contains(text), "{text}\n--- is in\n{said}");
    }

    /// Returns the lines of `iamctl doctor` that do not begin with `ok`.
    pub fn doctor_complaints(&self) -> String {
        let report = self.iamctl("doctor").stdout;
        report.lines().filter(|line| !line.starts_with("ok")).collect::<Vec<_>>().join("\n")
    }

    /// Returns the keys that the key command prints for `user`, one a line. Empty if it prints none.
    pub fn authorized_keys(&self, user: &str) -> String {
        self.run(&["/usr/libexec/pam_iam/iam-authorized-keys", user]).stdout
    }

    /// Runs the key command for a login as `user` for whom sshd has looked up `uid`.
    pub fn key_command(&self, user: &str, uid: u32) -> Done {
        self.run(&["/usr/libexec/pam_iam/iam-authorized-keys", "--uid", &uid.to_string(), user])
    }

    /// Returns a handle to the file or folder `path`, which need not exist.
    pub fn file(&self, path: &str) -> File<'_> {
        File { machine: self, path: path.to_owned() }
    }

    /// Returns the public half of the fixture key `name`: its type and body.
    #[track_caller]
    pub fn public_key(&self, name: &str) -> String {
        let line = self.sh(&format!("ssh-keygen -y -f $BOX_KEYS/{name}")).succeeds();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// Returns a handle to the configuration of pam_iam.
    pub fn config(&self) -> File<'_> {
        self.file("/etc/pam_iam/config.toml")
    }

    /// Returns a handle to run commands as `user` (a name or a uid), by default without supplementary groups.
    pub fn as_user(&self, user: &str) -> AsUser<'_> {
        let groups = vec!["--clear-groups".to_owned()];
        AsUser { machine: self, user: user.to_owned(), gid: None, groups }
    }

    /// Returns a PAM application of the service `service` that handles `user`.
    pub fn pam(&self, service: &str, user: &str) -> Pam<'_> {
        Pam { machine: self, words: Vec::new(), service: service.to_owned(), user: user.to_owned() }
    }

    /// Looks up an account by name or uid, as getpwnam(3) and getpwuid(3) do.
    pub fn passwd(&self, user: &str) -> Option<Passwd> {
        let found = self.run(&["getent", "passwd", "--", user]);
        if found.status != 0 {
            return None;
        }
        let line = found.succeeds();
        let fields: Vec<&str> = line.split(':').collect();
        Some(Passwd {
            name: fields[0].to_owned(),
            uid: fields[2].parse().expect("a uid"),
            gid: fields[3].parse().expect("a gid"),
            home: fields[5].to_owned(),
            shell: fields[6].to_owned(),
        })
    }

    /// Looks up a group by name or gid, as getgrnam(3) and getgrgid(3) do.
    pub fn group(&self, group: &str) -> Option<Group> {
        let found = self.run(&["getent", "group", "--", group]);
        if found.status != 0 {
            return None;
        }
        let line = found.succeeds();
        let fields: Vec<&str> = line.split(':').collect();
        let members = fields[3].split(',').filter(|name| !name.is_empty());
        Some(Group {
            name: fields[0].to_owned(),
            gid: fields[2].parse().expect("a gid"),
            members: members.map(str::to_owned).collect(),
        })
    }

    /// Returns the uid of a user. Fails the test if the user does not exist.
    #[track_caller]
    pub fn uid_of(&self, user: &str) -> u32 {
        self.passwd(user).expect("the user exists").uid
    }

    /// Returns the gid of a group. Fails the test if the group does not exist.
    #[track_caller]
    pub fn gid_of(&self, group: &str) -> u32 {
        self.group(group).expect("the group exists").gid
    }

    /// Returns the names of all groups of a user. Fails the test if the user does not exist.
    #[track_caller]
    pub fn groups_of(&self, user: &str) -> Vec<String> {
        let names = self.run(&["id", "-Gn", user]).succeeds();
        names.split(' ').map(str::to_owned).collect()
    }

    /// Adds a local account with a home directory.
    #[track_caller]
    pub fn add_account(&self, name: &str, uid: u32) {
        self.run(&["useradd", "-m", "-s", "/bin/bash", "-u", &uid.to_string(), name]).succeeds();
    }

    /// Makes `name` a local group with this gid and without members.
    #[track_caller]
    pub fn set_local_group(&self, name: &str, gid: u32) {
        let file = self.file("/etc/group");
        let (text, old) = (file.text(), format!("{name}:"));
        let others = text.split_inclusive('\n').filter(|line| !line.starts_with(&old));
        file.write(&(others.collect::<String>() + &format!("{name}:x:{gid}:\n")));
    }

    /// Adds `user` to the members of a local group. No account has to have that name.
    #[track_caller]
    pub fn add_to_local_group(&self, user: &str, group: &str) {
        let (file, start) = (self.file("/etc/group"), format!("{group}:"));
        let text = file.text();
        let line = text.lines().find(|line| line.starts_with(&start)).expect("a local group");
        let separator = if line.ends_with(':') { "" } else { "," };
        file.replace(&format!("{line}\n"), &format!("{line}{separator}{user}\n"));
    }

    /// Removes `iam` from the end of the line of a database, such as `passwd`, in `/etc/nsswitch.conf`.
    #[track_caller]
    pub fn remove_from_nsswitch(&self, database: &str) {
        let file = self.file("/etc/nsswitch.conf");
        let (text, name) = (file.text(), format!("{database}:"));
        let line = text.lines().find(|line| line.starts_with(&name)).expect("a line of the database");
        file.replace(line, line.strip_suffix(" iam").expect("iam at the end of the line"));
    }

    /// Makes an ed25519 key pair `path` and `path.pub`.
    #[track_caller]
    pub fn make_key(&self, path: &str) {
        self.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]).succeeds();
    }

    /// Makes the key `path` of [`Machine::make_key`] the only one in `~/.ssh/authorized_keys` of `user`.
    #[track_caller]
    pub fn authorize_key(&self, user: &str, path: &str) {
        self.sh(&format!(
            "install -d -m 700 -o {user} ~{user}/.ssh && install -m 600 -o {user} {path}.pub ~{user}/.ssh/authorized_keys"
        ))
        .succeeds();
    }

    /// Starts a program as `user` outside any session, for instance `sleep 4001`, and waits until it runs.
    #[track_caller]
    pub fn start_as(&self, user: &str, command: &str) {
        self.as_user(user).sh(&format!("setsid -f {command} </dev/null >/dev/null 2>&1")).succeeds();
        self.wait_until_running(command);
    }

    /// Returns whether a process runs whose command line begins with `command`.
    pub fn is_running(&self, command: &str) -> bool {
        self.run(&["pgrep", "-f", &format!("^{command}")]).status == 0
    }

    /// Waits until a process runs whose command line begins with `command`, at most 20 s.
    #[track_caller]
    pub fn wait_until_running(&self, command: &str) {
        self.wait_until(&format!("pgrep -f '^{command}' >/dev/null"));
    }

    /// Waits until no process runs whose command line begins with `command`, at most 20 s.
    #[track_caller]
    pub fn wait_until_gone(&self, command: &str) {
        self.wait_until(&format!("! pgrep -f '^{command}' >/dev/null"));
    }

    /// Returns whether a process runs under this effective uid. Zombies do not count.
    pub fn has_processes(&self, uid: u32) -> bool {
        self.sh(&format!("ps -o stat= -u {uid} | grep -qv ^Z")).status == 0
    }

    /// Returns whether a process whose command line begins with `command` has the real uid of `user` (a name or a uid).
    pub fn is_running_as(&self, user: &str, command: &str) -> bool {
        self.run(&["pgrep", "-U", user, "-f", &format!("^{command}")]).status == 0
    }

    /// Starts a shell script as root and does not wait for it to end. Its output is discarded.
    #[track_caller]
    pub fn start_in_background(&self, script: &str) {
        let start = "(bash -c \"$1\" </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1";
        self.run(&["bash", "-c", start, "bash", script]).succeeds();
    }

    /// Restarts the resolver of a booted box, and waits until it serves.
    #[track_caller]
    pub fn restart_resolver(&self) {
        self.run(&["systemctl", "restart", "iam-resolver.service"]).succeeds();
    }

    /// Returns the process id of the resolver. Fails the test if none runs.
    #[track_caller]
    pub fn resolver_pid(&self) -> String {
        self.run(&["pgrep", "-x", "iam-resolver"]).succeeds()
    }

    /// Waits until the cache on disk has an entry of `user`, at most 20 s.
    #[track_caller]
    pub fn wait_until_persisted(&self, user: &str) {
        self.wait_until(&format!("grep -q '\"name\":\"{user}\",\"age\"' /var/cache/pam_iam/cache.json"));
    }

    /// Waits until `user` can log in with the first fixture key, at most 20 s.
    #[track_caller]
    pub fn wait_until_login_succeeds(&self, user: &str) {
        self.wait_until(&format!("box-ssh {user} true 2>/dev/null"));
    }

    /// Asserts that the local root logs in with the key of [`Machine::let_root_in`].
    #[track_caller]
    pub fn local_root_logs_in(&self) {
        assert_eq!(self.ssh_with("/root/local", "root", "id -u").succeeds(), "0");
    }

    /// Sends a signal, such as `STOP`, to the resolver and does not wait for its effect.
    #[track_caller]
    pub fn signal_resolver(&self, signal: &str) {
        self.run(&["pkill", &format!("-{signal}"), "-f", "iam-resolver serve"]).succeeds();
    }
}

impl File<'_> {
    /// Returns the text of the file. Fails the test if the file cannot be read.
    #[track_caller]
    pub fn text(&self) -> String {
        let done = self.machine.run(&["cat", "--", &self.path]);
        assert_eq!(done.status, 0, "{}: {}", self.path, done.stderr);
        done.stdout
    }

    /// Creates the file, or replaces its text. The mode of an existing file stays.
    #[track_caller]
    pub fn write(&self, text: &str) {
        self.feed("cat >\"$1\"", text);
    }

    /// Appends a text to the file.
    #[track_caller]
    pub fn append(&self, text: &str) {
        self.feed("cat >>\"$1\"", text);
    }

    #[track_caller]
    fn feed(&self, script: &str, text: &str) {
        let request = json!({"argv": ["bash", "-c", script, "bash", self.path], "stdin": text});
        self.machine.ask(&request, &self.path).succeeds();
    }

    /// Replaces every occurrence of `old` by `new`. Fails the test if the file does not contain `old`.
    #[track_caller]
    pub fn replace(&self, old: &str, new: &str) {
        let text = self.text();
        assert!(text.contains(old), "{old}\n--- is not in {}:\n{text}", self.path);
        self.write(&text.replace(old, new));
    }

    /// Removes the lines that contain `part`. Fails the test if no line does.
    #[track_caller]
    pub fn remove_lines(&self, part: &str) {
        let text = self.text();
        assert!(text.contains(part), "{part}\n--- is not in {}:\n{text}", self.path);
        let kept = text.split_inclusive('\n').filter(|line| !line.contains(part));
        self.write(&kept.collect::<String>());
    }

    /// Puts a text before the first line.
    #[track_caller]
    pub fn prepend(&self, text: &str) {
        self.write(&(text.to_owned() + &self.text()));
    }

    /// Copies the file to `path`, with its owner, mode and times.
    #[track_caller]
    pub fn copy_to(&self, path: &str) {
        self.machine.run(&["cp", "-p", "--", &self.path, path]).succeeds();
    }

    /// Returns the names in the folder, sorted, with those that begin with a dot.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let names = self.machine.run(&["ls", "-A", "--", &self.path]).succeeds();
        names.lines().map(str::to_owned).collect()
    }

    /// Returns whether the file or folder exists.
    pub fn exists(&self) -> bool {
        self.machine.run(&["test", "-e", &self.path]).status == 0
    }

    /// Removes the file, or the folder with its contents.
    #[track_caller]
    pub fn remove(&self) {
        self.machine.run(&["rm", "-r", "--", &self.path]).succeeds();
    }

    /// Moves the file to `path`.
    #[track_caller]
    pub fn move_to(&self, path: &str) {
        self.machine.run(&["mv", "--", &self.path, path]).succeeds();
    }

    /// Sets the mode, as chmod(1) takes it.
    #[track_caller]
    pub fn chmod(&self, mode: &str) {
        self.machine.run(&["chmod", mode, "--", &self.path]).succeeds();
    }

    /// Sets the owner, as chown(1) takes it.
    #[track_caller]
    pub fn chown(&self, owner: &str) {
        self.machine.run(&["chown", owner, "--", &self.path]).succeeds();
    }

    /// Returns the output of stat(1) for a format, for instance `%U %a`.
    #[track_caller]
    pub fn stat(&self, format: &str) -> String {
        self.machine.run(&["stat", "-c", format, "--", &self.path]).succeeds()
    }
}

impl AsUser<'_> {
    /// Sets the primary group. By default it is that of root.
    #[must_use]
    pub fn with_gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Sets one supplementary group.
    #[must_use]
    pub fn with_supplementary_group(mut self, gid: u32) -> Self {
        self.groups = vec!["--groups".to_owned(), gid.to_string()];
        self
    }

    /// Sets the supplementary groups that NSS returns for the user, as initgroups(3) does.
    #[must_use]
    pub fn with_groups_of_nss(mut self) -> Self {
        self.groups = vec!["--init-groups".to_owned()];
        self
    }

    /// Runs a program as the user.
    pub fn run(&self, argv: &[&str]) -> Done {
        let gid = self.gid.map(|gid| gid.to_string());
        let mut words = vec!["setpriv", "--reuid", &self.user];
        words.extend(gid.iter().flat_map(|gid| ["--regid", gid]));
        words.extend(self.groups.iter().map(String::as_str));
        words.extend(argv);
        self.machine.run(&words)
    }

    /// Runs a shell script as the user.
    pub fn sh(&self, script: &str) -> Done {
        self.run(&["bash", "-c", script])
    }
}

impl Pam<'_> {
    /// Sets a PAM item, for instance `ruser`.
    #[must_use]
    pub fn item(mut self, name: &str, value: &str) -> Self {
        self.words.extend(["-I".to_owned(), format!("{name}={value}")]);
        self
    }

    /// Calls pam_acct_mgmt(3).
    pub fn acct_mgmt(&self) -> Done {
        self.call("acct_mgmt")
    }

    /// Calls pam_open_session(3).
    pub fn open_session(&self) -> Done {
        self.call("open_session")
    }

    /// Calls the function of pam(3) that pamtester(1) calls `function`.
    pub fn call(&self, function: &str) -> Done {
        let mut argv = vec!["pamtester"];
        argv.extend(self.words.iter().map(String::as_str));
        argv.extend([&*self.service, &*self.user, function]);
        self.machine.run(&argv)
    }
}
