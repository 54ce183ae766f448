//! The claims of the repository's documents and manifests hold.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::process::Command;

use pam_iam_tests::repository;
use serde_json::Value;

/// Reads a document of the repository.
fn document(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).expect("a document")
}

/// Returns the text of all Rust files in the repository.
fn rust_sources() -> String {
    let mut sources = String::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && ![".git", ".venv", "target"].iter().any(|skipped| name == *skipped) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).expect("a source");
            }
        }
    }
    sources
}

#[test]
fn every_test_that_a_document_names_exists() {
    let text = document("docs/threat-model.md") + &document("CONTRIBUTING.md");
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted.filter(|word| word.matches('_').count() > 2).collect();
    assert!(named.len() > 40, "{named:?}");
    let sources = rust_sources();
    let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the entry in `cargo metadata` of every crate that is built on this machine.
fn locked_crates() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(repository())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Returns the numbers of the Rust version that a crate requires. None if its manifest has none.
fn rust_version(package: &Value) -> Option<Vec<u32>> {
    let version = package["rust_version"].as_str()?;
    Some(version.split('.').filter_map(|part| part.parse().ok()).collect())
}

#[test]
fn the_stated_rust_version_is_the_newest_that_a_locked_crate_requires() {
    let crates = locked_crates();
    let (ours, others): (Vec<_>, Vec<_>) = crates.iter().partition(|package| package["source"].is_null());
    let required = others.into_iter().filter_map(rust_version).max().expect("a version");
    for package in ours {
        let mut stated = rust_version(package).expect("rust-version");
        stated.resize(required.len().max(stated.len()), 0);
        assert_eq!(stated, required, "{}", package["name"]);
    }
}

#[test]
fn no_file_names_a_mirror_of_packages() {
    let output = Command::new("git")
        .args(["grep", "-nE", "(deb|security|archive|ports)\\.(debian|ubuntu)\\.(org|com)/"])
        .current_dir(repository())
        .output()
        .expect("git grep");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn the_published_uids_are_those_of_the_published_command() {
    let text = document("docs/uids.md");
    let command = text.lines().find(|line| line.starts_with("    python3 -c ")).expect("a command").trim();
    let command = command.rsplit_once(' ').expect("an id at its end").0;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut count = 0;
    for row in rows {
        let (id, uid) = row.split_once("` | ").expect("two columns");
        let output = Command::new("sh").args(["-c", &format!("{command} {id}")]).output().expect("python3");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), uid.trim_end_matches(" |"), "{id}");
        count += 1;
    }
    assert!(count >= 20, "{count}");
}
