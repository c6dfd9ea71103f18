//! Agents: their streams, their leases, and what waits to be sent to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap as FastMap, HashSet as FastSet};
use thiserror::Error;

use super::holdings::Held;
use super::under_way::UnderWay;
use super::{AgentId, Confirmed, Replica, SignalId};
use crate::core::lease::{StreamId, with_drift};
use crate::core::rules::Rule;
use crate::core::session::SessionKey;
use crate::core::signal::Barrier;
use crate::core::time::Time;

/// A process of an agent: random, so that a restarted one is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u128);

/// The pod that an agent belongs to.
pub type AgentName = Arc<str>;

/// Who opens a stream. All of it identifies the agent: whoever learns of another's instance does not become it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The agent's process.
    pub instance: InstanceId,
    /// The namespace whose sessions it may hold.
    pub namespace: Arc<str>,
    /// Its pod.
    pub name: AgentName,
}

/// Why a heartbeat gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// The watch was never proven to be complete.
    #[error("the watch was not yet proven to be complete")]
    Unproven,
    /// The last proof is as old as a lease is long.
    #[error("the watch has not been proven to be complete for longer than a lease")]
    Outdated,
    /// The replica is about to stop.
    #[error("the replica is stopping")]
    Stopping,
}

/// What is to be sent to an agent, or to whoever asked for a confirmation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Copies to drop, and barriers to acknowledge.
    Signals {
        /// Sessions by name, each with what became of it.
        evictions: Vec<(SessionKey, SignalId, Barrier)>,
        /// Sessions by name, each with its state.
        barriers: Vec<(SessionKey, SignalId, Barrier)>,
    },
    /// The answer to a heartbeat: how old the replica's knowledge is, and which copies it covers.
    Lease {
        /// The heartbeat's own number.
        heartbeat: u64,
        /// Age of the knowledge, or why there is no lease.
        age: Result<Duration, Refusal>,
        /// Copies with a sequence number up to this one are covered.
        covers: u64,
    },
    /// The replica takes its lease back and grants no other: it is about to stop.
    Revoke,
    /// Everything is void: drop all copies and leases.
    Reset,
    /// Nobody whom this replica may have leased to serves anything older.
    Confirmed(Confirmed),
}

/// An agent that is connected, or whose last lease has not ended.
#[derive(Debug)]
pub(super) struct Agent {
    hello: Hello,
    pub(super) stream: Option<StreamId>,
    pub(super) holdings: FastMap<SessionKey, Held>,
    /// Those that wait for the watch, by the sequence number up to which everything had been told before.
    pub(super) waiting: BTreeSet<(u64, SessionKey)>,
    /// Everything up to this sequence number was told; nothing until the inventory is complete.
    pub(super) processed: u64,
    /// A holding beyond the limit was not taken: nothing new is covered over this stream, since a sequence number
    /// cannot leave one copy out.
    pub(super) refused: bool,
    /// The last signal before the stream was opened, until the inventory is complete.
    pub(super) opened_after: Option<SignalId>,
    remembered_until: Time,
    /// When the last lease ends that was granted over an older stream. Such a lease is not given back over this one.
    older_until: Time,
    pub(super) evictions: FastMap<SessionKey, (SignalId, Barrier)>,
    /// The barriers up to this one have been sent over this stream.
    barriers_sent: SignalId,
    heartbeat: Option<Heartbeat>,
    revoke: bool,
    reset: bool,
}

#[derive(Clone, Copy, Debug)]
struct Heartbeat {
    number: u64,
    received: Time,
    age: Result<Duration, Refusal>,
}

impl Agent {
    pub fn name(&self) -> &AgentName {
        &self.hello.name
    }

    pub fn namespace(&self) -> &Arc<str> {
        &self.hello.namespace
    }

    pub fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    #[cfg(test)]
    pub fn holdings(&self) -> usize {
        self.holdings.len()
    }

    /// Signals that wait for it.
    pub fn queued(&self, under_way: &UnderWay) -> usize {
        let barriers = if self.stream.is_some() { self.barriers(under_way).len() } else { 0 };
        self.evictions.len() + barriers
    }

    /// Whether it is told of a confirmation about `key`: whoever does not hold it may have a GET of it in flight.
    pub fn is_told(&self, key: &SessionKey) -> bool {
        Rule::BarrierToAll.on() || self.holds(key)
    }

