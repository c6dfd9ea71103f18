//! Rounds of eviction: which pods a change was signalled to, and who has acknowledged. For logs, events and status
//! only; no promise rests on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap as FastMap, HashSet as FastSet};

use super::agents::Agent;
use super::{AgentId, AgentName, Fact, Late, Replica, Settled, SignalId, Truth};
use crate::core::lease::with_drift;
use crate::core::session::{SessionKey, Uid};
use crate::core::signal::Fate;
use crate::core::tally::{Bounds, Tally};
use crate::core::time::Time;

/// An acknowledgement is late after this part of a lease: it takes milliseconds.
pub const LATE_PART: u32 = 5;

/// Keys that one round names: as many as a map can have. A pod that does not obey keeps its round open for as long as it has
/// leases, and every change meanwhile may bring other keys.
const MOST_KEYS: usize = 256;

/// Rounds that are looked at in one go. A pod may leave all its copies unacknowledged, and others must have their turn.
const MOST_AT_ONCE: usize = 4_096;

/// Acknowledgements that are waited for at once. A pod that acknowledges nothing can leave one for each of its copies, and again over
/// each new stream, while it has leases. Pods that do are waited for for milliseconds: so many are outstanding only while very much
/// changes at once. Who is beyond counts as evicted when it is signalled, is not named, and the round goes on for a lease.
pub(super) const MOST_AWAITED: Bounds = Bounds { all: 65_536, per_pod: 16_384 };

/// What is looked at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Whether somebody is late.
    Late,
    /// Whether somebody still has a lease.
    Over,
}

#[derive(Debug)]
struct Round {
    uid: Uid,
    generation: Option<u64>,
    changed: BTreeSet<Arc<str>>,
    started: Time,
    due: Time,
    next: Next,
    /// Somebody is not waited for, and may have a lease until then.
    not_before: Time,
    waiting: BTreeMap<AgentId, Waiting>,
    /// Pods that have dropped a copy, or are silent.
    pods: BTreeSet<AgentName>,
    silent: BTreeSet<AgentName>,
}

/// Who is waited for, and why.
#[derive(Debug)]
struct Waiting {
    signal: SignalId,
    fate: Fate,
    pod: AgentName,
}

impl Round {
    fn changed_too(&mut self, keys: &[Arc<str>]) {
        let room = MOST_KEYS.saturating_sub(self.changed.len());
        let new = keys.iter().filter(|key| !self.changed.contains(*key)).take(room).cloned();
        let new: Vec<Arc<str>> = new.collect();
        self.changed.extend(new);
    }
}

/// The rounds that are going on. All that is done with them takes as long as there are rounds that it is about, not as there are any.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    by_key: FastMap<SessionKey, Round>,
    /// When each is looked at.
    due: BTreeSet<(Time, SessionKey)>,
    /// Those that wait for an agent.
    by_agent: HashMap<AgentId, FastSet<SessionKey>>,
    /// For how many acknowledgements of each pod they wait.
    awaited: Tally,
}

