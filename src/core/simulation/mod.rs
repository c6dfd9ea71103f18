//! Both sides of the protocol, as they are, driven against each other in simulated time.
//!
//! A history is a seed and a list of disturbances ([`history::Action`]). Between these, agents, replicas and the API
//! server run by themselves: heartbeats, markers, watches, restores and confirmations take the time that the seed
//! gives them. After every step all promises are checked with the knowledge of an observer who sees everything
//! ([`checks`]). What fails is cut down to the shortest history that still fails ([`shrink`]), and printed.
//!
//! * [`world`]: the truth, and all it ever was.
//! * [`network`]: streams that are late, cut and repeated.
//! * [`api`]: calls to the API server.
//! * [`agent`], [`client`], [`confirmer`], [`replica`], [`marker`]: the edges, as thin as they can be, around the real [`Shard`],
//!   [`Reports`] and [`Replica`].
//! * [`rules`]: every rule switched off in turn, and which promise breaks.
//!
//! [`Shard`]: crate::core::cache::Shard
//! [`Reports`]: crate::core::cache::Reports
//! [`Replica`]: crate::core::replica::Replica
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::struct_excessive_bools,
    clippy::unwrap_used
)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::core::time::Time;

mod agent;
mod api;
mod checks;
mod client;
mod confirmer;
mod generate;
mod history;
mod marker;
mod network;
mod replica;
mod rules;
mod scripts;
mod shrink;
mod tests;
mod world;

use agent::AgentEdge;
use api::Call;
use checks::Checks;
use history::Setup;
use network::{Conn, NEVER, Pace, Path};
use replica::ReplicaEdge;
use world::World;

/// Length of a lease, in ticks of simulated time.
pub const LEASE: u64 = 1_000;
/// The other length, where a change of it has come to some replicas only. None is longer than [`LEASE`].
pub const SHORT: u64 = LEASE / 2;
/// Nanoseconds in a tick of a clock that is right.
const TICK: u64 = 1_000;

/// So many ticks of a clock that is right.
pub const fn ticks(number: u64) -> Duration {
    Duration::from_nanos(number * TICK)
}

/// When to write the next marker or heartbeat: about five times in a lease.
pub const fn fifth(lease: u64, bits: u64) -> u64 {
    lease / 5 - lease / 20 + bits % (lease / 10)
}

/// A machine's clock: it starts anywhere, and is at most 0.4 % fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    rate: u64,
}

impl Clock {
    pub fn new(bits: u64, drift: bool) -> Self {
        let rate = if drift { TICK - 4 + bits % 9 } else { TICK };
        Self { offset: TICK * LEASE * (1 + bits / 16 % 1_000), rate }
    }

    pub fn read(&self, tick: u64) -> Time {
        Time::from_nanos(self.offset + self.rate * tick)
    }
}

/// Something that happens by itself.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message arrives at a replica.
    Up(usize),
    /// A message arrives at an agent.
    Down(usize),
    /// The watch of a replica has something to show.
    Watch(usize, u32),
    /// A replica looks after its streams, marker or registrations.
    Drain(usize),
    Marker(usize, u32),
    Poll(usize, u32),
    List(usize, u32),
    /// An agent looks after its streams and confirmations.
    Beat(usize),
    Dial(usize, u32, usize),
    /// A client of an agent asks for a session; when it did.
    Asked(usize, u32, usize, u64),
    Unconfirmed(usize, u32, u64),
    /// A call takes effect at the API server.
    Effect(usize),
    /// It is answered.
    Answered(usize),
    StartReplica(usize),
    StartAgent(usize),
}

/// A process that can be paused, by kind and index, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Agent(usize, u32),
    Replica(usize, u32),
    Server,
}

/// The simulation of one history.
pub struct Sim {
    pub setup: Setup,
    pub now: u64,
    pub world: World,
    pub agents: Vec<AgentEdge>,
    pub replicas: Vec<ReplicaEdge>,
    pub conns: Vec<Conn>,
    pub paths: Vec<Vec<Path>>,
    pub calls: Vec<Call>,
    pub checks: Checks,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: Vec<Option<Event>>,
    /// Events for paused processes.
    held: Vec<(Process, VecDeque<Event>)>,
    /// What happened, if it is to be told.
    pub story: Option<Vec<String>>,
}

impl Sim {
    pub fn new(setup: Setup, tell: bool) -> Self {
        let path = Path { up: Pace::Fast, down: Pace::Fast, reachable: true };
        let names: Vec<&str> = ["s", "t"][..setup.sessions].to_vec();
        let mut sim = Self {
            now: 0,
            world: World::new(&names),
            agents: Vec::new(),
            replicas: Vec::new(),
            conns: Vec::new(),
            paths: vec![vec![path; setup.replicas]; setup.agents],
            calls: Vec::new(),
            checks: Checks::new(setup.sessions),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            held: Vec::new(),
            story: tell.then(Vec::new),
            setup,
        };
        for agent in 0..sim.setup.agents {
            for replica in 0..sim.setup.replicas {
                let reach = sim.setup.reach[agent] >> replica & 1 == 1;
                sim.paths[agent][replica].reachable = reach;
            }
        }
        for at in 0..sim.setup.replicas {
            let edge = ReplicaEdge::new(&sim, at, 0);
            sim.replicas.push(edge);
            sim.start_replica(at);
        }
        for at in 0..sim.setup.agents {
            let edge = AgentEdge::new(&sim, at, 0);
            sim.agents.push(edge);
            sim.start_agent(at);
        }
        sim
    }

