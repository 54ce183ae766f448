//! Judges whether a public key is good enough to log in with.

use pam_iam_core::key::{KeyError, PublicKey};
use ssh_key::public::KeyData;

/// The shortest accepted RSA modulus, in bits. It is also the minimum of IAM for uploads, and of RHEL's crypto policy.
const RSA_BITS_MIN: usize = 2048;

/// Why a key is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A text that does not have the form of a public key.
    #[error("{0}")]
    Malformed(#[from] KeyError),
    /// A key whose content is malformed.
    #[error("cannot be parsed: {0}")]
    Inside(ssh_key::Error),
    /// A key whose type or size is not safe any more.
    #[error("is of the type {0}, which is not accepted")]
    Weak(String),
}

/// Parses a key body as IAM returns it, and checks its type and size. Drops the comment and all that follows it.
///
/// # Errors
/// Returns an error if sshd would not accept the key.
pub fn usable(body: &str) -> Result<PublicKey, Unusable> {
    let key = PublicKey::parse(body.trim())?;
    let inside = ssh_key::PublicKey::from_openssh(&key.to_string()).map_err(Unusable::Inside)?;
    match inside.key_data() {
        KeyData::Rsa(rsa) => {
            let modulus = rsa.n.as_positive_bytes().unwrap_or_default();
            let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
            if bits < RSA_BITS_MIN {
                return Err(Unusable::Weak(format!("RSA of {bits} bits")));
            }
        }
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => {}
        other => return Err(Unusable::Weak(other.algorithm().to_string())),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::fake::KEY;

    const RSA_1024: &str = include_str!("../../testdata/rsa1024.pub");
    const RSA_2048: &str = include_str!("../../testdata/rsa2048.pub");
    const DSA: &str = include_str!("../../testdata/dsa.pub");
    const ECDSA: &str = include_str!("../../testdata/ecdsa.pub");

    #[test]
    fn good_keys_are_accepted_without_their_comments() {
        for body in [KEY, RSA_2048, ECDSA] {
            let plain: Vec<&str> = body.split_whitespace().take(2).collect();
            assert_eq!(usable(body).unwrap().to_string(), plain.join(" "));
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        assert_eq!(usable(RSA_1024), Err(Unusable::Weak("RSA of 1024 bits".into())));
        assert_eq!(usable(DSA), Err(Unusable::Weak("ssh-dss".into())));
    }

    #[test]
    fn a_line_feed_smuggles_nothing_in() {
        let evil = format!("{KEY} me\ncommand=\"/bin/sh\" {RSA_2048}");
        assert_eq!(usable(&evil).unwrap().to_string(), KEY);
        assert!(usable("").is_err() && usable("ssh-rsa AAAAB3NzaC1yc2E=").is_err());
        assert!(usable("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").is_err());
    }
}
