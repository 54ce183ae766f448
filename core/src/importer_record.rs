//! What others read of the record that the importer keeps for its next run.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::Deserialize;

/// Whether the importer put the account `name` into groups, by its record `path`.
///
/// False without a record, and where it is broken: neither must keep an administrator out.
pub fn was_joined(name: &str, path: &Path) -> bool {
    #[derive(Deserialize)]
    struct Record {
        #[serde(default)]
        joined: BTreeSet<String>,
    }
    let record = std::fs::read(path)
        .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(io::Error::other));
    record.is_ok_and(|record| record.joined.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_record_puts_nobody_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("importer.json");
        assert!(!was_joined("old", &record));
        std::fs::write(&record, r#"{"version":1,"joined":["old"]}"#).unwrap();
        assert!(was_joined("old", &record) && !was_joined("ann", &record));
        std::fs::write(&record, "{").unwrap();
        assert!(!was_joined("old", &record));
    }
}
