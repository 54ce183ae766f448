//! Key bodies as IAM returns them: what is used is one line of two words that means the same key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pam_iam_core::key::PublicKey;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(key) = iam_resolver::sshkey::usable(text) else { return };
    let line = key.to_string();
    assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && line.split(' ').count() == 2);
    let again = PublicKey::parse(&line).unwrap();
    assert_eq!((again.fingerprint(), &again), (key.fingerprint(), &key));
});
