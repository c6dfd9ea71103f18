//! The edge of an agent: it carries messages to and from the shard, and decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::api::Access;
use super::client::Get;
use super::confirmer::Confirm;
use super::network::{Conn, Down, Pace, Pipe, Up};
use super::{Clock, Event, LEASE, Process, Sim, fifth, ticks};
use crate::core::cache::{Limits, Report, Reports, Shard};
use crate::core::lease::{Grant, StreamId};
use crate::core::replica::{InstanceId, Outgoing, SignalId};
use crate::core::rules::Rule;
use crate::core::session::SessionKey;
use crate::core::signal::Barrier;
use crate::core::time::Time;

/// Messages in flight in one direction of a stream; whoever wants to send more waits.
pub const WINDOW: usize = 4;

/// A part of the inventory.
type Part = (Vec<(SessionKey, Report)>, Option<u64>);

/// A stream as its agent sees it.
pub struct Stream {
    pub replica: usize,
    /// The replica's name, once it told it.
    pub name: Option<Arc<str>>,
    /// How long the replica's leases are, once it told.
    lease: Option<u64>,
    inventory: VecDeque<Part>,
    heartbeats: BTreeMap<u64, Time>,
    /// The lease was given back.
    returned: bool,
}

/// A process of an agent.
pub struct AgentEdge {
    pub life: u32,
    pub alive: bool,
    pub clock: Clock,
    pub access: Access,
    pub shard: Shard,
    pub reports: Reports,
    pub streams: BTreeMap<usize, Stream>,
    pub gets: Vec<Get>,
    pub confirms: BTreeMap<u64, Confirm>,
    pub last_request: u64,
    /// The longest leases that it was told of.
    pub longest: u64,
    /// What it was told, and whether that was an eviction.
    past: Vec<(SessionKey, Barrier, bool)>,
}

impl AgentEdge {
    pub fn new(sim: &Sim, at: usize, life: u32) -> Self {
        Self {
            life,
            alive: true,
            // A restarted process is still on the same machine.
            clock: Clock::new(sim.bits(&[8, at as u64]), sim.setup.drift),
            access: Access::GOOD,
            shard: Shard::new(Limits { entries: sim.setup.entries, bytes: usize::MAX }),
            reports: Reports::default(),
            streams: BTreeMap::new(),
            gets: Vec::new(),
            confirms: BTreeMap::new(),
            last_request: 0,
            longest: 0,
            past: Vec::new(),
        }
    }
}

/// The name of a stream, for both of its ends.
pub fn stream(conn: usize) -> StreamId {
    StreamId(conn as u32 + 1)
}

impl Sim {
    pub fn start_agent(&mut self, at: usize) {
        if !self.agents[at].alive {
            let life = self.agents[at].life + 1;
            self.agents[at] = AgentEdge::new(self, at, life);
            self.tell(|| format!("agent {at} starts anew"));
        }
        let reach = self.setup.reach[at];
        for replica in (0..self.setup.replicas).filter(|r| reach >> r & 1 == 1) {
            let event = Event::Dial(at, self.agents[at].life, replica);
            self.schedule(self.now + 2, event);
        }
    }

    /// The random id of a process.
    pub fn instance(&self, at: usize, life: u32) -> InstanceId {
        InstanceId(u128::from(self.bits(&[7, at as u64, u64::from(life)])))
    }

    pub fn crash_agent(&mut self, at: usize) {
        let life = self.agents[at].life;
        self.agents[at].alive = false;
        self.resume(Process::Agent(at, life));
        for conn in 0..self.conns.len() {
            if self.conns[conn].agent == (at, life) {
                self.conns[conn].agent_open = false;
                let keep = self.bits(&[18, conn as u64]) as usize % 3;
                self.cut(conn, keep, 0);
            }
        }
        let after = Pace::Slow.delay(self.bits(&[19, at as u64, u64::from(life)])) / 4;
        self.schedule(self.now + 5 + after, Event::StartAgent(at));
    }

    pub fn agent_now(&self, at: usize) -> Time {
        self.agents[at].clock.read(self.now)
    }

    pub fn name(&self, record: usize) -> String {
        self.world.records[record].key.name().to_owned()
    }

    fn record(&self, key: &SessionKey) -> Option<usize> {
        let known = 0..self.setup.sessions;
        known.into_iter().find(|r| self.world.records[*r].key == *key)
    }

