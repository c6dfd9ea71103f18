//! Rounds of eviction: which pods a change was signalled to, and who has acknowledged. For logs, events and status
//! only; no promise rests on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap as FastMap;

use super::agents::Agent;
use super::{AgentId, AgentName, Replica, SignalId, Truth};
use crate::core::lease::with_drift;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::time::Time;

/// Something that logs, events or status may tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A session appeared, or its spec changed.
    Changed {
        /// Which one.
        key: SessionKey,
        /// Its uid.
        uid: Uid,
        /// Its new generation.
        generation: u64,
        /// The resourceVersion that brought it.
        resource_version: ResourceVersion,
        /// Metadata keys that changed; empty if the object is new to this replica.
        changed_keys: Vec<Arc<str>>,
        /// Whether it is new: it was not there, or was another object.
        new: bool,
    },
    /// A session is gone.
    Removed {
        /// Which one.
        key: SessionKey,
    },
    /// Pods that were signalled have not acknowledged it for longer than that takes.
    Late(Late),
    /// Everybody who was signalled has acknowledged, or can be waited for no longer.
    Settled(Settled),
}

/// Who is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Late {
    /// The session.
    pub key: SessionKey,
    /// The uid of the object as it is now, else of the copies.
    pub uid: Uid,
    /// The pods, by name, sorted.
    pub pods: Vec<AgentName>,
    /// For how long they have been waited for.
    pub waited: Duration,
    /// When the last of their leases ends, from now.
    pub lease_left: Duration,
}

/// How a round ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// The session.
    pub key: SessionKey,
    /// The uid of the copies that were evicted last.
    pub uid: Uid,
    /// The uid of the object as it is now, if it is there and not being deleted.
    pub object: Option<Uid>,
    /// The generation that the pods were brought to; `None` if the object is gone.
    pub generation: Option<u64>,
    /// Metadata keys that changed.
    pub changed_keys: Vec<Arc<str>>,
    /// Pods that were signalled, by name, sorted.
    pub pods: Vec<AgentName>,
    /// Those of them that did not acknowledge before their leases ended.
    pub silent: Vec<AgentName>,
    /// From the first signal to the last acknowledgement.
    pub took: Duration,
}

/// An acknowledgement is late after this part of a lease.
const LATE_PART: u32 = 5;

/// Keys that one round names: as many as a map can have. A pod that does not obey keeps its round open for as long as it has
/// leases, and every change meanwhile may bring other keys.
const MOST_KEYS: usize = 256;

#[derive(Debug)]
pub(super) struct Round {
    uid: Uid,
    generation: Option<u64>,
    changed: BTreeSet<Arc<str>>,
    started: Time,
    told_late: bool,
    waiting: BTreeMap<AgentId, (SignalId, AgentName)>,
    pods: BTreeSet<AgentName>,
    silent: BTreeSet<AgentName>,
}

impl Round {
    fn new(uid: Uid, generation: Option<u64>, now: Time) -> Self {
        Self {
            uid,
            generation,
            changed: BTreeSet::new(),
            started: now,
            told_late: false,
            waiting: BTreeMap::new(),
            pods: BTreeSet::new(),
            silent: BTreeSet::new(),
        }
    }

    fn changed_too(&mut self, keys: &[Arc<str>]) {
        let room = MOST_KEYS.saturating_sub(self.changed.len());
        let new = keys.iter().filter(|key| !self.changed.contains(*key)).take(room).cloned();
        let new: Vec<Arc<str>> = new.collect();
        self.changed.extend(new);
    }
}

/// Pods that gave up a copy before this replica's watch showed why. Kept for a lease at most, and bounded.
#[derive(Debug, Default)]
pub(super) struct MovedOn {
    since: Time,
    pods: FastMap<SessionKey, Vec<(AgentName, Uid)>>,
}

impl MovedOn {
    /// Sessions that are kept at most. Copies that go for want of room are noted too, and must not pile up.
    const MOST: usize = 10_000;

