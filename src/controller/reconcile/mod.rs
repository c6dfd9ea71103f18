//! What the leader does besides. Every replica runs these tasks; they act only while it leads, which is asked again at
//! the instant of each write.
//!
//! * [`status`]: says in each session's status how far the pods are; [`condition`] is in which words.
//! * [`herald`]: logs and events of evictions, and storms of them.
//! * [`expire`]: deletes sessions that have outlived their timeouts.
//! * [`finalize`]: lets go of deleted sessions when no pod can serve them any more.
//! * [`retire`]: removes the markers of replicas that are no more.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kube::Client;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::certificates::bundle::Publications;
use super::events::EventWriter;
use super::leader::Elector;
use super::ledger::Ledger;
use super::metrics::Sources;
use super::peers::{Links, Peers};
use super::shared::Shared;
use super::status::{KubeStatus, StatusLimits, StatusWriter};
use crate::core::replica::ScopeId;
use crate::runtime::task_set::TaskSet;
use crate::runtime::tls::ServingCertificate;
use crate::runtime::transport::Transport;

pub mod condition;
pub mod expire;
pub mod finalize;
pub mod herald;
pub mod retire;
pub mod status;

use expire::{Reaped, Reaper};
use finalize::Finalizer;
use herald::StormTeller;
use retire::Retirer;
use status::StatusReconciler;

/// How long calls under way may take to end at a shutdown.
const FINISH: Duration = Duration::from_secs(3);

/// What the leader's tasks need.
pub struct Leader {
    /// Name of this replica.
    pub name: Arc<str>,
    /// Length of a lease.
    pub lease: Duration,
    /// The API server.
    pub client: Client,
    /// The replica.
    pub shared: Arc<Shared>,
    /// What is left to be done.
    pub ledger: Arc<Ledger>,
    /// Writes events.
    pub events: EventWriter,
    /// Looks into storms.
    pub storms: StormTeller,
    /// What becomes of the bundle of authorities.
    pub publications: Arc<Publications>,
    /// The certificate of the streams.
    pub certificate: Arc<ServingCertificate>,
    /// How other replicas are reached.
    pub transport: Transport,
    /// The watched collections, and where the markers of each are.
    pub scopes: Vec<(ScopeId, String)>,
}

/// Ends the leader's tasks, and only then the leadership: the next leader begins when the lease is free.
#[derive(Debug)]
pub struct Ending {
    work: CancellationToken,
    tracker: TaskTracker,
    election: CancellationToken,
}

impl Ending {
    /// Of a leader without tasks.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        Self { work: CancellationToken::new(), tracker: TaskTracker::new(), election: CancellationToken::new() }
    }

    /// Returns when the lease is being given back.
    pub async fn end(&self) {
        self.work.cancel();
        self.tracker.close();
        if timeout(FINISH, self.tracker.wait()).await.is_err() {
            warn!("some of the leader's calls are still under way");
        }
        self.election.cancel();
    }
}

impl Leader {
    /// Starts everything, and tells how to end it and what to measure.
    pub fn start(self, elector: Elector, tasks: &mut TaskSet) -> (Ending, Sources) {
        let Self { name, lease, client, shared, ledger, events, storms, publications, certificate, transport, scopes } =
            self;
        let (guard, leadership) = (elector.guard(), elector.subscribe());
        let closing = tasks.shutdown().clone();
        let (work, election) = (closing.child_token(), closing.child_token());
        let tracker = TaskTracker::new();
        let statuses = StatusWriter::new(KubeStatus::new(client.clone()), guard.clone(), StatusLimits::default());
        let (links, answers) = Links::new();
        let (reaped, retired) = (Arc::new(Reaped::default()), Arc::new(AtomicU64::new(0)));

        let mut spawn = Spawn { tasks, closing, work: work.clone(), tracker: &tracker };
        spawn.task("statuses", statuses.clone().run(work.clone()));
        spawn.task("events", events.clone().run(work.clone()));
        spawn.task("storms", storms.run(work.clone()));
        let reconciler = StatusReconciler {
            ledger: ledger.clone(),
            shared: shared.clone(),
            writer: statuses.clone(),
            guard: guard.clone(),
        };
        spawn.task("status", reconciler.run(work.clone()));
        let expiry = Reaper {
            ledger: ledger.clone(),
            shared: shared.clone(),
            client: client.clone(),
            writer: statuses.clone(),
            guard: guard.clone(),
            reaped: reaped.clone(),
        };
        spawn.task("expiry", expiry.run(work.clone()));
        let finalizer = Finalizer {
            ledger: ledger.clone(),
            shared: shared.clone(),
            links: links.clone(),
            answers,
            client: client.clone(),
            guard: guard.clone(),
            own: name.clone(),
        };
        spawn.task("finalizers", finalizer.run(work.clone()));
        let markers = Retirer {
            shared: shared.clone(),
            client,
            guard: guard.clone(),
            own: name.clone(),
            scopes,
            lease,
            removed: retired.clone(),
        };
        spawn.task("markers", markers.run(work.clone()));
        let peers = Peers { own: name, ledger: ledger.clone(), leadership, transport, links };
        spawn.task("peers", peers.run(work.clone()));
        spawn.untracked("election", elector.run(election.clone()), election.clone());

        let sources =
            Sources { lease, shared, ledger, statuses, events, guard, reaped, retired, publications, certificate };
        (Ending { work, tracker, election }, sources)
    }
}

/// Starts tasks that are asked to end before the others are.
struct Spawn<'a> {
    tasks: &'a mut TaskSet,
    closing: CancellationToken,
    work: CancellationToken,
    tracker: &'a TaskTracker,
}

impl Spawn<'_> {
    /// A task of the leader: leadership ends after it.
    fn task(&mut self, name: &'static str, task: impl Future<Output = Result<(), Infallible>> + Send + 'static) {
        let (tracked, work) = (self.tracker.track_future(task), self.work.clone());
        self.untracked(name, tracked, work);
    }

    fn untracked(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), Infallible>> + Send + 'static,
        asked: CancellationToken,
    ) {
        let closing = self.closing.clone();
        self.tasks.spawn(name, async move {
            let ended = task.await;
            // If it was asked to, it has not ended early; the others go on for a while.
            if asked.is_cancelled() {
                closing.cancelled().await;
            }
            ended
        });
    }
}