    fn key(&self, name: &str) -> SessionKey {
        let found = self.world.records.iter().find(|r| r.key.name() == name);
        found.map_or_else(|| SessionKey::new("", name), |r| r.key.clone())
    }

    pub fn dial(&mut self, at: usize, replica: usize) {
        let agent = &self.agents[at];
        let life = agent.life;
        if agent.streams.values().any(|s| s.replica == replica) {
            return;
        }
        if !self.paths[at][replica].reachable || !self.replicas[replica].alive {
            self.schedule(self.now + 60, Event::Dial(at, life, replica));
            return;
        }
        let conn = self.conns.len();
        self.conns.push(Conn {
            agent: (at, life),
            replica: (replica, self.replicas[replica].life),
            up: Pipe::default(),
            down: Pipe::default(),
            agent_open: true,
            replica_open: true,
            broken: false,
            draining: false,
        });
        self.send_up(conn, Up::Hello);
        let through = self.agents[at].reports.open(stream(conn));
        let held = self.agents[at].shard.inventory(through);
        let mut held: Vec<_> = held.map(|(n, h)| (n.clone(), Report::Held(h))).collect();
        held.sort_by(|a, b| a.0.cmp(&b.0));
        let held: Vec<_> = held.into_iter().map(|(n, h)| (self.key(&n), h)).collect();
        let chunk = self.setup.chunk;
        let mut inventory: VecDeque<Part> = held.chunks(chunk).map(|c| (c.to_vec(), None)).collect();
        match inventory.back_mut() {
            Some(last) => last.1 = Some(through),
            None => inventory.push_back((Vec::new(), Some(through))),
        }
        let heartbeats = BTreeMap::new();
        let open = Stream { replica, name: None, lease: None, inventory, heartbeats, returned: false };
        self.agents[at].streams.insert(conn, open);
        self.tell(|| format!("agent {at} opens stream {conn} to replica {replica}"));
        self.pump(conn);
        self.schedule(self.now + 20, Event::Beat(conn));
    }

    pub fn beat(&mut self, conn: usize) {
        let at = self.conns[conn].agent.0;
        let now = self.agent_now(at);
        let Some(stream) = self.agents[at].streams.get_mut(&conn) else {
            return;
        };
        let number = stream.heartbeats.last_key_value().map_or(1, |(n, _)| n + 1);
        stream.heartbeats.insert(number, now);
        let lease = stream.lease.unwrap_or(LEASE);
        self.send_up(conn, Up::Heartbeat(number));
        let pause = fifth(lease, self.bits(&[9, conn as u64, number]));
        self.schedule(self.now + pause, Event::Beat(conn));
    }

    /// Sends what waits, as far as the stream takes it.
    pub fn pump(&mut self, conn: usize) {
        let at = self.conns[conn].agent.0;
        while self.conns[conn].up.len() < WINDOW {
            let agent = &mut self.agents[at];
            let Some(open) = agent.streams.get_mut(&conn) else {
                return;
            };
            let (reports, through) = if let Some(part) = open.inventory.pop_front() {
                part
            } else {
                let (taken, through) = agent.reports.take(stream(conn), self.setup.chunk);
                if taken.is_empty() {
                    return;
                }
                let taken = taken.into_iter().map(|(n, r)| (self.key(&n), r));
                (taken.collect(), Some(through))
            };
            self.send_up(conn, Up::Reports(reports, through));
            if self.conns[conn].broken {
                return;
            }
        }
    }

    pub fn pump_all(&mut self, at: usize) {
        let conns: Vec<usize> = self.agents[at].streams.keys().copied().collect();
        for conn in conns {
            self.pump(conn);
        }
    }

