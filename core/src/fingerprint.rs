//! Fingerprints of SSH public keys, as OpenSSH writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a fingerprint begins with: the hash.
const HASH: &str = "SHA256:";

/// The characters after the hash: 32 bytes in base64 without padding.
const DIGITS: usize = 43;

/// The SHA-256 fingerprint of a public key, as ssh-keygen(1) and sshd's `%f` write it: `SHA256:` and 43 characters of base64.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

/// The text is not a SHA-256 fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a fingerprint of the form SHA256:BASE64, as ssh-keygen -l writes it")]
pub struct NotAFingerprint;

impl Fingerprint {
    /// Returns the fingerprint of a key whose SHA-256 hash is `hash`.
    #[cfg(feature = "keys")]
    pub(crate) fn of(hash: &[u8; 32]) -> Self {
        use base64ct::{Base64Unpadded, Encoding};

        Self(format!("{HASH}{}", Base64Unpadded::encode_string(hash)))
    }

    /// The fingerprint as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;

    fn try_from(text: String) -> Result<Self, NotAFingerprint> {
        let digits = text.strip_prefix(HASH).ok_or(NotAFingerprint)?;
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
        if digits.len() != DIGITS || !digits.bytes().all(is_base64) {
            return Err(NotAFingerprint);
        }
        Ok(Self(text))
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_of_ssh_keygen_is_accepted() {
        let real = "SHA256:dUHkOtIDvPKMlHfv/FLx0Y7ESzeVVe/zwL7lSuiVqpE";
        assert_eq!(real.parse::<Fingerprint>().unwrap().as_str(), real);
        let long = format!("{real}=");
        let spaced = real.replace('/', " ");
        for wrong in ["", "SHA256:", "SHA256:x", "MD5:16:27:ac", "unreadable", &long, &spaced, &real[7..]] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NotAFingerprint), "{wrong:?}");
        }
    }
}
