//! The shipped files for sshd and sudo and the shipped systemd units, as sshd, sudo and systemd read them.

use pam_iam_tests::Machine;

const UNITS: &str = "/usr/lib/systemd/system";

#[test]
fn sudo_and_sshd_accept_the_shipped_files_and_sshd_reads_no_other_keys_of_iam_users() {
    let machine = Machine::new().start();
    machine.run(&["visudo", "-c", "-f", "/etc/sudoers.d/pam_iam"]).succeeds();
    machine.run(&["/usr/sbin/sshd", "-t"]).succeeds();
    let settings_for = |user: &str| {
        let connection = format!("user={user},host=h,addr=127.0.0.1");
        machine.run(&["/usr/sbin/sshd", "-T", "-C", &connection]).succeeds()
    };
    let settings = settings_for("alice");
    for line in [
        "authorizedkeyscommand /usr/libexec/pam_iam/iam-authorized-keys --uid %U --home %h --type %t --key %k %u %f",
        "authorizedkeyscommanduser pam-iam",
        "authorizedkeysfile none",
        "usepam yes",
    ] {
        assert!(settings.contains(line), "{line}\n--- is not in\n{settings}");
    }
    let settings = settings_for("root");
    assert!(settings.contains("authorizedkeysfile .ssh/authorized_keys"), "{settings}");
}

#[test]
fn systemd_accepts_the_units() {
    let machine = Machine::new().start();
    for (name, units) in [
        ("iam-resolver", ["iam-resolver.service", "iam-resolver.socket"].as_slice()),
        ("iam-sweep", &["iam-sweep.service"]),
    ] {
        let paths: Vec<String> = units.iter().map(|unit| format!("{UNITS}/{unit}")).collect();
        let mut argv = vec!["systemd-analyze", "verify"];
        argv.extend(paths.iter().map(String::as_str));
        let done = machine.run(&argv);
        let complaints = (done.stdout + &done.stderr).to_lowercase();
        assert!(!complaints.contains(name), "{complaints}");
    }
}

#[test]
fn the_resolvers_unit_exposes_next_to_nothing() {
    let machine = Machine::new().start();
    let unit = format!("{UNITS}/iam-resolver.service");
    // The exposure may be at most 1.5. The option takes tenths.
    let options = ["--offline=yes", "--no-pager", "--threshold=15"];
    machine.run(&[["systemd-analyze", "security"].as_slice(), &options, &[&unit]].concat()).succeeds();
}

#[test]
fn the_resolver_runs_as_its_own_user() {
    let machine = Machine::new().start();
    let process = machine.run(&["ps", "-o", "user:32=,args=", "-C", "iam-resolver"]).succeeds();
    assert!(process.starts_with("iam-resolver "), "{process}");
}