    /// Barriers that it has not been sent.
    fn barriers<'a>(&self, under_way: &'a UnderWay) -> &'a [SignalId] {
        under_way.after(&self.hello.namespace, self.barriers_sent)
    }

    pub fn remembered_until(&self) -> Time {
        self.remembered_until
    }

    pub fn holds(&self, key: &SessionKey) -> bool {
        self.holdings.contains_key(key)
    }

    pub fn held_mut(&mut self, key: &SessionKey) -> Option<&mut Held> {
        self.holdings.get_mut(key)
    }
}

impl Replica {
    /// An agent opened a stream. Another stream of the same process is over: it is returned, and its connection must be
    /// ended, since the agent may still hold on to it (the network may have delivered the older hello last).
    #[must_use]
    pub fn stream_opened(&mut self, stream: StreamId, hello: Hello, now: Time) -> Option<StreamId> {
        let mut superseded = None;
        let id = if let Some(id) = self.by_hello.get(&hello).copied() {
            superseded = self.agents.get(&id).and_then(Agent::stream);
            if let Some(old) = superseded {
                self.stream_closed(old, now);
            }
            id
        } else {
            self.last_agent += 1;
            AgentId(self.last_agent)
        };
        let namespace = hello.namespace.clone();
        let remembered_until = self.agents.get(&id).map_or(Time::ZERO, Agent::remembered_until);
        self.by_hello.insert(hello.clone(), id);
        self.by_stream.insert(stream, id);
        self.by_namespace.entry(namespace).or_default().insert(id);
        let agent = Agent {
            hello,
            stream: Some(stream),
            holdings: FastMap::new(),
            waiting: BTreeSet::new(),
            processed: 0,
            refused: false,
            opened_after: Some(SignalId(self.last_signal)),
            remembered_until,
            older_until: remembered_until,
            evictions: FastMap::new(),
            // It needs those that are under way already, before any lease.
            barriers_sent: SignalId(if Rule::BarrierToNewStreams.on() { 0 } else { self.last_signal }),
            heartbeat: None,
            revoke: self.stopping,
            reset: false,
        };
        self.agents.insert(id, agent);
        self.wake(Some(stream));
        superseded
    }

    /// A stream ended. The agent is remembered until its last lease has ended.
    pub fn stream_closed(&mut self, stream: StreamId, now: Time) {
        self.replies.remove(&stream);
        self.confirmer_left(stream);
        let Some(id) = self.by_stream.remove(&stream) else {
            return;
        };
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        agent.stream = None;
        agent.heartbeat = None;
        agent.evictions.clear();
        let keys: Vec<SessionKey> = agent.holdings.keys().cloned().collect();
        for key in keys {
            self.release(id, &key, now);
        }
        let over = self.agents.get(&id).is_none_or(|a| a.remembered_until <= now);
        if over || !Rule::RememberAgents.on() {
            // It is forgotten: what it held went with it, whatever it was signalled.
            self.round_reconnected(id, SignalId(u64::MAX), now);
            self.leases_over(&FastSet::from_iter([id]));
            self.confirm_ready(now);
        }
    }

