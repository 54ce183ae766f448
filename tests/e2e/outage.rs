//! IAM out of reach, the resolver killed, the disk full: what was learned serves, and nothing older than what IAM said.

use pam_iam_tests::Machine;

const FRESH: &str = "[freshness]\nmax_age = 0";

/// Waits until the cache on disk knows `user`.
fn saved(machine: &Machine, user: &str) {
    machine.wait_until(&format!("grep -q '\"name\":\"{user}\",\"age\"' /var/cache/pam_iam/cache.json"));
}

#[test]
fn after_a_reboot_while_iam_is_down_who_was_known_logs_in() {
    let machine = Machine::new().settings(FRESH).booted().start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("carol", "sudo -n true").succeeds();
    saved(&machine, "carol");
    assert_eq!(
        machine.sh("stat -c '%a %U' /var/cache/pam_iam/cache.json /var/cache/pam_iam").succeeds(),
        "600 iam-resolver\n700 iam-resolver"
    );
    machine.fault("fail=hang");
    machine.reboot();
    assert_eq!(machine.ssh("alice", "id -un").succeeds(), "alice");
    assert_eq!(machine.ssh("carol", "sudo -n id -u").succeeds(), "0");
    machine.wait_until("journalctl -q -b | grep 'event=login user=alice' | grep -q source=offline");
    machine.ssh("bob", "true").fails();
    machine.fault("fail=");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.wait_until("! box-ssh alice true 2>/dev/null");
    machine.ssh("carol", "true").succeeds();
}

#[test]
fn what_iam_took_away_stays_away_when_the_resolver_is_killed_at_once() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("carol", "true").succeeds();
    saved(&machine, "alice");
    saved(&machine, "carol");
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    machine.end_resolver("KILL");
    machine.fault("fail=reset");
    machine.ssh("alice", "true").fails();
    machine.ssh("carol", "true").succeeds();
}

#[test]
fn a_cache_that_is_broken_older_or_of_another_owner_is_put_aside_and_lets_nobody_in() {
    for (damage, why) in [
        ("truncate -s -10 cache.json", "it is broken: its checksum is wrong"),
        (
            "sed -i 's/ssh-users/ssh-userz/' cache.json; chown iam-resolver cache.json",
            "it is broken: its checksum is wrong",
        ),
        (
            "sed -i 's/\"version\":1/\"version\":0/' cache.json; chown iam-resolver cache.json",
            "it has the version 0",
        ),
        ("chown root cache.json; chmod 644 cache.json", "it belongs to another user"),
        ("chown root cache.json; chmod 600 cache.json", "Permission denied"),
        ("rm cache.json; mkdir cache.json; chown iam-resolver cache.json", "it is no file"),
    ] {
        let machine = Machine::new().settings(FRESH).start();
        machine.ssh("alice", "true").succeeds();
        // At its end it saves what it has.
        machine.end_resolver("TERM");
        machine.fault("fail=reset");
        machine.sh(&format!("cd /var/cache/pam_iam; {damage}")).succeeds();
        machine.end_resolver("KILL");
        machine.logs(
            "resolver",
            &format!("the cache /var/cache/pam_iam/cache.json is not used and put aside: {why}"),
        );
        machine.sh("test -e /var/cache/pam_iam/cache.json.rejected").succeeds();
        machine.ssh("alice", "true").fails();
        machine.fault("fail=");
        machine.wait_until("box-ssh alice true 2>/dev/null");
    }
}

#[test]
fn on_a_full_disk_answers_come_from_memory_and_no_old_file_says_more_than_iam() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    saved(&machine, "alice");
    // The same file on a disk of its own, which is then full.
    machine.sh("cp -a /var/cache/pam_iam /tmp/cache && mount -t tmpfs -o size=64k,mode=700 cache /var/cache/pam_iam \
                && chown iam-resolver: /var/cache/pam_iam && cp -a /tmp/cache/. /var/cache/pam_iam && ! cat /dev/zero >/var/cache/pam_iam/full").succeeds();
    machine.ssh("carol", "true").succeeds();
    machine.logs("resolver", "cannot be written, so answers are in memory alone: No space left on device");
    assert!(machine.sh("iamctl status").succeeds().contains("cannot be written: No space left"));
    machine
        .sh("test -e /var/cache/pam_iam/cache.json && test ! -e /var/cache/pam_iam/cache.json.new")
        .succeeds();
    machine.iam().remove_from_group("alice", "ssh-users");
    machine.ssh("alice", "true").fails();
    machine.wait_until("! test -e /var/cache/pam_iam/cache.json");
    machine.sh("rm /var/cache/pam_iam/full; iamctl flush bob").succeeds();
    machine.logs("resolver", "is written again");
    saved(&machine, "carol");
}

