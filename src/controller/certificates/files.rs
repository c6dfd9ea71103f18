//! A certificate in files that somebody else replaces: cert-manager, or an administrator, by a mounted Secret.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::runtime::failing::Failing;
use crate::runtime::small_file;
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
        source: io::Error,
    },
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
    failing: Failing,
}

impl Files {
    /// Shows the certificate in `cert` with the key in `key`.
    pub async fn load(cert: PathBuf, key: PathBuf, serving: Arc<ServingCertificate>) -> Result<Self, FilesError> {
        let mut files = Self { cert, key, serving, shown: Default::default(), failing: Failing::default() };
        files.look().await?;
        Ok(files)
    }

    /// Follows the files until `shutdown`. What cannot be used changes nothing.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            self.follow().await;
        }
    }

    /// Looks, and says what has become of it.
    async fn follow(&mut self) {
        match self.look().await {
            Ok(replaced) => {
                let over = self.failing.over();
                if replaced {
                    info!(file = %self.cert.display(), "the certificate was replaced: new streams get the new one");
                } else if over {
                    info!(file = %self.cert.display(), "the certificate in use is that of the files again");
                }
            }
            Err(error) if self.failing.failed(&error.to_string(), Instant::now()) => {
                warn!(%error, "the certificate in use stays");
            }
            Err(error) => debug!(%error, "the certificate in use stays"),
        }
    }

    /// Looks whether the files have changed.
    async fn look(&mut self) -> Result<bool, FilesError> {
        let now = (read(&self.cert).await?, read(&self.key).await?);
        if now == self.shown {
            return Ok(false);
        }
        let useless = |source| FilesError::Useless { cert: self.cert.clone(), key: self.key.clone(), source };
        self.serving.set(&now.0, &now.1).map_err(useless)?;
        self.shown = now;
        Ok(true)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let failed = |source: io::Error| FilesError::Read { path: path.to_owned(), source };
    small_file::load(path, MAX_BYTES).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaced_files_are_shown_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let serving = Arc::new(ServingCertificate::default());
        let load = || Files::load(cert.clone(), key.clone(), serving.clone());
        assert!(load().await.unwrap_err().to_string().contains("tls.crt"));
        let pair = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let write = |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            std::fs::write(&cert, pair.cert.pem()).unwrap();
            std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        };
        write(&pair());
        let mut files = load().await.unwrap();
        assert!(serving.is_set() && !files.look().await.unwrap());
        write(&pair());
        assert!(files.look().await.unwrap() && !files.look().await.unwrap());
        // Half of a replacement: it is looked again.
        std::fs::write(&cert, pair().cert.pem()).unwrap();
        let error = files.look().await.unwrap_err().to_string();
        assert!(error.contains("tls.crt") && error.contains("tls.key") && !error.contains("BEGIN"), "{error}");
        std::fs::write(&key, "k".repeat(300_000)).unwrap();
        assert!(files.look().await.unwrap_err().to_string().contains("too large"));
        write(&pair());
        assert!(files.look().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_cannot_be_used_are_told_of_once_a_minute_and_when_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let pair = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let certificate = pair.cert.pem();
        std::fs::write(&cert, &certificate).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let mut files = Files::load(cert.clone(), key, Arc::default()).await.unwrap();
        let told = async |files: &mut Files| {
            files.follow().await;
            files.failing.over()
        };
        std::fs::write(&cert, "none").unwrap();
        assert!(told(&mut files).await);
        assert!(!told(&mut files).await, "whoever reads the log knows it");
        tokio::time::advance(Duration::from_mins(1)).await;
        files.follow().await;
        std::fs::write(&cert, certificate).unwrap();
        assert!(!told(&mut files).await, "it was said that it is over");
    }
}
