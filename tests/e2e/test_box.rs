//! The box of these tests: its cloud is as strict as AWS, it leaves nothing behind, and its setup waits for apt.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::Command;

use pam_iam_tests::{Done, Machine, repository};

#[test]
fn the_cloud_of_the_box_refuses_requests_without_a_token_or_with_a_wrong_signature() {
    let machine = Machine::new().start();
    let status_of =
        |request: &str| machine.sh(&format!("curl -s -o /dev/null -w '%{{http_code}}' {request}")).succeeds();
    assert_eq!(status_of("http://169.254.169.254/latest/meta-data/placement/region"), "401");
    let unsigned = "$AWS_ENDPOINT_URL -d 'Action=GetUser&Version=2010-05-08&UserName=alice'";
    assert_eq!(status_of(unsigned), "403");
    let forged = "AWS_SECRET_ACCESS_KEY=wrong $BOX_PYTHON -c \"import boto3; boto3.client('iam').get_user(UserName='alice')\"";
    assert!(machine.sh(forged).fails().contains("SignatureDoesNotMatch"));
}

/// Runs `tests/box` with these arguments. Returns its exit status and its output.
fn run_box(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(repository().join("tests/box")).args(arguments).output().expect("tests/box");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

fn count_mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count()
}

#[test]
fn a_box_ends_with_its_command_and_leaves_nothing_behind() {
    let mounts = count_mounts();
    let script = "touch /etc/marker; useradd left-over; sleep 1000 & echo $(hostname) $BOX_KEYS; exit 7";
    assert_eq!(run_box(&["run", "--", "sh", "-c", script]), (Some(7), "box /run/box/keys\n".to_owned()));
    assert_eq!(run_box(&["run", "--", "/nonexistent"]).0, Some(127));
    assert_eq!(count_mounts(), mounts);
    assert!(!Path::new("/etc/marker").exists());
    assert!(!std::fs::read_to_string("/etc/passwd").expect("accounts").contains("left-over"));
}

/// An apt-get that fails twice because another apt runs, as in the first minutes of a machine in the cloud, and then
/// succeeds.
const BUSY_TWICE: &str = "#!/bin/sh
echo x >>/opt/apt/calls
if [ $(wc -l </opt/apt/calls) -lt 3 ]; then
    echo 'E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1' >&2
    exit 100
fi
";

/// Runs the function `apt` of `tests/setup` with /opt/apt, where `apt_get` is the program apt-get, first in PATH.
fn run_apt_of_setup(machine: &Machine, apt_get: &str) -> Done {
    let program = machine.file("/opt/apt/apt-get");
    program.write(apt_get);
    program.chmod("755");
    let setup = repository().join("tests/setup");
    machine.run(&[
        "sh",
        "-c",
        "PATH=/opt/apt:$PATH; eval \"$(sed -n '/^APT_WAIT_SECONDS=/,/^}/p' \"$1\")\"; apt update",
        "sh",
        &setup.to_string_lossy(),
    ])
}

#[test]
fn setup_waits_for_another_apt_and_says_so() {
    let machine = Machine::new().start();
    machine.run(&["mkdir", "/opt/apt"]).succeeds();
    let sleep = machine.file("/opt/apt/sleep");
    sleep.write("#!/bin/sh\nexit 0\n");
    sleep.chmod("755");

    let done = run_apt_of_setup(&machine, BUSY_TWICE);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stderr.contains("another apt is at work; waiting for it, at most 600 s"), "{done:?}");
    assert_eq!(machine.file("/opt/apt/calls").text().lines().count(), 3);

    let other_error = run_apt_of_setup(&machine, "#!/bin/sh\necho E: something else >&2; exit 100\n");
    assert_eq!(other_error.status, 1);
    assert!(other_error.stderr.contains("something else"), "{other_error:?}");

    let always_busy = run_apt_of_setup(&machine, "#!/bin/sh\necho E: Could not get lock >&2; exit 100\n");
    assert_eq!(always_busy.status, 1);
    assert!(always_busy.stderr.contains("still holds its lock after 600 s"), "{always_busy:?}");
}
