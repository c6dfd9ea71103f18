//! The copies of a pod, and every decision about them.
//!
//! A pod keeps several shards so that a hit waits for nobody; each is whole in itself, with its own view of the leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;

use super::copy::{Copy, DropReason, Dropped, LocalValues};
use super::flight::{FlightId, InFlight};
use super::recency::Recency;
use super::reports::{Holding, Reporter};
use crate::core::lease::{Grant, LeaseTable, Provisional, StreamId};
use crate::core::rules::Rule;
use crate::core::session::Uid;
use crate::core::signal::{Barrier, Fate};
use crate::core::time::Time;

mod restores;
mod signals;
mod writes;

/// How much a shard may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Copies, at most.
    pub entries: usize,
    /// Bytes of memory that they take together, at most, by estimate.
    pub bytes: usize,
}

/// What a request that found no copy to serve is to do.
#[derive(Debug)]
pub enum Join {
    /// There is one after all.
    Serve(Arc<Copy>),
    /// Wait for this GET, which somebody else sends.
    Follow(FlightId),
    /// Send this GET, when no other one of this session is in flight.
    Lead(FlightId),
}

/// What the answer to a GET means for those who wait for it.
#[derive(Debug)]
pub enum Restored {
    /// Serve this: the copy, and whether it equals the one that was held before (a validated hit).
    Serve {
        /// What to serve.
        copy: Arc<Copy>,
        /// Whether the copy held before was confirmed rather than replaced.
        validated: bool,
        /// The copy that it replaced, if it differs.
        dropped: Option<Dropped>,
    },
    /// The session does not exist.
    NotFound {
        /// The copy that was held until now.
        dropped: Option<Dropped>,
    },
    /// The answer may be older than what is known by now: send the GET again.
    AskAgain,
}

/// What the answer to an own write means.
#[derive(Debug)]
pub struct Written {
    /// The session as the write left it; `None` if it is being deleted, which counts as not found.
    pub session: Option<Arc<Copy>>,
    /// The copy that clients and subscribers must see evicted, because somebody else's change is in the answer.
    pub dropped: Option<Dropped>,
}

#[derive(Debug)]
struct Entry {
    copy: Arc<Copy>,
    /// Its sequence number (see [`super::reports`]).
    sequence: u64,
    /// Cover until a replica has processed that number.
    provisional: Provisional,
    /// An own write is in flight and an eviction of what is below this generation came: unservable until the write's
    /// answer decides, or a state of this generation or a later one turns out to equal the copy.
    suspended: Option<u64>,
    local: Option<Arc<LocalValues>>,
    /// Last use, stored by hits that share the shard.
    used: AtomicU64,
    /// Where it stands in the recency queue.
    queued: Time,
    footprint: usize,
}

impl Entry {
    /// Whether this later state of the same object has the metadata of the copy, which then stays.
    ///
    /// Its generation is not taken over: a state that comes by a signal is hearsay, and must not lift a copy above the
    /// evictions that are still to come.
    fn equals(&mut self, state: Barrier) -> bool {
        let Fate::Stale { below } = state.mark.fate else {
            return false;
        };
        let equal =
            self.copy.uid == state.mark.uid && Some(self.copy.digest) == state.digest && Rule::CompareDigest.on();
        if equal {
            // A later state than the one that made it unservable equals it.
            self.suspended = self.suspended.filter(|outdated| *outdated > below);
        }
        equal
    }
}

/// Some of the copies of a pod.
#[derive(Debug)]
pub struct Shard {
    limits: Limits,
    lease_length: Duration,
    leases: LeaseTable,
    entries: HashMap<Arc<str>, Entry>,
    flights: HashMap<Arc<str>, InFlight>,
    recency: Recency,
    bytes: usize,
    last_flight: u64,
    /// Copies that had to make room, until somebody asks.
    crowded_out: Vec<Dropped>,
}