impl Rounds {
    /// How many there are, or are remembered in one way or another.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_key.len().max(self.due.len()).max(self.by_agent.len()).max(self.awaited.used())
    }

    /// The round of this session, or a new one.
    fn begun(&mut self, key: &SessionKey, uid: Uid, generation: Option<u64>, lease: Duration, now: Time) -> &mut Round {
        let due = now + lease / LATE_PART;
        self.by_key.entry(key.clone()).or_insert_with(|| {
            self.due.insert((due, key.clone()));
            Round {
                uid,
                generation,
                changed: BTreeSet::new(),
                started: now,
                due,
                next: Next::Late,
                not_before: Time::ZERO,
                waiting: BTreeMap::new(),
                pods: BTreeSet::new(),
                silent: BTreeSet::new(),
            }
        })
    }

    /// Whether the acknowledgement of this agent, of `pod`, can be waited for: it is already, or there are not too many.
    fn admits(&self, key: &SessionKey, agent: AgentId, pod: &AgentName) -> bool {
        let waits = self.by_key.get(key).is_some_and(|round| round.waiting.contains_key(&agent));
        waits || self.awaited.admits(key.namespace(), pod, MOST_AWAITED).is_ok()
    }

    fn wait(&mut self, key: &SessionKey, agent: AgentId, waiting: Waiting) {
        if let Some(round) = self.by_key.get_mut(key) {
            let pod = waiting.pod.clone();
            if round.waiting.insert(agent, waiting).is_none() {
                self.awaited.add(key.namespace(), &pod);
            }
            self.by_agent.entry(agent).or_default().insert(key.clone());
        }
    }

    /// The round waits for this agent no more, if it was signalled no later than with `signal`. `None` if it goes on waiting, or did
    /// not wait.
    fn wait_no_more(&mut self, key: &SessionKey, agent: AgentId, signal: SignalId) -> Option<Waiting> {
        let round = self.by_key.get_mut(key)?;
        round.waiting.get(&agent).filter(|waiting| waiting.signal <= signal)?;
        let waited = round.waiting.remove(&agent)?;
        self.forget(key, agent, &waited.pod);
        Some(waited)
    }

    fn forget(&mut self, key: &SessionKey, agent: AgentId, pod: &AgentName) {
        self.awaited.remove(key.namespace(), pod);
        if let Some(keys) = self.by_agent.get_mut(&agent) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_agent.remove(&agent);
            }
        }
    }

    /// The sessions of the rounds that are due: the first of them, if there are many.
    fn take_due(&mut self, now: Time) -> Vec<SessionKey> {
        let mut due = Vec::new();
        while due.len() < MOST_AT_ONCE
            && self.due.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, key)) = self.due.pop_first()
        {
            due.push(key);
        }
        due
    }

    fn again(&mut self, key: &SessionKey, next: Next, due: Time) {
        if let Some(round) = self.by_key.get_mut(key) {
            (round.next, round.due) = (next, due);
            self.due.insert((due, key.clone()));
        }
    }

    fn remove(&mut self, key: &SessionKey) -> Option<Round> {
        let round = self.by_key.remove(key)?;
        self.due.remove(&(round.due, key.clone()));
        for (agent, Waiting { pod, .. }) in &round.waiting {
            self.forget(key, *agent, pod);
        }
        Some(round)
    }
}

impl Replica {
    pub(super) fn round_evicted(
        &mut self,
        key: &SessionKey,
        agent: AgentId,
        (signal, fate): (SignalId, Fate),
        now: Time,
    ) {
        let Some(pod) = self.agents.get(&agent).map(|a| a.name().clone()) else {
            return;
        };
        let Some(uid) = self.agents.get_mut(&agent).and_then(|a| a.held_mut(key)).map(|h| h.holding.uid) else {
            return;
        };
        let is_awaited = self.rounds.admits(key, agent, &pod);
        let generation = self.truth(key).filter(|t| !t.terminating).map(|t| t.generation);
        let round = self.rounds.begun(key, uid, generation, self.config.lease, now);
        (round.uid, round.generation) = (uid, generation);
        if is_awaited {
            self.rounds.wait(key, agent, Waiting { signal, fate, pod });
        } else {
            // Whoever takes a lease from now on has read the signal before it.
            round.not_before = now + with_drift(self.config.lease);
            self.counts.evicted(fate);
        }
    }

    /// The agent has obeyed. A copy that it has `kept` is carried on by an own write: nobody lost anything, and who writes is not
    /// among those that a change has evicted.
    pub(super) fn round_acknowledged(
        &mut self,
        agent: AgentId,
        key: &SessionKey,
        signal: SignalId,
        kept: bool,
        now: Time,
    ) {
        let Some(Waiting { fate, pod, .. }) = self.rounds.wait_no_more(key, agent, signal) else {
            return;
        };
        // What is gone is not carried on, whoever says so.
        if !kept || fate == Fate::Gone {
            self.round_left(key, pod, fate);
        }
        self.settle(key, now);
    }

