//! The RPM package, which `packaging/build` makes from the files of the Debian package.

#![allow(clippy::expect_used, reason = "helpers of tests")]

use pam_iam_tests::{Done, Machine, package, repository};

use super::{bare_machine, configure, etc_changes, unit};

/// The path of the RPM package for this machine.
fn rpm_package() -> String {
    let ending = format!(".{}.rpm", std::env::consts::ARCH);
    let folder = repository().join("target/packages");
    let mut names = folder.read_dir().expect("packages").filter_map(|entry| Some(entry.ok()?.path()));
    let package = names.find(|path| path.to_string_lossy().ends_with(&ending));
    package.expect("an RPM package").to_string_lossy().into_owned()
}

/// Installs or erases a package with rpm(8), on any distribution.
fn change_packages(machine: &Machine, mode: &str, package: &str) -> Done {
    // Some versions of Debian's rpm refuse to work without this option.
    let force = machine.run(&["rpm", "--help"]).stdout.contains("--force-debian");
    let mut argv = vec!["rpm", mode, "--nodeps"];
    argv.extend(force.then_some("--force-debian"));
    argv.push(package);
    machine.run(&argv)
}

/// Maps the folders whose paths differ between the distributions to one path.
fn normalize(path: &str) -> String {
    path.replace("/usr/lib64/", "/LIB/")
        .replace("/usr/lib/x86_64-linux-gnu/", "/LIB/")
        .replace("/zsh/vendor-completions/", "/zsh/site-functions/")
}

#[test]
fn the_rpm_has_all_files_of_the_deb_and_its_scripts_make_users_and_undo_enable() {
    let machine = bare_machine();
    let rpm = rpm_package();
    machine.run(&["rpm", "-K", &rpm]).succeeds();
    assert_all_files_of_the_deb_are_in(&machine, &rpm);

    // This distribution does not load modules from /usr/lib64, but the package's scripts run.
    change_packages(&machine, "--install", &rpm).succeeds();
    for user in ["iam-resolver", "pam-iam"] {
        assert!(machine.passwd(user).is_some(), "{user}");
    }
    assert!(machine.file("/var/cache/pam_iam").exists());
    configure(&machine);
    let configured = etc_changes(&machine);
    machine.iamctl("enable").succeeds();
    assert!(machine.file("/etc/pam.d/sshd").text().contains("pam_iam.so"));
    assert!(unit(&machine, "is-active", "iam-resolver.service"));

    change_packages(&machine, "--erase", "pam-iam").succeeds();
    for path in ["/usr/sbin/iamctl", "/var/cache/pam_iam"] {
        assert!(!machine.file(path).exists(), "{path}");
    }
    assert!(!unit(&machine, "is-active", "iam-resolver.service"));
    let changes = etc_changes(&machine);
    let new: Vec<&str> = changes.lines().filter(|line| !configured.contains(line)).collect();
    assert!(new.is_empty(), "{new:?}");
}

fn assert_all_files_of_the_deb_are_in(machine: &Machine, rpm: &str) {
    let deb = package();
    let list = format!("dpkg-deb --fsys-tarfile {} | tar -t | grep -v '/$' | sed s,^.,,", deb.display());
    let of_deb = machine.sh(&list).succeeds();
    let of_rpm = normalize(&machine.run(&["rpm", "--query", "--list", "--package", rpm]).succeeds());
    let of_rpm: Vec<&str> = of_rpm.lines().collect();
    let of_deb: Vec<String> = of_deb.lines().map(normalize).collect();
    let missing: Vec<&String> = of_deb.iter().filter(|path| !of_rpm.contains(&path.as_str())).collect();
    assert!(missing.is_empty() && of_deb.len() > 30, "{missing:?}");
}
