//! The contents of the package that `packaging/build` makes.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::Command;

use pam_iam_tests::{Machine, repository};

use super::bare_machine;

/// Runs a shell script in a folder of the unpacked package. Returns whether it succeeded, and its output.
fn run_in_package(folder: &str, script: &str) -> (bool, String) {
    let folder = repository().join("target/packages/deb").join(folder);
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_man_pages_are_valid_and_name_every_command_and_option() {
    let lint = "for page in man*/*; do gzip -dc $page | mandoc -T lint -W warning || exit 1; done";
    let (valid, complaints) = run_in_package("usr/share/man", lint);
    assert!(valid, "{complaints}");
    for (script, words) in [
        (
            "ls man*/*",
            "pam_iam.8 iam-authorized-keys.8 iam-resolver.8 iam-importer.8 iamctl.8 pam_iam.toml.5",
        ),
        (
            "gzip -dc man8/iamctl.8.gz | mandoc -T utf8 | col -b",
            "explain doctor status sessions sweep flush lint enable disable --json --dry-run --prometheus",
        ),
        (
            "gzip -dc man5/pam_iam.toml.5.gz | mandoc -T utf8 | col -b",
            "[access] [freshness] offline_sudo total_timeout [importer] max_retire [sessions] [shared.deploy]",
        ),
    ] {
        let (_, text) = run_in_package("usr/share/man", script);
        for word in words.split(' ') {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

#[test]
fn the_binaries_need_no_newer_c_library_than_2_34() {
    for file in [
        "usr/lib/x86_64-linux-gnu/security/pam_iam.so",
        "usr/lib/x86_64-linux-gnu/libnss_iam.so.2",
        "usr/libexec/pam_iam/iam-resolver",
        "usr/libexec/pam_iam/iam-authorized-keys",
        "usr/sbin/iam-importer",
        "usr/sbin/iamctl",
    ] {
        let (_, symbols) = run_in_package("", &format!("objdump -T {file}"));
        let versions: Vec<u32> = symbols
            .split("GLIBC_2.")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .collect();
        let newest = versions.iter().max();
        assert!(newest.is_some_and(|newest| *newest <= 34), "{file}: {newest:?}");
    }
}

#[test]
fn a_build_for_another_architecture_names_what_is_missing() {
    let machine = bare_machine();
    let build = |architecture: &str| build_for(&machine, architecture);
    // A compiler that has no libraries for another architecture.
    machine.run(&["mkdir", "/root/bin"]).succeeds();
    let rustc = machine.file("/root/bin/rustc");
    rustc.write("#!/bin/sh\necho /nowhere\n");
    rustc.chmod("755");

    let complaints = build("arm64");
    assert!(complaints.contains("rustup target add aarch64-unknown-linux-gnu"), "{complaints}");
    for (file, remedy) in [
        ("/usr/bin/aarch64-linux-gnu-gcc", "apt-get install gcc-aarch64-linux-gnu"),
        ("/usr/lib/aarch64-linux-gnu/libpam.so", "apt-get install libpam0g-dev:arm64"),
    ] {
        assert_eq!(complaints.contains(remedy), !Path::new(file).exists(), "{complaints}");
    }
    assert!(build("vax").contains("amd64 or arm64"));
}

/// Runs `packaging/build` with /root/bin first in PATH. Asserts that it fails, and returns its output.
fn build_for(machine: &Machine, architecture: &str) -> String {
    let build = repository().join("packaging/build");
    let script = format!("PATH=/root/bin:$PATH '{}' --arch {architecture} deb", build.display());
    machine.sh(&script).fails()
}