    /// The pod counts as one that the change has evicted.
    fn round_left(&mut self, key: &SessionKey, pod: AgentName, fate: Fate) {
        self.counts.evicted(fate);
        if let Some(round) = self.rounds.by_key.get_mut(key) {
            round.pods.insert(pod);
        }
    }

    /// The agent has told all that it holds over a new stream. What it was signalled over an older one, up to
    /// `before`, it will not acknowledge any more: it has obeyed, or was just signalled again.
    pub(super) fn round_reconnected(&mut self, agent: AgentId, before: SignalId, now: Time) {
        let awaited: Vec<SessionKey> = self.rounds.by_agent.get(&agent).into_iter().flatten().cloned().collect();
        for key in awaited {
            self.round_acknowledged(agent, &key, before, false, now);
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
        if let Some(round) = self.rounds.by_key.get_mut(key) {
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
        if self.rounds.by_key.contains_key(key) {
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
        self.rounds.begun(key, uid, generation, self.config.lease, now).pods.extend(pods);
    }

    /// How many pods have been signalled a change of this session and have not acknowledged it yet.
    pub fn awaited(&self, key: &SessionKey) -> usize {
        self.rounds.by_key.get(key).map_or(0, |round| round.waiting.len())
    }

    /// People hear of pods that are silent, and nobody is waited for who has no lease any more.
    pub(super) fn poll_rounds(&mut self, now: Time) {
        for key in self.rounds.take_due(now) {
            match self.rounds.by_key.get(&key).map(|round| round.next) {
                Some(Next::Late) => self.tell_late(&key, now),
                Some(Next::Over) => self.leave_out(&key, now),
                None => {}
            }
        }
    }

    /// An acknowledgement takes milliseconds. People hear of pods that are silent while these may still serve old copies.
    fn tell_late(&mut self, key: &SessionKey, now: Time) {
        let Some(round) = self.rounds.by_key.get(key) else {
            return;
        };
        let until = round.waiting.keys().filter_map(|id| self.agents.get(id)).map(Agent::remembered_until).max();
        let pods: BTreeSet<AgentName> = round.waiting.values().map(|waiting| waiting.pod.clone()).collect();
        let late = Late {
            key: key.clone(),
            uid: self.truth(key).map_or(round.uid, |truth| truth.uid),
            pods: pods.into_iter().collect(),
            waited: now.saturating_since(round.started),
            lease_left: until.map_or(Duration::ZERO, |until| until.saturating_since(now)),
        };
        let due = round.started + with_drift(self.config.lease);
        self.rounds.again(key, Next::Over, due);
        // Nobody may be late but those that there was no room to wait for.
        if !late.pods.is_empty() {
            self.facts.push(Fact::Late(late));
        }
    }

    /// Whoever has not acknowledged and has no lease is silent. Who was granted one since is waited for until that has ended.
    fn leave_out(&mut self, key: &SessionKey, now: Time) {
        let Some(round) = self.rounds.by_key.get_mut(key) else {
            return;
        };
        let until = |id: &AgentId| self.agents.get(id).map_or(Time::ZERO, Agent::remembered_until);
        let leased = round.waiting.keys().map(until).chain([round.not_before]).max().filter(|until| *until > now);
        let silent: Vec<_> = round.waiting.extract_if(.., |id, _| until(id) <= now).collect();
        for (_, Waiting { pod, fate, .. }) in &silent {
            // If it lives on, it will drop its copy when its lease ends.
            self.counts.evicted(*fate);
            round.pods.insert(pod.clone());
            round.silent.insert(pod.clone());
        }
        for (agent, Waiting { pod, .. }) in silent {
            self.rounds.forget(key, agent, &pod);
        }
        match leased {
            Some(until) => self.rounds.again(key, Next::Over, until),
            None => self.settle(key, now),
        }
    }

    fn settle(&mut self, key: &SessionKey, now: Time) {
        if self.awaited(key) > 0 || self.rounds.by_key.get(key).is_some_and(|round| round.not_before > now) {
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
