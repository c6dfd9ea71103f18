//! The replica's marker: proof that its watch is complete, and its registration.
//!
//! It is a `VmcpSession` without metadata, named after this process. Each write of it is awaited through the watch
//! (see [`crate::core::replica::scope`]); a watch that does not show it in time is begun anew.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::clock::now;
use super::ledger::{Ledger, since_epoch};
use super::shared::Shared;
use crate::api::{ANNOTATION_ADDRESS, ANNOTATION_BEAT, ANNOTATION_LEASE, LABEL_REPLICA, VmcpSession, VmcpSessionSpec};
use crate::core::replica::{Chain, Found, Link, ScopeId};
use crate::core::session::{InvalidResourceVersion, ResourceVersion};
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};
use crate::runtime::failing::Failing;
use crate::runtime::health::Heartbeat;

/// Who writes it, for `managedFields`.
pub const FIELD_MANAGER: &str = "vmcp-session-controller";
/// From here on it is told that the clocks of this machine and of the API server differ.
const CLOCK_OFF: Duration = Duration::from_secs(30);

const RESTORED: &str = "etcd was restored from a backup: all copies and leases are void";

/// Why a marker proves nothing.
#[derive(Debug, Error)]
enum MarkerError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Version(#[from] InvalidResourceVersion),
    #[error("a write of it changes nothing: somebody sets or strips its annotations")]
    Unchanged,
}

impl MarkerError {
    /// Whether the marker is not as the write expected it, which was a patch if it was `known` to be there.
    fn is_otherwise(&self, known: bool) -> bool {
        use ApiErrorKind as K;
        let Self::Api(error) = self else { return false };
        match error.kind() {
            K::NotFound => known,
            kind => matches!(kind, K::AlreadyExists | K::Conflict),
        }
    }

    /// Whether the write may have been carried out.
    fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Api(error) if error.outcome_unknown())
    }
}

/// How the writes go.
#[derive(Default)]
struct Writing {
    chain: Chain,
    failing: Failing,
    refused: bool,
    /// The last write may have been carried out without an answer.
    unknown: bool,
    /// The last write took longer than a fifth of a lease.
    slow: bool,
    clock_off: bool,
}

/// Writes the marker of one watched collection.
pub struct Marker {
    /// A client of its own: its connections are not shared with the watch that it checks.
    pub client: Client,
    /// The collection that it proves.
    pub scope: ScopeId,
    /// Where it is written: the collection's namespace, or the operator's own if all are watched or it is that of the
    /// registrations.
    pub namespace: String,
    /// Name of the replica, and of the marker.
    pub name: String,
    /// Where this replica serves, for its peers.
    pub address: String,
    /// Length of a lease: a marker is written about five times in it.
    pub lease: Duration,
    /// Where the proof goes.
    pub shared: Arc<Shared>,
    /// Where it goes what the API server's clock shows.
    pub ledger: Arc<Ledger>,
    /// Notified when the watch is too silent to be trusted.
    pub distrust: Arc<Notify>,
    /// Beats with each write that is tried.
    pub heartbeat: Heartbeat,
}

