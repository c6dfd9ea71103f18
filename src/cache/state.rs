//! What a cache is doing, for diagnosis and metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::shared::Shared;
use super::store::now;
use crate::core::cache::DropReason;
use crate::core::time::Time;

/// A snapshot of a cache.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheState {
    /// Names and addresses of the controller in its settings.
    pub controllers: usize,
    /// Streams to replicas, by address.
    pub streams: Vec<StreamState>,
    /// How long copies may still be served if nothing more is heard; `None` if each `get` must ask.
    pub leased_for: Option<Duration>,
    /// Copies that are kept.
    pub entries: usize,
    /// Bytes that they take, by estimate.
    pub bytes: usize,
    /// Sessions served without asking anyone.
    pub hits: u64,
    /// Copies that the API server confirmed.
    pub validated: u64,
    /// Copies read from the API server.
    pub restored: u64,
    /// GETs that found no session.
    pub not_found: u64,
    /// Misses that were refused because too many were waited for.
    pub overloaded: u64,
    /// GETs that brought no answer that counts.
    pub unavailable: u64,
    /// Writes that were done.
    pub written: u64,
    /// Writes of which there was nothing to do, as the session was not as they wanted it: it is there already, or gone, or changed.
    pub declined: u64,
    /// Writes that failed: refused by the API server, or not answered.
    pub write_errors: u64,
    /// Evictions, by reason.
    pub evictions: Vec<(DropReason, u64)>,
    /// Sessions that are waited for.
    pub waiting: usize,
    /// Writes that wait until no pod serves an older state.
    pub confirmations: usize,
    /// Requests that were sent to the API server.
    pub api_calls: u64,
}

/// A stream to a replica.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamState {
    /// The replica's address.
    pub address: SocketAddr,
    /// The name under which the replica is registered; `None` while there is no connection.
    pub replica: Option<Arc<str>>,
    /// How long the lease that it granted last still runs, also when the connection has ended.
    pub leased_for: Option<Duration>,
    /// Why there is no connection, or why the last heartbeat got no lease.
    pub problem: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Stream {
    /// Name of the replica, and how long its leases are.
    connected: Option<(Arc<str>, Duration)>,
    until: Time,
    problem: Option<Arc<str>>,
}

/// The streams of a cache, kept up by those who run them.
#[derive(Debug)]
pub(super) struct Streams {
    by_address: Mutex<BTreeMap<SocketAddr, Stream>>,
    /// When the last one ended that was open, if none is; before that, when the cache began.
    ended: Mutex<Time>,
}

impl Streams {
    pub fn new() -> Self {
        Self { by_address: Mutex::default(), ended: Mutex::new(now()) }
    }

    /// For how long no stream has been open.
    pub fn unheard_for(&self) -> Duration {
        if self.by_address.lock().values().any(|stream| stream.connected.is_some()) {
            return Duration::ZERO;
        }
        now().saturating_since(*self.ended.lock())
    }

    #[cfg(test)]
    pub fn unheard_for_tests(&self) {
        *self.ended.lock() = Time::from_nanos(0);
    }

    /// A stream to `address` is wanted.
    pub fn wanted(&self, address: SocketAddr) {
        self.by_address.lock().entry(address).or_default();
    }

    /// No stream to `address` is wanted any more, and none is open.
    pub fn forgotten(&self, address: SocketAddr) {
        if self.by_address.lock().remove(&address).is_some_and(|stream| stream.connected.is_some()) {
            *self.ended.lock() = now();
        }
    }

    /// A stream is open. Returns the shortest lease of all open ones.
    pub fn opened(&self, address: SocketAddr, replica: Arc<str>, lease: Duration) -> Duration {
        let mut streams = self.by_address.lock();
        let entry = streams.entry(address).or_default();
        entry.connected = Some((replica, lease));
        entry.problem = None;
        let leases = streams.values().filter_map(|s| s.connected.as_ref()).map(|c| c.1);
        leases.min().unwrap_or(lease)
    }

    /// A stream has ended, or could not be opened.
    pub fn closed(&self, address: SocketAddr, problem: Arc<str>) {
        let mut streams = self.by_address.lock();
        let entry = streams.entry(address).or_default();
        if entry.connected.take().is_some() {
            *self.ended.lock() = now();
        }
        entry.problem = Some(problem);
    }

    /// A heartbeat was answered: the lease runs until then, or there is none because of this.
    /// Whether that is another reason than before.
    pub fn leased(&self, address: SocketAddr, until: Result<Time, Arc<str>>) -> bool {
        let mut streams = self.by_address.lock();
        let entry = streams.entry(address).or_default();
        let problem = match until {
            Ok(until) => {
                entry.until = entry.until.max(until);
                None
            }
            Err(refused) => Some(refused),
        };
        let is_new = entry.problem != problem;
        entry.problem = problem;
        is_new
    }

    /// The lease of the stream to `address` was taken back.
    pub fn revoked(&self, address: SocketAddr) {
        self.by_address.lock().entry(address).or_default().until = Time::ZERO;
    }

    fn snapshot(&self, now: Time) -> Vec<StreamState> {
        let streams = self.by_address.lock();
        let state = |(address, stream): (&SocketAddr, &Stream)| StreamState {
            address: *address,
            replica: stream.connected.as_ref().map(|c| c.0.clone()),
            leased_for: remaining(stream.until, now),
            problem: stream.problem.clone(),
        };
        streams.iter().map(state).collect()
    }
}

fn remaining(until: Time, now: Time) -> Option<Duration> {
    (until > now).then(|| until.saturating_since(now))
}

impl Shared {
    pub fn state(&self) -> CacheState {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (entries, bytes, hits) = self.store.totals();
        let counters = &self.counters;
        let now = now();
        CacheState {
            controllers: self.config.controllers.len(),
            streams: self.streams.snapshot(now),
            leased_for: self.store.leased_until().and_then(|until| remaining(until, now)),
            entries,
            bytes,
            hits,
            validated: get(&counters.validated),
            restored: get(&counters.restored),
            not_found: get(&counters.not_found),
            overloaded: get(&counters.overloaded),
            unavailable: get(&counters.unavailable),
            written: get(&counters.written),
            declined: get(&counters.declined),
            write_errors: get(&counters.write_errors),
            evictions: self.store.events.by_reason(),
            waiting: self.gets.waiting(),
            confirmations: self.confirmer.pending(),
            api_calls: self.api.calls(),
        }
    }
}