    /// A heartbeat came in. `now` must have been read from the clock after it was received: a replica that was
    /// paused must not answer with what it knew before.
    pub fn heartbeat(&mut self, stream: StreamId, number: u64, now: Time) {
        let Some(&id) = self.by_stream.get(&stream) else {
            return;
        };
        let Some(agent) = self.agents.get(&id) else {
            return;
        };
        let scope = self.scope_of(&agent.hello.namespace);
        let age = scope.and_then(|s| self.age_for_lease(s, now));
        let age = match age {
            _ if self.stopping => Err(Refusal::Stopping),
            None => Err(Refusal::Unproven),
            Some(age) if age >= self.config.lease => Err(Refusal::Outdated),
            Some(age) => Ok(age),
        };
        self.counts.heartbeat(&age);
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.heartbeat = Some(Heartbeat { number, received: now, age });
        }
        self.wake(Some(stream));
    }

    /// The agent has done what the signal `id` asked for; it has `kept` a copy that an own write carries on.
    pub fn acknowledged(&mut self, stream: StreamId, key: &SessionKey, signal: SignalId, kept: bool, now: Time) {
        let Some(&agent) = self.by_stream.get(&stream) else {
            return;
        };
        self.confirm_acknowledged(agent, signal, now);
        self.round_acknowledged(agent, key, signal, kept, now);
    }

    /// The agent has given back what it was leased over this stream: nothing that it serves rests on that.
    pub fn lease_returned(&mut self, stream: StreamId) {
        let Some(id) = self.by_stream.get(&stream).copied() else {
            return;
        };
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.remembered_until = if Rule::ReturnOwnLease.on() { agent.older_until } else { Time::ZERO };
            // One that waits was sent before: to answer it would be to remember an agent that has gone.
            agent.heartbeat = None;
        }
        // What is over by now is forgotten by the next `poll`.
    }

    /// No lease is granted from now on, and those in force are called back.
    pub fn stop(&mut self) {
        self.stopping = true;
        for agent in self.agents.values_mut() {
            agent.revoke = true;
            self.woken.extend(agent.stream);
        }
    }

    /// Whether no lease that this replica granted can be in force at `now`.
    pub fn all_leases_over(&self, now: Time) -> bool {
        self.agents.values().all(|a| a.remembered_until <= now)
    }

    /// The next message for a stream, with at most `most` signals; `None` if nothing waits.
    ///
    /// A lease comes only when no signal waits: whoever has the lease has had the signals.
    pub fn drain(&mut self, stream: StreamId, most: usize) -> Option<Outgoing> {
        if let Some(replies) = self.replies.get_mut(&stream)
            && let Some(reply) = replies.pop()
        {
            return Some(Outgoing::Confirmed(reply));
        }
        let lease = self.config.lease;
        let id = self.by_stream.get(&stream)?;
        let agent = self.agents.get_mut(id)?;
        if std::mem::take(&mut agent.reset) {
            return Some(Outgoing::Reset);
        }
        if !Rule::EvictionsBeforeLease.on() && agent.heartbeat.is_some() {
            return agent.answer_heartbeat(lease);
        }
        if let Some(signals) = agent.take_signals(&self.confirmations, most) {
            return Some(signals);
        }
        if std::mem::take(&mut agent.revoke) {
            return Some(Outgoing::Revoke);
        }
        agent.answer_heartbeat(lease)
    }

    /// The last leases of these agents have ended. Those that are not connected either are forgotten.
    pub(super) fn leases_over(&mut self, ids: &FastSet<AgentId>) {
        self.confirm_forget(ids);
        for id in ids {
            self.forget_if_gone(*id);
        }
    }

    fn forget_if_gone(&mut self, id: AgentId) {
        let Some(agent) = self.agents.get(&id) else {
            return;
        };
        if agent.stream.is_some() {
            return;
        }
        let hello = agent.hello.clone();
        self.agents.remove(&id);
        self.by_hello.remove(&hello);
        if let Some(ids) = self.by_namespace.get_mut(&hello.namespace) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_namespace.remove(&hello.namespace);
            }
        }
    }

    pub(super) fn reset_agents(&mut self) {
        for agent in self.agents.values_mut() {
            agent.evictions.clear();
            agent.reset = true;
            agent.forget_heartbeat();
            self.woken.extend(agent.stream);
        }
    }
}

impl Agent {
    /// What it has sent last is not answered.
    pub(super) fn forget_heartbeat(&mut self) {
        self.heartbeat = None;
    }

    /// At most so many signals; `None`: there are none, so what comes after them may be sent.
    fn take_signals(&mut self, under_way: &UnderWay, most: usize) -> Option<Outgoing> {
        debug_assert!(most > 0, "a lease would be sent before what waits");
        let mut barriers = Vec::new();
        for signal in self.barriers(under_way) {
            if barriers.len() >= most {
                break;
            }
            self.barriers_sent = *signal;
            if let Some(confirmation) = under_way.get(*signal).filter(|c| self.is_told(&c.key)) {
                barriers.push((confirmation.key.clone(), *signal, confirmation.barrier));
            }
        }
        let room = most - barriers.len();
        let keys: Vec<SessionKey> = self.evictions.keys().take(room).cloned().collect();
        let evictions: Vec<_> = keys
            .into_iter()
            .filter_map(|key| self.evictions.remove(&key).map(|(id, state)| (key, id, state)))
            .collect();
        (!evictions.is_empty() || !barriers.is_empty()).then_some(Outgoing::Signals { evictions, barriers })
    }

    fn answer_heartbeat(&mut self, lease: Duration) -> Option<Outgoing> {
        let Heartbeat { number, received, age } = self.heartbeat.take()?;
        if let Ok(age) = age {
            // The lease itself began when the heartbeat was sent, which was before it was received.
            self.remembered_until = self.remembered_until.max(received + with_drift(lease.saturating_sub(age)));
        }
        Some(Outgoing::Lease { heartbeat: number, age, covers: self.covers() })
    }
}
