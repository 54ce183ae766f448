//! What IAM says holds at the moment of use: sudo, open sessions, and the trail that is left.

use pam_iam_tests::{Machine, work};
use serde_json::{Value, json};

fn sessions(machine: &Machine) -> Vec<Value> {
    let sessions = machine.sh("iamctl sessions --json").succeeds();
    let parsed: Result<Vec<Value>, _> = serde_json::from_str(&sessions);
    assert!(parsed.is_ok(), "{sessions}");
    // Others run processes without a session.
    parsed.unwrap_or_default().into_iter().filter(|session| session["pid"].is_number()).collect()
}

fn users(machine: &Machine) -> Vec<String> {
    let mut users: Vec<String> = sessions(machine)
        .iter()
        .map(|session| session["user"].as_str().unwrap_or_default().to_owned())
        .collect();
    users.sort();
    users
}

#[test]
fn what_iam_takes_away_is_gone_from_the_open_session_and_then_the_session_is() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '2s'").start();
    machine.open_session("carol");
    machine.open_session("alice");
    work(&machine, "carol", "nohup sleep 4001 >/dev/null 2>&1 & sudo -n id -u >root 2>&1");
    machine.wait_until("grep -qx 0 /home/carol/root && pgrep -f '^sleep 4001'");
    work(&machine, "alice", "sleep 4002 &");
    machine.wait_until("pgrep -f '^sleep 4002'");
    assert_eq!(users(&machine), ["alice", "carol"]);

    machine.iam().remove_from_group("carol", "ssh-admins");
    work(&machine, "carol", "sudo -n true >refused 2>&1; echo $? >>refused");
    machine.wait_until("grep -qx 1 /home/carol/refused");
    assert!(
        machine.sh("cat /home/carol/refused").succeeds().contains("none of the IAM groups that may use sudo")
    );
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice", "carol"], "who may no longer sudo may stay");

    // Who may not log in has no name here.
    let carol = machine.sh("id -u carol").succeeds();
    machine.iam().remove_from_group("carol", "ssh-users");
    let said = machine.sh("iamctl sweep").succeeds();
    assert!(said.contains("ended the session of carol"), "{said}");
    machine.wait_until("test -e /tmp/carol.over");
    // What has ended and nobody has waited for is still listed.
    machine.sh(&format!("ps -o stat= -u {carol} | grep -qv ^Z")).fails();
    machine.sh("pgrep -f '^sleep 4002'").succeeds();
    assert_eq!(users(&machine), ["alice"]);
    machine.logs("authpriv", "event=sweep user=carol iam_name=carol key=SHA256:");
    machine.logs("authpriv", "result=ended reason=not-in-group");

    machine.fault("fail=hang");
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice"], "that IAM cannot be reached ends nobody");
    work(&machine, "alice", "echo still here >state");
    machine.wait_until("grep -q still /home/alice/state");
}

/// A machine on which alice has two keys, and who is to end has so long.
fn with_two_keys(grace: &str) -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}]}]}))
        .settings(&format!("[freshness]\nmax_age = 0\n[sessions]\ngrace = '{grace}'"))
        .start()
}

/// alice's first key is no longer active.
fn withdraw_first_key(machine: &Machine) {
    machine.iam().python(
        "key = iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId']
iam.update_ssh_public_key(UserName='alice', SSHPublicKeyId=key, Status='Inactive')",
    );
}

