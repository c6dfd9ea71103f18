//! Whose certificates are believed: authorities in a file that is replaced now and then, or that another task keeps true.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

use crate::runtime::small_file;

/// A bundle is no longer than this.
const MAX_BYTES: u64 = 1 << 20;

/// The authorities are not known.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("cannot read the authorities in {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing of use in it.
    #[error("{} holds no PEM certificate of an authority", .0.display())]
    Useless(PathBuf),
    /// Nobody has said yet.
    #[error("the authorities are not known yet")]
    Unknown,
    /// None was configured.
    #[error("no file with the authorities that the controller's certificate is signed by was given")]
    Unset,
}

/// Authorities.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Nobody is believed.
    #[default]
    None,
    /// Those in a PEM file, which is read for each connection, since bundles are replaced.
    File(PathBuf),
    /// Those that were set last.
    Current(Arc<CurrentTrust>),
}

/// Authorities that are set by a task of this process.
#[derive(Debug, Default)]
pub struct CurrentTrust {
    pem: RwLock<Option<Arc<str>>>,
}

impl CurrentTrust {
    /// From now on those in this PEM text are believed.
    pub fn set(&self, pem: Arc<str>) {
        *self.pem.write() = Some(pem);
    }
}

impl Trust {
    /// The authorities as PEM: at least one.
    pub async fn pem(&self) -> Result<Arc<str>, TrustError> {
        match self {
            Self::None => Err(TrustError::Unset),
            Self::Current(current) => current.pem.read().clone().ok_or(TrustError::Unknown),
            Self::File(path) => {
                let unreadable = |source: io::Error| TrustError::File { path: path.clone(), source };
                let bytes = small_file::load(path, MAX_BYTES).await.map_err(unreadable)?;
                let text = String::from_utf8(bytes).ok().filter(|text| holds_one(text));
                text.map(Arc::from).ok_or_else(|| TrustError::Useless(path.clone()))
            }
        }
    }
}

fn holds_one(pem: &str) -> bool {
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes()).peekable();
    found.peek().is_some() && found.all(|certificate| certificate.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bundle_is_read_anew_and_must_hold_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let trust = Trust::File(path.clone());
        let error = trust.pem().await.unwrap_err().to_string();
        assert!(error.contains("cannot read the authorities") && error.contains("No such file"), "{error}");
        let cert = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, format!("{cert}{}", "#".repeat(1 << 20))).unwrap();
        let error = trust.pem().await.unwrap_err().to_string();
        assert!(error.contains("cannot read the authorities") && error.contains("too large"), "{error}");
        for useless in ["", "canary", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, useless).unwrap();
            let error = trust.pem().await.unwrap_err().to_string();
            assert!(error.contains("holds no PEM certificate") && !error.contains("canary"), "{error}");
        }
        for bundle in [cert.clone(), format!("{cert}{cert}")] {
            std::fs::write(&path, &bundle).unwrap();
            assert_eq!(*trust.pem().await.unwrap(), *bundle);
        }
    }

    #[tokio::test]
    async fn what_a_task_sets_is_believed_from_then_on() {
        let current = Arc::new(CurrentTrust::default());
        let trust = Trust::Current(current.clone());
        assert!(matches!(trust.pem().await, Err(TrustError::Unknown)));
        current.set("a".into());
        assert_eq!(&*trust.pem().await.unwrap(), "a");
        assert!(matches!(Trust::default().pem().await, Err(TrustError::Unset)));
    }
}
