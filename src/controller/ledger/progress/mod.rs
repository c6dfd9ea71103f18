//! How far the pods are with the latest spec of each session whose status does not say so yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use jiff::Timestamp;

use crate::api::MAX_CHANGED_KEYS;
use crate::core::lease::with_drift;
use crate::core::replica::{LATE_PART, Settled};
use crate::core::session::{SessionKey, Uid};
use crate::core::time::Time;

/// What is written about it is offered again after this, if the watch does not show it by then.
const AGAIN: Duration = Duration::from_mins(1);

/// A change that made pods drop their copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The generation that they were brought to.
    pub generation: u64,
    /// How many pods dropped a copy, or were silent.
    pub pods: usize,
    /// How many of them did not acknowledge before their leases ended.
    pub silent: usize,
    /// The names of the first keys that changed.
    pub keys: Vec<Arc<str>>,
    /// When it was over.
    pub at: Timestamp,
}

/// What can be said about a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody serves anything older.
    Settled(Option<Eviction>),
    /// Somebody who may serve something older is late to acknowledge.
    Waiting,
}

/// A session whose status is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The session.
    pub key: SessionKey,
    /// The object.
    pub uid: Uid,
    /// Its generation.
    pub generation: u64,
    /// What can be said about it.
    pub verdict: Verdict,
}

#[derive(Debug)]
struct Entry {
    uid: Uid,
    generation: u64,
    /// When this generation was seen first.
    since: Time,
    /// The latest generation of which all is settled.
    settled: Option<u64>,
    /// Pods that this replica has not heard of may have leases until then that it did not grant.
    blind_until: Time,
    eviction: Option<Eviction>,
    /// What was offered last, and when.
    offered: Option<(u64, bool, Time)>,
    /// When it is to be looked at.
    look_at: Option<Time>,
    /// Its place in the queue.
    ticket: Option<u64>,
}

/// The sessions whose status is behind.
#[derive(Debug)]
pub struct Progress {
    lease: Duration,
    entries: HashMap<SessionKey, Entry>,
    due: BTreeMap<u64, SessionKey>,
    tickets: u64,
    later: BTreeSet<(Time, SessionKey)>,
}

impl Progress {
    /// Nothing is behind. Leases have this length.
    pub fn new(lease: Duration) -> Self {
        Self { lease, entries: HashMap::new(), due: BTreeMap::new(), tickets: 0, later: BTreeSet::new() }
    }

    /// A session appeared (`new`), or its spec changed. Nothing is settled yet.
    pub fn changed(&mut self, key: &SessionKey, uid: Uid, generation: u64, new: bool, now: Time) {
        let lease_over = now + with_drift(self.lease);
        // Of the first generation there is nothing older. Of a later one, copies may be out that were leased by others.
        let blind_until = if new && generation > 1 { lease_over } else { now };
        match self.entries.get_mut(key) {
            Some(entry) if entry.uid == uid => {
                if generation < entry.generation {
                    // Etcd was restored from a backup.
                    (entry.settled, entry.offered) = (None, None);
                }
                if generation != entry.generation {
                    (entry.generation, entry.since) = (generation, now);
                }
                entry.blind_until = entry.blind_until.max(blind_until);
            }
            _ => {
                self.forget(key);
                let entry = Entry {
                    uid,
                    generation,
                    since: now,
                    settled: None,
                    blind_until,
                    eviction: None,
                    offered: None,
                    look_at: None,
                    ticket: None,
                };
                self.entries.insert(key.clone(), entry);
            }
        }
        self.look(key, now);
    }

    /// Everybody who was signalled has acknowledged, or has no lease any more.
    pub fn settled(&mut self, settled: &Settled, now: Time, wall: Timestamp) {
        let Some(entry) = self.entries.get_mut(&settled.key) else {
            return;
        };
        let Some(generation) = settled.generation.filter(|_| settled.object == Some(entry.uid)) else {
            return;
        };
        entry.settled = entry.settled.max(Some(generation));
        if !settled.pods.is_empty() {
            entry.eviction = Some(Eviction {
                generation,
                pods: settled.pods.len(),
                silent: settled.silent.len(),
                keys: settled.changed_keys.iter().take(MAX_CHANGED_KEYS).cloned().collect(),
                at: wall,
            });
        }
        self.look(&settled.key, now);
    }

