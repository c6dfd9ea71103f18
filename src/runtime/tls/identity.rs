//! The certificate that a server shows: it can be replaced while connections are open, and is shown to the next one.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

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

/// When a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// From then on.
    pub not_before: i64,
    /// Until then.
    pub not_after: i64,
}

impl Period {
    /// `None`: it is no X.509 certificate.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
    }
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

    /// When the one that is shown is valid. `None`: none is shown.
    pub fn period(&self) -> Option<Period> {
        let current = self.current.read().clone()?;
        Period::of(current.end_entity_cert().ok()?)
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

    #[test]
    fn it_is_known_when_it_is_valid() {
        let serving = ServingCertificate::default();
        assert_eq!(serving.period(), None);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 1, 11));
        let cert = params.self_signed(&key).unwrap().pem();
        serving.set(cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let begins = 1_767_225_600;
        assert_eq!(serving.period(), Some(Period { not_before: begins, not_after: begins + 10 * 86_400 }));
    }
}
