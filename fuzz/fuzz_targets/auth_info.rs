//! `SSH_AUTH_INFO_0`: whatever sshd hands over, keys of it are of the lines that say "publickey".
#![no_main]

use libfuzzer_sys::fuzz_target;
use pam_iam_core::key::authenticated_with;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let keys = authenticated_with(text);
    assert!(keys.len() <= text.matches("publickey").count());
    for key in keys.into_iter().flatten() {
        assert!(key.fingerprint().as_str().starts_with("SHA256:") && !key.to_string().contains('\n'));
    }
});
