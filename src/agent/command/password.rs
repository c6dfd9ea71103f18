//! The password.

use sha2::{Digest, Sha256};

/// A password that clients must know. It is kept as its hash, and its `Debug` output shows nothing of it.
#[derive(Clone)]
pub struct Password([u8; 32]);

impl Password {
    /// The password itself.
    pub fn new(password: &[u8]) -> Self {
        Self(Sha256::digest(password).into())
    }

    /// Whether it is this one. How long that takes tells nothing of the right one, not even its length: two hashes are
    /// compared, all of them in any case.
    pub fn is(&self, password: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(password).into();
        let differ = self.0.iter().zip(given).fold(0, |differ, (known, given)| differ | (known ^ given));
        std::hint::black_box(differ) == 0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_is_the_password() {
        let password = Password::new(b"secret");
        assert!(password.is(b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"Secret", b"secret\n"] {
            assert!(!password.is(wrong));
        }
        assert_eq!(format!("{password:?}"), "Password(..)");
    }
}
