//! A test box for the end-to-end tests: `tests/box run` with the agent `tests/lib/agent.py`, which runs one command at a
//! time.
//!
//! ```no_run
//! let machine = pam_iam_tests::Machine::new().start();
//! assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
//! ```

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "support of tests: a failure here is a failed test"
)]

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

mod host;
mod iam;
mod session;

pub use host::{AsUser, File, Group, Pam, Passwd};
pub use iam::{Call, Iam};
pub use session::Session;

/// Returns the path of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// Returns the path of a file of the release build.
pub fn built(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("release").join(name)
}

/// Returns the path of the Debian package for this machine. Fails the test if `packaging/build` has not made it.
pub fn package() -> PathBuf {
    let folder = repository().join("target/packages");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let version = env!("CARGO_PKG_VERSION");
    let package = folder.join(format!("pam-iam_{version}_{architecture}.deb"));
    assert!(package.exists(), "run packaging/build deb");
    package
}

/// The settings of a box that has not been started.
#[derive(Default)]
pub struct Builder {
    fixtures: Option<Value>,
    config: Option<String>,
    once: bool,
    importer: bool,
    sweeping: bool,
    booted: bool,
    bare: bool,
}

impl Builder {
    /// Sets the users and groups of the box's IAM, in the place of the default ones.
    #[must_use]
    pub fn fixtures(mut self, fixtures: Value) -> Self {
        self.fixtures = Some(fixtures);
        self
    }

    /// Sets the configuration: the default `[access]`, followed by `more`.
    #[must_use]
    pub fn settings(self, more: &str) -> Self {
        self.config(&format!("[access]\nallow = ['ssh-users']\nsudo = ['ssh-admins']\n{more}\n"))
    }

    /// Sets the text of the whole configuration.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Runs no daemon, so that each request to the resolver starts a process.
    #[must_use]
    pub fn without_daemon(mut self) -> Self {
        self.once = true;
        self
    }

    /// Takes accounts from the importer instead of NSS.
    #[must_use]
    pub fn importer(mut self) -> Self {
        self.importer = true;
        self
    }

    /// Sweeps every 2 s, as `iam-sweep.service` does every minute. By default only the test itself sweeps.
    #[must_use]
    pub fn sweeping(mut self) -> Self {
        self.sweeping = true;
        self
    }

    /// Boots the box with systemd: its logs are in its journal, and nothing sweeps until `iam-sweep.service` is started.
    #[must_use]
    pub fn booted(mut self) -> Self {
        self.booted = true;
        self
    }

