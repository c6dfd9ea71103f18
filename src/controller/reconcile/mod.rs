//! What the leader does besides. Every replica runs these tasks; they act only while it leads, which is asked again at
//! the instant of each write.
//!
//! * [`status`]: says in each session's status how far the pods are; [`condition`] is in which words.
//! * [`herald`]: logs and events of evictions, and storms of them.
//! * [`expire`]: deletes sessions that have outlived their timeouts.
//! * [`finalize`]: lets go of deleted sessions when no pod can serve them any more.
//! * [`retire`]: removes the markers of replicas that are no more.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kube::Client;

use super::certificates::bundle::Publications;
use super::election::Elector;
use super::events::EventWriter;
use super::ledger::Ledger;
use super::metrics::Sources;
use super::peers::{Links, Peers};
use super::shared::Shared;
use super::shutdown::Phases;
use super::status_writer::{KubeStatus, StatusLimits, StatusWriter};
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
mod told;

use expire::{Reaped, Reaper};
use finalize::Finalizer;
use herald::StormTeller;
use retire::Retirer;
use status::StatusReconciler;

/// What the leader's tasks need.
pub struct LeaderTasks {
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

impl LeaderTasks {
    /// Starts everything, and tells what to measure.
    pub fn start(self, elector: Elector, tasks: &mut TaskSet, phases: &Phases) -> Sources {
        let Self { name, lease, client, shared, ledger, events, storms, publications, certificate, transport, scopes } =
            self;
        let (guard, leadership) = (elector.guard(), elector.subscribe());
        let statuses = StatusWriter::new(KubeStatus::new(client.clone()), guard.clone(), StatusLimits::default());
        let (links, answers) = Links::new();
        let (reaped, retired) = (Arc::new(Reaped::default()), Arc::new(AtomicU64::new(0)));

        let leading = &phases.leading;
        leading.spawn(tasks, "statuses", |asked| statuses.clone().run(asked));
        leading.spawn(tasks, "events", |asked| events.clone().run(asked));
        leading.spawn(tasks, "storms", |asked| storms.run(asked));
        let reconciler = StatusReconciler {
            ledger: ledger.clone(),
            shared: shared.clone(),
            writer: statuses.clone(),
            guard: guard.clone(),
        };
        leading.spawn(tasks, "status", |asked| reconciler.run(asked));
        let expiry = Reaper {
            ledger: ledger.clone(),
            shared: shared.clone(),
            client: client.clone(),
            writer: statuses.clone(),
            guard: guard.clone(),
            reaped: reaped.clone(),
        };
        leading.spawn(tasks, "expiry", |asked| expiry.run(asked));
        let finalizer = Finalizer {
            ledger: ledger.clone(),
            shared: shared.clone(),
            links: links.clone(),
            answers,
            client: client.clone(),
            guard: guard.clone(),
            own: name.clone(),
        };
        leading.spawn(tasks, "finalizers", |asked| finalizer.run(asked));
        let markers = Retirer {
            shared: shared.clone(),
            client,
            guard: guard.clone(),
            own: name.clone(),
            scopes,
            lease,
            removed: retired.clone(),
        };
        leading.spawn(tasks, "markers", |asked| markers.run(asked));
        let peers = Peers { own: name, ledger: ledger.clone(), leadership, transport, links };
        leading.spawn(tasks, "peers", |asked| peers.run(asked));
        phases.election.spawn(tasks, "election", |asked| elector.run(asked));

        Sources { lease, shared, ledger, statuses, events, guard, reaped, retired, publications, certificate }
    }
}