#[test]
fn what_a_session_has_left_behind_ends_with_the_key_that_opened_it_and_nothing_of_another_key() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users"], "users": [{"name": "alice", "groups": ["ssh-users"], "keys": [{}, {}]}]}))
        .settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'")
        .booted()
        .start();
    // As the timer does on a host that has just been set up: where no sweep runs, nothing is kept for one.
    machine.sh("iamctl sweep").succeeds();
    for (key, sleep) in [("alice", 4020), ("alice.2", 4021)] {
        machine
            .sh(&format!(
                "box-ssh -i $BOX_KEYS/{key} alice 'setsid -f sleep {sleep} </dev/null >/dev/null 2>&1'"
            ))
            .succeeds();
    }
    machine.wait_until("pgrep -f '^sleep 4020' && pgrep -f '^sleep 4021' && ! pgrep -x sshd -u alice");
    machine.sh("iamctl sweep; pgrep -f '^sleep 4020' && pgrep -f '^sleep 4021'").succeeds();
    withdraw_first_key(&machine);
    let dry = machine.sh("iamctl sweep --dry-run").succeeds();
    assert!(dry.contains("would end what alice runs without a session: key-withdrawn"), "{dry}");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("! pgrep -f '^sleep 4020' && pgrep -f '^sleep 4021'").succeeds();
    // When nothing has been left of them for a while, nothing is remembered of them.
    machine
        .sh("pkill -f '^sleep 4021'; loginctl terminate-user alice; while pgrep -u alice; do sleep 0.05; done
             for n in $(seq 61); do iamctl sweep; done; ! ls /run/pam_iam/sessions | grep .")
        .succeeds();
}

#[test]
fn what_the_last_member_of_a_shared_account_left_behind_ends_too() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "deployers"], "users": [{"name": "alice", "groups": ["deployers"], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'\n[shared.deploy]\ngroups = ['deployers']")
        .booted()
        .start();
    machine.sh("useradd -m -s /bin/bash deploy; iamctl sweep; setpriv --reuid deploy --clear-groups setsid -f sleep 4031 </dev/null >/dev/null 2>&1").succeeds();
    machine
        .sh("box-ssh -i $BOX_KEYS/alice deploy 'setsid -f sleep 4030 </dev/null >/dev/null 2>&1'")
        .succeeds();
    machine.sh("iamctl sweep; pgrep -f '^sleep 4030'").succeeds();
    machine.iam().remove_from_group("alice", "deployers");
    machine.sh("iamctl sweep; ! pgrep -f '^sleep 4030'").succeeds();
    machine.sh("pgrep -f '^sleep 4031'").succeeds();
}

#[test]
fn a_deleted_user_is_ended_though_the_list_of_users_cannot_be_read() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").start();
    machine.ssh("carol", "setsid -f sleep 4032 </dev/null >/dev/null 2>&1").succeeds();
    machine.fault("fail=denied&only=GetGroup");
    machine.sh("rm -rf /var/cache/pam_iam/*").succeeds();
    machine.end_resolver("KILL");
    machine.iam().python(
        "for group in ('ssh-users', 'ssh-admins'): iam.remove_user_from_group(UserName='carol', GroupName=group)
for key in iam.list_ssh_public_keys(UserName='carol')['SSHPublicKeys']: iam.delete_ssh_public_key(UserName='carol', SSHPublicKeyId=key['SSHPublicKeyId'])
iam.delete_user(UserName='carol')",
    );
    machine.ssh("carol", "true").fails();
    let said = machine.sh("iamctl sweep; ! pgrep -f '^sleep 4032'").succeeds();
    assert!(said.contains("ended what carol runs without a session (1 process): no-such-user"), "{said}");
}