    /// The status says all there is to say, or the session is gone.
    pub fn forget(&mut self, key: &SessionKey) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some(at) = entry.look_at {
            self.later.remove(&(at, key.clone()));
        }
        if let Some(ticket) = entry.ticket {
            self.due.remove(&ticket);
        }
    }

    /// Forgets the sessions for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&SessionKey) -> bool) {
        let gone: Vec<SessionKey> = self.entries.keys().filter(|key| !keep(key)).cloned().collect();
        for key in gone {
            self.forget(&key);
        }
        self.entries.shrink_to_fit();
    }

    /// Nobody knows of anything that goes on with this session, but its status is behind.
    pub fn behind(&mut self, key: &SessionKey, uid: Uid, generation: u64, now: Time) {
        if !self.entries.contains_key(key) {
            self.changed(key, uid, generation, false, now);
            if let Some(entry) = self.entries.get_mut(key) {
                entry.settled = Some(generation);
            }
            self.look(key, now);
        }
    }

    /// This replica has begun to lead. If it led before, what it had offered and not written by the end was dropped.
    pub fn begin(&mut self, now: Time) {
        for entry in self.entries.values_mut() {
            entry.offered = None;
        }
        self.look_at_all(now);
    }

    /// Everything is to be looked at: a list may say what was not known before.
    pub fn look_at_all(&mut self, now: Time) {
        let keys: Vec<SessionKey> = self.entries.keys().cloned().collect();
        for key in keys {
            self.look(&key, now);
        }
    }

    /// The next session of which something can be said, or nothing.
    pub fn next(&mut self, now: Time) -> Option<Due> {
        while let Some(first) = self.later.first()
            && first.0 <= now
        {
            let (_, key) = self.later.pop_first()?;
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.look_at = None;
            }
            self.look(&key, now);
        }
        while let Some((_, key)) = self.due.pop_first() {
            let lease = self.lease;
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.ticket = None;
            let verdict = match entry.verdict(lease, now) {
                Ok(verdict) => verdict,
                // Whoever asks may have read the clock before whoever told.
                Err(at) => {
                    entry.look_at = Some(at);
                    self.later.insert((at, key));
                    continue;
                }
            };
            let waiting = verdict == Verdict::Waiting;
            let offered = entry.offered.filter(|o| o.0 == entry.generation && o.1 == waiting && now < o.2 + AGAIN);
            let again = offered.map_or(now, |(_, _, at)| at) + AGAIN;
            entry.look_at = Some(again);
            self.later.insert((again, key.clone()));
            if offered.is_none() {
                entry.offered = Some((entry.generation, waiting, now));
                return Some(Due { uid: entry.uid, generation: entry.generation, verdict, key });
            }
        }
        None
    }

    /// What was given out could not be said yet. It is looked at again when there is news of it.
    pub fn withdrawn(&mut self, key: &SessionKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.offered = None;
        }
    }

    /// When something may come to be due by the passing of time alone.
    pub fn next_look(&self) -> Option<Time> {
        self.later.first().map(|(at, _)| *at)
    }

    /// How many sessions there are whose status is behind.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a session into the queue, now or when something can be said about it.
    fn look(&mut self, key: &SessionKey, now: Time) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Some(at) = entry.look_at.take() {
            self.later.remove(&(at, key.clone()));
        }
        match entry.verdict(self.lease, now) {
            Ok(_) if entry.ticket.is_some() => {}
            Ok(_) => {
                self.tickets += 1;
                entry.ticket = Some(self.tickets);
                self.due.insert(self.tickets, key.clone());
            }
            Err(at) => {
                entry.look_at = Some(at);
                self.later.insert((at, key.clone()));
            }
        }
    }
}

impl Entry {
    /// What can be said now, or when to look again.
    fn verdict(&self, lease: Duration, now: Time) -> Result<Verdict, Time> {
        if self.settled >= Some(self.generation) {
            if now < self.blind_until {
                return Err(self.blind_until);
            }
            return Ok(Verdict::Settled(self.eviction.clone()));
        }
        // Until then the status speaks of an older generation, and people would take its word for this one.
        let patience = self.since + lease / LATE_PART;
        if now < patience { Err(patience) } else { Ok(Verdict::Waiting) }
    }
}

#[cfg(test)]
mod tests;
