//! Requests as the resolver parses them and answers as its clients do: what parses means the same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pam_iam_core::wire::{Answer, Envelope, Explanation, Linted, Roster, Status};

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(data) {
        let sent = serde_json::to_vec(&envelope).unwrap();
        let again: Envelope = serde_json::from_slice(&sent).unwrap();
        assert_eq!(envelope.request, again.request);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(data) {
        let sent = serde_json::to_vec(&answer).unwrap();
        assert_eq!(serde_json::from_slice::<Answer>(&sent).unwrap(), answer);
    }
    let _ = serde_json::from_slice::<Roster>(data);
    let _ = serde_json::from_slice::<Status>(data);
    let _ = serde_json::from_slice::<Explanation>(data);
    let _ = serde_json::from_slice::<Linted>(data);
});
