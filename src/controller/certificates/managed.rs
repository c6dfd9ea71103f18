//! The controller's own certificate: the leader makes it and replaces it, every replica shows what is kept.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bundle::{PublishError, Publisher};
use super::issue::IssueError;
use super::plan::Lifetimes;
use super::vault::{Keys, Vault};
use crate::controller::leader::LeadershipGuard;
use crate::runtime::api_error::ApiError;
use crate::runtime::tls::trust::CurrentTrust;
use crate::runtime::tls::{IdentityError, ServingCertificate};

/// How often it is looked at least. A replica that has none yet looks more often.
const LOOK: Duration = Duration::from_secs(10);
const FIRST_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Error)]
enum Failed {
    #[error("cannot read or write the Secret with the keys: {0}")]
    Vault(#[source] Box<ApiError>),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("{0}")]
    Publish(#[source] Box<PublishError>),
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
    /// What this replica shows.
    pub serving: Arc<ServingCertificate>,
    /// Whom this replica believes when it connects to another.
    pub trust: Arc<CurrentTrust>,
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Vault(Box::new(error))
    }
}

impl From<PublishError> for Failed {
    fn from(error: PublishError) -> Self {
        Self::Publish(Box::new(error))
    }
}

impl Managed {
    /// Looks again and again, until `shutdown`. A failure is told once, and tried again.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        // A certificate is replaced when a third of its life is left; it is looked often enough to be in time for that.
        let calm = LOOK.min(self.lifetimes.serving / 30).max(FIRST_LOOK);
        let mut ticks = interval(FIRST_LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut shown, mut failing, mut eager) = (None, false, true);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            match self.look(&mut shown).await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    warn!(%error, "the certificate of the streams is not as it should be; trying again");
                }
                Err(_) => {}
            }
            if std::mem::replace(&mut eager, shown.is_none()) && !eager {
                ticks = interval(calm);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                ticks.reset();
            }
        }
    }

    async fn look(&self, shown: &mut Option<Keys>) -> Result<(), Failed> {
        let loaded = self.vault.load().await?;
        let (mut keys, mut secret) = loaded.map_or_else(Default::default, |(keys, secret)| (keys, Some(secret)));
        if self.guard.is_leader() {
            let now = unix_now();
            if keys.renew(&self.names, self.lifetimes, now)? {
                self.store(&keys, secret.take()).await?;
                info!(authorities = keys.authorities.len(), "a new certificate for the streams was made");
                secret = self.vault.load().await?.map(|(_, secret)| secret);
            }
            self.publisher.publish(&keys.bundle()).await?;
            // Only now does the time begin in which all hear of it.
            if keys.told(now) {
                self.store(&keys, secret).await?;
            }
        }
        self.show(shown, keys)
    }

    async fn store(&self, keys: &Keys, seen: Option<k8s_openapi::api::core::v1::Secret>) -> Result<(), Failed> {
        if self.vault.store(keys, seen).await? { Ok(()) } else { Err(Failed::Conflict) }
    }

    fn show(&self, shown: &mut Option<Keys>, keys: Keys) -> Result<(), Failed> {
        let Some(serving) = keys.serving.as_ref().filter(|_| shown.as_ref() != Some(&keys)) else {
            return Ok(());
        };
        self.serving.set(serving.pair.cert.as_bytes(), serving.pair.key.as_bytes())?;
        self.trust.set(keys.bundle().into());
        info!(
            ends = serving.pair.validity.ends,
            authorities = keys.authorities.len(),
            "the certificate is shown from now on"
        );
        *shown = Some(keys);
        Ok(())
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
