//! Whoever promises that no pod serves an older state: asks every replica, or waits until every lease has ended.

use super::network::Up;
use super::{Event, LEASE, Sim, TICK, ticks};
use crate::core::lease::with_drift;
use crate::core::quorum::Quorum;
use crate::core::replica::Confirmed;
use crate::core::rules::Rule;
use crate::core::signal::{Barrier, Fate};
use crate::core::time::Time;

/// A confirmation that an agent waits for.
pub struct Confirm {
    record: usize,
    barrier: Barrier,
    /// Index of the state that is to be confirmed.
    state: Option<usize>,
    /// When the write was answered, on the agent's clock.
    since: Time,
    quorum: Quorum,
}

impl Sim {
    /// An own write was answered, and its client wants to know when nobody serves anything older.
    pub fn confirm(&mut self, at: usize, record: usize, barrier: Barrier) {
        let now = self.agent_now(at);
        let state = self.cause(record, barrier.mark);
        // After a restore, the same generation may have come twice.
        let state = state.filter(|_| !self.checks.restored || barrier.mark.fate == Fate::Gone);
        let agent = &mut self.agents[at];
        agent.last_request += 1;
        let (id, life) = (agent.last_request, agent.life);
        let confirm = Confirm { record, barrier, state, since: now, quorum: Quorum::default() };
        agent.confirms.insert(id, confirm);
        let conns: Vec<usize> = agent.streams.keys().copied().collect();
        let key = self.world.records[record].key.clone();
        for conn in conns {
            self.send_up(conn, Up::Confirm(id, key.clone(), barrier));
        }
        self.schedule(self.now + LEASE / 2, Event::Unconfirmed(at, life, id));
    }

    /// A stream was opened: what is not confirmed yet is asked there, too.
    pub fn ask_again(&mut self, at: usize, conn: usize) {
        let pending: Vec<(u64, usize, Barrier)> =
            self.agents[at].confirms.iter().map(|(id, c)| (*id, c.record, c.barrier)).collect();
        for (id, record, barrier) in pending {
            let key = self.world.records[record].key.clone();
            self.send_up(conn, Up::Confirm(id, key, barrier));
        }
    }

    pub fn replica_confirmed(&mut self, at: usize, conn: usize, answer: Confirmed) {
        let agent = &mut self.agents[at];
        let name = agent.streams.get(&conn).and_then(|s| s.name.clone());
        let (Some(confirm), Some(name)) = (agent.confirms.get_mut(&answer.request), name) else {
            return;
        };
        confirm.quorum.confirmed(name, answer.registered);
        if confirm.quorum.is_complete(|_| false) || !Rule::AskEveryReplica.on() {
            self.confirm_over(at, answer.request, "every replica");
        }
    }

    /// Whatever lease could still cover an older state has ended.
    pub fn unconfirmed(&mut self, at: usize, id: u64) {
        let now = self.agent_now(at);
        let agent = &self.agents[at];
        let Some(confirm) = agent.confirms.get(&id) else {
            return;
        };
        let longest = ticks(if Rule::WaitLongestLease.on() { LEASE } else { agent.longest });
        let wait = if Rule::WaitWholeLease.on() { with_drift(longest) } else { longest / 2 };
        let over = confirm.since + wait;
        if now < over {
            let left = over.saturating_since(now).as_nanos() as u64 / TICK + 1;
            let event = Event::Unconfirmed(at, agent.life, id);
            self.schedule(self.now + left, event);
        } else {
            self.confirm_over(at, id, "the end of all leases");
        }
    }

    fn confirm_over(&mut self, at: usize, id: u64, why: &str) {
        if let Some(confirm) = self.agents[at].confirms.remove(&id) {
            self.tell(|| format!("agent {at} has confirmation {id} by {why}"));
            self.confirmed(confirm.record, confirm.state);
        }
    }
}
