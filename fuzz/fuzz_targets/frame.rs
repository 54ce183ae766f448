//! A frame from a socket: whatever its header says, no more is taken than the limit, and what was encoded comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pam_iam_core::frame::{ANSWER_MAX, HEADER, REQUEST_MAX, body_length, encode};

fuzz_target!(|data: &[u8]| {
    if let Some((header, _)) = data.split_first_chunk::<HEADER>() {
        for max in [REQUEST_MAX, ANSWER_MAX] {
            match body_length(*header, max) {
                Ok(length) => assert!(length <= max),
                Err(too_long) => assert!(too_long.length > max),
            }
        }
    }
    match encode(data, REQUEST_MAX) {
        Ok(frame) => {
            let (header, body) = frame.split_first_chunk::<HEADER>().unwrap();
            assert_eq!((body_length(*header, REQUEST_MAX).unwrap(), body), (data.len(), data));
        }
        Err(_) => assert!(data.len() > REQUEST_MAX),
    }
});
