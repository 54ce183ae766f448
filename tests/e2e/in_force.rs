//! What happens on a host that loses our lines, and how an operator hears of it.

use pam_iam_tests::{Machine, repository};
use serde_json::{Value, json};

/// Alice is in a group that may log in; bob is an IAM user with a key, in none.
fn machine() -> Machine {
    Machine::new()
        .fixtures(json!({"groups": ["ssh-users", "ssh-admins"], "users": [
            {"name": "alice", "groups": ["ssh-users"], "keys": [{}]}, {"name": "bob", "groups": [], "keys": [{}]}]}))
        .settings("[freshness]\nmax_age = 0")
        .start()
}

/// What a sweep finds not in force.
fn not_in_force(machine: &Machine) -> Vec<String> {
    machine.sh("iamctl sweep").succeeds();
    let status: Value =
        serde_json::from_str(&machine.sh("iamctl status --json").succeeds()).unwrap_or_default();
    let found = status.pointer("/sweep/not_in_force").and_then(Value::as_array);
    let Some(found) = found else { return vec!["no report".to_owned()] };
    found.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn a_sweep_says_which_line_of_pam_and_which_setting_of_sshd_is_gone() {
    let machine = machine();
    machine.ssh("alice", "true").succeeds();
    assert_eq!(not_in_force(&machine), [""; 0]);
    for (broken, what, mended) in [
        (
            "echo 'AuthorizedKeysCommand /usr/share/ec2-instance-connect/eic_run_authorized_keys %u %f' >/etc/ssh/sshd_config.d/00-eic.conf",
            "EC2 Instance Connect",
            "rm /etc/ssh/sshd_config.d/00-eic.conf",
        ),
        (
            "cp -p /etc/pam.d/sshd /tmp/saved; sed -i '/^account.*pam_iam/d' /etc/pam.d/sshd",
            "sshd: pam_iam.so is not in the account phase",
            "cp -p /tmp/saved /etc/pam.d/sshd",
        ),
        (
            "cp -p /etc/pam.d/sudo /tmp/saved; sed -i '1i account sufficient pam_permit.so' /etc/pam.d/sudo",
            "sudo: pam_iam.so is not always asked, because of `sufficient pam_permit.so`",
            "cp -p /tmp/saved /etc/pam.d/sudo",
        ),
        (
            "cp -p /etc/nsswitch.conf /tmp/saved; sed -i '/^passwd/s/ iam$//' /etc/nsswitch.conf",
            "/etc/nsswitch.conf does not ask IAM for accounts",
            "cp -p /tmp/saved /etc/nsswitch.conf",
        ),
        // Nobody is logged in any more, and yet it is looked at for a user of IAM.
        (
            "cp -p /etc/ssh/sshd_config.d/10-pam_iam.conf /tmp/saved; sed -i '/AuthorizedKeysFile/d' /etc/ssh/sshd_config.d/10-pam_iam.conf",
            "sshd also takes keys from .ssh/authorized_keys",
            "cp -p /tmp/saved /etc/ssh/sshd_config.d/10-pam_iam.conf",
        ),
    ] {
        machine.sh(broken).succeeds();
        let found = not_in_force(&machine);
        assert!(found.len() == 1 && found[0].contains(what), "{broken}: {found:?}");
        machine.logs("authpriv", &format!("not in force on this host: {}", found[0]));
        machine
            .sh("iamctl status --prometheus /tmp/metrics && grep -qx 'pam_iam_not_in_force 1' /tmp/metrics")
            .succeeds();
        machine.sh(mended).succeeds();
        assert_eq!(not_in_force(&machine), [""; 0], "after {mended}");
    }
    machine.sh("iamctl status --prometheus /tmp/metrics && grep -qx 'pam_iam_not_in_force_sweeps_total 5' /tmp/metrics").succeeds();
}

#[test]
fn what_a_sweep_found_wrong_for_iams_users_stands_while_a_directory_does_not_answer() {
    let machine = machine();
    machine.ssh("alice", "true").succeeds();
    machine.sh("sed -i '/AuthorizedKeysFile/d' /etc/ssh/sshd_config.d/10-pam_iam.conf").succeeds();
    let found = not_in_force(&machine);
    assert!(found.len() == 1 && found[0].contains("sshd also takes keys"), "{found:?}");
    // Who opens the directory's file waits for ever, and the files of sshd's settings have changed, so that sshd is asked again.
    machine
        .sh("mkdir -p /var/lib/extrausers; mkfifo /var/lib/extrausers/passwd
             sed -i -E 's/^passwd:.*/passwd: files extrausers iam/' /etc/nsswitch.conf; touch /etc/ssh/sshd_config.d/99.conf")
        .succeeds();
    assert_eq!(not_in_force(&machine), found);
}

#[test]
fn without_our_lines_in_pam_a_user_in_no_group_gets_nothing_of_sshd() {
    let machine = machine();
    machine.sh("sed -i '/pam_iam/d' /etc/pam.d/sshd").succeeds();
    machine.ssh("alice", "true").succeeds();
    machine.ssh("bob", "true").fails();
    let bob = |program: &str| machine.ssh_with("bob", "bob", program).status;
    assert_ne!(bob("-s sftp"), 0);
    assert_ne!(bob("-N -o ExitOnForwardFailure=yes -L 12345:localhost:22 -f"), 0);
    assert!(
        not_in_force(&machine)
            .iter()
            .any(|what| what.contains("sshd: pam_iam.so is not in the account phase"))
    );
}

#[test]
fn to_look_at_sshds_settings_for_a_user_costs_no_call_to_iam() {
    let machine = machine();
    machine.ssh("alice", "true").succeeds();
    let look = "sshd -T -C user=alice,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22 | grep -qx 'authorizedkeysfile none'";
    // What the login began in the background ends first.
    machine.wait_until(&format!(
        "curl -sSf \"$BOX_CTL?clear\" >/dev/null; PAM_IAM_LOOK_ONLY=1; export PAM_IAM_LOOK_ONLY; {look} && ! curl -sSf \"$BOX_CTL?log\" | grep -q GetUser"
    ));
    // As it would be without.
    machine.sh(look).succeeds();
    machine.wait_until("curl -sSf \"$BOX_CTL?log\" | grep -q GetUser");
}

#[test]
fn a_user_with_a_local_group_has_ours_too_where_nsswitch_has_a_line_of_its_own_for_the_groups_of_a_user() {
    let machine = machine();
    machine
        .sh("groupadd dev; sed -i '/^dev:/s/$/alice/' /etc/group; echo 'initgroups: iam [SUCCESS=continue] files' >>/etc/nsswitch.conf")
        .succeeds();
    assert_eq!(
        machine.ssh("alice", "id -Gn | tr ' ' '\\n' | grep -xE 'dev|iam-users' | sort").succeeds(),
        "dev\niam-users"
    );
    assert!(!machine.sh("iamctl doctor").stdout.contains("initgroups"));
    machine.sh("sed -i 's/^initgroups:.*/initgroups: files iam/' /etc/nsswitch.conf").succeeds();
    assert!(
        machine
            .sh("iamctl doctor")
            .stdout
            .contains("the line initgroups: of /etc/nsswitch.conf does not ask IAM")
    );
}

#[test]
fn behind_nscd_users_have_their_groups_and_doctor_says_what_it_delays() {
    let machine = machine();
    // A service may run as a user with another primary group.
    let with_group_100 =
        "import grp, os; print([grp.getgrgid(gid).gr_name for gid in os.getgrouplist('alice', 100)])";
    assert_eq!(machine.run(&["python3", "-c", with_group_100]).succeeds(), "['users', 'iam-users']");
    let folder = repository().join("target/nscd");
    // Without the package's scripts: the box has no init to start it.
    machine
        .sh(&format!(
            "dpkg-deb -x {}/nscd_*.deb /tmp/nscd; install /tmp/nscd/usr/sbin/nscd /usr/sbin/; cp /tmp/nscd/etc/nscd.conf /etc/
             mkdir -p /run/nscd /var/cache/nscd; nscd",
            folder.display()
        ))
        .succeeds();
    machine.wait_until("nscd -g | grep -q 'cache is enabled'");
    let groups = "alice iam-users";
    assert_eq!(machine.ssh("alice", "id -Gn").succeeds(), groups);
    // nscd asks for the groups of a user without the user's own, and answers for all.
    machine.sh("nscd -i group; nscd -i passwd").succeeds();
    assert_eq!(machine.sh("id -Gn alice").succeeds(), groups);
    assert_eq!(
        machine.sh("getent initgroups alice | tr -s ' ' | cut -d ' ' -f 2-").succeeds(),
        machine.sh("getent group iam-users | cut -d : -f 3").succeeds()
    );
    machine
        .sh("nscd -g | grep -A 25 '^group cache' | grep -q '[1-9]  current number of cached values'")
        .succeeds();
    // sshd's rule for the group holds.
    let look = "sshd -T -C user=alice,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22 | grep -qx 'authorizedkeysfile none'";
    machine.sh(look).succeeds();
    assert!(machine.sh("iamctl doctor").stdout.contains("nscd runs: it remembers accounts and groups"));
}