    fn note(&mut self, key: &SessionKey, name: AgentName, uid: Uid, now: Time, lease: Duration) {
        if now.saturating_since(self.since) > lease || self.pods.len() >= Self::MOST {
            self.pods.clear();
        }
        if self.pods.is_empty() {
            self.since = now;
        }
        let pods = self.pods.entry(key.clone()).or_default();
        if !pods.iter().any(|(known, _)| *known == name) {
            pods.push((name, uid));
        }
    }

    fn take(&mut self, key: &SessionKey, old: Option<&Truth>, now: Time, lease: Duration) -> Vec<AgentName> {
        let pods = self.pods.remove(key).unwrap_or_default();
        let fresh = now.saturating_since(self.since) <= lease;
        let of_old = |uid: Uid| fresh && old.is_some_and(|o| o.uid == uid);
        pods.into_iter().filter(|(_, uid)| of_old(*uid)).map(|(name, _)| name).collect()
    }
}

impl Replica {
    pub(super) fn round_evicted(&mut self, key: &SessionKey, agent: AgentId, signal: SignalId, now: Time) {
        let Some(name) = self.agents.get(&agent).map(|a| a.name().clone()) else {
            return;
        };
        let Some(uid) = self.agents.get_mut(&agent).and_then(|a| a.held_mut(key)).map(|h| h.holding.uid) else {
            return;
        };
        let generation = self.truth(key).filter(|t| !t.terminating).map(|t| t.generation);
        let round = self.rounds.entry(key.clone()).or_insert_with(|| Round::new(uid, generation, now));
        round.uid = uid;
        round.generation = generation;
        round.pods.insert(name.clone());
        round.waiting.insert(agent, (signal, name));
    }

    pub(super) fn round_acknowledged(&mut self, agent: AgentId, key: &SessionKey, signal: SignalId, now: Time) {
        let Some(round) = self.rounds.get_mut(key) else {
            return;
        };
        if round.waiting.get(&agent).is_some_and(|(waits_for, _)| signal >= *waits_for) {
            round.waiting.remove(&agent);
            self.settle(key, now);
        }
    }

    /// The agent has told all that it holds over a new stream. What it was signalled over an older one, up to
    /// `before`, it will not acknowledge any more: it has obeyed, or was just signalled again.
    pub(super) fn round_reconnected(&mut self, agent: AgentId, before: SignalId, now: Time) {
        let mut over = Vec::new();
        for (key, round) in &mut self.rounds {
            if round.waiting.get(&agent).is_some_and(|w| w.0 <= before) {
                round.waiting.remove(&agent);
                over.push(key.clone());
            }
        }
        for key in over {
            self.settle(&key, now);
        }
    }

    /// The watch showed a session; whoever must be evicted was signalled already.
    pub(super) fn changed(&mut self, key: &SessionKey, old: Option<&Truth>, new: &Truth, now: Time) {
        let same = old.filter(|o| o.uid == new.uid);
        if same.is_some_and(|o| o.generation == new.generation) {
            return;
        }
        let changed_keys = same.map_or_else(Vec::new, |o| o.summary.changed_keys(&new.summary));
        if !changed_keys.is_empty() || new.terminating || same.is_none() {
            self.count_moved_on(key, old, now);
        }
        if let Some(round) = self.rounds.get_mut(key) {
            round.changed_too(&changed_keys);
        }
        self.facts.push(Fact::Changed {
            key: key.clone(),
            uid: new.uid,
            generation: new.generation,
            resource_version: new.resource_version,
            changed_keys,
            new: same.is_none(),
        });
        self.settle(key, now);
    }

    pub(super) fn removed(&mut self, key: &SessionKey, old: Option<&Truth>, now: Time) {
        self.facts.push(Fact::Removed { key: key.clone() });
        self.count_moved_on(key, old, now);
        if self.rounds.contains_key(key) {
            self.settle(key, now);
        }
    }

