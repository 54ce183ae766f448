//! SSH sessions that stay open while a test goes on.

use serde_json::Value;

use crate::{Done, Machine};

/// An open SSH session: a shell that runs each line that is appended to `~/todo`.
pub struct Session<'machine> {
    machine: &'machine Machine,
    user: String,
    count: std::cell::Cell<u32>,
}

impl Machine {
    /// Logs `user` in with the first fixture key and leaves the session open.
    #[track_caller]
    pub fn open_session(&self, user: &str) -> Session<'_> {
        self.sh(&format!(
            "(box-ssh {user} 'touch todo; tail -n +1 -f todo | while read -r line; do eval \"$line\"; done' >/tmp/{user}.out 2>&1; echo over >/tmp/{user}.over) </dev/null >/dev/null 2>&1 &"
        ))
        .succeeds();
        self.wait_until(&format!("test -e /home/{user}/todo"));
        let session = Session { machine: self, user: user.to_owned(), count: 0.into() };
        session.run("true").succeeds();
        session
    }

    /// Logs `user` in with the first fixture key. Returns the names of the session's groups, sorted.
    #[track_caller]
    pub fn login_groups(&self, user: &str) -> Vec<String> {
        let names = self.ssh(user, "id -Gn").succeeds();
        let mut names: Vec<String> = names.split(' ').map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Logs `user` in with the first fixture key, starts `command`, and does not wait for it to end. Its output is in
    /// `/tmp/USER.said`.
    #[track_caller]
    pub fn ssh_in_background(&self, user: &str, command: &str) {
        let script = r#"(box-ssh "$1" "$2" </dev/null >"/tmp/$1.said" 2>&1 &) >/dev/null 2>&1"#;
        self.run(&["bash", "-c", script, "bash", user, command]).succeeds();
    }

    /// Logs `user` in with a key as [`Machine::ssh_with`] takes it, starts `command`, and does not wait for it to end. Its
    /// output is discarded.
    #[track_caller]
    pub fn ssh_with_in_background(&self, key: &str, user: &str, command: &str) {
        let folder = if key.starts_with('/') { "" } else { "$BOX_KEYS/" };
        let script =
            format!("(box-ssh -i {folder}\"$1\" \"$2\" \"$3\" </dev/null >/dev/null 2>&1 &) >/dev/null 2>&1");
        self.run(&["bash", "-c", &script, "bash", key, user, command]).succeeds();
    }

    /// Logs `user` in with a key as [`Machine::ssh_with`] takes it, starts a program that outlives the session, for instance
    /// `sleep 4001`, and logs out.
    #[track_caller]
    pub fn leave_running(&self, key: &str, user: &str, command: &str) {
        let start = format!("setsid -f {command} </dev/null >/dev/null 2>&1");
        self.ssh_with(key, user, &start).succeeds();
        self.wait_until_running(command);
    }

    /// Returns the open sessions in `iamctl sessions --json`.
    #[track_caller]
    pub fn sessions(&self) -> Vec<Value> {
        let listed = self.iamctl("sessions --json").succeeds();
        let mut sessions: Vec<Value> = serde_json::from_str(&listed).expect("a list of sessions");
        // The list also has the users who run processes without a session.
        sessions.retain(|session| session["pid"].is_number());
        sessions
    }

    /// Returns the user of each session in `iamctl sessions`, sorted.
    #[track_caller]
    pub fn users_with_sessions(&self) -> Vec<String> {
        let sessions = self.sessions();
        let mut users: Vec<String> =
            sessions.iter().map(|session| session["user"].as_str().expect("a user").to_owned()).collect();
        users.sort();
        users
    }
}

impl Session<'_> {
    /// Starts a shell line in the session and does not wait for it to end.
    #[track_caller]
    pub fn begin(&self, command: &str) {
        let script = "echo \"$1\" >>/home/$2/todo";
        self.machine.run(&["bash", "-c", script, "bash", command, &self.user]).succeeds();
    }

    /// Runs a shell line in the session, and waits until it has ended, at most 20 s. Both output streams are in `stdout`.
    #[track_caller]
    pub fn run(&self, command: &str) -> Done {
        let number = self.count.replace(self.count.get() + 1);
        let answer = format!("/home/{}/answer.{number}", self.user);
        self.begin(&format!(
            "({command}) >{answer} 2>&1; echo $? >{answer}.new; mv {answer}.new {answer}.status"
        ));
        self.machine.wait_until(&format!("test -e {answer}.status"));
        let status = self.machine.file(&format!("{answer}.status")).text();
        Done {
            status: status.trim().parse().expect("an exit status"),
            stdout: self.machine.file(&answer).text(),
            stderr: String::new(),
            what: command.to_owned(),
        }
    }

    /// Returns whether the user is still connected.
    pub fn is_open(&self) -> bool {
        !self.machine.file(&format!("/tmp/{}.over", self.user)).exists()
    }

    /// Waits until the connection has ended, at most 20 s.
    #[track_caller]
    pub fn wait_until_ended(&self) {
        self.machine.wait_until(&format!("test -e /tmp/{}.over", self.user));
    }
}
