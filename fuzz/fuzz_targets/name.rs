//! Names: an IAM name maps to a Linux name of which it is a candidate, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pam_iam_core::name::{IamName, LinuxName, candidates};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (name, suffix) = text.split_once('\n').unwrap_or((text, ""));
    for suffixes in [vec![], vec![suffix.to_owned()]] {
        if let Ok(iam) = IamName::user(name)
            && let Ok(linux) = iam.to_linux(&suffixes)
        {
            assert!(linux.as_str().len() <= 32 && LinuxName::new(linux.as_str()).as_ref() == Ok(&linux));
            assert!(candidates(&linux, &suffixes).contains(&iam));
        }
        if let Ok(linux) = LinuxName::new(name) {
            let all = candidates(&linux, &suffixes);
            assert!(all.iter().all(|iam| iam.to_linux(&suffixes).as_ref() == Ok(&linux)));
        }
    }
});