impl Marker {
    /// Writes until `shutdown`. The marker stays: it is removed when no lease of this replica can be in force.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), std::convert::Infallible> {
        let every = self.lease / 5;
        let mut writing = Writing::default();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep_until(next) => {}
            }
            next = Instant::now() + every.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.85..1.0));
            // A marker that was not written says nothing against the watch.
            if !writing.refused {
                self.check_watch();
            }
            self.heartbeat.beat();
            // What hangs must not keep a shutdown waiting.
            if shutdown.run_until_cancelled(self.step(&mut writing)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Writes, and once more if the marker was not as it was thought to be.
    async fn step(&self, writing: &mut Writing) {
        let written = self.write_upon_what_is(writing).await;
        writing.unknown = written.as_ref().is_err_and(MarkerError::outcome_unknown);
        let (marker, namespace) = (&self.name, &self.namespace);
        match written {
            Ok(()) if writing.failing.over() => info!(%marker, %namespace, "the marker is written again"),
            Ok(()) => {}
            Err(error) if writing.failing.failed(&error.to_string(), Instant::now()) => {
                warn!(%marker, %namespace, %error, "the marker cannot be written: no lease is granted without it");
            }
            Err(error) => debug!(%marker, %namespace, %error, "still no marker"),
        }
    }

    async fn write_upon_what_is(&self, writing: &mut Writing) -> Result<(), MarkerError> {
        if writing.unknown {
            self.look(writing).await?;
        }
        let known = writing.chain.is_known();
        match self.write(writing).await {
            Err(error) if error.is_otherwise(known) => {
                self.look(writing).await?;
                self.write(writing).await
            }
            written => written,
        }
    }

    /// Writes the next link of the chain.
    async fn write(&self, writing: &mut Writing) -> Result<(), MarkerError> {
        let known = writing.chain.is_known();
        let link = writing.chain.link();
        // The knowledge is as old as this instant, however long the answer takes.
        let sent = now();
        let seen = self.shared.with(|replica, _| replica.position(self.scope));
        let answer = deadline(self.patience(writing), self.put(link)).await;
        writing.slow = now().saturating_since(sent) >= self.lease / 5;
        let refused_before = writing.refused;
        writing.refused = answer.as_ref().is_err_and(|error| is_refusal(error.kind(), known));
        if writing.refused {
            self.shared.with(|replica, _| replica.marker_refused(self.scope));
            // Whoever waits for it to list need not. Told each time, the watch would be begun anew for it again and again.
            if !refused_before {
                self.distrust.notify_one();
            }
        }
        let written = answer?;
        let resource_version = version(&written)?;
        if link.after == Some(resource_version) {
            // The watch has shown that already.
            return Err(MarkerError::Unchanged);
        }
        // Elsewhere, whoever may write sessions may write into it.
        if self.shared.with(|replica, _| replica.registry_of(self.scope)) == self.scope {
            self.tell_clock(&written, &mut writing.clock_off);
        }
        let found = writing.chain.answered(link, sent, resource_version, self.lease);
        self.take(found);
        self.answered(sent, seen, resource_version);
        self.shared.with(|replica, now| replica.is_registered_since(self.scope, now));
        Ok(())
    }

    async fn put(&self, link: Link) -> kube::Result<VmcpSession> {
        let beat = link.beat.to_string();
        if let Some(after) = link.after {
            let patch =
                json!({"metadata": {"resourceVersion": after.to_string(), "annotations": {ANNOTATION_BEAT: beat}}});
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            self.api().patch(&self.name, &params, &Patch::Merge(patch)).await
        } else {
            let mut marker = VmcpSession::new(&self.name, VmcpSessionSpec::default());
            marker.labels_mut().insert(LABEL_REPLICA.to_owned(), "true".to_owned());
            marker.annotations_mut().insert(ANNOTATION_ADDRESS.to_owned(), self.address.clone());
            marker.annotations_mut().insert(ANNOTATION_LEASE.to_owned(), self.lease.as_millis().to_string());
            marker.annotations_mut().insert(ANNOTATION_BEAT.to_owned(), beat);
            let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            self.api().create(&params, &marker).await
        }
    }

    /// Reads how the marker is: the next write is upon that.
    async fn look(&self, writing: &mut Writing) -> Result<(), MarkerError> {
        let read = deadline(self.patience(writing), self.api().get_opt(&self.name)).await?;
        let read = read.map(|marker| version(&marker).map(|at| (beat(&marker), at))).transpose()?;
        if read.is_none() {
            self.shared.with(|replica, _| replica.is_not_registered(self.scope));
        }
        let found = writing.chain.found(read);
        self.take(found);
        Ok(())
    }

    /// The marker was found so.
    fn take(&self, found: Found) {
        let (restored, listed) = self.shared.with(|replica, _| {
            let listed = replica.position(self.scope) > ResourceVersion(0);
            (replica.marker_found(self.scope, found), listed)
        });
        let what = match found {
            Found::Ahead | Found::NotYet => return,
            // The first list waits for this.
            Found::First if !listed => return self.distrust.notify_one(),
            Found::First => "there was no marker when all was listed",
            Found::Behind => "the marker is older than what was acknowledged",
            Found::Removed => "the marker was removed",
            Found::LongAgo => "the marker was not written for longer than a lease",
        };
        if restored {
            error!(marker = %self.name, namespace = %self.namespace, "{what}: {RESTORED}");
        } else {
            warn!(marker = %self.name, namespace = %self.namespace, "{what}: all is listed anew before the next lease");
        }
        self.distrust.notify_one();
    }

    fn api(&self) -> Api<VmcpSession> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// How long a call may take. One that hangs must not keep the next one from trying another connection; but if that takes long
    /// too, the API server is slow, and two calls of twice as long fit into a lease.
    fn patience(&self, writing: &Writing) -> Duration {
        let short = self.lease / 5;
        (if writing.slow { short * 2 } else { short }).max(Duration::from_millis(500))
    }

    fn answered(&self, sent: Time, seen: ResourceVersion, answered: ResourceVersion) {
        let proof = self.shared.with(|replica, now| {
            let proof = replica.marker_answered(self.scope, sent, seen, answered, now);
            if proof.is_err() {
                replica.void();
            }
            proof
        });
        if let Err(rolled_back) = proof {
            error!(error = %rolled_back, "{RESTORED}");
            self.distrust.notify_one();
        }
    }

    fn tell_clock(&self, written: &VmcpSession, off: &mut bool) {
        let Some(shown) = written_at(written) else {
            return;
        };
        let by = self.ledger.server_time(since_epoch(shown), now());
        if std::mem::replace(off, by >= CLOCK_OFF) != *off {
            let seconds = by.as_secs();
            if *off {
                warn!(
                    seconds,
                    "the clocks of this machine and of the API server differ: lifetimes end when both say so"
                );
            } else {
                info!(seconds, "the clocks of this machine and of the API server agree again");
            }
        }
    }

    /// A watch that has shown no marker for three fifths of a lease is suspected to be silent, and so is one that never has. Also if it
    /// is the writes that fail: an API server that shuts down refuses them, and keeps watches open until their clients leave.
    fn check_watch(&self) {
        let age = self.shared.with(|replica, now| replica.age_of(self.scope, now));
        if age.is_none_or(|age| age > self.lease * 3 / 5) {
            self.distrust.notify_one();
        }
    }
}