#[test]
fn a_session_ends_with_its_key_and_tells_why_on_its_terminal() {
    let machine = with_two_keys("20s");
    // One session by each key, the first on a terminal.
    machine
        .sh("(sleep 1000 | script -qfc 'box-ssh alice' /tmp/typescript) </dev/null >/dev/null 2>&1 &")
        .succeeds();
    machine.sh("box-ssh -i $BOX_KEYS/alice.2 alice 'sleep 4003' </dev/null >/dev/null 2>&1 &").succeeds();
    // On its terminal is who has a process there: sshd registers a session before.
    machine.wait_until("pgrep -f '^sleep 4003' && ps -o tty= -u alice | grep -q ^pts");
    assert_eq!(sessions(&machine).len(), 2);
    withdraw_first_key(&machine);
    let dry = machine.sh("iamctl sweep --dry-run").succeeds();
    assert!(dry.contains("would end the session of alice") && dry.contains("key-withdrawn"), "{dry}");
    assert_eq!(sessions(&machine).len(), 2);
    // On a busy machine the sshd between terminal and client may not run before the shell is over.
    let said = machine
        .sh("shell=$(ps -o pid= -o tty= -u alice | awk '$2 ~ /^pts/ { print $1; exit }') && sshd=$(ps -o ppid= -p $shell) || exit
            kill -STOP $sshd; iamctl sweep & while ps -o stat= -p $shell | grep -qv Z; do sleep 0.02; done; kill -CONT $sshd; wait $!")
        .succeeds();
    assert!(said.contains("key-withdrawn"), "{said}");
    assert_eq!(sessions(&machine).len(), 1);
    machine.sh("pgrep -f '^sleep 4003'").succeeds();
    machine.wait_until("grep -q 'the key of this session no longer opens this account. This session ends now' /tmp/typescript");
}

#[test]
fn where_only_the_user_counts_a_withdrawn_key_ends_nothing() {
    let machine = Machine::new()
        .settings("[freshness]\nmax_age = 0\n[sessions]\nsweep = 'login'\ngrace = '1s'")
        .start();
    machine.open_session("alice");
    machine.iam().python("for key in iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys']: iam.delete_ssh_public_key(UserName='alice', SSHPublicKeyId=key['SSHPublicKeyId'])");
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice"]);
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.sh("sed -i \"s/'login'/'off'/\" /etc/pam_iam/config.toml; iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice"], "off is off");
    machine.sh("sed -i \"s/'off'/'login'/\" /etc/pam_iam/config.toml; iamctl sweep").succeeds();
    assert_eq!(users(&machine), [""; 0]);
}

#[test]
fn who_logs_in_anew_by_another_key_is_not_ended_with_the_withdrawn_one() {
    let machine = with_two_keys("8s");
    // Something of hers that takes its time.
    machine.sh("printf 'exec >/dev/null 2>&1; trap \"touch asked\" TERM; trap \"\" HUP; touch waits; while :; do sleep 0.1; done' >/tmp/stubborn
        box-ssh -i $BOX_KEYS/alice alice 'setsid --wait bash /tmp/stubborn' </dev/null >/dev/null 2>&1 &").succeeds();
    machine.wait_until("test -e /home/alice/waits");
    withdraw_first_key(&machine);
    machine
        .sh("(iamctl sweep; touch /tmp/swept) >/tmp/said 2>&1 </dev/null &
             until [ -e /home/alice/asked ]; do sleep 0.02; done
             (box-ssh -i $BOX_KEYS/alice.2 alice 'sleep 4007' </dev/null >/dev/null 2>&1 &)")
        .succeeds();
    machine.wait_until("pgrep -f '^sleep 4007'");
    machine.sh("test ! -e /tmp/swept").succeeds();
    machine.wait_until("test -e /tmp/swept");
    machine.sh("grep -q key-withdrawn /tmp/said && pgrep -f '^sleep 4007'").succeeds();
    machine.sh("pgrep -f /tmp/stubborn").fails();
    assert_eq!(users(&machine), ["alice"]);
}

#[test]
fn who_could_not_be_confirmed_for_as_long_as_offline_is_ended() {
    let machine = Machine::new()
        .settings("[freshness]\nmax_age = 0\noffline = '3m'\noffline_sudo = '1m'\n[sessions]\ngrace = '1s'")
        .start();
    machine.open_session("alice");
    machine.open_session("carol");
    machine.fault("fail=reset");
    machine.sh("iamctl flush && iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice", "carol"]);
    // As if alice's had been confirmed four minutes ago. Entries keep the time since the boot.
    machine.sh("at=$(($(cut -d. -f1 /proc/uptime) - 240)); file=$(grep -l '\"alice\"' /run/pam_iam/sessions/*) && touch -d @$at $file").succeeds();
    machine.sh("iamctl sweep").succeeds();
    machine.wait_until("test -e /tmp/alice.over");
    machine.logs("authpriv", "result=ended reason=offline");
    assert_eq!(users(&machine), ["carol"]);
}

#[test]
fn the_hosts_own_sessions_of_a_shared_account_outlive_an_outage() {
    let machine = Machine::new()
        .settings(
            "[freshness]\nmax_age = 0\n[shared.deploy]\ngroups = ['ssh-users']\n[sessions]\ngrace = '1s'",
        )
        .start();
    machine.sh("useradd -m -s /bin/bash deploy && ssh-keygen -q -t ed25519 -N '' -f /root/own && install -d -m 700 -o deploy ~deploy/.ssh && install -m 600 -o deploy /root/own.pub ~deploy/.ssh/authorized_keys").succeeds();
    machine.fault("fail=reset");
    machine.sh("box-ssh -i /root/own deploy 'sleep 4008' </dev/null >/dev/null 2>&1 &").succeeds();
    machine.wait_until("pgrep -f '^sleep 4008'");
    machine.logs("authpriv", "origin=unknown");
    machine.fault("fail=");
    machine.wait_until("iamctl explain alice >/dev/null");
    machine.sh("iamctl sweep && pgrep -f '^sleep 4008'").succeeds();
}

#[test]
fn a_session_of_a_shared_account_by_a_members_key_and_one_of_the_hosts_ends_with_the_member() {
    let machine = Machine::new()
        .settings(
            "[freshness]\nmax_age = 0\n[shared.deploy]\ngroups = ['ssh-users']\n[sessions]\ngrace = '1s'",
        )
        .start();
    machine.sh("useradd -m -s /bin/bash deploy && ssh-keygen -q -t ed25519 -N '' -f /root/own && install -d -m 700 -o deploy ~deploy/.ssh && install -m 600 -o deploy /root/own.pub ~deploy/.ssh/authorized_keys
        printf 'Match User deploy\n AuthenticationMethods publickey,publickey\n' >>/etc/ssh/sshd_config && pkill -HUP -o -x sshd").succeeds();
    machine.wait_until("/usr/sbin/sshd -T -C user=deploy,host=h,addr=127.0.0.1 | grep -q 'authenticationmethods publickey,publickey'");
    machine.sh("(box-ssh -i /root/own -- deploy true; ssh -F none -i /root/own -i $BOX_KEYS/alice -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=/run/box/known_hosts -o ConnectionAttempts=5 -l deploy 127.0.0.1 'sleep 4010' </dev/null >/tmp/two 2>&1 &) >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4010'");
    let open = sessions(&machine);
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0]["iam_name"], "alice");
    machine.sh("iamctl sweep && pgrep -f '^sleep 4010'").succeeds();
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("pgrep -f '^sleep 4010'").fails();
}