#[test]
fn a_list_that_iam_denies_is_said_clearly_and_keeps_nobody_out_whom_iam_knows() {
    let machine = Machine::new().settings(FRESH).start();
    machine.fault("fail=denied&only=GetGroup");
    machine.end_resolver("KILL");
    machine.logs("resolver", "cannot be read, since IAM denies it; give this host iam:GetGroup");
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
}

#[test]
fn guessing_names_costs_no_more_calls_than_the_bucket_holds_and_a_new_user_gets_in() {
    let machine = Machine::new().settings("[freshness]\nunknown_per_minute = 10").start();
    machine.clear_calls();
    let began = machine.sh("date +%s").succeeds().parse::<u64>().unwrap();
    machine
        .sh("python3 -c '
import pwd, random, string
for _ in range(10000):
    name = \"\".join(random.choices(string.ascii_lowercase, k=12))
    try:
        pwd.getpwnam(name)
        raise SystemExit(name)
    except KeyError:
        pass'")
        .succeeds();
    let minutes = (machine.sh("date +%s").succeeds().parse::<u64>().unwrap() - began).div_ceil(60);
    let calls = machine.calls();
    let of = |action: &str| calls.iter().filter(|call| call.action == action).count() as u64;
    // Each look-up asks for the user, the groups and the keys; the list may be read anew once in 30 s.
    assert!(of("GetUser") <= 10 + 10 * minutes, "{}", of("GetUser"));
    assert!(of("GetGroup") <= 2 * 2 * (1 + minutes), "{}", of("GetGroup"));
    machine.iam().python("iam.create_user(UserName='newcomer')\niam.add_user_to_group(UserName='newcomer', GroupName='ssh-users')
key = iam.get_ssh_public_key(UserName='alice', SSHPublicKeyId=iam.list_ssh_public_keys(UserName='alice')['SSHPublicKeys'][0]['SSHPublicKeyId'], Encoding='SSH')
iam.upload_ssh_public_key(UserName='newcomer', SSHPublicKeyBody=key['SSHPublicKey']['SSHPublicKeyBody'])");
    machine.wait_until("box-ssh -i $BOX_KEYS/alice newcomer true 2>/dev/null");
}

#[test]
fn a_configuration_with_an_error_is_told_at_once_and_a_mended_one_is_taken_up_by_itself() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.sh("sed -i s/allow/alow/ /etc/pam_iam/config.toml").succeeds();
    // The resolver goes on by what it has read; PAM and the key command do not.
    machine.ssh("alice", "true").fails();
    let said = machine.sh("iamctl explain alice").fails();
    assert!(said.contains("but        refused all the same: /etc/pam_iam/config.toml:"), "{said}");
    assert!(machine.sh("iamctl status").succeeds().contains("IAM users are kept out until it is mended"));
    machine.sh("pkill -x iam-resolver").succeeds();
    machine.wait_until("iamctl status 2>&1 | grep -q '/etc/pam_iam/config.toml has an error; run: /usr/libexec/pam_iam/iam-resolver check-config /etc/pam_iam/config.toml'");
    machine.run(&["getent", "passwd", "alice"]).fails();
    machine.sh("sed -i s/alow/allow/ /etc/pam_iam/config.toml").succeeds();
    machine.wait_until("iamctl status >/dev/null 2>&1");
    machine.ssh("alice", "true").succeeds();
}

#[test]
fn a_cache_of_another_configuration_waits_until_that_is_right_again() {
    let machine = Machine::new().settings(FRESH).start();
    machine.ssh("alice", "true").succeeds();
    machine.end_resolver("TERM");
    machine.fault("fail=reset");
    machine
        .sh("cp /etc/pam_iam/config.toml /root; sed -i 's/ssh-users/ssh-userz/' /etc/pam_iam/config.toml")
        .succeeds();
    machine.end_resolver("TERM");
    machine.logs("resolver", "cache.json is not used: it was written under another configuration");
    machine.ssh("alice", "true").fails();
    machine.sh("cp /root/config.toml /etc/pam_iam").succeeds();
    machine.end_resolver("TERM");
    machine.ssh("alice", "true").succeeds();
}
