//! The configuration: any text is one or has an error with a line that it has.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pam_iam_core::config::{Config, ConfigError};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("config.toml")) {
        Ok(config) => {
            let _ = iam_resolver::cache_setup(&config);
        }
        Err(ConfigError::Text { line, .. }) => assert!(line >= 1 && line <= text.split('\n').count().max(1)),
        Err(error) => panic!("{error}"),
    }
});
