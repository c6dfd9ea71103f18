//! What Prometheus is told. Everything is read from the real state when it is scraped. No label names a session.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Agent;
use super::command::BUCKETS;
use crate::runtime::metrics::{counters, gauges, rows};

/// Names of the numbers begin with this.
const PREFIX: &str = "vmcp_agent";

/// The registry of an agent.
pub fn registry(agent: Arc<Agent>) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Source(agent)));
    registry
}

#[derive(Debug)]
struct Source(Arc<Agent>);

type Encoded = Result<(), std::fmt::Error>;

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Encoded {
        let encoder = &mut encoder;
        self.encode_cache(encoder)?;
        self.encode_clients(encoder)?;
        self.encode_commands(encoder)
    }
}

impl Source {
    fn encode_cache(&self, encoder: &mut DescriptorEncoder) -> Encoded {
        let state = self.0.sessions.cache().state();
        let outcome = |name| Some(("outcome", name));
        let reads = [
            (outcome("hit"), state.hits),
            (outcome("validated"), state.validated),
            (outcome("restored"), state.restored),
            (outcome("not_found"), state.not_found),
            (outcome("overloaded"), state.overloaded),
            (outcome("unavailable"), state.unavailable),
        ];
        counters(encoder, "reads", "Sessions that were asked for, by how they were found", &reads)?;
        let writes = [
            (outcome("written"), state.written),
            (outcome("declined"), state.declined),
            (outcome("failed"), state.write_errors),
        ];
        counters(encoder, "writes", "Writes to the API server", &writes)?;
        let evictions: Vec<_> =
            state.evictions.iter().map(|(reason, n)| (Some(("reason", reason.as_str())), *n)).collect();
        counters(encoder, "evictions", "Copies that were dropped", &evictions)?;
        counters(encoder, "api_requests", "Requests to the API server", &[(None, state.api_calls)])?;
        gauges(encoder, "copies", "Copies that are kept", &[(None, state.entries)])?;
        gauges(encoder, "copies_bytes", "Bytes that the copies take, by estimate", &[(None, state.bytes)])?;
        let what = |name| Some(("what", name));
        let waiting = [(what("sessions"), state.waiting), (what("confirmations"), state.confirmations)];
        gauges(encoder, "waiting", "What is waited for", &waiting)?;
        let leased = ConstGauge::new(state.leased_for.unwrap_or_default().as_secs_f64());
        let help = "How long copies may still be served if nothing more is heard; 0 without any lease";
        rows(encoder, "leased_seconds", help, &[(None, leased)])?;
        let streams = state.streams.len();
        let leases = state.streams.iter().filter(|s| s.leased_for.is_some()).count();
        let connected = state.streams.iter().filter(|s| s.replica.is_some()).count();
        let is = |name| Some(("state", name));
        let controllers = [
            (is("configured"), state.controllers),
            (is("known"), streams),
            (is("connected"), connected),
            (is("leasing"), leases),
        ];
        gauges(
            encoder,
            "controllers",
            "Replicas of the controller; configured: names and addresses of them in the settings",
            &controllers,
        )
    }

    fn encode_clients(&self, encoder: &mut DescriptorEncoder) -> Encoded {
        let Agent { clients, tracking, pubsub, .. } = &*self.0;
        gauges(encoder, "clients", "Clients that are connected", &[(None, clients.len())])?;
        let help = "Bytes that clients take together: buffers, what waits for them, requests that are carried out";
        gauges(encoder, "clients_bytes", help, &[(None, clients.memory_bytes())])?;
        let outcome = |name| Some(("outcome", name));
        let totals = clients.totals();
        let connections = [(outcome("accepted"), totals.accepted), (outcome("refused"), totals.refused)];
        counters(encoder, "connections", "Connections of clients", &connections)?;
        let direction = |name| Some(("direction", name));
        let bytes = [(direction("in"), totals.bytes_read), (direction("out"), totals.bytes_written)];
        counters(encoder, "resp_bytes", "Bytes from and to clients", &bytes)?;
        let reason = |name| Some(("reason", name));
        let ended = [
            (reason("protocol_error"), totals.protocol_errors),
            (reason("output_limit"), totals.ended_output),
            (reason("stalled"), totals.ended_stalled),
            (reason("half_request"), totals.ended_half_request),
            (reason("idle"), totals.ended_idle),
            (reason("memory"), totals.ended_memory),
        ];
        counters(encoder, "connections_ended", "Connections that the agent has ended, by reason", &ended)?;
        let counts = tracking.counts();
        let tracked = [
            (Some(("what", "clients")), counts.clients),
            (Some(("what", "keys")), counts.keys),
            (Some(("what", "readers")), counts.items),
            (Some(("what", "prefixes")), counts.prefixes),
        ];
        gauges(encoder, "tracking", "Client-side caching: who keeps what", &tracked)?;
        let told = tracking.told();
        let scope = |name| Some(("scope", name));
        let invalidations = [
            (scope("key"), told.invalidations.load(Ordering::Relaxed)),
            (scope("everything"), told.flushes.load(Ordering::Relaxed)),
        ];
        counters(encoder, "invalidations", "Messages to clients that keep copies of their own", &invalidations)?;
        let forgotten = told.forgotten.load(Ordering::Relaxed);
        let help = "Keys that were invalidated because the tracking table was full";
        counters(encoder, "tracking_forgotten_keys", help, &[(None, forgotten)])?;
        let (channels, patterns) = pubsub.counts();
        let topic = |name| Some(("topic", name));
        let subscriptions = [(topic("channel"), channels), (topic("pattern"), patterns)];
        gauges(encoder, "subscriptions", "Channels and patterns that clients listen to", &subscriptions)
    }

    fn encode_commands(&self, encoder: &mut DescriptorEncoder) -> Encoded {
        let stats = &self.0.commands.stats;
        let commands: Vec<_> = stats.by_command().collect();
        let of = |name| Some(("command", name));
        let mut errors: Vec<_> = commands.iter().map(|c| (of(c.name), c.errors)).collect();
        errors.push((of("unknown"), stats.unknown_commands()));
        counters(encoder, "command_errors", "Commands that were answered with an error", &errors)?;
        let help = "How long commands took, without the time that they waited to be read";
        let kind = MetricType::Histogram;
        let unit = prometheus_client::registry::Unit::Seconds;
        let mut metric = encoder.encode_descriptor("command_duration", help, Some(&unit), kind)?;
        for command in &commands {
            let labels = [("command", command.name)];
            let mut family = metric.encode_family(&labels)?;
            #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
            let bounds = BUCKETS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(command.buckets).collect();
            family.encode_histogram::<NoLabelSet>(command.total.as_secs_f64(), command.calls(), &buckets, None)?;
        }
        Ok(())
    }
}