impl Shard {
    /// An empty shard without any lease.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lease_length: Duration::ZERO,
            leases: LeaseTable::default(),
            entries: HashMap::new(),
            flights: HashMap::new(),
            recency: Recency::default(),
            bytes: 0,
            last_flight: 0,
            crowded_out: Vec::new(),
        }
    }

    /// The copy of `name`, if it may be served at `now` without asking anyone. `now` must have been read from the
    /// clock after the request arrived.
    #[inline]
    pub fn get(&self, name: &str, now: Time) -> Option<&Arc<Copy>> {
        self.get_named(name, now).map(|(_, copy)| copy)
    }

    /// The same with the name, so that a caller can keep both without allocating.
    #[inline]
    pub fn get_named(&self, name: &str, now: Time) -> Option<(&Arc<str>, &Arc<Copy>)> {
        let (name, entry) = self.entries.get_key_value(name)?;
        if !self.servable(entry, now) {
            return None;
        }
        entry.used.store(now.as_nanos(), Ordering::Relaxed);
        Some((name, &entry.copy))
    }

    /// Whether [`Self::get`] would find something at `now`. It does not count as a use.
    pub fn is_servable(&self, name: &str, now: Time) -> bool {
        self.entries.get(name).is_some_and(|entry| self.servable(entry, now))
    }

    #[inline]
    fn servable(&self, entry: &Entry, now: Time) -> bool {
        entry.suspended.is_none() && self.leases.covers(entry.sequence, &entry.provisional, now)
    }

    /// The copy of `name` whether or not it may be served, for diagnosis.
    pub fn peek(&self, name: &str) -> Option<&Arc<Copy>> {
        self.entries.get(name).map(|e| &e.copy)
    }

    /// A replica told how long leases are, and will be from now on.
    pub fn set_lease_length(&mut self, length: Duration) {
        self.lease_length = length;
    }

    /// A heartbeat was answered.
    pub fn grant(&mut self, stream: StreamId, length: Duration, grant: Grant, now: Time) {
        self.leases.grant(stream, length, grant, now);
    }

    /// A replica takes its lease back: it is about to stop.
    pub fn revoke(&mut self, stream: StreamId) {
        self.leases.revoke(stream);
    }

    /// Every lease ends at once: nobody tells this cache anything any more.
    pub fn revoke_all(&mut self) {
        self.leases.clear();
    }

    /// When the last lease ends; `None` if none is in force.
    pub fn leased_until(&self, now: Time) -> Option<Time> {
        self.leases.in_force_until(now)
    }

    /// All knowledge is void: etcd was restored from a backup. Drops every copy and every lease; what is in flight may
    /// have been read before, and does not count.
    pub fn reset(&mut self, reporter: &mut impl Reporter) -> Vec<Dropped> {
        self.leases.clear();
        for flights in self.flights.values_mut() {
            flights.void();
        }
        let names: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        names.iter().filter_map(|name| self.drop_copy(name, DropReason::Reset, reporter)).collect()
    }

    /// Holdings with a sequence number up to `through`, for a new stream's inventory.
    pub fn inventory(&self, through: u64) -> impl Iterator<Item = (&Arc<str>, Holding)> {
        self.entries.iter().filter(move |(_, e)| e.sequence <= through).map(|(name, e)| (name, holding(&e.copy)))
    }

    /// Keeps a value that is true only inside this pod beside the copy `of`. False if that copy is not held any more.
    pub fn set_local(&mut self, name: &str, of: &Copy, key: &str, value: &str) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        if entry.copy.uid != of.uid || entry.copy.digest != of.digest {
            return false;
        }
        let local = Arc::make_mut(entry.local.get_or_insert_default());
        local.insert(key.to_owned(), value.to_owned());
        true
    }

    /// The values kept beside the copy `of`.
    pub fn local(&self, name: &str, of: &Copy) -> Option<&Arc<LocalValues>> {
        let entry = self.entries.get(name)?;
        (entry.copy.uid == of.uid && entry.copy.digest == of.digest).then_some(entry.local.as_ref()).flatten()
    }

    /// Sessions for which a restore or a write is in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Copies that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no copy is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that the copies take, by estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies that were used at or after `since`, with their last use.
    pub fn used_since(&self, since: Time) -> impl Iterator<Item = (&Arc<str>, Uid, Time)> {
        self.entries.iter().filter_map(move |(name, entry)| {
            let used = Time::from_nanos(entry.used.load(Ordering::Relaxed));
            (used >= since).then_some((name, entry.copy.uid, used))
        })
    }

    /// Copies that were dropped to make room since this was asked last. Ask after each change: they wait here.
    pub fn take_crowded_out(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.crowded_out)
    }

    /// Names of all copies, for diagnosis.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    /// Puts a copy in the place of whatever was held, and returns that.
    fn adopt(
        &mut self,
        name: &str,
        copy: Copy,
        provisional: Provisional,
        local: Option<Arc<LocalValues>>,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> (Arc<Copy>, Option<Arc<Copy>>) {
        let footprint = copy.footprint(name);
        let copy = Arc::new(copy);
        let old = self.take(name);
        let key: Arc<str> = old.as_ref().map_or_else(|| name.into(), |(key, _)| key.clone());
        let old = old.map(|(_, entry)| entry);
        let sequence = match &old {
            Some(old) if !Rule::NewCopyNewSequence.on() => {
                reporter.held(&key, holding(&copy));
                old.sequence
            }
            _ => reporter.held(&key, holding(&copy)),
        };
        self.bytes += footprint;
        self.recency.insert(now, key.clone());
        self.entries.insert(
            key,
            Entry {
                copy: copy.clone(),
                sequence,
                provisional,
                suspended: None,
                local,
                used: AtomicU64::new(now.as_nanos()),
                queued: now,
                footprint,
            },
        );
        self.make_room(reporter);
        (copy, old.map(|e| e.copy))
    }

    fn make_room(&mut self, reporter: &mut impl Reporter) {
        while self.entries.len() > self.limits.entries || self.bytes > self.limits.bytes {
            let entries = std::cell::RefCell::new(&mut self.entries);
            let popped = self.recency.pop(
                |name| {
                    entries.borrow().get(name).map_or(Time::ZERO, |e| Time::from_nanos(e.used.load(Ordering::Relaxed)))
                },
                |name, queued| {
                    if let Some(entry) = entries.borrow_mut().get_mut(name) {
                        entry.queued = queued;
                    }
                },
            );
            let Some(name) = popped else { return };
            let dropped = self.drop_copy(&name, DropReason::Capacity, reporter);
            self.crowded_out.extend(dropped);
        }
    }

    /// A copy below this generation is outdated: dropped, or if an own write is in flight, unservable until the answer
    /// decides.
    fn outdated(&mut self, name: &str, below: u64, reporter: &mut impl Reporter) -> Option<Dropped> {
        if self.writes_in_flight(name) && Rule::OwnWriteDecides.on() {
            self.suspend(name, below);
            return None;
        }
        self.drop_copy(name, DropReason::Stale, reporter)
    }

    fn drop_copy(&mut self, name: &str, reason: DropReason, reporter: &mut impl Reporter) -> Option<Dropped> {
        let (name, entry) = self.take(name)?;
        reporter.released(&name);
        Some(Dropped { name, copy: entry.copy, reason, used: Time::from_nanos(entry.used.into_inner()) })
    }

    fn take(&mut self, name: &str) -> Option<(Arc<str>, Entry)> {
        let (name, entry) = self.entries.remove_entry(name)?;
        self.bytes -= entry.footprint;
        self.recency.remove(entry.queued, &name);
        Some((name, entry))
    }

    fn suspend(&mut self, name: &str, below: u64) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.suspended = entry.suspended.max(Some(below));
        }
    }

    fn is_suspended(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.suspended.is_some())
    }

    fn writes_in_flight(&self, name: &str) -> bool {
        self.flights.get(name).is_some_and(|f| !f.writes.is_empty())
    }
}

/// Whether `copy` is an older state of the name than `than`.
fn older(copy: &Copy, than: &Copy) -> bool {
    if copy.uid == than.uid { copy.generation < than.generation } else { copy.resource_version < than.resource_version }
}

fn holding(copy: &Copy) -> Holding {
    Holding { uid: copy.uid, generation: copy.generation, digest: copy.digest, resource_version: copy.resource_version }
}

fn dropped(name: &str, copy: Arc<Copy>, reason: DropReason, used: Time) -> Dropped {
    Dropped { name: name.into(), copy, reason, used }
}