    /// Random bits that depend on the seed and on what they are for, not on what else was asked.
    pub fn bits(&self, parts: &[u64]) -> u64 {
        parts.iter().fold(self.setup.seed, |h, part| {
            let mut x = h ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ x >> 31
        })
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            story.push(format!("{now:6}  {}", line()));
        }
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        if at == NEVER {
            return;
        }
        self.queue.push(Reverse((at, self.events.len() as u64)));
        self.events.push(Some(event));
    }

    /// Lets everything happen that happens until `until`, or until a promise is broken.
    pub fn run(&mut self, until: u64) {
        while let Some(Reverse((at, id))) = self.queue.peek().copied() {
            if at > until || self.checks.broken.is_some() {
                break;
            }
            self.queue.pop();
            let Some(event) = self.events[id as usize].take() else {
                continue;
            };
            if at > self.now {
                self.now = at;
                // Time alone can break a promise.
                self.check();
            }
            self.step(event);
        }
        if self.checks.broken.is_none() {
            self.now = self.now.max(until);
            self.check();
        }
    }

    fn step(&mut self, event: Event) {
        let owner = self.owner(&event);
        if !self.alive(owner) {
            return;
        }
        if let Some((_, events)) = self.held.iter_mut().find(|(p, _)| *p == owner) {
            events.push_back(event);
            return;
        }
        self.happen(&event);
        self.check();
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Up(conn) => self.replica_receives(conn),
            Event::Down(conn) => self.agent_receives(conn),
            Event::Watch(replica, _) => self.watch_shows(replica),
            Event::Drain(conn) => self.drain(conn),
            Event::Marker(replica, _) => self.write_marker(replica),
            Event::Poll(replica, _) => self.poll(replica),
            Event::List(replica, _) => self.list(replica),
            Event::Beat(conn) => self.beat(conn),
            Event::Asked(agent, _, name, when) => self.asked(agent, name, when),
            Event::Dial(agent, _, replica) => self.dial(agent, replica),
            Event::Unconfirmed(agent, _, id) => self.unconfirmed(agent, id),
            Event::Effect(call) => self.effect(call),
            Event::Answered(call) => self.answered(call),
            Event::StartReplica(at) => self.start_replica(at),
            Event::StartAgent(at) => self.start_agent(at),
        }
    }

    fn owner(&self, event: &Event) -> Process {
        match *event {
            Event::Up(conn) | Event::Drain(conn) => {
                let (at, life) = self.conns[conn].replica;
                Process::Replica(at, life)
            }
            Event::Down(conn) | Event::Beat(conn) => {
                let (at, life) = self.conns[conn].agent;
                Process::Agent(at, life)
            }
            Event::Watch(at, life) | Event::Marker(at, life) | Event::Poll(at, life) | Event::List(at, life) => {
                Process::Replica(at, life)
            }
            Event::Dial(at, life, _) | Event::Asked(at, life, ..) | Event::Unconfirmed(at, life, _) => {
                Process::Agent(at, life)
            }
            Event::Answered(call) => self.calls[call].caller,
            Event::Effect(_) | Event::StartReplica(_) | Event::StartAgent(_) => Process::Server,
        }
    }

    pub fn alive(&self, process: Process) -> bool {
        match process {
            Process::Agent(at, life) => self.agents[at].alive && self.agents[at].life == life,
            Process::Replica(at, life) => self.replicas[at].alive && self.replicas[at].life == life,
            Process::Server => true,
        }
    }

    pub fn paused(&self, process: Process) -> bool {
        self.held.iter().any(|(p, _)| *p == process)
    }

    /// Stops a process in its tracks: its clock goes on, and what comes in waits.
    pub fn pause(&mut self, process: Process) {
        if !self.paused(process) {
            self.held.push((process, VecDeque::new()));
        }
    }

    pub fn resume(&mut self, process: Process) {
        let Some(at) = self.held.iter().position(|(p, _)| *p == process) else {
            return;
        };
        let (_, events) = self.held.remove(at);
        let (mut first, mut then): (VecDeque<Event>, VecDeque<Event>) =
            events.into_iter().partition(|e| matches!(e, Event::Up(_) | Event::Down(_)));
        // What a process does first once it goes on is not known.
        if self.bits(&[20, self.now]).is_multiple_of(2) {
            std::mem::swap(&mut first, &mut then);
        }
        // A thread that serves may run before those that receive.
        self.check();
        for event in first.into_iter().chain(then) {
            if self.checks.broken.is_none() {
                self.step(event);
            }
        }
    }

    pub fn resume_all(&mut self) {
        while let Some((process, _)) = self.held.first() {
            let process = *process;
            self.resume(process);
        }
    }
}
