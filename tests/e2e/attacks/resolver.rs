//! A compromised resolver gives nobody rights, and neither it nor a user can change the registry of sessions or the socket's
//! folder.

use pam_iam_tests::Machine;

use super::compile;

#[test]
fn neither_a_user_nor_the_resolver_can_change_the_session_registry_or_the_sockets_folder() {
    let machine = Machine::new().start();
    let program = compile(&machine, "squat");
    machine.ssh("alice", "true").succeeds();
    assert!(machine.ssh("alice", &program).succeeds().starts_with("tried 40 worked 0"));
    let resolver = machine.as_user("iam-resolver").with_gid(machine.gid_of("iam-resolver"));
    let said = resolver.run(&[&program]).succeeds();
    // Only the attempts on its own cache may work.
    assert!(["tried 40 worked 1", "tried 40 worked 2"].contains(&said.as_str()), "{said}");
    assert_eq!(machine.file("/run/pam_iam").stat("%U %a"), "root 755");
    assert_eq!(machine.file("/run/pam_iam/sessions").stat("%U %a"), "root 700");
}

#[test]
fn a_managed_session_that_cannot_be_registered_is_refused_unless_the_configuration_allows_it() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.let_root_in();
    machine.file("/run/pam_iam").chown("iam-resolver");
    let said = machine.ssh("alice", "echo in-it").stdout;
    assert!(said.contains("this session cannot be registered") && !said.contains("in-it"), "{said}");
    machine.wait_for_log("authpriv", "the session of alice cannot be registered");
    machine.wait_for_log("authpriv", "chown root:root /run/pam_iam");
    machine.doctor_says("/run/pam_iam can be changed by others than root");
    machine.local_root_logs_in();
    machine.config().append("[sessions]\nunregistered = \"allow\"\n");
    machine.restart_resolver_by("TERM");
    assert_eq!(machine.ssh("alice", "echo in").succeeds(), "in");
}

/// Answers requests on /run/liar/sock from the dict ANSWERS. A request that is not in it gets not-found, and an answer None
/// cuts the connection.
const LIAR: &str = r#"
import json, os, socket
s = socket.socket(socket.AF_UNIX); s.bind('/run/liar/sock'); os.chmod('/run/liar/sock', 0o666); s.listen(100)
while True:
    c, _ = s.accept()
    data = c.recv(65536)[4:]
    ask = json.loads(data)
    answer = ANSWERS.get(ask["ask"], {"answer": "not-found"})
    body = json.dumps(answer).encode()
    try: answer and c.sendall(len(body).to_bytes(4, "big") + body)
    except OSError: pass
    c.close()
"#;

/// Replaces the resolver by a program that runs as the resolver's user and answers from `answers`, a Python dict from the
/// name of a request to its answer.
fn replace_resolver_by_liar(machine: &Machine, answers: &str) {
    let socket = machine.file("/run/pam_iam/resolver.sock");
    socket.move_to("/run/pam_iam/real");
    // What the real resolver has written would answer first.
    machine.signal_resolver("STOP");
    machine.file("/run/pam_iam/map/nss.map").remove();
    machine.run(&["install", "-d", "-o", "iam-resolver", "/run/liar"]).succeeds();
    machine.file("/run/liar/liar.py").write(&LIAR.replace("ANSWERS", answers));
    machine.start_in_background(
        "exec setpriv --reuid iam-resolver --regid iam-resolver --clear-groups python3 /run/liar/liar.py",
    );
    machine.wait_until("test -S /run/liar/sock");
    machine.run(&["ln", "-s", "/run/liar/sock", "/run/pam_iam/resolver.sock"]).succeeds();
}

