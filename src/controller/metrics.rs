//! What Prometheus is told. Everything is read from the real state when it is scraped, so that no gauge can drift. No
//! label names an object.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::certificates::bundle::Publications;
use super::election::LeadershipGuard;
use super::events::EventWriter;
use super::ledger::Ledger;
use super::reconcile::expire::Reaped;
use super::reconcile::herald::Measured;
use super::shared::Shared;
use super::status_writer::SessionStatusWriter;
use crate::core::expiry::Expired;
use crate::core::replica::Counts;
use crate::runtime::metrics::{counters, gauges, rows};
use crate::runtime::tls::{Period, ServingCertificate};

/// Where the numbers come from.
#[derive(Debug)]
pub struct Sources {
    /// Length of a lease.
    pub lease: Duration,
    /// The replica.
    pub shared: Arc<Shared>,
    /// What is left to be done.
    pub ledger: Arc<Ledger>,
    /// Status patches.
    pub statuses: SessionStatusWriter,
    /// Events.
    pub events: EventWriter,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
    /// Sessions that were deleted.
    pub reaped: Arc<Reaped>,
    /// Markers that were removed.
    pub retired: Arc<AtomicU64>,
    /// What becomes of the bundle of authorities.
    pub publications: Arc<Publications>,
    /// The certificate of the streams.
    pub certificate: Arc<ServingCertificate>,
}

/// Names of the numbers begin with this.
const PREFIX: &str = "vmcp_session";

/// The registry of one replica.
pub fn registry(sources: Sources, measured: Measured) -> Registry {
    let Measured { took, storms } = measured;
    let mut registry = Registry::with_prefix(PREFIX);
    let help = "Time from the first signal of a change to the last pod's acknowledgement";
    registry.register_with_unit("signal_to_ack", help, prometheus_client::registry::Unit::Seconds, took);
    let help =
        "Storms of evictions: a session that is evicted again and again, counted every ten minutes while it goes on";
    registry.register("storms", help, storms);
    registry.register_collector(Box::new(sources));
    registry
}

type Encoded = Result<(), std::fmt::Error>;

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Encoded {
        let encoder = &mut encoder;
        self.encode_replica(encoder)?;
        self.encode_work(encoder)
    }
}

impl Sources {
    fn encode_replica(&self, encoder: &mut DescriptorEncoder) -> Encoded {
        struct Now {
            sessions: usize,
            holdings: usize,
            agents: (usize, usize),
            signals: usize,
            confirmations: usize,
            age: Option<Duration>,
            refused: usize,
            counts: Counts,
        }
        let now = self.shared.with(|replica, now| Now {
            sessions: replica.sessions(),
            holdings: replica.holdings(),
            agents: replica.agents(),
            signals: replica.queued_signals(),
            confirmations: replica.confirmations(),
            age: replica.age(now),
            refused: replica.refused(now),
            counts: replica.counts(),
        });
        gauges(encoder, "sessions", "Sessions that exist", &[(None, now.sessions)])?;
        gauges(encoder, "holdings", "Copies that connected agents hold", &[(None, now.holdings)])?;
        let state = |name| Some(("state", name));
        let agents = [(state("connected"), now.agents.0), (state("remembered"), now.agents.1)];
        gauges(encoder, "agents", "Agents: connected, or remembered until their last lease has ended", &agents)?;
        let help = "How long an agent may serve its copies when nothing more is heard";
        rows(encoder, "lease_seconds", help, &[(None, ConstGauge::new(self.lease.as_secs_f64()))])?;
        // There is no age before the first proof.
        if let Some(age) = now.age {
            let help = "How long ago the watch was proven to be complete";
            let age = ConstGauge::new(age.as_secs_f64());
            rows(encoder, "watch_freshness_age_seconds", help, &[(None, age)])?;
        }
        let help = "Namespaces in which nobody gets a lease, since the API server refuses the marker";
        gauges(encoder, "namespaces_refused", help, &[(None, now.refused)])?;
        let help = "How far the clock of this machine is from that of the API server";
        let off = ConstGauge::new(self.ledger.clock_off_by().as_secs_f64());
        rows(encoder, "clock_offset_seconds", help, &[(None, off)])?;
        let Counts { stale, gone, unknown, leases, unproven, outdated, stopping } = now.counts;
        let reason = |name| Some(("reason", name));
        let evictions = [(reason("stale"), stale), (reason("gone"), gone), (reason("unknown"), unknown)];
        counters(encoder, "evictions", "Copies that agents were told to drop", &evictions)?;
        counters(encoder, "leases_granted", "Heartbeats that got a lease", &[(None, leases)])?;
        let refusals = [(reason("unproven"), unproven), (reason("outdated"), outdated), (reason("stopping"), stopping)];
        counters(encoder, "leases_refused", "Heartbeats that got no lease", &refusals)?;
        let depths = self.ledger.depths();
        gauges(encoder, "sessions_with_timeouts", "Sessions that may expire", &[(None, depths.timeouts)])?;
        let queue = |name| Some(("queue", name));
        let waiting = [
            (queue("signals"), now.signals),
            (queue("confirmations"), now.confirmations),
            (queue("status"), self.statuses.depth()),
            (queue("events"), self.events.depth()),
            (queue("status_behind"), depths.behind),
            (queue("terminating"), depths.terminating),
            (queue("renewals"), depths.renewals),
        ];
        gauges(encoder, "queue_depth", "What waits", &waiting)
    }

