//! SSH public keys: their type and base64 body, which are parsed and written again, and their fingerprints.
//!
//! The text of a key is never passed on unchanged: a line feed in its comment could add a second key with options.

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fingerprint::Fingerprint;

/// The longest body of a key that is accepted, in bytes before base64. A certificate with large extensions, which sshd
/// hands to PAM, is longer than a line of authorized_keys may be.
const BLOB_MAX: usize = 16 * 1024;

/// A public key. Its text form is `TYPE BASE64`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    algorithm: String,
    blob: Vec<u8>,
}

/// Why a text is not a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not of the form `TYPE BASE64`.
    #[error("is not of the form TYPE BASE64")]
    Form,
    /// The second word is not valid base64, or is too long.
    #[error("has no valid base64 body")]
    Base64,
    /// The type in the body differs from the first word, or the first word has a character that no type has.
    #[error("has a body of another type than it says")]
    Type,
}

impl PublicKey {
    /// Parses `TYPE BASE64 [COMMENT]` and drops the comment.
    ///
    /// # Errors
    /// Returns an error if the text is not a public key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        let (algorithm, body) = (words.next().ok_or(KeyError::Form)?, words.next().ok_or(KeyError::Form)?);
        let body = body.trim_end_matches('\n');
        if body.len() > BLOB_MAX.div_ceil(3) * 4 {
            return Err(KeyError::Base64);
        }
        let blob = Base64::decode_vec(body).map_err(|_| KeyError::Base64)?;
        let known = algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.@".contains(&b));
        if !known || first_string(&blob) != Some(algorithm.as_bytes()) {
            return Err(KeyError::Type);
        }
        Ok(Self { algorithm: algorithm.to_owned(), blob })
    }

    /// Whether the key is a certificate (OpenSSH's PROTOCOL.certkeys).
    pub fn is_certificate(&self) -> bool {
        self.algorithm.contains("-cert-v01@")
    }

    /// Returns the SHA-256 fingerprint of the body.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&Sha256::digest(&self.blob).into())
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::parse(&text)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, Base64::encode_string(&self.blob))
    }
}

/// Returns the first string of a key in wire form, which is its type (RFC 4253, section 6.6).
fn first_string(blob: &[u8]) -> Option<&[u8]> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Returns the keys in `SSH_AUTH_INFO_0`, which sshd hands to PAM. It has a line for each method that succeeded; the
/// line of a key is `publickey TYPE BASE64`. Lines of other methods are skipped. None stands for a key that cannot be
/// parsed.
pub fn authenticated_with(ssh_auth_info: &str) -> Vec<Option<PublicKey>> {
    let keys = ssh_auth_info.lines().filter_map(|line| line.strip_prefix("publickey"));
    keys.map(|key| PublicKey::parse(key).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPN9SXhdP7bRkOqa5bisLjehzJ34xLZiv99XZaq9khSe";
    /// The fingerprint of [`ED25519`], as `ssh-keygen -lf` prints it.
    const FINGERPRINT: &str = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";

    #[test]
    fn the_fingerprint_is_ssh_keygens() {
        assert_eq!(PublicKey::parse(ED25519).unwrap().fingerprint().as_str(), FINGERPRINT);
    }

    #[test]
    fn comments_are_dropped_and_nothing_smuggled_in() {
        for comment in ["", " ann@host", " x\ncommand=\"/bin/sh\" ssh-ed25519 AAAA", "\n", " \n\n"] {
            let key = PublicKey::parse(&format!("{ED25519}{comment}")).unwrap();
            assert_eq!(key.to_string(), ED25519);
        }
    }

    #[test]
    fn malformed_keys_are_refused() {
        let body = ED25519.split(' ').nth(1).unwrap();
        assert_eq!(PublicKey::parse(""), Err(KeyError::Form));
        assert_eq!(PublicKey::parse(body), Err(KeyError::Form));
        assert_eq!(PublicKey::parse("ssh-ed25519 A*"), Err(KeyError::Base64));
        assert_eq!(PublicKey::parse(&format!("ssh-rsa {body}")), Err(KeyError::Type));
        assert_eq!(PublicKey::parse(&format!("command=\"x\" {ED25519}")), Err(KeyError::Base64));
        assert_eq!(PublicKey::parse(&format!("{ED25519}\nssh-rsa AAAA")), Err(KeyError::Base64));
        assert_eq!(PublicKey::parse(&format!("ssh-rsa {}", "A".repeat(24_000))), Err(KeyError::Base64));
        assert_eq!(PublicKey::parse("ssh-rsa /////w=="), Err(KeyError::Type));
    }

    #[test]
    fn the_keys_of_ssh_auth_info_are_found_among_other_methods() {
        let info = format!("password\npublickey {ED25519}\npublickey nonsense\nkeyboard-interactive/pam\n");
        let known = PublicKey::parse(ED25519).ok();
        assert!(known.is_some());
        assert_eq!(authenticated_with(&info), [known, None]);
        assert!(authenticated_with("").is_empty());
    }
}
