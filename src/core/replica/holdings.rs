//! What agents hold: reports come in, evictions are queued.

use super::agents::Agent;
use super::{AgentId, Entry, Replica, ScopeId};
use crate::core::cache::{Holding, Report};
use crate::core::lease::StreamId;
use crate::core::rules::Rule;
use crate::core::session::{ResourceVersion, SessionKey};
use crate::core::signal::{Barrier, Fate};
use crate::core::tally::Full;
use crate::core::time::Time;

/// A copy that an agent holds.
#[derive(Debug)]
pub(super) struct Held {
    pub holding: Holding,
    /// The watch must reach this before it can be compared.
    waits_for: Option<ResourceVersion>,
    /// Everything up to this sequence number had been told before it.
    after: u64,
    /// The watch has shown the state that it is of. What the watch shows from then on is later.
    pub shown: bool,
    /// When it was reported.
    pub reported: Time,
    /// What the agent was told of it last, so that it is not told twice.
    told: Option<Fate>,
}

impl Held {
    /// Whether this replica has told the agent to drop it.
    pub fn was_told(&self) -> bool {
        self.told.is_some()
    }
}

impl Agent {
    /// What it holds of `key` cannot be compared before the watch has reached `until`.
    pub fn wait(&mut self, key: &SessionKey, until: ResourceVersion) {
        if let Some(held) = self.holdings.get_mut(key) {
            held.waits_for = Some(until);
            self.waiting.insert((held.after, key.clone()));
        }
    }

    /// It waits no more. Tells for what it has waited, if it has.
    fn waits_no_more(&mut self, key: &SessionKey) -> Option<ResourceVersion> {
        let held = self.holdings.get_mut(key)?;
        let until = held.waits_for.take()?;
        self.waiting.remove(&(held.after, key.clone()));
        Some(until)
    }

    /// Up to which sequence number a lease covers. What waits for the watch was not compared, and may be of a history
    /// that a restored backup has wiped out. It stays without this cover, and so does what was reported with it or
    /// later. Until the watch has caught up, milliseconds later, they have the provisional cover of their GETs and writes.
    pub fn covers(&self) -> u64 {
        let first = self.waiting.first().filter(|_| Rule::CoverWhatIsCompared.on());
        first.map_or(self.processed, |(after, _)| *after)
    }
}

impl Replica {
    /// A part of the inventory or of later reports came in. With `through`, everything up to that sequence number
    /// is told once this is processed; all but the last part of an inventory come without.
    ///
    /// # Errors
    ///
    /// The agent, or all of its namespace, holds more than it may: it then gets no cover for what is new.
    pub fn reported(
        &mut self,
        stream: StreamId,
        reports: Vec<(SessionKey, Report)>,
        through: Option<u64>,
        now: Time,
    ) -> Result<(), Full> {
        let Some(&id) = self.by_stream.get(&stream) else {
            return Ok(());
        };
        let mut within = Ok(());
        for (key, report) in reports {
            match report {
                Report::Held(holding) => within = within.and(self.hold(id, &key, holding, now)),
                Report::Released => {
                    self.note_moved_on(id, &key, now);
                    self.release(id, &key, now);
                }
            }
        }
        let Some(agent) = self.agents.get_mut(&id) else {
            return within;
        };
        agent.refused |= within.is_err() && Rule::RefusedEndsCover.on();
        if let Some(through) = through {
            if !agent.refused && (within.is_ok() || Rule::RefusedEndsCover.on()) {
                agent.processed = agent.processed.max(through);
            }
            if let Some(before) = agent.opened_after.take() {
                self.round_reconnected(id, before, now);
            }
        }
        within
    }

    /// Queues an eviction of what `agent` holds of `key`, unless it was told so already.
    pub(super) fn evict(&mut self, key: &SessionKey, agent: AgentId, state: Barrier, now: Time) {
        let id = self.next_signal();
        let Some(known) = self.agents.get_mut(&agent) else {
            return;
        };
        let Some(held) = known.holdings.get_mut(key) else {
            return;
        };
        let fate = state.mark.fate;
        let told = match (held.told, fate) {
            (Some(Fate::Gone), _) => true,
            (Some(Fate::Stale { below: told }), Fate::Stale { below }) => told >= below,
            _ => false,
        };
        if told {
            return;
        }
        held.told = Some(fate);
        // A pod can report copies of whatever names it likes: that it drops these is of interest to
        // nobody, but that it does is.
        let of_interest = held.shown || self.entries.get(key).is_some_and(|entry| entry.truth.is_some());
        known.evictions.insert(key.clone(), (id, state));
        let stream = known.stream;
        self.wake(stream);
        if of_interest || self.awaited(key) > 0 {
            self.round_evicted(key, agent, (id, fate), now);
        } else {
            self.counts.unknown += 1;
        }
    }

    fn hold(&mut self, id: AgentId, key: &SessionKey, holding: Holding, now: Time) -> Result<(), Full> {
        // What is not watched is compared with nothing, and must not be covered.
        let scope = self.scope_of(key.namespace()).ok_or(Full::Namespace)?;
        self.waits_no_more(scope, id, key);
        let Some(agent) = self.agents.get_mut(&id) else {
            return Ok(());
        };
        if !agent.holds(key) {
            self.held.admits(agent.namespace(), agent.name(), self.config.holdings)?;
        }
        let new = Held { holding, waits_for: None, after: agent.processed, shown: false, reported: now, told: None };
        // The new copy took the old one's place: what was queued for that one is settled.
        let settled = agent.evictions.remove(key);
        let mut carried_on = false;
        if let Some(old) = agent.holdings.insert(key.clone(), new) {
            // Else the copy that was known here was dropped before, and this one was restored.
            carried_on = old.holding.uid == holding.uid && holding.since <= old.holding.generation;
        } else {
            self.held.add(agent.namespace(), agent.name());
            self.entries.entry(key.clone()).or_default().holders.push(id);
        }
        if let Some((signal, state)) = settled {
            let kept = carried_on && state.mark.is_outlived_by(holding.uid, holding.since);
            self.round_acknowledged(id, key, signal, kept, now);
        }
        if Rule::CompareOnReport.on() {
            let position = self.position(scope);
            self.compare_one(key, id, position, now);
        }
        Ok(())
    }

    /// What the agent holds of `key` waits for the watch of `scope` no more.
    pub(super) fn waits_no_more(&mut self, scope: ScopeId, id: AgentId, key: &SessionKey) {
        let until = self.agents.get_mut(&id).and_then(|agent| agent.waits_no_more(key));
        if let Some(until) = until {
            self.scopes[scope.0].waiting.remove(&(until, id, key.clone()));
        }
    }

    pub(super) fn release(&mut self, id: AgentId, key: &SessionKey, now: Time) {
        if let Some(scope) = self.scope_of(key.namespace()) {
            self.waits_no_more(scope, id, key);
        }
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        let settled = agent.evictions.remove(key);
        if agent.holdings.remove(key).is_none() {
            return;
        }
        self.held.remove(agent.namespace(), agent.name());
        if let Some(Entry { truth, holders }) = self.entries.get_mut(key) {
            holders.retain(|h| *h != id);
            if holders.is_empty() && truth.is_none() {
                self.entries.remove(key);
            }
        }
        if let Some((signal, _)) = settled {
            self.round_acknowledged(id, key, signal, false, now);
        }
    }
}
