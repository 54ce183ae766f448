//! The map: any bytes are an error, or records that are read as they were written.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    pam_iam_core::map::fuzz(data);
});