#[test]
fn a_member_who_left_is_out_of_the_shared_account_and_the_others_stay() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "deployers"], "users": [
            {"name": "alice", "groups": ["deployers"], "keys": [{}]},
            {"name": "bob", "groups": ["deployers"], "keys": [{}]}]}))
        .settings(
            "[freshness]\nmax_age = 0\n[shared.deploy]\ngroups = ['deployers']\n[sessions]\ngrace = '1s'",
        )
        .start();
    machine
        .sh("useradd -m -s /bin/bash deploy; su deploy -c 'sleep 4006' </dev/null >/dev/null 2>&1 &")
        .succeeds();
    machine.sh("box-ssh -i $BOX_KEYS/alice deploy 'sleep 4004' </dev/null >/dev/null 2>&1 & box-ssh -i $BOX_KEYS/bob deploy 'sleep 4005' </dev/null >/dev/null 2>&1 &").succeeds();
    machine.wait_until("pgrep -f '^sleep 4004' && pgrep -f '^sleep 4005' && pgrep -f '^sleep 4006'");
    machine.iam().remove_from_group("alice", "deployers");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("! pgrep -f '^sleep 4004' && pgrep -f '^sleep 4005' && pgrep -f '^sleep 4006'").succeeds();
    let left: Vec<Value> = sessions(&machine);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["iam_name"], "bob");
    // An account that is shared no longer is the host's own, and so is what did not come by a key of IAM.
    machine.sh("sed -i '/shared.deploy/,+1d' /etc/pam_iam/config.toml && iamctl sweep").succeeds();
    machine.sh("! pgrep -f '^sleep 4005' && pgrep -f '^sleep 4006'").succeeds();
}

