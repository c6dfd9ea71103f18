//! The controller's side: the truth as this replica's watch shows it, who holds what, and what to tell whom.
//!
//! * [`compare`]: whether one holding must be evicted.
//! * [`scope`]: how far a watch is, and how fresh that is proven to be; [`chain`]: what the writes of its marker tell of etcd.
//! * [`registry`]: which markers are registrations; [`silence`]: which of them are of replicas that are no more.
//! * [`truth`]: objects come in; holdings are compared.
//! * [`agents`]: streams and heartbeats come in; signals and leases go out.
//! * [`holdings`]: what agents hold comes in, and is compared; evictions are queued.
//! * [`rounds`], [`moved_on`]: which pods a change has evicted; [`facts`]: what logs, events and status hear of it.
//! * [`confirm`]: barriers, and who has acknowledged them (I4, I8); [`under_way`]: what agents are sent of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap as FastMap;

use super::digest::Summary;
use super::lease::StreamId;
use super::rate::Buckets;
use super::session::{ResourceVersion, SessionKey, Uid};
use super::tally::{Bounds, Tally};
use super::time::Time;

pub mod agents;
pub mod chain;
pub mod compare;
pub mod confirm;
pub mod counts;
pub mod facts;
pub mod holdings;
pub mod moved_on;
pub mod registry;
pub mod rounds;
pub mod scope;
pub mod silence;
pub mod truth;
pub mod under_way;

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod round_limit_tests;
#[cfg(test)]
mod rounds_tests;
#[cfg(test)]
mod tests;

pub use agents::{AgentName, Hello, InstanceId, Outgoing, Refusal};
pub use chain::{Chain, Found, Link};
pub use confirm::{ConfirmRefused, Confirmed};
pub use counts::Counts;
pub use facts::{Fact, Late, Settled};
pub use scope::{ProofError, Registration, ScopeId};
pub use silence::Silence;
pub use truth::{Kind, List, Object, StaleList};

use agents::Agent;
use moved_on::MovedOn;
pub use rounds::LATE_PART;
use rounds::Rounds;
use scope::Scope;
use under_way::UnderWay;

/// Limits and lengths of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Length of a lease.
    pub lease: Duration,
    /// Copies that agents may hold. One that reports more gets no cover for what is new.
    pub holdings: Bounds,
    /// Confirmations under way at once. More are refused: whoever asked asks again, or waits for the leases to end.
    pub confirmations: Bounds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            // At most some 1,200 bytes each, whatever a pod makes of them (a test measures it): 600 MB of the 1 GiB that the chart
            // gives. A pod can have several processes, each of which keeps 100,000.
            holdings: Bounds { all: 500_000, per_pod: 250_000 },
            confirmations: Bounds { all: 4_096, per_pod: 512 },
        }
    }
}

/// Identifies an agent within a replica. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(u32);

/// Identifies a signal of a replica. Later signals have greater ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalId(pub u64);

/// What the watch shows of an object.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    pub uid: Uid,
    pub generation: u64,
    pub resource_version: ResourceVersion,
    pub terminating: bool,
    pub summary: Summary,
}

#[derive(Debug, Default)]
struct Entry {
    /// Boxed, since a pod can report copies of names that no session has: they must not take the room of one.
    truth: Option<Box<Truth>>,
    /// Agents that hold a copy of this name.
    holders: Vec<AgentId>,
}

/// One replica of the controller.
#[derive(Debug)]
pub struct Replica {
    config: Config,
    scopes: Vec<Scope>,
    /// The scope whose markers are registrations for all; `None` if each scope has its own.
    registry: Option<ScopeId>,
    /// Since when this replica is known to be registered there.
    registered_since: Option<Time>,
    entries: FastMap<SessionKey, Entry>,
    sessions: usize,
    agents: HashMap<AgentId, Agent>,
    /// How many copies they hold.
    held: Tally,
    by_hello: HashMap<Hello, AgentId>,
    by_stream: HashMap<StreamId, AgentId>,
    by_namespace: HashMap<Arc<str>, BTreeSet<AgentId>>,
    confirmations: UnderWay,
    /// Of these, those that pods have asked for.
    asked: Tally,
    asking: Buckets<(Arc<str>, AgentName)>,
    replies: HashMap<StreamId, Vec<Confirmed>>,
    rounds: Rounds,
    moved_on: MovedOn,
    stopping: bool,
    last_agent: u32,
    last_signal: u64,
    woken: BTreeSet<StreamId>,
    facts: Vec<Fact>,
    counts: Counts,
}

