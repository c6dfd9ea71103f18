//! The copies of a pod, and every decision about them.
//!
//! A pod keeps several shards so that a hit waits for nobody; each is whole in itself, with its own view of the leases. They
//! share the room for what clients last had, and nothing else.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::copy::{Copy, DropReason, Dropped};
use super::flight::{FlightId, InFlight};
use super::formers::Formers;
use super::recency::Recency;
use super::renewed::Renewed;
use super::reports::{Holding, Reporter};
use super::used::Used;
use crate::core::lease::{Grant, LeaseTable, Provisional, StreamId};
use crate::core::rules::Rule;
use crate::core::session::Uid;
use crate::core::time::Time;

#[cfg(test)]
mod base_tests;
mod beside;
#[cfg(test)]
mod beside_tests;
mod entries;
mod restores;
mod signals;
mod writes;

pub use beside::{Beside, LocalChange};
use entries::{Carried, Entries, Entry};

/// How much a shard may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Copies, at most.
    pub entries: usize,
    /// Bytes of memory that they take together, at most, by estimate.
    pub bytes: usize,
}

/// What the clients of a cache are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Each use of a copy begins the session's idle timeout anew. Else only [`Shard::renew`] does.
    pub uses_renew: bool,
    /// Clients keep no copies of their own to take a difference from, so the cache remembers what they last had: beside its
    /// copies, for up to an eighth of its limits.
    pub remember_given: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self { uses_renew: true, remember_given: false }
    }
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
    /// An own write of which nobody knows may have come after it, or etcd was restored: it is not what clients last had.
    pub overwritten: bool,
}

/// Some of the copies of a pod.
#[derive(Debug)]
pub struct Shard {
    limits: Limits,
    lease_length: Duration,
    leases: LeaseTable,
    entries: Entries,
    flights: HashMap<Arc<str>, InFlight>,
    recency: Recency,
    bytes: usize,
    /// Copies that have an idle timeout.
    timed: usize,
    last_flight: u64,
    /// Copies that had to make room, until somebody asks.
    crowded_out: Vec<Dropped>,
    habits: Habits,
    formers: Formers,
}

impl Shard {
    /// An empty shard without any lease.
    pub fn new(limits: Limits) -> Self {
        Self::with_hasher(limits, DefaultHashBuilder::default())
    }

    /// The same with a hasher of the caller's, who then need not hash a name twice to find its shard and its copy.
    pub fn with_hasher(limits: Limits, hasher: DefaultHashBuilder) -> Self {
        Self {
            limits,
            lease_length: Duration::ZERO,
            leases: LeaseTable::default(),
            entries: Entries::with_hasher(hasher),
            flights: HashMap::new(),
            recency: Recency::default(),
            bytes: 0,
            timed: 0,
            last_flight: 0,
            crowded_out: Vec::new(),
            habits: Habits::default(),
            formers: Formers::default(),
        }
    }

    /// The copy of `name`, if it may be served at `now` without asking anyone. `now` must have been read from the
    /// clock after the request arrived.
    #[inline]
    pub fn get(&self, name: &str, now: Time) -> Option<&Arc<Copy>> {
        self.get_hashed(name, self.hash(name), || now)
    }

    /// The same for a name whose [`Self::hash`] is known; the clock is read when the copy has been found.
    #[inline]
    pub fn get_hashed(&self, name: &str, hash: u64, now: impl FnOnce() -> Time) -> Option<&Arc<Copy>> {
        self.give(self.entries.get_hashed(name, hash)?, now).map(|entry| &entry.copy)
    }