    /// Boots the box with systemd, with nothing of pam_iam but the configuration.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self.booted()
    }

    /// Starts the box and waits until it runs commands.
    pub fn start(self) -> Machine {
        let dir =
            std::env::temp_dir().join(format!("pam_iam-e2e-{}-{:p}", std::process::id(), &raw const self));
        std::fs::create_dir_all(&dir).expect("a folder for the box's files");
        let mut command = Command::new(repository().join("tests/box"));
        command.args(["run", "--sweep", if self.sweeping { "2" } else { "0" }]);
        if let Some(fixtures) = &self.fixtures {
            std::fs::write(dir.join("fixtures.json"), fixtures.to_string()).expect("fixtures");
            command.arg("--fixtures").arg(dir.join("fixtures.json"));
        }
        if let Some(config) = &self.config {
            std::fs::write(dir.join("config.toml"), config).expect("configuration");
            command.arg("--config").arg(dir.join("config.toml"));
        }
        if self.once {
            command.args(["--resolver", "once"]);
        }
        if self.importer {
            command.args(["--accounts", "importer"]);
        }
        if self.booted {
            command.arg("--boot");
            // tests/debian sets this to the file system of another distribution.
            if let Some(root) = std::env::var_os("PAM_IAM_ROOT") {
                command.arg("--root").arg(root);
            }
        }
        if self.bare {
            command.arg("--bare");
        }
        command.args(["--", "python3", "-I", "-B"]).arg(repository().join("tests/lib/agent.py"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tests/box starts");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let pipes = (input.expect("a pipe"), BufReader::new(output.expect("a pipe")));
        let machine = Machine { child: RefCell::new(child), pipes: RefCell::new(Some(pipes)), dir };
        machine.sh("true").succeeds();
        machine
    }
}

/// A running box. It ends when this value is dropped.
pub struct Machine {
    child: RefCell<Child>,
    pipes: RefCell<Option<(ChildStdin, BufReader<ChildStdout>)>>,
    dir: PathBuf,
}

/// The result of a command.
#[derive(Debug, Deserialize)]
pub struct Done {
    /// The exit status, the negative number of the signal that killed the command, or 124 after 15 minutes.
    pub status: i32,
    /// The text on standard output.
    pub stdout: String,
    /// The text on standard error.
    pub stderr: String,
    #[serde(skip)]
    what: String,
}

impl Machine {
    /// Returns the settings of a box with the default fixtures: alice in ssh-users, carol in ssh-users and ssh-admins, bob
    /// in neither, and IAM users called root and daemon in both.
    #[expect(clippy::new_ret_no_self, reason = "a builder is where a box begins")]
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Runs a program as root.
    pub fn run(&self, argv: &[&str]) -> Done {
        self.ask(&json!({"argv": argv}), &argv.join(" "))
    }

    pub(crate) fn ask(&self, request: &Value, what: &str) -> Done {
        let mut pipes = self.pipes.borrow_mut();
        let (input, output) = pipes.as_mut().expect("the box is at work");
        writeln!(input, "{request}").and_then(|()| input.flush()).expect("the box takes a command");
        let mut line = String::new();
        output.read_line(&mut line).expect("the box answers");
        if line.is_empty() {
            let _ = self.child.borrow_mut().wait();
            panic!("the box ended before or during {what}");
        }
        let mut done: Done = serde_json::from_str(&line).expect("an answer");
        what.clone_into(&mut done.what);
        done
    }

    /// Runs a shell script as root.
    pub fn sh(&self, script: &str) -> Done {
        self.run(&["bash", "-c", script])
    }

    /// Logs in as `user` with the first fixture key, which is the first key that the fixtures give to that user, and runs a
    /// command.
    pub fn ssh(&self, user: &str, command: &str) -> Done {
        self.run(&["box-ssh", user, command])
    }

    /// Logs in as `user` and runs a command. `key` is a fixture key, for instance `alice` or `alice.2`, or the absolute path
    /// of a key file.
    pub fn ssh_with(&self, key: &str, user: &str, command: &str) -> Done {
        let folder = if key.starts_with('/') { "" } else { "$BOX_KEYS/" };
        let script = format!("box-ssh -i {folder}\"$1\" \"$2\" \"$3\"");
        self.run(&["bash", "-c", &script, "bash", key, user, command])
    }

    /// Reboots a box that systemd has booted, and waits until it is up again.
    pub fn reboot(&self) {
        self.ask(&json!({"argv": ["box-reboot"], "beside": true}), "box-reboot").succeeds();
    }

    /// Makes the key `/root/local` in the box, with which the local root can log in.
    #[track_caller]
    pub fn let_root_in(&self) {
        self.make_key("/root/local");
        self.authorize_key("root", "/root/local");
    }

    /// Ends the resolver by a signal, such as `TERM`, and waits until its successor answers, at most 20 s.
    #[track_caller]
    pub fn restart_resolver_by(&self, signal: &str) {
        self.sh(&format!("before=$(pgrep -x iam-resolver); kill -{signal} $before; until now=$(pgrep -x iam-resolver) && [ $now != $before ] && iamctl status >/dev/null; do [ $SECONDS -lt 20 ] || exit 1; sleep 0.02; done")).succeeds();
    }

    /// Returns a log of the box: `sshd`, `resolver`, `authpriv` or `iam`.
    pub fn log(&self, name: &str) -> String {
        self.sh(&format!("cat $BOX_LOG/{name}.log")).succeeds()
    }

    /// Waits until a log of the box contains `text`, at most 10 s. The line of a program may appear after the program has
    /// ended.
    #[track_caller]
    pub fn wait_for_log(&self, name: &str, text: &str) {
        let script = format!(
            "until grep -qF -e \"$1\" $BOX_LOG/{name}.log; do [ $SECONDS -lt 10 ] || exit 1; sleep 0.02; done"
        );
        let done = self.run(&["bash", "-c", &script, "bash", text]);
        assert_eq!(done.status, 0, "{text}\n--- is not in\n{}", self.log(name));
    }

    /// Makes the box's sshd reload its configuration, and waits until it listens again.
    pub fn reload_sshd(&self) {
        let listening = "grep -c 'Server listening' $BOX_LOG/sshd.log";
        let before = self.sh(listening).stdout;
        self.sh("pkill -HUP -x sshd").succeeds();
        self.wait_until(&format!("[ $({listening}) -gt {} ]", before.trim()));
    }

    /// Waits until a script succeeds, at most 20 s.
    pub fn wait_until(&self, script: &str) {
        self.wait_at_most(20, script);
    }

    /// Waits until a script succeeds, at most `seconds`.
    pub fn wait_at_most(&self, seconds: u32, script: &str) {
        self.sh(&format!("until {script}; do [ $SECONDS -lt {seconds} ] || exit 1; sleep 0.05; done"))
            .succeeds();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A box that has already ended has shown its logs itself.
        if std::thread::panicking() && matches!(self.child.borrow_mut().try_wait(), Ok(None)) {
            let logs = self.sh("if [ -d /run/systemd/system ]; then journalctl -q --no-pager -n 60; else tail -n 12 $BOX_LOG/{authpriv,resolver,sshd}.log; fi; tail -n 12 $BOX_LOG/iam.log");
            eprintln!("{}", logs.stdout);
        }
        // The agent ends at the end of its input, and the box ends with the agent.
        self.pipes.take();
        let _ = self.child.borrow_mut().wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Done {
    /// Returns standard output without the line feeds at its end. Fails the test if the command failed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        assert_eq!(self.status, 0, "{}\nstdout: {}\nstderr: {}", self.what, self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Returns standard output followed by standard error. Fails the test if the command succeeded or was killed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.status > 0, "{} ended with {}\nstdout: {}", self.what, self.status, self.stdout);
        self.stdout + &self.stderr
    }
}