    /// The agent gives up a copy that this replica has not told it to: another replica may have been faster, or a
    /// barrier. If the watch soon shows a change, the pod is counted among those that the change has evicted.
    pub(super) fn note_moved_on(&mut self, agent: AgentId, key: &SessionKey, now: Time) {
        let Some(known) = self.agents.get_mut(&agent) else {
            return;
        };
        let name = known.name().clone();
        if let Some(held) = known.held_mut(key).filter(|h| !h.was_told()) {
            let uid = held.holding.uid;
            self.moved_on.note(key, name, uid, now, self.config.lease);
        }
    }

    fn count_moved_on(&mut self, key: &SessionKey, old: Option<&Truth>, now: Time) {
        let pods = self.moved_on.take(key, old, now, self.config.lease);
        if pods.is_empty() {
            return;
        }
        let Some(uid) = old.map(|o| o.uid) else {
            return;
        };
        let generation = self.truth(key).filter(|t| !t.terminating).map(|t| t.generation);
        self.rounds.entry(key.clone()).or_insert_with(|| Round::new(uid, generation, now)).pods.extend(pods);
    }

    /// How many pods have been signalled a change of this session and have not acknowledged it yet.
    pub fn awaited(&self, key: &SessionKey) -> usize {
        self.rounds.get(key).map_or(0, |round| round.waiting.len())
    }

    /// Nobody is waited for longer than a lease.
    pub(super) fn poll_rounds(&mut self, now: Time) {
        if self.rounds.is_empty() {
            return;
        }
        self.tell_late(now);
        let longest = with_drift(self.config.lease);
        let mut overdue = Vec::new();
        for (key, round) in &mut self.rounds {
            if round.started + longest > now {
                continue;
            }
            let agents = &self.agents;
            round.waiting.retain(|id, (_, name)| {
                let leased = agents.get(id).is_some_and(|a| a.remembered_until() > now);
                if !leased {
                    round.silent.insert(name.clone());
                }
                leased
            });
            overdue.push(key.clone());
        }
        for key in overdue {
            self.settle(&key, now);
        }
    }

    /// An acknowledgement takes milliseconds. People hear of pods that are silent while these may still serve old copies.
    fn tell_late(&mut self, now: Time) {
        let mut late = Vec::new();
        for (key, round) in self.rounds.iter_mut().filter(|(_, r)| !r.told_late && !r.waiting.is_empty()) {
            if round.started + self.config.lease / LATE_PART > now {
                continue;
            }
            round.told_late = true;
            let until = round.waiting.keys().filter_map(|id| self.agents.get(id)).map(Agent::remembered_until).max();
            let pods: BTreeSet<AgentName> = round.waiting.values().map(|(_, name)| name.clone()).collect();
            late.push(Late {
                key: key.clone(),
                uid: round.uid,
                pods: pods.into_iter().collect(),
                waited: now.saturating_since(round.started),
                lease_left: until.map_or(Duration::ZERO, |until| until.saturating_since(now)),
            });
        }
        for mut late in late {
            late.uid = self.truth(&late.key).map_or(late.uid, |truth| truth.uid);
            self.facts.push(Fact::Late(late));
        }
    }

    fn settle(&mut self, key: &SessionKey, now: Time) {
        if self.rounds.get(key).is_some_and(|r| !r.waiting.is_empty()) {
            return;
        }
        let truth = self.truth(key).filter(|t| !t.terminating);
        let generation = truth.map(|t| t.generation);
        let truth_uid = truth.map(|t| t.uid);
        let settled = match self.rounds.remove(key) {
            Some(round) => Settled {
                key: key.clone(),
                uid: round.uid,
                object: truth_uid,
                generation: generation.or(round.generation),
                changed_keys: round.changed.into_iter().collect(),
                pods: round.pods.into_iter().collect(),
                silent: round.silent.into_iter().collect(),
                took: now.saturating_since(round.started),
            },
            None => match truth_uid {
                Some(uid) => Settled {
                    key: key.clone(),
                    uid,
                    object: truth_uid,
                    generation,
                    changed_keys: Vec::new(),
                    pods: Vec::new(),
                    silent: Vec::new(),
                    took: Duration::ZERO,
                },
                None => return,
            },
        };
        self.facts.push(Fact::Settled(settled));
    }
}