#[test]
fn who_logs_out_and_leaves_something_running_is_swept_too() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").start();
    // Loose from the session in every way, deaf to what asks, and many.
    let stubborn = "for at in $(seq 300); do setsid -f bash -c 'trap \"\" HUP TERM; sleep 4007; sleep 4008' </dev/null >/dev/null 2>&1; done";
    machine.ssh("alice", stubborn).succeeds();
    let alice = machine.sh("id -u alice").succeeds();
    machine.ssh("carol", "setsid -f sleep 4009 </dev/null >/dev/null 2>&1").succeeds();
    machine.wait_until("iamctl sessions | grep -q '^alice .* has no session here and runs' && test $(pgrep -c -f '^sleep 4007') -ge 300");
    machine.sh("iamctl sweep").succeeds();
    machine.sh("test $(pgrep -c -f '^sleep 4007') -ge 300 && pgrep -f '^sleep 4009'").succeeds();
    machine.iam().remove_from_group("alice", "ssh-users");
    let said = machine.sh("ulimit -n 64; iamctl sweep").succeeds();
    assert!(
        said.contains("ended what alice runs without a session (") && said.contains("): not-in-group"),
        "{said}"
    );
    machine.sh(&format!("ps -o stat= -u {alice} | grep -qv ^Z")).fails();
    machine.sh("pgrep -f '^sleep 4009'").succeeds();
}

#[test]
fn the_timer_ends_what_iam_has_withdrawn_by_itself() {
    let machine =
        Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").sweeping().start();
    machine.open_session("carol");
    machine.open_session("alice");
    machine.iam().remove_from_group("carol", "ssh-users");
    machine.wait_until("test -e /tmp/carol.over");
    machine.sh("! test -e /tmp/alice.over").succeeds();
    assert_eq!(users(&machine), ["alice"]);
}

#[test]
fn a_denied_look_up_ends_nobody() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").start();
    machine.open_session("alice");
    machine.fault("fail=denied");
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(users(&machine), ["alice"]);
    assert!(machine.ssh("alice", "true").fails().len() > 1, "and nobody gets in");
}

#[test]
fn a_sweep_costs_nothing_when_nobody_is_logged_in() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    machine.ssh("alice", "true").succeeds();
    // Until the last process of the session has ended too.
    machine.wait_until("iamctl sessions | grep -q nobody && ! ps -o stat= -u alice | grep -qv ^Z");
    machine.clear_calls();
    machine.sh("iamctl sweep").succeeds();
    assert_eq!(machine.actions(), [""; 0]);
    // What a crash has left is cleaned away.
    machine.sh("echo '{}' >/run/pam_iam/sessions/77; echo nonsense >/run/pam_iam/sessions/78; iamctl sweep; test -z \"$(ls -A /run/pam_iam/sessions)\"").succeeds();
    assert_eq!(machine.actions(), [""; 0]);
}

#[test]
fn another_sudo_rule_for_another_group() {
    let machine = Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins", "ssh-ops"], "users": [
            {"name": "alice", "groups": ["ssh-users", "ssh-ops"], "keys": [{}]},
            {"name": "carol", "groups": ["ssh-users", "ssh-ops", "ssh-admins"], "keys": [{}]},
            {"name": "first.last", "groups": ["ssh-users", "ssh-admins"], "keys": [{}]}]}))
        .config("[access]\nallow = ['ssh-users']\nsudo = ['ssh-admins', 'ssh-ops']\n[groups]\n'ssh-ops' = 'ssh-ops'\n'ssh-admins' = 'ssh-admins'\n[freshness]\nmax_age = 0")
        .start();
    // docs/sudo.md: iam-sudo's rule goes, two others come.
    machine.sh("printf '%%ssh-admins ALL=(ALL) NOPASSWD: ALL\\n%%ssh-ops ALL=(root) NOPASSWD: /usr/bin/id\\n' >/etc/sudoers.d/pam_iam; chmod 440 /etc/sudoers.d/pam_iam; visudo -c").succeeds();
    assert_eq!(machine.ssh("alice", "sudo -n id -u").succeeds(), "0");
    machine.ssh("alice", "sudo -n cat /etc/shadow").fails();
    assert!(machine.ssh("alice", "sudo -n -l").succeeds().contains("(root) NOPASSWD: /usr/bin/id"));
    machine.ssh("first.last", "sudo -n cat /etc/shadow").succeeds();
    // A session keeps the group that IAM withdraws, and its rule would allow everything.
    machine
        .sh("box-ssh carol 'until test -e /tmp/go; do sleep 0.1; done; sudo -n cat /etc/shadow 2>/tmp/said; echo $? >/tmp/status' </dev/null >/dev/null 2>&1 &")
        .succeeds();
    machine.wait_until("pgrep -u carol -f 'until test'");
    machine.iam().remove_from_group("carol", "ssh-admins");
    machine.sh("touch /tmp/go").succeeds();
    machine.wait_until("test -s /tmp/status");
    let said = machine.sh("cat /tmp/said; ! grep -qx 0 /tmp/status").succeeds();
    assert!(said.contains("you have the group") && said.contains("no longer; log in again"), "{said}");
    machine.logs("authpriv", "event=sudo user=carol iam_name= iam_id= key= group=");
    machine.logs("authpriv", "reason=group-withdrawn");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.ssh("carol", "sudo -n cat /etc/shadow").fails();
}