#[test]
fn sshd_reads_no_authorized_keys_file_of_a_user_whose_groups_are_unknown() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    machine.make_key("/root/planted");
    machine.authorize_key("alice", "/root/planted");
    machine.file("/etc/pam.d/sshd").remove_lines("pam_iam");
    let uid = machine.uid_of("alice");
    let user = format!(
        r#"{{"answer": "user", "name": "alice", "uid": {uid}, "gid": {uid}, "gecos": "", "home": "/home/alice", "shell": "/bin/sh"}}"#
    );
    // To sshd a resolver that is killed between getpwnam(3) and initgroups(3) looks like this one.
    let answers = format!(r#"{{"user-by-name": {user}, "user-by-uid": {user}, "groups-of": None}}"#);
    replace_resolver_by_liar(&machine, &answers);
    machine.run(&["id", "alice"]).succeeds();
    machine.ssh_with("/root/planted", "alice", "true").fails();
}

/// Answers that would give users the rights of root if NSS believed them. 2044996577 is in the managed range.
const ANSWERS_THAT_MAKE_ROOT: &str = r#"{
    "groups-of": {"answer": "groups", "gids": [0, 27, 4, 2121148082, 2044996577]},
    "user-by-name": {"answer": "user", "name": ask.get("name"), "gecos": "", "shell": "/bin/sh", **(
        {"uid": 0, "gid": 0, "home": "/"} if ask.get("name") == "zoe" else {"uid": 2044996577, "gid": 2044996577, "home": "/root:x"})},
    "user-by-uid": {"answer": "user", "name": "daemon", "uid": ask.get("uid"), "gid": ask.get("uid"), "gecos": "", "home": "/x", "shell": "/bin/sh"} if ask.get("uid") == 2044996577 else {"answer": "user", "name": "root", "uid": 0, "gid": 2044996577, "gecos": "", "home": "/", "shell": "/bin/sh"},
    "group-by-name": {"answer": "group", "name": "iam-sudo", "gid": 27, "members": ["nobody"]},
}"#;

#[test]
fn a_lying_resolver_cannot_give_unmanaged_uids_gids_or_names() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    replace_resolver_by_liar(&machine, ANSWERS_THAT_MAKE_ROOT);
    // For a managed user, initgroups(3) passes a gid in the managed range.
    let list_groups = "import os; print(sorted(os.getgrouplist('alice', 2044996577)))";
    let groups = machine.run(&["python3", "-c", list_groups]).succeeds();
    // The first gid is that of iam-users, which NSS adds to any answer.
    assert_eq!(groups, "[2018472259, 2044996577, 2121148082]");
    for user in ["zoe", "alice", "2044996577"] {
        assert_eq!(machine.passwd(user), None, "{user}");
    }
    assert_eq!(machine.group("iam-sudo"), None);
    machine.run(&["id", "root"]).succeeds();
    assert_eq!(machine.uid_of("root"), 0);
}

#[test]
fn the_resolver_for_one_request_is_not_root_and_inherits_nothing_of_its_caller() {
    let machine = Machine::new().settings("[resolver]\nmode = 'once'").without_daemon().importer().start();
    machine.fault("fail=hang&only=GetUser");
    machine.start_in_background("SECRET=x exec pamtester sshd alice acct_mgmt");
    machine.wait_until("pgrep -x -u iam-resolver iam-resolver");
    let pid = machine.run(&["pgrep", "-x", "-u", "iam-resolver", "iam-resolver"]).succeeds();
    let process = machine.run(&["ps", "-o", "user:32=,sid=,pid=,tty=", "-p", &pid]).succeeds();
    let environment = machine.file(&format!("/proc/{pid}/environ"));
    let (variables, owner) = (environment.text(), environment.stat("%U"));
    let status = machine.file(&format!("/proc/{pid}/status")).text();

    let words: Vec<&str> = process.split_whitespace().collect();
    assert_eq!(words[0], "iam-resolver", "{process}");
    assert_eq!(words[1], words[2], "a session of its own: {process}");
    assert_eq!(words[3], "?", "no terminal: {process}");
    assert!(!variables.contains("SECRET"), "{variables}");
    assert_eq!(owner, "root");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} is not in\n{status}")).trim().to_owned()
    };
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("CapEff:"), "0000000000000000");
    machine.fault("fail=");
    machine.ssh("alice", "true").succeeds();
}
