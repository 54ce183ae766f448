//! The resolver and its socket: the requests that each client may send, and logins while the resolver hangs, is dead or is
//! an impostor.

use pam_iam_tests::Machine;
use serde_json::{Value, json};

#[test]
fn a_killed_resolver_is_started_again_and_logins_wait_for_it() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    machine.signal_resolver("KILL");
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_hanging_resolver_keeps_no_local_account_out() {
    let machine = Machine::new().start();
    machine.let_root_in();
    machine.signal_resolver("STOP");
    machine.local_root_logs_in();
    machine.run(&["sudo", "-n", "true"]).succeeds();
}

/// Sends one request to the resolver as `user`. Returns the answer without the frame's length.
#[track_caller]
fn answer_to(machine: &Machine, user: &str, request: &Value) -> String {
    let script = format!(
        "import socket
request = b'''{request}'''
client = socket.socket(socket.AF_UNIX)
client.connect('/run/pam_iam/resolver.sock')
client.sendall(len(request).to_bytes(4, 'big') + request)
print(client.makefile('rb').read()[4:].decode())"
    );
    machine.as_user(user).with_gid(65534).run(&["python3", "-c", &script]).succeeds()
}

#[test]
fn only_root_and_the_key_command_get_keys_and_only_root_gets_decisions() {
    let machine = Machine::new().start();
    let ask = |user: &str, request: &Value| answer_to(&machine, user, request);
    let uid = machine.uid_of("alice");
    let keys = json!({"v": 1, "ask": "keys", "name": "alice", "uid": uid});
    let decide = json!({"v": 1, "ask": "decide", "name": "alice", "uid": uid, "policy": "login"});
    let user = json!({"v": 1, "ask": "user-by-name", "name": "alice"});
    assert!(ask("nobody", &keys).contains("forbidden"));
    assert!(ask("nobody", &decide).contains("forbidden"));
    assert!(ask("nobody", &json!({"v": 1, "ask": "status"})).contains("forbidden"));
    assert!(ask("nobody", &user).contains("\"answer\":\"user\""));
    assert!(ask("pam-iam", &keys).contains("\"answer\":\"keys\""));
    assert!(ask("pam-iam", &decide).contains("forbidden"));
    assert!(ask("root", &keys).contains("\"answer\":\"keys\""));
    assert!(ask("root", &decide).contains("\"allow\":true"));
    assert!(ask("root", &json!({"v": 1, "ask": "make-coffee"})).contains("bad-request"));
    assert!(ask("root", &json!({"v": 2, "ask": "status"})).contains("protocol version 2"));
}

/// Serves in the resolver's place: every lookup of an account returns the user eve, and every decision allows.
const IMPOSTOR: &str = "import json, os, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind('/run/pam_iam/mine')
os.chmod('/run/pam_iam/mine', 0o666)
listener.listen(100)
os.rename('/run/pam_iam/mine', '/run/pam_iam/resolver.sock')
user = dict(answer='user', name='eve', uid=2100000000, gid=2100000000, gecos='', home='/', shell='/bin/sh')
decision = dict(answer='decision', allow=True, reason='all', source='iam', age=0)
while True:
    client = listener.accept()[0]
    asked = client.recv(65536)
    answer = json.dumps(user if b'user-by' in asked else decision).encode()
    try:
        client.sendall(len(answer).to_bytes(4, 'big') + answer)
    except OSError:
        pass
";

#[test]
fn a_socket_of_another_user_than_the_resolvers_is_not_believed() {
    let machine = Machine::new().start();
    machine.ssh("alice", "true").succeeds();
    // As if a user other than root could write to the folder.
    machine.file("/run/pam_iam/resolver.sock").remove();
    machine.file("/run/pam_iam").chown("nobody");
    machine.file("/tmp/impostor.py").write(IMPOSTOR);
    machine.start_as("nobody", "python3 /tmp/impostor.py");
    machine.wait_until("test -S /run/pam_iam/resolver.sock");
    assert!(machine.passwd("eve").is_none());
    machine.file("/etc/passwd").append("alice:x:2100000000:2100000000::/home/alice:/bin/bash\n");
    machine.pam("sshd", "alice").acct_mgmt().fails();
    machine.wait_for_log("authpriv", "belongs to uid 65534");
}
