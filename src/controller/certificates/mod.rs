//! The certificate that streams are encrypted with: [`args`] says which one.
//!
//! * [`files`]: it is in files that somebody else replaces (cert-manager, or an administrator).
//! * [`managed`]: the controller makes it, and replaces it: [`plan`] decides when, [`issue`] makes it, [`vault`] keeps it in a
//!   Secret, [`bundle`] tells whom to believe.

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

use super::election::LeadershipGuard;
use super::injection::InjectionArgs;
use super::ledger::Ledger;
use crate::runtime::task_set::TaskSet;
use crate::runtime::tls::ServingCertificate;
use crate::runtime::tls::trust::{CurrentTrust, Trust};
use args::{BundleArg, Source, TlsArgs, TlsArgsError};
use bundle::config_map::BundleConfigMap;
use bundle::trust_bundle::BundleOfCluster;
use bundle::webhook::BundleOfWebhook;
use bundle::{Place, Publications, Publisher};
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
    /// What dates a certificate.
    pub ledger: &'a Arc<Ledger>,
    /// What becomes of the bundle.
    pub publications: &'a Arc<Publications>,
}

impl Keeper<'_> {
    /// Begins to. Whom to believe when other replicas show theirs is returned.
    pub async fn start(
        self,
        args: &TlsArgs,
        injection: &InjectionArgs,
        serving: &Arc<ServingCertificate>,
        tasks: &mut TaskSet,
        closing: &CancellationToken,
    ) -> Result<Trust, CertificateError> {
        let operator = self.operator_namespace;
        let webhook = injection.bundle(self.client);
        match args.source()? {
            Source::Files { cert, key, ca } => {
                let files = Files::load(cert, key, serving.clone()).await?;
                tasks.spawn("certificate", files.run(closing.clone()));
                let publisher = self.publisher(self.places(args, webhook));
                tasks.spawn("bundle", publisher.follow(Trust::File(ca.clone()), closing.clone()));
                Ok(Trust::File(ca))
            }
            Source::Managed(lifetimes) => {
                let trust = Arc::<CurrentTrust>::default();
                let mut names = args.names(operator);
                names.extend(injection.injection_name.clone());
                let managed = Managed {
                    vault: Vault::new(self.client.clone(), operator, &args.tls_secret),
                    publisher: self.publisher(self.places(args, webhook)),
                    names,
                    lifetimes,
                    guard: self.guard.clone(),
                    ledger: self.ledger.clone(),
                    serving: serving.clone(),
                    trust: trust.clone(),
                };
                tasks.spawn("certificate", managed.run(closing.clone()));
                Ok(Trust::Current(trust))
            }
        }
    }

    fn publisher(self, places: Vec<Box<dyn Place>>) -> Publisher {
        Publisher::new(places, self.guard.clone(), self.publications.clone())
    }

    /// Where the leader tells whom to believe, whoever has made the authority.
    fn places(self, args: &TlsArgs, webhook: Option<BundleOfWebhook>) -> Vec<Box<dyn Place>> {
        let map = |namespace| BundleConfigMap::new(self.client.clone(), args.ca_config_map.clone(), namespace);
        let namespaces = args.told(self.operator_namespace).into_iter();
        let mut places: Vec<Box<dyn Place>> = namespaces.map(|name| Box::new(map(name)) as Box<dyn Place>).collect();
        if args.ca_bundle != BundleArg::ConfigMap {
            let optional = args.ca_bundle == BundleArg::Auto;
            places.push(Box::new(BundleOfCluster::new(
                self.client.clone(),
                args.trust_bundle(self.operator_namespace),
                optional,
            )));
        }
        places.extend(webhook.map(|webhook| Box::new(webhook) as Box<dyn Place>));
        places
    }
}
