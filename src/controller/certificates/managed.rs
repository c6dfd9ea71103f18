//! The controller's own certificate: the leader makes it and replaces it, every replica shows what is kept.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::bundle::Publisher;
use super::issue::IssueError;
use super::plan::Lifetimes;
use super::vault::{Keys, Serving, Vault, VaultError};
use crate::controller::election::LeadershipGuard;
use crate::controller::ledger::Ledger;
use crate::runtime::backoff::Backoff;
use crate::runtime::failing::Failing;
use crate::runtime::tls::trust::CurrentTrust;
use crate::runtime::tls::{IdentityError, ServingCertificate};

/// How often it is looked at least. A replica that has none yet, or none with its names, looks more often.
const LOOK: Duration = Duration::from_secs(10);
const FIRST_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Error)]
enum Failed {
    #[error("cannot read or write the Secret with the keys: {0}")]
    Vault(#[source] Box<VaultError>),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("the certificate that is kept cannot be used: {0}")]
    Useless(#[from] IdentityError),
    #[error("the Secret was changed by somebody else meanwhile")]
    Conflict,
}

/// What keeps the certificate true.
pub struct Managed {
    /// Where the keys are.
    pub vault: Vault,
    /// Where the bundle is published.
    pub publisher: Publisher,
    /// The names in the certificate.
    pub names: Vec<String>,
    /// For how long what is made is valid.
    pub lifetimes: Lifetimes,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
    /// Knows the API server's clock: nobody would believe yet what is dated by a clock that is well ahead.
    pub ledger: Arc<Ledger>,
    /// What this replica shows.
    pub serving: Arc<ServingCertificate>,
    /// Whom this replica believes when it connects to another.
    pub trust: Arc<CurrentTrust>,
}

/// What is shown, and who is believed.
#[derive(PartialEq, Eq)]
struct Shown {
    serving: Serving,
    bundle: String,
}

impl From<VaultError> for Failed {
    fn from(error: VaultError) -> Self {
        Self::Vault(Box::new(error))
    }
}

impl Managed {
    /// Looks again and again, until `shutdown`. What fails is tried again.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        // A certificate is replaced when a third of its life is left; it is looked often enough to be in time for that.
        let calm = LOOK.min(self.lifetimes.serving / 30).max(FIRST_LOOK);
        let (mut shown, mut failing) = (None, Failing::default());
        let mut backoff = Backoff::new(FIRST_LOOK, calm);
        loop {
            let pause = match self.look(&mut shown).await {
                Ok(()) => {
                    if failing.over() {
                        info!("the certificate of the streams is as it should be again");
                    }
                    backoff.reset();
                    if self.has_its_names(shown.as_ref()) { calm } else { FIRST_LOOK }
                }
                Err(error) => {
                    if failing.failed(&error.to_string(), Instant::now()) {
                        warn!(%error, "the certificate of the streams is not as it should be; trying again");
                    } else {
                        debug!(%error, "the certificate of the streams is not as it should be");
                    }
                    backoff.pause()
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep(pause) => {}
            }
        }
    }

    /// Whether what is shown is for all that this replica serves. One of an earlier configuration may still lead: until one of
    /// this configuration does, an API server cannot ask this one's webhook, and workloads whose pods it was to change wait for
    /// longer after each attempt. So it is no time to rest.
    fn has_its_names(&self, shown: Option<&Shown>) -> bool {
        shown.is_some_and(|shown| shown.serving.names == self.names)
    }

    /// The certificate is shown before the bundle is published, since somebody may be told late, or not at all: the plan lets
    /// only those authorities sign that all were told of in time, or the first one.
    async fn look(&mut self, shown: &mut Option<Shown>) -> Result<(), Failed> {
        let loaded = self.vault.load().await?;
        let (mut keys, mut secret) = loaded.map_or_else(Default::default, |(keys, secret)| (keys, Some(secret)));
        if !self.guard.is_leader() {
            self.publisher.rest();
            return self.show(shown, &keys);
        }
        let now = self.ledger.prudent_time().as_secs();
        if keys.renew(&self.names, self.lifetimes, now)? {
            secret = Some(self.store(&keys, secret).await?);
            info!(authorities = keys.authorities.len(), "a new certificate for the streams was made");
        }
        self.show(shown, &keys)?;
        // Only when all are told does the time begin in which they hear of it.
        if self.publisher.publish(&keys.bundle()).await && keys.told(now) {
            self.store(&keys, secret).await?;
        }
        Ok(())
    }

    async fn store(&self, keys: &Keys, seen: Option<Secret>) -> Result<Secret, Failed> {
        self.vault.store(keys, seen).await.map_err(VaultError::from)?.ok_or(Failed::Conflict)
    }

    fn show(&self, shown: &mut Option<Shown>, keys: &Keys) -> Result<(), Failed> {
        let Some(serving) = keys.serving.clone() else { return Ok(()) };
        let now = Shown { serving, bundle: keys.bundle() };
        if shown.as_ref() == Some(&now) {
            return Ok(());
        }
        let pair = &now.serving.pair;
        self.serving.set(pair.cert.as_bytes(), pair.key.as_bytes())?;
        self.trust.set(now.bundle.as_str().into());
        let (ends, authorities) = (pair.validity.ends, keys.authorities.len());
        info!(ends, authorities, "the certificate is shown from now on");
        *shown = Some(now);
        Ok(())
    }
}
