//! Makes authorities and certificates: elliptic-curve keys (P-256), which all TLS libraries take.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::plan::{AHEAD, Validity};

/// It could not be made.
#[derive(Debug, Error)]
#[error("cannot make a certificate: {0}")]
pub struct IssueError(#[from] rcgen::Error);

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// When it is valid.
    pub validity: Validity,
}

/// Keys are shown to nobody.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// An authority that is called `name`.
pub fn authority(name: &str, validity: Validity) -> Result<Pair, IssueError> {
    let mut params = params(name, vec![], validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?.pem();
    Ok(Pair { cert, key: key.serialize_pem(), validity })
}

/// A certificate for serving under `names`, signed by `authority`. It does not outlive it.
pub fn serving(names: &[String], authority: &Pair, mut validity: Validity) -> Result<Pair, IssueError> {
    validity.ends = validity.ends.min(authority.validity.ends);
    let issuer = Issuer::from_ca_cert_pem(&authority.cert, KeyPair::from_pem(&authority.key)?)?;
    let mut params = params("vmcp-session-controller", names.to_vec(), validity)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { cert, key: key.serialize_pem(), validity })
}

fn params(name: &str, names: Vec<String>, validity: Validity) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::new(names)?;
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    params.distinguished_name = called;
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    params.not_before = (at(validity.made) - AHEAD).into();
    params.not_after = at(validity.ends).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier};

    use super::*;

    fn verify(pair: &Pair, authority: &Pair, name: &str, at: u64) -> Result<(), rustls::Error> {
        verify_through(pair, &[], authority, name, at)
    }

    fn verify_through(
        pair: &Pair,
        between: &[&Pair],
        authority: &Pair,
        name: &str,
        at: u64,
    ) -> Result<(), rustls::Error> {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der(&authority.cert)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let between: Vec<_> = between.iter().map(|pair| der(&pair.cert)).collect();
        verifier.verify_server_cert(&der(&pair.cert), &between, &name, &[], at).map(drop)
    }

    #[test]
    fn a_certificate_is_believed_by_name_and_time_and_authority() {
        let validity = |made, ends| Validity { made, ends };
        let now = 1_800_000_000;
        let one = authority("one", validity(now, now + 1_000)).unwrap();
        let other = authority("one", validity(now, now + 1_000)).unwrap();
        let made = serving(&["a.svc".into(), "b".into()], &one, validity(now, now + 5_000)).unwrap();
        assert_eq!(made.validity.ends, now + 1_000, "it outlives its authority");
        for name in ["a.svc", "b"] {
            verify(&made, &one, name, now + 500).unwrap();
        }
        // Somebody's clock is late.
        verify(&made, &one, "b", now - 200).unwrap();
        assert!(verify(&made, &one, "c", now + 500).is_err());
        assert!(verify(&made, &one, "b", now + 1_001).is_err());
        assert!(verify(&made, &other, "b", now + 500).is_err());
        // What serves signs nothing.
        let forged = serving(&["b".into()], &made, validity(now, now + 500)).unwrap();
        assert!(verify_through(&forged, &[&made], &one, "b", now + 1).is_err());
        assert!(!format!("{one:?}").contains("BEGIN"));
    }
}
