//! The promises, checked by an observer who knows every state that the truth ever had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::world::{Record, State, known, number, uid};
use super::{Process, Sim};
use crate::core::cache::{Copy, DropReason, Dropped};
use crate::core::digest::Digest;
use crate::core::signal::{Fate, Mark};

/// A promise that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub promise: &'static str,
    pub how: String,
}

/// What one process of an agent did with one session.
#[derive(Default)]
struct Track {
    life: u32,
    /// Index of the newest state that a GET read for it.
    read: usize,
    /// Index of the newest state that it served or was told of.
    floor: usize,
    /// States that cost it a copy.
    causes: BTreeSet<usize>,
    /// The last copy that a signal took from it.
    lost: Option<(u64, u64)>,
    /// GETs that were asked again since the last answer.
    again: u32,
}

/// What is known for the checks.
pub struct Checks {
    pub broken: Option<Broken>,
    /// For each session the newest state that was confirmed, and when.
    confirmed: Vec<Option<(usize, u64)>>,
    /// Etcd was restored from a backup. From then on only I1 and I4 are checked, and that everybody comes to hold the truth.
    pub restored: bool,
    tracks: BTreeMap<(usize, usize), Track>,
    /// How often something worth noticing happened, so that a generator that exercises nothing is noticed.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Checks {
    pub fn new(sessions: usize) -> Self {
        Self {
            broken: None,
            confirmed: vec![None; sessions],
            restored: false,
            tracks: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Etcd was restored from a backup, without so many commits.
    pub fn restored(&mut self, lost: usize) {
        self.restored = true;
        *self.counts.entry("lost").or_default() += lost as u64;
    }
}

fn equals(state: &State, copy: &Copy) -> bool {
    state.body.is_some_and(|b| !b.terminating && uid(b.uid) == copy.uid && known(b.map).digest == copy.digest)
}

/// Index of the last state that equals the copy.
fn last_equal(record: &Record, copy: &Copy) -> Option<usize> {
    record.states.iter().rposition(|s| equals(s, copy))
}

impl Sim {
    pub fn breaks(&mut self, promise: &'static str, how: impl FnOnce() -> String) {
        if self.checks.broken.is_none() {
            let how = how();
            self.tell(|| format!("BROKEN {promise}: {how}"));
            self.checks.broken = Some(Broken { promise, how });
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.checks.counts.entry(what).or_default() += 1;
    }

    fn track(&mut self, at: usize, record: usize) -> &mut Track {
        let life = self.agents[at].life;
        let track = self.checks.tracks.entry((at, record)).or_default();
        if track.life != life {
            *track = Track { life, ..Track::default() };
        }
        track
    }

    /// For how long an agent may serve what is not true any more: for the longest lease that it was told of.
    fn longest(&self, at: usize) -> u64 {
        let lease = self.agents[at].longest;
        lease + lease / 100 + 1
    }

    /// Whatever any agent could serve at this very moment must keep all promises.
    pub fn check(&mut self) {
        for at in 0..self.agents.len() {
            let agent = &self.agents[at];
            if !agent.alive || self.paused(Process::Agent(at, agent.life)) {
                continue;
            }
            let now = self.agent_now(at);
            for record in 0..self.setup.sessions {
                let name = self.world.records[record].key.name();
                if let Some(copy) = self.agents[at].shard.get(name, now).cloned() {
                    self.serves(at, record, &copy);
                }
            }
        }
    }

    fn serves(&mut self, at: usize, record: usize, copy: &Arc<Copy>) {
        let floor = self.track(at, record).floor;
        let confirmed = self.checks.confirmed[record];
        let (now, longest) = (self.now, self.longest(at));
        let truth = &self.world.records[record];
        let Some(last) = last_equal(truth, copy) else {
            return self.breaks("I1", || format!("agent {at} serves {copy:?}, which never was"));
        };
        let next = truth.states.get(last + 1).copied();
        if let Some((state, when)) = confirmed
            && last < state
        {
            let gone = truth.states[state].content().is_none();
            return self.breaks(if gone { "I4" } else { "I8" }, || {
                format!("agent {at} serves {copy:?}; a later state was confirmed at {when}")
            });
        }
        if last < floor && !self.checks.restored {
            return self.breaks("I5", || format!("agent {at} serves {copy:?} after it knew of a later state"));
        }
        if let Some(next) = next
            && now > next.at + longest
        {
            return self.breaks("I1", || format!("agent {at} serves {copy:?}, which changed at {}", next.at));
        }
        let read = truth.at_rv(copy.resource_version.0);
        let track = self.track(at, record);
        track.floor = track.floor.max(read);
    }

    /// An answer to a client that came at `when`, read for it or from the cache.
    pub fn answer(&mut self, at: usize, record: usize, copy: Option<&Arc<Copy>>, when: u64, cached: bool) {
        self.count(if copy.is_some() { "served" } else { "not found" });
        self.track(at, record).again = 0;
        let (floor, confirmed) = (self.track(at, record).floor, self.checks.confirmed[record]);
        let states = &self.world.records[record].states;
        let fits = |s: &State| copy.map_or(s.content().is_none(), |copy| equals(s, copy));
        let Some(last) = states.iter().rposition(fits) else {
            return self.breaks("I1", || format!("agent {at} answers {copy:?}: never so"));
        };
        let until = states.get(last + 1).map_or(u64::MAX, |s| s.at);
        let bound = if cached { when.saturating_sub(self.longest(at)) } else { when };
        let late = confirmed.is_some_and(|(state, since)| last < state && since <= when);
        if late {
            let how = || format!("agent {at} answers {copy:?} to a request after a confirmation");
            self.breaks("I8", how);
        } else if until < bound {
            let how = || format!("agent {at} answers {copy:?} at {when}, true until {until}");
            self.breaks("I1", how);
        } else if copy.is_some() && last < floor && !self.checks.restored {
            self.breaks("I5", || format!("agent {at} answers {copy:?}: it knew better"));
        }
    }

    /// An agent was told of a fate: it must not serve anything older from now on.
    pub fn told(&mut self, at: usize, record: usize, mark: Mark) {
        if let Some(state) = self.cause(record, mark) {
            let track = self.track(at, record);
            track.floor = track.floor.max(state);
        }
    }

    pub fn cause(&self, record: usize, mark: Mark) -> Option<usize> {
        let truth = &self.world.records[record];
        match mark.fate {
            Fate::Stale { below } => truth.reached(number(mark.uid), below),
            Fate::Gone => truth.gone(number(mark.uid)),
        }
    }

    /// A copy was lost, by a signal if there is a mark.
    pub fn evicted(&mut self, at: usize, record: usize, dropped: &Dropped, mark: Option<Mark>) {
        self.tell(|| format!("agent {at} drops {dropped:?}"));
        self.count("evicted");
        if self.checks.restored || matches!(dropped.reason, DropReason::Capacity | DropReason::Reset) {
            return;
        }
        let truth = &self.world.records[record];
        let copy = &dropped.copy;
        let read = truth.at_rv(copy.resource_version.0);
        let validated = self.checks.tracks.get(&(at, record)).map_or(0, |t| t.read);
        let read = if equals(&truth.states[validated], copy) { read.max(validated) } else { read };
        if truth.states[read..].iter().all(|s| equals(s, copy)) {
            return self.breaks("I2", || format!("agent {at} loses {copy:?}, which is true"));
        }
        let Some(cause) = mark.and_then(|mark| self.cause(record, mark)) else {
            return;
        };
        let me = Some((at, self.agents[at].life));
        let states = &self.world.records[record].states;
        let changes = (read + 1).min(cause)..=cause;
        if states[read].body.map(|b| b.uid) == states[cause].body.map(|b| b.uid)
            && states[changes].iter().all(|s| s.by == me)
        {
            return self.breaks("I3", || format!("agent {at} loses {copy:?} by its own write"));
        }
        let lost = Some((number(copy.uid), copy.generation));
        let track = self.track(at, record);
        track.lost = lost;
        if !track.causes.insert(cause) {
            self.breaks("I3", || format!("agent {at} is evicted twice by one change"));
        }
    }

    /// A GET that counts read the state at this resourceVersion.
    pub fn read(&mut self, at: usize, record: usize, rv: u64) {
        let state = self.world.records[record].at_rv(rv);
        self.track(at, record).read = state;
    }

    /// A GET brought a copy that was not held.
    pub fn restored(&mut self, at: usize, record: usize, copy: &Arc<Copy>) {
        self.count("restored");
        if !self.checks.restored && self.track(at, record).lost == Some((number(copy.uid), copy.generation)) {
            self.breaks("I3", || format!("agent {at} restores {copy:?}, which it had to drop"));
        }
    }

    pub fn asked_again(&mut self, at: usize, record: usize) {
        self.count("asked again");
        let track = self.track(at, record);
        track.again += 1;
        if track.again > 200 {
            self.breaks("live", || format!("agent {at} asks again and again"));
        }
    }

    /// An own write was answered.
    pub fn wrote(
        &mut self,
        at: usize,
        record: usize,
        copy: &Copy,
        before: Option<Arc<Copy>>,
        wrote: Digest,
        dropped: Option<&Dropped>,
    ) {
        self.count("written");
        let state = self.world.records[record].at_rv(copy.resource_version.0);
        let track = self.track(at, record);
        track.floor = track.floor.max(state);
        let same = before.is_some_and(|b| b.uid == copy.uid && b.generation <= copy.generation);
        if same
            && !self.checks.restored
            && wrote == copy.digest
            && dropped.is_some_and(|d| d.reason == DropReason::Foreign)
        {
            self.breaks("I3", || format!("agent {at} is evicted by its own write"));
        }
    }

    /// An own write has an unknown outcome: what its agent serves from now on must be what it left, if it was done, or later.
    pub fn wrote_unknown(&mut self, at: usize, record: usize, through: u64) {
        self.count("unknown");
        let state = self.world.records[record].at_rv(through);
        let track = self.track(at, record);
        track.floor = track.floor.max(state);
    }

    /// Whoever wrote was told that nobody serves anything older than this.
    pub fn confirmed(&mut self, record: usize, state: Option<usize>) {
        self.count("confirmed");
        let now = self.now;
        if let Some(state) = state {
            let known = &mut self.checks.confirmed[record];
            if known.is_none_or(|(k, _)| k < state) {
                *known = Some((state, now));
            }
        }
    }
}

impl Sim {
    /// After everything has worked for a while, each agent holds the truth and serves it from its cache, and nothing is
    /// left over of what happened before.
    pub fn left_over(&mut self) {
        for at in 0..self.agents.len() {
            let (agent, now) = (&self.agents[at], self.agent_now(at));
            let mut wrong = Vec::new();
            if agent.shard.leased_until(now).is_none() {
                wrong.push("has no lease");
            }
            if !agent.gets.is_empty() || agent.shard.in_flight() > 0 {
                wrong.push("has requests in flight");
            }
            if !agent.confirms.is_empty() {
                wrong.push("waits for a confirmation");
            }
            let held = agent.shard.len();
            for record in 0..self.setup.sessions {
                let truth = &self.world.records[record];
                let copy = agent.shard.get(truth.key.name(), now);
                let current =
                    truth.last().content().is_none() && copy.is_none() || copy.is_some_and(|c| equals(truth.last(), c));
                // Beyond its limits an agent holds less, or without cover.
                let limit = self.setup.entries.min(self.setup.holdings);
                if !current && self.setup.sessions <= limit {
                    wrong.push("does not serve the truth");
                }
            }
            if held > self.setup.entries {
                wrong.push("holds too much");
            }
            if !wrong.is_empty() {
                return self.breaks("live", || format!("agent {at} {wrong:?}"));
            }
        }
        let agents = self.agents.len();
        for at in 0..self.replicas.len() {
            let reach = (0..agents).filter(|a| self.setup.reach[*a] >> at & 1 == 1);
            let reach = reach.count();
            let left = self.replicas[at].core.left_over(reach);
            if let Some(left) = left {
                return self.breaks("live", || format!("replica {at} {left}"));
            }
        }
    }
}
