//! The certificate that streams are encrypted with: [`args`] says which one.
//!
//! * [`files`]: it is in files that somebody else replaces (cert-manager, or an administrator).
//! * [`managed`]: the controller makes it, and replaces it: [`plan`] decides when, [`issue`] makes it, [`vault`] keeps it in a
//!   Secret, [`bundle`] tells the pods whom to believe.

pub mod args;
pub mod bundle;
pub mod files;
pub mod issue;
pub mod managed;
pub mod plan;
pub mod vault;

use std::sync::Arc;

use kube::Client;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::leader::LeadershipGuard;
use crate::runtime::task_set::TaskSet;
use crate::runtime::tls::ServingCertificate;
use crate::runtime::tls::trust::{CurrentTrust, Trust};
use args::{Source, TlsArgs, TlsArgsError};
use bundle::Publisher;
use files::{Files, FilesError};
use managed::Managed;
use vault::Vault;

/// There is no certificate, and will be none.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// It is not said where it comes from.
    #[error(transparent)]
    Args(#[from] TlsArgsError),
    /// The one in the files cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Keeps the certificate of the streams as it should be.
#[derive(Clone, Copy)]
pub struct Keeper<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Where the Secret with the keys is.
    pub operator_namespace: &'a str,
    /// Whether this replica leads.
    pub guard: &'a LeadershipGuard,
}

impl Keeper<'_> {
    /// Begins to. Whom to believe when other replicas show theirs is returned.
    pub fn start(
        self,
        args: &TlsArgs,
        serving: &Arc<ServingCertificate>,
        tasks: &mut TaskSet,
        closing: &CancellationToken,
    ) -> Result<Trust, CertificateError> {
        let operator = self.operator_namespace;
        match args.source()? {
            Source::Files { cert, key, ca } => {
                let files = Files::load(cert, key, serving.clone())?;
                tasks.spawn("certificate", files.run(closing.clone()));
                Ok(Trust::File(ca))
            }
            Source::Managed(lifetimes) => {
                let trust = Arc::<CurrentTrust>::default();
                let managed = Managed {
                    vault: Vault::new(self.client.clone(), operator, &args.tls_secret),
                    publisher: Publisher {
                        client: self.client.clone(),
                        name: args.ca_config_map.clone(),
                        namespaces: args.told(operator),
                    },
                    names: args.names(operator),
                    lifetimes,
                    guard: self.guard.clone(),
                    serving: serving.clone(),
                    trust: trust.clone(),
                };
                tasks.spawn("certificate", managed.run(closing.clone()));
                Ok(Trust::Current(trust))
            }
        }
    }
}
