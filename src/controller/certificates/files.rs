//! A certificate in files that somebody else replaces: cert-manager, or an administrator, by a mounted Secret.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::runtime::tls::{IdentityError, ServingCertificate};

/// How often it is looked whether the files have changed. The kubelet takes a minute to write them.
const LOOK: Duration = Duration::from_secs(10);
/// A certificate with all between it and the authority, or a key, is no longer than this.
const MAX_BYTES: u64 = 256 * 1024;

/// The files cannot be used.
#[derive(Debug, Error)]
pub enum FilesError {
    /// One cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One is no certificate, or no key.
    #[error("{} is too long: expected a certificate or a key", .0.display())]
    TooLong(PathBuf),
    /// They are of no use.
    #[error("cannot use the certificate in {} with the key in {}: {source}", cert.display(), key.display())]
    Useless {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: IdentityError,
    },
}

/// The files, and where their content goes.
#[derive(Debug)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
    serving: Arc<ServingCertificate>,
    /// What is shown.
    shown: (Vec<u8>, Vec<u8>),
}

impl Files {
    /// Shows the certificate in `cert` with the key in `key`.
    pub fn load(cert: PathBuf, key: PathBuf, serving: Arc<ServingCertificate>) -> Result<Self, FilesError> {
        let mut files = Self { cert, key, serving, shown: Default::default() };
        files.look()?;
        Ok(files)
    }

    /// Follows the files until `shutdown`. What cannot be used changes nothing, and is told once.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            match self.look() {
                Ok(true) => {
                    info!(file = %self.cert.display(), "the certificate was replaced: new streams get the new one");
                }
                Ok(false) => {}
                Err(_) if failing => continue,
                Err(error) => {
                    warn!(%error, "the certificate in use stays");
                    failing = true;
                    continue;
                }
            }
            failing = false;
        }
    }

    /// Looks whether the files have changed. They are small, and in memory.
    fn look(&mut self) -> Result<bool, FilesError> {
        let now = (read(&self.cert)?, read(&self.key)?);
        if now == self.shown {
            return Ok(false);
        }
        let useless = |source| FilesError::Useless { cert: self.cert.clone(), key: self.key.clone(), source };
        self.serving.set(&now.0, &now.1).map_err(useless)?;
        self.shown = now;
        Ok(true)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let failed = |source| FilesError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(FilesError::TooLong(path.to_owned()));
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_files_are_shown_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let serving = Arc::new(ServingCertificate::default());
        let load = || Files::load(cert.clone(), key.clone(), serving.clone());
        assert!(load().unwrap_err().to_string().contains("tls.crt"));
        let pair = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let write = |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            std::fs::write(&cert, pair.cert.pem()).unwrap();
            std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        };
        write(&pair());
        let mut files = load().unwrap();
        assert!(serving.is_set() && !files.look().unwrap());
        write(&pair());
        assert!(files.look().unwrap() && !files.look().unwrap());
        // Half of a replacement: it is looked again.
        std::fs::write(&cert, pair().cert.pem()).unwrap();
        let error = files.look().unwrap_err().to_string();
        assert!(error.contains("tls.crt") && error.contains("tls.key") && !error.contains("BEGIN"), "{error}");
        std::fs::write(&key, "k".repeat(300_000)).unwrap();
        assert!(matches!(files.look(), Err(FilesError::TooLong(_))));
        write(&pair());
        assert!(files.look().unwrap());
    }
}
