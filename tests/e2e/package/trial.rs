//! `iamctl enable --try`, which is undone unless the administrator confirms it.

use pam_iam_tests::Machine;

use super::{assert_each_unit, etc_changes, machine_with_package, unit};

const TIMER: &str = "iam-trial.timer";
const TRIAL: &str = "/var/lib/pam_iam/trial.json";

/// Moves the end of the trial into the past.
fn expire_trial(machine: &Machine) {
    let sed = ["sed", "-i", "s/\"until\":[0-9]*/\"until\":1/", TRIAL];
    machine.run(&sed).succeeds();
}

#[test]
fn a_trial_is_undone_unless_it_is_confirmed() {
    let machine = machine_with_package();
    let configured = etc_changes(&machine);
    machine.iamctl("enable --try 10m").succeeds();
    assert_each_unit(&machine, "is-active", "active", &[TIMER]);
    assert_each_unit(&machine, "is-enabled", "enabled", &[TIMER]);
    assert!(machine.iamctl("enable --confirm").fails().contains("no IAM user has logged in since"));
    assert!(machine.iamctl("enable").fails().contains("a trial goes on for"));
    machine.doctor_says("everything is taken back in");
    expire_trial(&machine);
    machine.wait_until(&format!("! test -e {TRIAL}"));
    machine.wait_until(&format!("! systemctl is-enabled --quiet {TIMER}"));
    assert_eq!(etc_changes(&machine), configured);
    machine.ssh("alice", "true").fails();

    assert_confirmed_trial_stays(&machine);

    // An expired trial is undone by the next command too, so that it ends where the timer does not run.
    machine.iamctl("disable").succeeds();
    machine.iamctl("enable --try 10m").succeeds();
    machine.run(&["systemctl", "stop", TIMER]).succeeds();
    expire_trial(&machine);
    machine.doctor_says("nothing of pam_iam is switched on here");
    assert_eq!(etc_changes(&machine), configured);
}

fn assert_confirmed_trial_stays(machine: &Machine) {
    machine.iamctl("enable --try 10m").succeeds();
    let _session = machine.open_session("alice");
    assert!(machine.iamctl("enable --confirm").succeeds().contains("alice logged in by sshd"));
    machine.iamctl("end-trial").succeeds();
    assert!(!unit(machine, "is-active", TIMER));
    machine.ssh("alice", "true").succeeds();
    assert!(machine.iamctl("enable --try 10m").fails().contains("it is enabled already"));
}