    pub fn agent_receives(&mut self, conn: usize) {
        let Some(message) = self.arrive_down(conn) else {
            return;
        };
        let at = self.conns[conn].agent.0;
        if !self.agents[at].streams.contains_key(&conn) {
            return;
        }
        self.tell(|| format!("agent {at} <- stream {conn}: {message:?}"));
        if self.conns[conn].down.len() + 1 == WINDOW {
            // There is room again.
            self.wake(conn);
        }
        let now = self.agent_now(at);
        match message {
            Down::Settings(name, lease) => {
                let agent = &mut self.agents[at];
                if let Some(open) = agent.streams.get_mut(&conn) {
                    (open.name, open.lease) = (Some(name), Some(lease));
                }
                agent.longest = agent.longest.max(lease);
                let shortest = agent.streams.values().filter_map(|s| s.lease).min();
                agent.shard.set_lease_length(ticks(shortest.unwrap_or(lease)));
                self.ask_again(at, conn);
            }
            Down::Out(Outgoing::Signals { mut evictions, barriers }) => {
                evictions.sort_by(|a, b| a.0.cmp(&b.0));
                // Both orders must do.
                if self.bits(&[10, conn as u64, self.now]).is_multiple_of(2) {
                    self.evictions(at, conn, evictions);
                    self.barriers(at, conn, barriers);
                } else {
                    self.barriers(at, conn, barriers);
                    self.evictions(at, conn, evictions);
                }
            }
            Down::Out(Outgoing::Lease { heartbeat, age, covers }) => {
                let agent = &mut self.agents[at];
                let open = agent.streams.get(&conn).filter(|s| !s.returned);
                if let Some((open, sent)) = open.and_then(|s| Some((s, *s.heartbeats.get(&heartbeat)?)))
                    && let Ok(age) = age
                {
                    let told = open.lease.filter(|_| Rule::LengthOfItsReplica.on());
                    let grant = Grant { sent, age, covers };
                    agent.shard.grant(stream(conn), ticks(told.unwrap_or(agent.longest)), grant, now);
                }
            }
            Down::Out(Outgoing::Revoke) => {
                self.agents[at].shard.revoke(stream(conn));
                if let Some(open) = self.agents[at].streams.get_mut(&conn) {
                    open.returned = true;
                }
                self.send_up(conn, Up::LeaseReturned);
            }
            Down::Out(Outgoing::Reset) => {
                let agent = &mut self.agents[at];
                agent.shard.reset(&mut agent.reports);
            }
            Down::Out(Outgoing::Confirmed(confirmed)) => {
                self.replica_confirmed(at, conn, confirmed);
            }
            Down::Refused => {}
            Down::Closed => {
                self.agents[at].streams.remove(&conn);
                self.agents[at].reports.close(stream(conn));
                self.conns[conn].agent_open = false;
                let (replica, life) = (self.conns[conn].replica.0, self.agents[at].life);
                let after = Pace::Slow.delay(self.bits(&[11, conn as u64])) / 4;
                self.schedule(self.now + 1 + after, Event::Dial(at, life, replica));
            }
        }
        self.pump_all(at);
    }

    fn evictions(&mut self, at: usize, conn: usize, signals: Vec<(SessionKey, SignalId, Barrier)>) {
        for (key, id, barrier) in signals {
            self.agents[at].past.push((key.clone(), barrier, true));
            self.evict(at, &key, barrier);
            self.send_up(conn, Up::Ack(key, id));
        }
    }

    fn barriers(&mut self, at: usize, conn: usize, signals: Vec<(SessionKey, SignalId, Barrier)>) {
        for (key, id, barrier) in signals {
            self.agents[at].past.push((key.clone(), barrier, false));
            self.barrier(at, &key, barrier);
            self.send_up(conn, Up::Ack(key, id));
        }
    }

    pub fn evict(&mut self, at: usize, key: &SessionKey, state: Barrier) {
        let Some(record) = self.record(key) else {
            return;
        };
        let agent = &mut self.agents[at];
        let dropped = agent.shard.evict(key.name(), state, &mut agent.reports);
        self.told(at, record, state.mark);
        if let Some(dropped) = dropped {
            self.evicted(at, record, &dropped, Some(state.mark));
        }
    }

    pub fn barrier(&mut self, at: usize, key: &SessionKey, barrier: Barrier) {
        let Some(record) = self.record(key) else {
            return;
        };
        let agent = &mut self.agents[at];
        let dropped = agent.shard.barrier(key.name(), barrier, &mut agent.reports);
        self.told(at, record, barrier.mark);
        if let Some(dropped) = dropped {
            self.evicted(at, record, &dropped, Some(barrier.mark));
        }
    }

    /// Something that this agent was told before comes again, late.
    pub fn replay(&mut self, at: usize, n: usize) {
        let past = &self.agents[at].past;
        if past.is_empty() {
            return;
        }
        let (key, barrier, evict) = past[n % past.len()].clone();
        if evict {
            self.evict(at, &key, barrier);
        } else {
            self.barrier(at, &key, barrier);
        }
        self.pump_all(at);
    }
}
