//! Removes the markers of replicas that are no more: whoever wants a confirmation would wait for them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kube::Client;
use kube::api::Preconditions;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::controller::clock::now;
use crate::controller::election::LeadershipGuard;
use crate::controller::marker;
use crate::controller::shared::Shared;
use crate::core::replica::{Registration, ScopeId, Silence};
use crate::runtime::api_error::ApiErrorKind;

/// Removes markers.
pub struct Retirer {
    /// Which replicas are registered.
    pub shared: Arc<Shared>,
    /// The API server.
    pub client: Client,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
    /// Name of this replica, whose marker is its own business.
    pub own: Arc<str>,
    /// The collections, and where the markers of each are.
    pub scopes: Vec<(ScopeId, String)>,
    /// Length of a lease.
    pub lease: Duration,
    /// How many were removed.
    pub removed: Arc<AtomicU64>,
}

impl Retirer {
    /// Removes until `shutdown`. Every replica takes note of what it sees; only the leader removes.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = interval((self.lease / 10).max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent: Vec<Silence> = self.scopes.iter().map(|_| Silence::default()).collect();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            for ((scope, namespace), silence) in self.scopes.iter().zip(&mut silent) {
                let dead = self.shared.with(|replica, now| silence.seen(replica.registered(*scope), now));
                for (name, registration) in dead.into_iter().filter(|(name, _)| *name != self.own) {
                    self.remove(namespace, &name, registration).await;
                    silence.wait(&name, now());
                }
            }
        }
    }

    async fn remove(&self, namespace: &str, name: &str, Registration { uid, resource_version, .. }: Registration) {
        if !self.guard.is_leader() {
            return;
        }
        // If it was written meanwhile, the replica lives, and only our watch is behind.
        let seen = Preconditions { uid: Some(uid.to_string()), resource_version: Some(resource_version.to_string()) };
        match marker::remove(&self.client, namespace, name, Some(seen)).await {
            Ok(()) => {
                self.removed.fetch_add(1, Ordering::Relaxed);
                info!(replica = name, "removed the marker of a replica that is no more");
            }
            Err(error) => match error.kind() {
                ApiErrorKind::NotFound | ApiErrorKind::Conflict | ApiErrorKind::UidMismatch => {}
                _ => warn!(replica = name, %error, "cannot remove the marker of a replica that is no more"),
            },
        }
    }
}