/// Whether the namespace is the reason why a marker cannot be written: it is gone or full, or nobody has given us the right. What
/// was written before and is `known` may just have been removed.
fn is_refusal(kind: ApiErrorKind, known: bool) -> bool {
    match kind {
        ApiErrorKind::Forbidden | ApiErrorKind::OverQuota | ApiErrorKind::Invalid => true,
        ApiErrorKind::NotFound => !known,
        _ => false,
    }
}

/// When the API server says that it has carried out our last write.
fn written_at(written: &VmcpSession) -> Option<Timestamp> {
    let ours = written.metadata.managed_fields.iter().flatten();
    let ours = ours.filter(|entry| {
        let direct = entry.operation.as_deref() == Some("Update") && entry.subresource.is_none();
        direct && entry.manager.as_deref() == Some(FIELD_MANAGER)
    });
    ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

/// The resourceVersion of a marker. In a Kubernetes older than the oldest that is supported it may be no number; taken for 0
/// it would be below all that was seen, as after a restore of etcd, or prove a watch that shows nothing.
fn version(marker: &VmcpSession) -> Result<ResourceVersion, InvalidResourceVersion> {
    marker.metadata.resource_version.as_deref().ok_or(InvalidResourceVersion)?.parse()
}

/// Which write a marker bears.
fn beat(marker: &VmcpSession) -> Option<u64> {
    marker.annotations().get(ANNOTATION_BEAT)?.parse().ok()
}

/// Removes a marker if it is still as it was seen.
pub async fn remove(client: &Client, namespace: &str, name: &str, seen: Option<Preconditions>) -> Result<(), ApiError> {
    let api: Api<VmcpSession> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams { preconditions: seen, ..DeleteParams::default() };
    deadline(Duration::from_secs(5), async { api.delete(name, &params).await.map(|_| ()) }).await
}

#[cfg(test)]
#[path = "marker_tests.rs"]
mod tests;
