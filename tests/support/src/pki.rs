//! The certificates and keys of one control plane.

use crate::{Error, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// The name in the controller's certificate.
const CONTROLLER_NAME: &str = "vmcp-session-controller.vmcp-system.svc";

/// The authority of the streams of all clusters of this process, and the certificate that their controllers show.
static STREAMS: LazyLock<Result<(String, Identity)>> = LazyLock::new(|| {
    let authority = Authority::new()?;
    let identity = authority.server(CONTROLLER_NAME, &[CONTROLLER_NAME])?;
    Ok((authority.cert().to_owned(), identity))
});

/// The authority, as PEM, that the certificates of controllers in tests are signed by.
///
/// # Panics
/// If no certificate can be made.
#[allow(clippy::panic, reason = "a fixture without certificates is of no use to anybody")]
pub fn stream_authority() -> &'static str {
    match &*STREAMS {
        Ok((authority, _)) => authority,
        Err(error) => panic!("no certificates for streams: {error}"),
    }
}

/// Files for the streams to the controller.
#[derive(Debug, Clone)]
pub struct StreamFiles {
    /// The authority.
    pub ca: PathBuf,
    /// The controller's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl StreamFiles {
    /// What a controller is started with to use them.
    pub fn controller_args(&self) -> [String; 3] {
        let files = [("cert", &self.cert), ("key", &self.key), ("ca", &self.ca)];
        files.map(|(what, path)| format!("--tls-{what}-file={}", path.display()))
    }

    /// Writes them to a folder.
    pub fn write(folder: &Path) -> Result<Self> {
        let path = |name: &str| folder.join(format!("streams-{name}"));
        let files = Self { ca: path("ca.crt"), cert: path("tls.crt"), key: path("tls.key") };
        let authority = stream_authority();
        let write = |path: &Path, text: &str| std::fs::write(path, text).map_err(Error::io("the streams' certificate"));
        if let Ok((_, identity)) = &*STREAMS {
            write(&files.cert, &identity.cert)?;
            write(&files.key, &identity.key)?;
        }
        write(&files.ca, authority)?;
        Ok(files)
    }
}

/// A certificate with its key, both as PEM.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// An authority that signs the certificates of servers and of users.
pub(crate) struct Authority {
    cert: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = named("testkit", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(malformed)?;
        let cert = params.self_signed(&key).map_err(malformed)?.pem();
        Ok(Self { cert, issuer: Issuer::new(params, key) })
    }

    /// Its certificate as PEM.
    pub(crate) fn cert(&self) -> &str {
        &self.cert
    }

    /// A serving certificate for DNS names and addresses.
    pub(crate) fn server(&self, name: &str, names: &[&str]) -> Result<Identity> {
        let mut params = named(name, &[])?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        params.subject_alt_names = CertificateParams::new(names).map_err(malformed)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    /// A client certificate: Kubernetes takes the common name as the user, organizations as groups.
    pub(crate) fn user(&self, name: &str, groups: &[&str]) -> Result<Identity> {
        let mut params = named(name, groups)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate().map_err(malformed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(malformed)?.pem();
        Ok(Identity { cert, key: key.serialize_pem() })
    }
}

/// A key pair for service-account tokens, as PEM: private, public.
pub(crate) fn signing_key() -> Result<(String, String)> {
    let key = KeyPair::generate().map_err(malformed)?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn named(common_name: &str, organizations: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(malformed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    Ok(params)
}

#[allow(clippy::needless_pass_by_value, reason = "the signature of map_err")]
fn malformed(e: rcgen::Error) -> Error {
    Error::Malformed(format!("making a certificate: {e}"))
}