    /// The entry, whose copy is given to a client, if it may be.
    #[inline]
    fn give<'a>(&self, entry: &'a Entry, now: impl FnOnce() -> Time) -> Option<&'a Entry> {
        let now = now();
        if !self.servable(entry, now) {
            return None;
        }
        entry.used.given(now);
        Some(entry)
    }

    /// The hash by which this shard finds a name: that of the hasher it was made with.
    #[inline]
    pub fn hash(&self, name: &str) -> u64 {
        self.entries.hash(name)
    }

    /// [`Self::get`] for whoever gives the copy to no client.
    pub fn find(&self, name: &str, now: Time) -> Option<&Arc<Copy>> {
        let entry = self.entries.get(name).filter(|entry| self.servable(entry, now))?;
        entry.used.touched(now);
        Some(&entry.copy)
    }

    /// Whether [`Self::get`] would find something at `now`. It does not count as a use.
    pub fn is_servable(&self, name: &str, now: Time) -> bool {
        self.entries.get(name).is_some_and(|entry| self.servable(entry, now))
    }

    /// Until when [`Self::get`] would find the copy, if nothing more is heard; `None` if it would not at `now`.
    pub fn covered_until(&self, name: &str, now: Time) -> Option<Time> {
        let entry = self.entries.get(name).filter(|entry| entry.suspended.is_none())?;
        self.leases.covered_until(entry.sequence, &entry.provisional, now)
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

    /// How long leases are, as a replica told last.
    pub fn lease_length(&self) -> Duration {
        self.lease_length
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
        self.formers.clear();
        for flights in self.flights.values_mut() {
            flights.void(true);
        }
        let names: Vec<Arc<str>> = self.names().cloned().collect();
        names.iter().filter_map(|name| self.drop_copy(name, DropReason::Reset, reporter)).collect()
    }

    /// Holdings with a sequence number up to `through`, for a new stream's inventory.
    pub fn inventory(&self, through: u64) -> impl Iterator<Item = (&Arc<str>, Holding)> {
        self.entries.iter().filter(move |e| e.sequence <= through).map(|e| (&e.copy.name, e.holding()))
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
        self.entries.len() == 0
    }

    /// Bytes that the copies take, by estimate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies that have an idle timeout, as far as they tell.
    pub fn timed(&self) -> usize {
        self.timed
    }

    /// Copies whose sessions were used at or after `since`, with their last use.
    pub fn used_since(&self, since: Time) -> impl Iterator<Item = (&Arc<str>, Uid, Time)> {
        self.entries.iter().filter_map(move |entry| {
            let used = self.last_use(entry)?;
            (used >= since).then_some((&entry.copy.name, entry.copy.uid, used))
        })
    }

    /// Copies that were dropped to make room since this was asked last. Ask after each change: they wait here.
    pub fn take_crowded_out(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.crowded_out)
    }

    /// Names of all copies, for diagnosis.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().map(|entry| &entry.copy.name)
    }

    /// Puts a copy in the place of whatever was held, and returns that.
    fn adopt(
        &mut self,
        name: &str,
        mut copy: Copy,
        provisional: Provisional,
        carried: Carried,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> (Arc<Copy>, Option<Arc<Copy>>) {
        let old = self.take(name);
        if let Some(old) = &old {
            copy.name = old.copy.name.clone();
        }
        let renewal = self.renewal_for(name, &copy, old.as_ref());
        let copy = Arc::new(copy);
        let given = old.as_ref().is_some_and(|old| self.replaced(name, old, &copy));
        let sequence = reporter.held(&copy.name, holding(&copy, carried.since));
        let sequence = match &old {
            Some(old) if !Rule::NewCopyNewSequence.on() => old.sequence,
            _ => sequence,
        };
        self.timed += usize::from(copy.facts.has_timeout());
        let used = Used::new(now);
        if given {
            used.given(now);
        }
        let renewed = Renewed::new(renewal);
        let entry = Entry { copy: copy.clone(), sequence, provisional, suspended: None, carried, used, renewed };
        self.bytes += entry.footprint();
        self.entries.insert(entry);
        self.make_room(reporter);
        (copy, old.map(|e| e.copy))
    }

    fn make_room(&mut self, reporter: &mut impl Reporter) {
        while self.entries.len() > self.limits.entries || self.bytes > self.limits.bytes {
            let last_use = |name: &str| self.entries.get(name).map(|entry| entry.used.last());
            let all = || self.entries.iter().map(|entry| (entry.used.last(), &entry.copy.name));
            let popped = self.recency.pop(last_use, all);
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
        let entry = self.take(name)?;
        reporter.released(&entry.copy.name);
        self.departed(&entry, reason);
        let used = self.last_use(&entry).unwrap_or(Time::ZERO);
        Some(Dropped { copy: entry.copy, reason, used })
    }

    fn take(&mut self, name: &str) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.bytes -= entry.footprint();
        self.timed -= usize::from(entry.copy.facts.has_timeout());
        Some(entry)
    }

    fn suspend(&mut self, name: &str, below: u64) {
        if let Some(entry) = self.entries.get_mut(name) {
            // Generations begin at 1: nothing is below that either.
            entry.suspended = entry.suspended.max(NonZeroU64::new(below.max(1)));
        }
    }

    /// Whether a copy waits for an own write's outcome, and cannot be served until then.
    pub fn is_suspended(&self, name: &str) -> bool {
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

fn holding(copy: &Copy, since: u64) -> Holding {
    let Copy { uid, generation, digest, resource_version, .. } = *copy;
    Holding { uid, generation, digest, resource_version, since }
}

fn dropped(copy: Arc<Copy>, reason: DropReason, used: Time) -> Dropped {
    Dropped { copy, reason, used }
}