impl Replica {
    /// A replica that watches these namespaces, or all of them if none is named.
    pub fn new(config: Config, namespaces: &[Arc<str>]) -> Self {
        let scopes = if namespaces.is_empty() {
            vec![Scope::new(None)]
        } else {
            namespaces.iter().map(|n| Scope::new(Some(n.clone()))).collect()
        };
        Self {
            config,
            scopes,
            registry: None,
            registered_since: None,
            entries: FastMap::new(),
            sessions: 0,
            agents: HashMap::new(),
            held: Tally::default(),
            by_hello: HashMap::new(),
            by_stream: HashMap::new(),
            by_namespace: HashMap::new(),
            confirmations: UnderWay::default(),
            asked: Tally::default(),
            asking: confirm::rates(),
            replies: HashMap::new(),
            rounds: Rounds::default(),
            moved_on: MovedOn::default(),
            stopping: false,
            last_agent: 0,
            last_signal: 0,
            woken: BTreeSet::new(),
            facts: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The limits and lengths it was made with.
    pub fn config(&self) -> Config {
        self.config
    }

    /// The scopes that it watches, with their namespaces (`None`: all).
    pub fn scopes(&self) -> impl Iterator<Item = (ScopeId, Option<&Arc<str>>)> {
        self.scopes.iter().enumerate().map(|(at, s)| (ScopeId(at), s.namespace()))
    }

    /// Whether sessions of this namespace are watched.
    pub fn watches(&self, namespace: &str) -> bool {
        self.scope_of(namespace).is_some()
    }

    /// Streams for which [`Self::drain`] may have something, since this was asked last.
    pub fn take_woken(&mut self) -> impl Iterator<Item = StreamId> {
        std::mem::take(&mut self.woken).into_iter()
    }

    /// What happened since this was asked last, for logs, events and status.
    pub fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// Sessions that exist.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// Copies that agents hold.
    pub fn holdings(&self) -> usize {
        self.held.used()
    }

    /// Agents that are connected, and those that are only remembered.
    pub fn agents(&self) -> (usize, usize) {
        let connected = self.by_stream.len();
        (connected, self.agents.len() - connected)
    }

    /// Signals that wait for agents.
    pub fn queued_signals(&self) -> usize {
        self.agents.values().map(|agent| agent.queued(&self.confirmations)).sum()
    }

    /// Confirmations under way.
    pub fn confirmations(&self) -> usize {
        self.confirmations.len()
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Names of the pods that hold a copy of the session.
    pub fn holders(&self, key: &SessionKey) -> Vec<AgentName> {
        let ids = self.entries.get(key).map_or(&[][..], |e| &e.holders);
        ids.iter().filter_map(|id| self.agents.get(id)).map(|a| a.name().clone()).collect()
    }

    /// Time passes: what was remembered until now is forgotten.
    pub fn poll(&mut self, now: Time) {
        let over = self.agents.iter().filter(|(_, agent)| agent.remembered_until() <= now).map(|(id, _)| *id).collect();
        self.leases_over(&over);
        self.poll_rounds(now);
        self.poll_confirmations(now);
    }

    fn scope_of(&self, namespace: &str) -> Option<ScopeId> {
        self.scopes.iter().position(|s| s.contains(namespace)).map(ScopeId)
    }

    fn next_signal(&mut self) -> SignalId {
        self.last_signal += 1;
        SignalId(self.last_signal)
    }

    fn wake(&mut self, stream: Option<StreamId>) {
        self.woken.extend(stream);
    }
}
