//! Streams between agents and replicas: ordered while they last, late without bound, cut at any moment.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Event, Sim};
use crate::core::cache::Report;
use crate::core::replica::{Outgoing, SignalId};
use crate::core::session::SessionKey;
use crate::core::signal::Barrier;

/// Never: the due time of what does not arrive before the network heals.
pub const NEVER: u64 = u64::MAX;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Fast,
    Slow,
    Hung,
}

impl Pace {
    /// A delay, given random bits.
    pub fn delay(self, bits: u64) -> u64 {
        match self {
            Self::Fast => 1 + bits % 4,
            // As often short as long.
            Self::Slow => (1 << (bits % 11)) + (bits >> 8) % (1 << (bits % 11)),
            Self::Hung => NEVER,
        }
    }
}

/// From an agent to a replica.
#[derive(Clone, Debug)]
pub enum Up {
    Hello,
    Reports(Vec<(SessionKey, Report)>, Option<u64>),
    Heartbeat(u64),
    Ack(SessionKey, SignalId),
    Confirm(u64, SessionKey, Barrier),
    LeaseReturned,
    Closed,
}

/// From a replica to an agent.
#[derive(Clone, Debug)]
pub enum Down {
    /// The replica's name, and how long its leases are.
    Settings(Arc<str>, u64),
    Out(Outgoing),
    Refused,
    Closed,
}

/// One direction of a stream.
pub struct Pipe<M> {
    queue: VecDeque<(u64, M)>,
    sent: u64,
}

impl<M> Default for Pipe<M> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), sent: 0 }
    }
}

impl<M: Clone> Pipe<M> {
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    fn push(&mut self, now: u64, delay: u64, message: M) -> u64 {
        let after = self.queue.back().map_or(0, |(due, _)| *due);
        let due = now.saturating_add(delay).max(after);
        self.queue.push_back((due, message));
        self.sent += 1;
        due
    }

    /// The first message, if it is due.
    fn pop(&mut self, now: u64) -> Option<M> {
        if self.queue.front()?.0 > now {
            return None;
        }
        Some(self.queue.pop_front()?.1)
    }

    /// Everything that was sent after the first `keep` messages in flight is lost, and then the end comes.
    fn cut(&mut self, keep: usize, now: u64, delay: u64, end: M) {
        self.queue.truncate(keep);
        for (due, _) in &mut self.queue {
            *due = (*due).min(now.saturating_add(delay));
        }
        self.push(now, delay, end);
    }

    fn repeat_first(&mut self, unless: impl FnOnce(&M) -> bool) {
        if let Some(first) = self.queue.front().filter(|m| !unless(&m.1)).cloned() {
            self.queue.push_front(first);
        }
    }

    /// What is in flight hangs, or goes on.
    fn set_due(&mut self, now: u64, hang: bool) {
        for (n, (due, _)) in self.queue.iter_mut().enumerate() {
            if hang {
                *due = NEVER;
            } else if *due == NEVER {
                *due = now + 1 + n as u64;
            }
        }
    }

    fn next(&self) -> Option<u64> {
        self.queue.front().map(|(due, _)| *due)
    }
}

/// A stream, identified by its index.
pub struct Conn {
    pub agent: (usize, u32),
    pub replica: (usize, u32),
    pub up: Pipe<Up>,
    pub down: Pipe<Down>,
    pub agent_open: bool,
    pub replica_open: bool,
    /// Nothing that is sent from now on arrives.
    pub broken: bool,
    /// The replica will look whether there is something to send.
    pub draining: bool,
}

/// How the path between an agent and a replica behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub up: Pace,
    pub down: Pace,
    /// Whether a stream can be opened.
    pub reachable: bool,
}

impl Sim {
    pub fn path(&mut self, conn: usize) -> &mut Path {
        let (agent, replica) = (self.conns[conn].agent.0, self.conns[conn].replica.0);
        &mut self.paths[agent][replica]
    }

    pub fn send_up(&mut self, conn: usize, message: Up) {
        if self.conns[conn].broken {
            return;
        }
        let pace = self.path(conn).up;
        let bits = self.bits(&[1, conn as u64, self.conns[conn].up.sent]);
        let first = self.conns[conn].up.len() == 0;
        let due = self.conns[conn].up.push(self.now, pace.delay(bits), message);
        if first {
            self.schedule(due, Event::Up(conn));
        }
    }

    pub fn send_down(&mut self, conn: usize, message: Down) {
        if self.conns[conn].broken {
            return;
        }
        let pace = self.path(conn).down;
        let bits = self.bits(&[2, conn as u64, self.conns[conn].down.sent]);
        let first = self.conns[conn].down.len() == 0;
        let due = self.conns[conn].down.push(self.now, pace.delay(bits), message);
        if first {
            self.schedule(due, Event::Down(conn));
        }
    }

    pub fn arrive_up(&mut self, conn: usize) -> Option<Up> {
        let arrived = self.conns[conn].up.pop(self.now)?;
        self.next_up(conn);
        Some(arrived)
    }

    pub fn arrive_down(&mut self, conn: usize) -> Option<Down> {
        let arrived = self.conns[conn].down.pop(self.now)?;
        self.next_down(conn);
        Some(arrived)
    }

    fn next_up(&mut self, conn: usize) {
        if let Some(due) = self.conns[conn].up.next() {
            self.schedule(due.max(self.now), Event::Up(conn));
        }
    }

    fn next_down(&mut self, conn: usize) {
        if let Some(due) = self.conns[conn].down.next() {
            self.schedule(due.max(self.now), Event::Down(conn));
        }
    }

    /// The path changes; what is in flight hangs or goes on with it.
    pub fn set_path(&mut self, agent: usize, replica: usize, path: Path) {
        self.paths[agent][replica] = path;
        let now = self.now;
        for conn in 0..self.conns.len() {
            let c = &mut self.conns[conn];
            if (c.agent.0, c.replica.0) == (agent, replica) && (c.agent_open || c.replica_open) {
                c.up.set_due(now, path.up == Pace::Hung);
                c.down.set_due(now, path.down == Pace::Hung);
                self.next_up(conn);
                self.next_down(conn);
            }
        }
    }

    /// The stream breaks. Each end still gets some of what is in flight, and then hears of it.
    pub fn cut(&mut self, conn: usize, keep_up: usize, keep_down: usize) {
        let now = self.now;
        let [up, down] = [3, 4].map(|d| Pace::Slow.delay(self.bits(&[d, conn as u64])));
        let c = &mut self.conns[conn];
        if std::mem::replace(&mut c.broken, true) {
            return;
        }
        if c.replica_open {
            c.up.cut(keep_up, now, up, Up::Closed);
        }
        if c.agent_open {
            c.down.cut(keep_down, now, down, Down::Closed);
        }
        self.next_up(conn);
        self.next_down(conn);
    }

    /// The first message in flight comes twice.
    pub fn repeat(&mut self, conn: usize, up: bool) {
        let c = &mut self.conns[conn];
        if up {
            // A stream begins once and ends once.
            c.up.repeat_first(|m| matches!(m, Up::Hello | Up::Closed));
        } else {
            c.down.repeat_first(|m| matches!(m, Down::Closed));
        }
    }
}