    fn encode_work(&self, encoder: &mut DescriptorEncoder) -> Encoded {
        let Self { statuses, events, guard, reaped, retired, publications, certificate, .. } = self;
        gauges(encoder, "is_leader", "Whether this replica leads", &[(None, usize::from(guard.is_leader()))])?;
        let result = |name| Some(("result", name));
        let patches = [
            (result("written"), statuses.patched()),
            (result("failed"), statuses.failed()),
            (result("given_up"), statuses.given_up()),
            (result("not_leading"), statuses.not_leading()),
        ];
        counters(encoder, "status_patches", "Patches of statuses", &patches)?;
        let written = [
            (result("written"), events.written()),
            (result("merged"), events.suppressed()),
            (result("dropped"), events.dropped()),
            (result("failed"), events.failed()),
        ];
        counters(encoder, "events", "Events on sessions", &written)?;
        let reason = |name| Some(("reason", name));
        let expired = [(reason("idle"), reaped.by(Expired::Idle)), (reason("lifetime"), reaped.by(Expired::Lifetime))];
        counters(encoder, "expired", "Sessions that were deleted because of a timeout", &expired)?;
        let removed = retired.load(Ordering::Relaxed);
        counters(encoder, "markers_removed", "Markers of replicas that are no more", &[(None, removed)])?;
        let written = [(result("written"), publications.written()), (result("failed"), publications.failed())];
        counters(encoder, "bundle_writes", "Attempts to publish the bundle of authorities", &written)?;
        let help = "Places where the bundle of authorities is not what it should be";
        gauges(encoder, "bundles_behind", help, &[(None, publications.behind())])?;
        // There is none before the first certificate.
        let Some(Period { not_before, not_after }) = certificate.period() else { return Ok(()) };
        let help = "When the certificate that is shown became valid, in seconds since 1970";
        rows(encoder, "certificate_not_before_timestamp_seconds", help, &[(None, ConstGauge::new(not_before))])?;
        let help = "When the certificate that is shown ends, in seconds since 1970";
        rows(encoder, "certificate_not_after_timestamp_seconds", help, &[(None, ConstGauge::new(not_after))])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use kube::Client;

    use super::*;
    use crate::controller::events::REPORTING_CONTROLLER;
    use crate::controller::reconcile::herald::Herald;
    use crate::controller::status_writer::{KubeStatus, StatusLimits, StatusWriter};
    use crate::core::replica::{Config, Replica};
    use crate::core::session::ResourceVersion;

    /// What a replica tells that leads nobody, at an API server that does not exist.
    fn scraped() -> String {
        let client = Client::try_from(kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"))).unwrap();
        let guard = LeadershipGuard::default();
        let events = EventWriter::new(client.clone(), REPORTING_CONTROLLER, "own", guard.clone());
        let (herald, _) = Herald::new(client.clone(), events.clone(), guard.clone());
        let measured = herald.measured();
        let second = Duration::from_secs(1);
        let ledger = Arc::new(Ledger::new("own", second, second, Box::new(herald)));
        let shared = Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger.clone()));
        shared.with(|replica, now| {
            let scope = replica.scopes().next().unwrap().0;
            replica.marker_answered(scope, now, ResourceVersion(0), ResourceVersion(0), now).unwrap();
        });
        let statuses = StatusWriter::new(KubeStatus::new(client), guard.clone(), StatusLimits::default());
        let (reaped, retired, publications) = (Arc::default(), Arc::default(), Arc::default());
        let certificate = Arc::new(ServingCertificate::default());
        let key = rcgen::KeyPair::generate().unwrap();
        let mut made = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        (made.not_before, made.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 1, 11));
        let made = made.self_signed(&key).unwrap().pem();
        certificate.set(made.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let mut text = String::new();
        let lease = second;
        let sources =
            Sources { lease, shared, ledger, statuses, events, guard, reaped, retired, publications, certificate };
        prometheus_client::encoding::text::encode(&mut text, &registry(sources, measured)).unwrap();
        text
    }

    /// A name that nobody tells is an alert that never fires, or a benchmark that waits for ever.
    #[tokio::test]
    async fn every_metric_that_is_spoken_of_is_told() {
        let text = scraped();
        let mut told = BTreeSet::from(["vmcp_session"]);
        for line in text.lines() {
            let name = line.strip_prefix("# TYPE ").unwrap_or(line);
            told.extend(name.split([' ', '{']).next());
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut spoken_of = 0;
        for file in ["docs/usage.md", "benches/src/memory.rs", "README.md"] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
            for word in words.filter(|word| word.starts_with("vmcp_session")) {
                assert!(told.contains(word), "{file} speaks of {word}; there are {told:#?}");
                spoken_of += usize::from(word != "vmcp_session");
            }
        }
        assert!(spoken_of > 7, "hardly any name was found");
    }

    /// An alert counts with both.
    #[tokio::test]
    async fn it_is_told_when_the_certificate_begins_and_ends() {
        let text = scraped();
        for (what, seconds) in [("not_before", 1_767_225_600), ("not_after", 1_768_089_600)] {
            let line = format!("vmcp_session_certificate_{what}_timestamp_seconds {seconds}");
            assert!(text.lines().any(|told| told == line), "{line}: {text}");
        }
    }
}
