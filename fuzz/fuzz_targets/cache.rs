//! The cache file: any bytes are put aside or are a directory that can be saved again.
#![no_main]

use std::path::Path;

use iam_resolver::{Snapshot, cache_file};
use libfuzzer_sys::fuzz_target;
use pam_iam_core::config::Config;

fuzz_target!(|data: &[u8]| {
    // The file with its header, and the content behind one that is right.
    let _ = cache_file::fuzz::<Snapshot>(data);
    if let Ok(snapshot) = serde_json::from_slice::<Snapshot>(data) {
        let saved = serde_json::to_vec(&snapshot).unwrap();
        assert_eq!(serde_json::from_slice::<Snapshot>(&saved).unwrap(), snapshot);
        let config = "[access]\nallow = 'all'\n[shared.deploy]\ngroups = ['deployers']";
        snapshot.fuzz(&Config::parse(config, Path::new("config.toml")).unwrap());
    }
});
