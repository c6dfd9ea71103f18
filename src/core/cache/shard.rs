//! The copies of a pod, and every decision about them.
//!
//! A pod keeps several shards so that a hit waits for nobody; each is whole in itself, with its own view of the leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;

use super::copy::{Answer, Copy, DropReason, Dropped, LocalValues, Observed};
use super::flight::{FlightId, InFlight, Restore, Write};
use super::recency::Recency;
use super::reports::{Holding, Reporter};
use crate::core::digest::Digest;
use crate::core::lease::{Grant, LeaseTable, Provisional, StreamId};
use crate::core::rules::Rule;
use crate::core::session::Uid;
use crate::core::signal::{Barrier, Fate, Mark};
use crate::core::time::Time;

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

    /// A request wants `name`, and [`Self::get`] found nothing to serve.
    pub fn join(&mut self, name: &str, now: Time) -> Join {
        if let Some(copy) = self.get(name, now) {
            return Join::Serve(copy.clone());
        }
        self.last_flight += 1;
        let id = FlightId(self.last_flight);
        let flights = match self.flights.get_mut(name) {
            Some(flights) => flights,
            None => self.flights.entry(name.into()).or_default(),
        };
        // A GET that was sent before this request came may have read what was already changed when it came.
        let open = |r: &&Restore| r.sent.is_none() || !Rule::NoLateJoin.on();
        if let Some(waiting) = flights.restores.iter().find(open) {
            return Join::Follow(waiting.id);
        }
        flights.restores.push(Restore { id, sent: None, fence: None });
        Join::Lead(id)
    }

    /// The GET `id` is sent now.
    pub fn restore_sent(&mut self, name: &str, id: FlightId, now: Time) {
        let cover = self.leases.provisional(self.lease_length, now);
        if let Some(flight) = self.restore_mut(name, id) {
            flight.sent = Some(cover);
            flight.fence = None;
        }
    }

    /// The GET `id` was answered. Unless it must be sent again, it is over.
    pub fn restore_answered(
        &mut self,
        name: &str,
        id: FlightId,
        answer: Answer,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Restored {
        let Some(flight) = self.restore_mut(name, id) else {
            return Restored::AskAgain;
        };
        let (fence, mut cover) = (flight.fence, flight.sent.unwrap_or(Provisional::NONE));
        if !Rule::CoverFromSend.on() {
            cover = self.leases.provisional(self.lease_length, now);
        }
        let known = self.entries.get(name).map(|e| &e.copy);
        if !answer_counts(&answer, fence, known) {
            if let Some(flight) = self.restore_mut(name, id) {
                flight.sent = None;
            }
            return Restored::AskAgain;
        }
        self.restore_over(name, id);
        match answer {
            Answer::Found(observed) if !(observed.terminating && Rule::TerminatingIsGone.on()) => {
                self.restored(name, observed.copy, cover, now, reporter)
            }
            _ => Restored::NotFound { dropped: self.drop_copy(name, DropReason::Gone, reporter) },
        }
    }

    /// The GET `id` will not be answered: it failed, or nobody waits for it any more.
    pub fn restore_failed(&mut self, name: &str, id: FlightId) {
        self.restore_over(name, id);
    }

    fn restored(
        &mut self,
        name: &str,
        found: Copy,
        cover: Provisional,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Restored {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.copy.uid == found.uid
            && entry.copy.digest == found.digest
        {
            if entry.copy.generation != found.generation && Rule::AdoptGeneration.on() {
                entry.copy = Arc::new(Copy { metadata: entry.copy.metadata.clone(), ..found });
            }
            entry.provisional = cover;
            entry.suspended = None;
            entry.used.store(now.as_nanos(), Ordering::Relaxed);
            return Restored::Serve { copy: entry.copy.clone(), validated: true, dropped: None };
        }
        let reason = match self.entries.get(name) {
            Some(entry) if entry.copy.uid != found.uid => DropReason::Gone,
            _ => DropReason::Stale,
        };
        let (copy, replaced) = self.adopt(name, found, cover, None, now, reporter);
        Restored::Serve { copy, validated: false, dropped: replaced.map(|copy| dropped(name, copy, reason, now)) }
    }

    /// An own create or patch of `name` is sent now.
    pub fn write_sent(&mut self, name: &str, now: Time) -> FlightId {
        self.last_flight += 1;
        let id = FlightId(self.last_flight);
        let sent = self.leases.provisional(self.lease_length, now);
        self.flights.entry_ref(name).or_default().writes.push(Write { id, sent, fence: None });
        id
    }

    /// The write `id` was answered with the object as it is now. `wrote` is the digest of the map that the client
    /// meant to write: another one means that somebody else's change is in the answer.
    pub fn write_answered(
        &mut self,
        name: &str,
        id: FlightId,
        observed: Observed,
        wrote: Digest,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Written {
        let Some(flight) = self.write_over(name, id) else {
            return Written { session: Some(Arc::new(observed.copy)), dropped: None };
        };
        let found = observed.copy;
        let mark = Mark {
            uid: found.uid,
            fate: if observed.terminating { Fate::Gone } else { Fate::Stale { below: found.generation } },
            resource_version: found.resource_version,
        };
        if let Some(flights) = self.flights.get_mut(name).filter(|_| Rule::WritesMark.on()) {
            flights.fence(mark);
        }
        if observed.terminating {
            let holds = self.entries.get(name).is_some_and(|e| e.copy.uid == found.uid);
            let waited = self.is_suspended(name) && !self.writes_in_flight(name);
            let dropped = if holds || waited { self.drop_copy(name, DropReason::Gone, reporter) } else { None };
            return Written { session: None, dropped };
        }
        let known = self.entries.get(name).map(|e| &e.copy);
        // What was held already is news to nobody, whoever wrote it.
        let held = known.is_some_and(|k| k.uid == found.uid && k.digest == found.digest);
        let foreign = found.digest != wrote && !held;
        let newer_known = known.is_some_and(|k| older(&found, k));
        let fenced = flight.fence.is_some_and(|f| !f.accepts(found.uid, found.generation, found.resource_version));
        if newer_known || fenced {
            // A copy that is servable has outlived, or was read after, whatever outdates the answer. But one that is
            // older than the own write is older than the truth.
            let outdated = known.is_some_and(|k| older(k, &found)) || self.is_suspended(name);
            let dropped = if !outdated {
                None
            } else if self.writes_in_flight(name) {
                let below = flight.fence.map_or(0, |f| f.outdates(found.uid));
                self.suspend(name, below);
                None
            } else {
                self.drop_copy(name, DropReason::Stale, reporter)
            };
            return Written { session: Some(Arc::new(found)), dropped };
        }
        let mut cover = flight.sent;
        if !Rule::CoverFromSend.on() {
            cover = self.leases.provisional(self.lease_length, now);
        }
        let same_uid = known.is_some_and(|k| k.uid == found.uid);
        let local = self.entries.get(name).and_then(|e| e.local.clone()).filter(|_| same_uid && !foreign);
        let (copy, replaced) = self.adopt(name, found, cover, local, now, reporter);
        let reason = if same_uid { DropReason::Foreign } else { DropReason::Gone };
        Written {
            session: Some(copy),
            dropped: replaced.filter(|_| foreign || !same_uid).map(|c| dropped(name, c, reason, now)),
        }
    }

    /// The write `id` was refused, or its outcome is unknown. A copy that waited for the outcome is dropped.
    pub fn write_failed(&mut self, name: &str, id: FlightId, reporter: &mut impl Reporter) -> Option<Dropped> {
        self.write_over(name, id);
        if self.is_suspended(name) && !self.writes_in_flight(name) {
            return self.drop_copy(name, DropReason::Stale, reporter);
        }
        None
    }

    /// An eviction came in, from whatever source. What is in flight is marked; a copy that it means is dropped, unless
    /// it equals the state that the eviction speaks of.
    pub fn evict(&mut self, name: &str, state: Barrier, reporter: &mut impl Reporter) -> Option<Dropped> {
        let mark = match state.mark.fate {
            Fate::Gone if !Rule::GoneByUid.on() => Mark { fate: Fate::Stale { below: 0 }, ..state.mark },
            _ => state.mark,
        };
        if let Some(flights) = self.flights.get_mut(name) {
            flights.fence(mark);
        }
        let entry = self.entries.get_mut(name)?;
        if !mark.drops(entry.copy.uid, entry.copy.generation) && Rule::CompareGeneration.on() {
            return None;
        }
        match mark.fate {
            Fate::Stale { .. } if entry.equals(state) => None,
            Fate::Stale { below } => self.outdated(name, below, reporter),
            Fate::Gone => self.drop_copy(name, DropReason::Gone, reporter),
        }
    }

    /// A barrier came in: when this returns, nothing older than its state is served. A copy that equals it stays.
    pub fn barrier(&mut self, name: &str, state: Barrier, reporter: &mut impl Reporter) -> Option<Dropped> {
        let mark = state.mark;
        if let Some(flights) = self.flights.get_mut(name) {
            flights.fence(mark);
        }
        let entry = self.entries.get_mut(name)?;
        let copy = &entry.copy;
        if mark.accepts(copy.uid, copy.generation, copy.resource_version) {
            return None;
        }
        match mark.fate {
            Fate::Stale { .. } if entry.equals(state) => None,
            Fate::Stale { below } if entry.copy.uid == mark.uid => self.outdated(name, below, reporter),
            _ => self.drop_copy(name, DropReason::Gone, reporter),
        }
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

    fn restore_mut(&mut self, name: &str, id: FlightId) -> Option<&mut Restore> {
        self.flights.get_mut(name)?.restores.iter_mut().find(|r| r.id == id)
    }

    fn restore_over(&mut self, name: &str, id: FlightId) {
        if let Some(flights) = self.flights.get_mut(name) {
            flights.restores.retain(|r| r.id != id);
            if flights.is_empty() {
                self.flights.remove(name);
            }
        }
    }

    fn write_over(&mut self, name: &str, id: FlightId) -> Option<Write> {
        let flights = self.flights.get_mut(name)?;
        let at = flights.writes.iter().position(|w| w.id == id)?;
        let write = flights.writes.swap_remove(at);
        if flights.is_empty() {
            self.flights.remove(name);
        }
        Some(write)
    }
}

/// Whether an answer is provably not older than what came in while it was under way, and than the copy held.
fn answer_counts(answer: &Answer, fence: Option<Mark>, known: Option<&Arc<Copy>>) -> bool {
    match answer {
        Answer::NotFound => fence.is_none() || !Rule::MarkedAbsence.on(),
        Answer::Found(Observed { copy, terminating }) => {
            let fenced = fence.is_some_and(|f| {
                // An object that is being deleted is just what "gone" speaks of.
                let agrees = *terminating && f.uid == copy.uid && f.fate == Fate::Gone;
                !agrees && !f.accepts(copy.uid, copy.generation, copy.resource_version)
            });
            !fenced && !known.is_some_and(|known| older(copy, known) && Rule::NeverGoBack.on())
        }
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