#[test]
fn sudo_takes_the_forwarded_agent_for_proof() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    // docs/sudo.md, "Proof by the forwarded SSH agent".
    machine.sh("printf 'Defaults:%%iam-sudo env_keep += \"SSH_AUTH_SOCK\"\n%%iam-sudo ALL=(ALL:ALL) ALL\nDefaults passwd_tries=1\n' >/etc/sudoers.d/pam_iam && visudo -c
        sed -i '1i auth sufficient pam_ssh_agent_auth.so authorized_keys_command=/usr/libexec/pam_iam/iam-authorized-keys authorized_keys_command_user=pam-iam' /etc/pam.d/sudo").succeeds();
    let sudo = |agent: &str| {
        machine.sh(&format!(
            "eval $(ssh-agent) >/dev/null; {agent}; ssh -F none -A -i $BOX_KEYS/carol -o IdentitiesOnly=yes -o BatchMode=yes \
             -o UserKnownHostsFile=/run/box/known_hosts -o StrictHostKeyChecking=yes -l carol 127.0.0.1 'echo | sudo -S id -u'; status=$?
             ssh-agent -k >/dev/null; exit $status"
        ))
    };
    assert_eq!(sudo("ssh-add -q $BOX_KEYS/carol").succeeds(), "0");
    sudo("true").fails();
    sudo("ssh-add -q $BOX_KEYS/alice").fails();
    machine.iam().remove_from_group("carol", "ssh-admins");
    sudo("ssh-add -q $BOX_KEYS/carol").fails();
}

#[test]
fn sudo_none_is_nobody_and_local_sudo_goes_on_with_the_resolver_dead() {
    let machine = Machine::new().config("[access]\nallow = ['ssh-users']\n").start();
    assert!(machine.ssh("carol", "sudo -n true").fails().len() > 1);
    machine.sh("useradd -m local; echo 'local ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/local; pkill -STOP -x iam-resolver").succeeds();
    assert_eq!(machine.sh("timeout 5 su local -c 'sudo -n id -u'").succeeds(), "0");
}

#[test]
fn nothing_that_a_user_chooses_forges_a_line_or_a_field() {
    let machine = Machine::new().start();
    // A user name, a client version and a host name full of what a line is made of.
    for name in
        ["x result=allow", "x\nevent=login user=alice result=allow", "\"x\" reason=in-group", "a\\x0ab"]
    {
        machine.run(&["bash", "-c", "box-ssh -i $BOX_KEYS/alice -- \"$1\" true", "bash", name]);
        machine.run(&[
            "pamtester",
            "-I",
            &format!("rhost={name}"),
            "-I",
            "service=sshd",
            "sshd",
            "alice",
            "acct_mgmt",
        ]);
    }
    machine.sh("printf 'SSH-2.0-evil result=allow event=login user=root\\r\\n' | timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; cat >&3; cat <&3' >/dev/null; true");
    machine.logs("authpriv", "rhost=\"x result=allow\" result=allow");
    let log = machine.log("authpriv");
    for line in log.lines().filter(|line| line.contains("pam_iam(")) {
        let fields = line.split("event=").nth(1).unwrap_or_default();
        // Outside quotes, each field stands once.
        let bare: String = fields.split('"').step_by(2).collect();
        for field in [" result=", " reason=", " rhost="] {
            assert!(bare.matches(field).count() <= 1, "{field}: {line}");
        }
        assert!(!bare.contains("user=root"), "{line}");
    }
    assert!(!log.lines().any(|line| line.starts_with("event=")), "{log}");
}

