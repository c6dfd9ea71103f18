//! The certificate that a server shows: it can be replaced while connections are open, and is shown to the next one.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;

/// A certificate or its key cannot be used. Nothing of either is repeated.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No certificate.
    #[error("no PEM certificate in it: expected '-----BEGIN CERTIFICATE-----'")]
    NoCertificate,
    /// No key.
    #[error("no PEM private key in it: expected '-----BEGIN PRIVATE KEY-----', not encrypted")]
    NoKey,
    /// They do not fit, or are of a kind that is not supported.
    #[error("the certificate and the key cannot be used together: {0}")]
    Tls(#[source] rustls::Error),
}

/// What a server shows: nothing, until a certificate is set. Handshakes fail until then.
#[derive(Debug, Default)]
pub struct ServingCertificate {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl ServingCertificate {
    /// Shows this certificate from now on: the server's own first, then those between it and the authority, as PEM; and its
    /// key. If it cannot be used, the one before stays.
    pub fn set(&self, chain: &[u8], key: &[u8]) -> Result<(), IdentityError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| IdentityError::NoCertificate)?;
        if chain.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey)?;
        let certified = CertifiedKey::from_der(chain, key, &super::provider()).map_err(IdentityError::Tls)?;
        *self.current.write() = Some(Arc::new(certified));
        Ok(())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.current.read().is_some()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_changes_nothing() {
        let serving = ServingCertificate::default();
        let ((cert, key), (_, other)) = (pair(), pair());
        let refused = |cert: &str, key: &str| serving.set(cert.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(refused("", &key).contains("no PEM certificate"));
        assert!(
            refused("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", &key).contains("no PEM certificate")
        );
        assert!(refused(&cert, "canary").contains("no PEM private key"));
        let unfit = refused(&cert, &other);
        assert!(unfit.contains("together") && !unfit.contains("canary"), "{unfit}");
        assert!(!serving.is_set());
        serving.set(cert.as_bytes(), key.as_bytes()).unwrap();
        assert!(serving.is_set());
        refused(&cert, &other);
        assert!(serving.is_set());
    }
}
