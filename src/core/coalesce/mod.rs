//! A bounded queue of work keyed by object: at most one piece waits per key, and the latest wins.
//!
//! An unbounded queue of writes is how controllers run out of memory when the API server is slow; a queue that keeps
//! each key once is bounded by the objects that there are, and this one also by its capacity.

use std::collections::btree_map::BTreeMap;
use std::hash::Hash;
use std::time::Duration;

use hashbrown::HashMap;

use super::time::Time;

/// Work that can take in newer work for the same key.
pub trait Coalesce {
    /// Becomes what doing `self` and then `newer` would come to.
    fn absorb(&mut self, newer: Self);
}

/// How long failed work waits: twice as long each time, up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// However often it failed.
    pub longest: Duration,
}

impl Backoff {
    /// How long to wait after so many failures in a row.
    pub fn after(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// What became of work that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits.
    Queued,
    /// It joined work that waits already.
    Merged,
    /// The queue is full: it was dropped. Only for a key that the queue does not hold yet.
    Full,
}

/// Work taken from the queue. It counts as in flight until [`CoalescingQueue::finish`] or
/// [`CoalescingQueue::retry`], and no other work for its key is given out before that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken<K, V> {
    /// The object.
    pub key: K,
    /// The work.
    pub value: V,
    /// How often work for this key has failed in a row.
    pub failures: u32,
}

/// When work may be taken, and in which order it came.
type Place = (Time, u64);

#[derive(Debug)]
struct Waiting<V> {
    value: V,
    place: Place,
}

#[derive(Debug)]
struct Entry<V> {
    waiting: Option<Waiting<V>>,
    in_flight: bool,
    /// The object went while its work was in flight: a failure of that work is no reason to try again.
    removed: bool,
    failures: u32,
}

/// The queue. Oldest first among what is ready.
#[derive(Debug)]
pub struct CoalescingQueue<K, V> {
    capacity: usize,
    backoff: Backoff,
    entries: HashMap<K, Entry<V>>,
    order: BTreeMap<Place, K>,
    tickets: u64,
    in_flight: usize,
}

impl<K: Clone + Eq + Hash, V: Coalesce> CoalescingQueue<K, V> {
    /// An empty queue for at most `capacity` keys, waiting or in flight.
    pub fn new(capacity: usize, backoff: Backoff) -> Self {
        Self { capacity, backoff, entries: HashMap::new(), order: BTreeMap::new(), tickets: 0, in_flight: 0 }
    }

    /// Adds work that may be taken from `ready_at` on. Work that waits for the same key keeps its place.
    pub fn insert(&mut self, key: K, value: V, ready_at: Time) -> Offered {
        let place = (ready_at, self.tickets);
        self.tickets += 1;
        if let Some(entry) = self.entries.get_mut(&key) {
            if let Some(waiting) = &mut entry.waiting {
                waiting.value.absorb(value);
                return Offered::Merged;
            }
            entry.waiting = Some(Waiting { value, place });
            return Offered::Queued;
        }
        if self.entries.len() >= self.capacity {
            return Offered::Full;
        }
        let entry = Entry { waiting: Some(Waiting { value, place }), in_flight: false, removed: false, failures: 0 };
        self.entries.insert(key.clone(), entry);
        self.order.insert(place, key);
        Offered::Queued
    }

    /// Drops what waits for an object that is gone, and makes sure that what is in flight is not tried again.
    pub fn remove(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let waiting = entry.waiting.take();
        if entry.in_flight {
            entry.removed = true;
        } else {
            if let Some(waiting) = waiting {
                self.order.remove(&waiting.place);
            }
            self.entries.remove(key);
        }
    }

    /// Drops everything that waits; what is in flight is not tried again.
    pub fn clear(&mut self) {
        self.order.clear();
        self.entries.retain(|_, entry| {
            entry.waiting = None;
            entry.removed = true;
            entry.in_flight
        });
    }

    /// Takes the oldest work that is ready.
    pub fn take(&mut self, now: Time) -> Option<Taken<K, V>> {
        let first = self.order.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        let key = first.remove();
        let entry = self.entries.get_mut(&key)?;
        let waiting = entry.waiting.take()?;
        entry.in_flight = true;
        entry.removed = false;
        self.in_flight += 1;
        Some(Taken { value: waiting.value, failures: entry.failures, key })
    }

    /// The work that was taken for `key` is done, or will not be done.
    pub fn finish(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.in_flight) else {
            return;
        };
        self.in_flight -= 1;
        entry.in_flight = false;
        entry.removed = false;
        entry.failures = 0;
        match &entry.waiting {
            Some(waiting) => {
                self.order.insert(waiting.place, key.clone());
            }
            None => {
                self.entries.remove(key);
            }
        }
    }

    /// The work that was taken failed: it waits again, together with what came in the meantime. Says whether it does;
    /// it does not if the object was removed.
    pub fn retry(&mut self, key: &K, mut value: V, now: Time) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.in_flight) else {
            return false;
        };
        self.in_flight -= 1;
        entry.in_flight = false;
        entry.failures = entry.failures.saturating_add(1);
        let again = !entry.removed;
        let newer = entry.waiting.take();
        entry.removed = false;
        let value = match (again, newer) {
            (true, None) => value,
            (true, Some(newer)) => {
                value.absorb(newer.value);
                value
            }
            (false, Some(newer)) => newer.value,
            (false, None) => {
                self.entries.remove(key);
                return false;
            }
        };
        let place = (now + self.backoff.after(entry.failures), self.tickets);
        self.tickets += 1;
        entry.waiting = Some(Waiting { value, place });
        self.order.insert(place, key.clone());
        again
    }

    /// What waits for `key`.
    pub fn waiting(&self, key: &K) -> Option<&V> {
        self.entries.get(key)?.waiting.as_ref().map(|waiting| &waiting.value)
    }

    /// When the first work becomes ready that is not in flight; it may be past.
    pub fn next_ready(&self) -> Option<Time> {
        self.order.first_key_value().map(|(place, _)| place.0)
    }

    /// How many keys the queue holds, waiting or in flight.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many keys have work in flight.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests;