#[test]
fn where_journald_runs_it_gets_every_field() {
    let machine = Machine::new().start();
    // journald's socket, with somebody at it who writes down what comes.
    machine
        .sh("mkdir -p /run/systemd/journal; (python3 -c '
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(\"/run/systemd/journal/socket\")
os.chmod(\"/run/systemd/journal/socket\", 0o666)
while True:
    with open(\"/tmp/journal\", \"ab\") as f: f.write(s.recv(65536) + b\"--\\n\")
' >/dev/null 2>&1 &)")
        .succeeds();
    machine.wait_until("test -S /run/systemd/journal/socket");
    machine.ssh("alice", "true").succeeds();
    machine.wait_until("grep -q PAM_IAM_EVENT=session /tmp/journal");
    let journal = machine.sh("cat /tmp/journal").succeeds();
    for field in [
        "PAM_IAM_EVENT=login\n",
        "PAM_IAM_USER=alice\n",
        "PAM_IAM_RESULT=allow\n",
        "SYSLOG_FACILITY=10\n",
        "SYSLOG_IDENTIFIER=sshd\n",
        "MESSAGE=pam_iam(sshd:account): event=login user=alice",
    ] {
        assert!(journal.contains(field), "{field}\n--- is not in\n{journal}");
    }
}

#[test]
fn while_iam_denies_this_host_to_look_nothing_of_a_user_without_a_session_is_ended() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0\n[sessions]\ngrace = '1s'").start();
    machine.ssh("alice", "setsid -f sleep 4017 </dev/null >/dev/null 2>&1").succeeds();
    machine.wait_until("pgrep -f '^sleep 4017' && ! pgrep -u alice sshd");
    machine.fault("fail=denied");
    machine.sh("iamctl flush alice").succeeds();
    for fault in ["fail=denied", "fail=reset"] {
        machine.fault(fault);
        let said = machine.sh("iamctl sweep").succeeds();
        assert_eq!(said, "there is nobody to end; IAM gave no answer about 1 user, who goes on", "{fault}");
        machine.sh("pgrep -f '^sleep 4017'").succeeds();
    }
    machine.fault("fail=");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.wait_until("iamctl sweep | grep -q 'ended what alice runs without a session'");
    machine.sh("pgrep -f '^sleep 4017'").fails();
    assert_eq!(machine.sh("iamctl sessions end alice").succeeds(), "alice runs nothing here");
}

#[test]
fn to_end_what_an_iam_user_runs_ends_nothing_of_the_local_account_that_has_the_name_now() {
    let machine = Machine::new().settings("[freshness]\nmax_age = 0").start();
    let uid = machine.ssh("alice", "setsid -f sleep 4991 </dev/null >/dev/null 2>&1; id -u").succeeds();
    machine.iam().remove_from_group("alice", "ssh-users");
    machine
        .sh("echo 'alice:x:1500:1500::/home/local:/bin/bash' >>/etc/passwd; echo alice:100000:65536 >/etc/subuid
             for of in 1500 100007; do setpriv --reuid $of --clear-groups setsid -f sleep 4990 </dev/null >/dev/null 2>&1; done")
        .succeeds();
    machine.wait_until("[ $(pgrep -cf '^sleep 4990') = 2 ]");
    machine.sh("timeout 60 iamctl sessions end alice").succeeds();
    machine.sh(&format!("[ $(pgrep -cf '^sleep 4990') = 2 ] && ! pgrep -U {uid}")).succeeds();
}
