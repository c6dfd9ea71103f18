//! The copies, in shards: where the core's decisions are applied. No I/O.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::DefaultHashBuilder;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::events::Events;
use super::flight::Pending;
use super::session::{Origin, Session};
use crate::core::cache::{
    Beside, Copy, Dropped, Formers, Habits, Holding, Limits, LocalValues, Renewal, Report, Reporter, Reports, Shard,
};
use crate::core::lease::{Grant, StreamId};
use crate::core::session::Uid;
use crate::core::signal::{Barrier, Fate};
use crate::core::time::Time;
use crate::runtime::clock;

/// Shards, at most.
const SHARDS: usize = 64;
/// A shard has room for at least so much, so that a small cache is not cut into pieces that hold nothing.
const ENTRIES_PER_SHARD: usize = 1_024;
const BYTES_PER_SHARD: usize = 4 << 20;

/// The clock that leases are measured on, now.
#[inline]
pub(super) fn now() -> Time {
    Time::from_nanos(clock::boottime_nanos())
}

/// A shard, and the requests that wait for its sessions.
pub(super) struct State {
    pub shard: Shard,
    pub waited_for: HashMap<Arc<str>, Vec<Pending>>,
}

/// A shard on cache lines of its own. The counter stands beside the lock, whose line a hit owns anyway.
#[repr(align(128))]
struct Slot {
    hits: AtomicU64,
    state: RwLock<State>,
}

/// The copies.
pub(super) struct Store {
    slots: Box<[Slot]>,
    hasher: DefaultHashBuilder,
    reports: Mutex<Reports>,
    reported: watch::Sender<()>,
    pub events: Events,
    /// A change has panicked: what it has left behind is served to nobody without asking.
    broken: AtomicBool,
}

/// Ends all leases for good, unless it is forgotten.
struct Unfinished<'a>(&'a Store);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Before any lease ends: a grant that did not see it came before, and is ended too.
        self.0.broken.store(true, Ordering::SeqCst);
        for slot in &self.0.slots {
            slot.state.write().shard.revoke_all();
        }
    }
}

/// Takes reports of all shards. A shard's lock is held meanwhile, so this one comes after it, always.
pub(super) struct Tell<'a> {
    reports: &'a Mutex<Reports>,
    told: bool,
}

impl Reporter for Tell<'_> {
    fn held(&mut self, name: &Arc<str>, holding: Holding) -> u64 {
        self.told = true;
        self.reports.lock().held(name, holding)
    }

    fn released(&mut self, name: &Arc<str>) {
        self.told = true;
        self.reports.lock().released(name);
    }
}

impl Store {
    pub fn new(limits: Limits, habits: Habits, backlog: usize) -> Self {
        let fit = (limits.entries / ENTRIES_PER_SHARD).min(limits.bytes / BYTES_PER_SHARD);
        // A power of two, so that a shard is found without a division.
        let shards = (fit.max(1) + 1).next_power_of_two() / 2;
        let shards = shards.min(SHARDS);
        let formers = Formers::of(limits, habits);
        let limits = Limits { entries: (limits.entries / shards).max(1), bytes: (limits.bytes / shards).max(1) };
        let hasher = DefaultHashBuilder::default();
        let shard = || {
            let mut shard = Shard::with_hasher(limits, hasher.clone());
            shard.set_habits(habits, formers.clone());
            shard
        };
        let slot = || Slot {
            hits: AtomicU64::new(0),
            state: RwLock::new(State { shard: shard(), waited_for: HashMap::new() }),
        };
        Self {
            slots: std::iter::repeat_with(slot).take(shards).collect(),
            hasher,
            reports: Mutex::default(),
            reported: watch::Sender::new(()),
            events: Events::new(backlog),
            broken: AtomicBool::new(false),
        }
    }

    /// Changes a shard. If `change` panics, half of it may be done, and a process that goes on (that of a library's
    /// user may; the agent's ends, see [`fail_fast`](crate::runtime::fail_fast)) has no lease any more.
    fn write<R>(&self, slot: &Slot, change: impl FnOnce(&mut State) -> R) -> R {
        let unfinished = Unfinished(self);
        let result = change(&mut slot.state.write());
        std::mem::forget(unfinished);
        result
    }

    #[inline]
    fn slot(&self, name: &str) -> &Slot {
        self.slot_of(self.hasher.hash_one(name))
    }

    #[inline]
    fn slot_of(&self, hash: u64) -> &Slot {
        // Bits that the shard's own table makes the least of.
        let bits = usize::try_from(hash >> 32).unwrap_or_default();
        &self.slots[bits & (self.slots.len() - 1)]
    }

    /// The session, if it may be served without asking anyone.
    #[inline]
    pub fn hit(&self, name: &str) -> Option<Session> {
        let hash = self.hasher.hash_one(name);
        let slot = self.slot_of(hash);
        let state = slot.state.read();
        // The clock is read as late as possible: the serving instant is the lease check.
        let session = Session::new(state.shard.get_hashed(name, hash, now)?.clone(), Origin::Cache);
        slot.hits.fetch_add(1, Ordering::Relaxed);
        Some(session)
    }

    /// The same, with what stands beside the copy.
    #[inline]
    pub fn hit_beside(&self, name: &str) -> Option<(Session, Option<Arc<LocalValues>>, Option<Renewal>)> {
        self.hit_by(name, |shard, hash| shard.get_beside(name, hash, now))
    }

    /// The same, if clients have this copy already.
    pub fn hit_given(&self, name: &str) -> Option<(Session, Option<Arc<LocalValues>>, Option<Renewal>)> {
        self.hit_by(name, |shard, hash| shard.get_given(name, hash, now))
    }

    #[inline]
    fn hit_by(
        &self,
        name: &str,
        get: impl FnOnce(&Shard, u64) -> Option<(&Arc<Copy>, Beside<'_>)>,
    ) -> Option<(Session, Option<Arc<LocalValues>>, Option<Renewal>)> {
        let hash = self.hasher.hash_one(name);
        let slot = self.slot_of(hash);
        let state = slot.state.read();
        let (copy, beside) = get(&state.shard, hash)?;
        let session = Session::new(copy.clone(), Origin::Cache);
        slot.hits.fetch_add(1, Ordering::Relaxed);
        Some((session, beside.local.cloned(), beside.renewal))
    }

    /// Changes what belongs to `name`. A copy that `change` says was dropped is told to everybody.
    pub fn change<R>(
        &self,
        name: &str,
        change: impl FnOnce(&mut State, &mut Tell<'_>, Time) -> (R, Option<Dropped>),
    ) -> R {
        self.change_slot(self.slot(name), |state, tell, now| {
            let (result, dropped) = change(state, tell, now);
            (result, dropped.into_iter().collect())
        })
    }

    fn change_slot<R>(
        &self,
        slot: &Slot,
        change: impl FnOnce(&mut State, &mut Tell<'_>, Time) -> (R, Vec<Dropped>),
    ) -> R {
        let mut tell = Tell { reports: &self.reports, told: false };
        let (result, dropped, at) = self.write(slot, |state| {
            let (result, mut dropped) = change(state, &mut tell, now());
            dropped.extend(state.shard.take_crowded_out());
            let at = if dropped.is_empty() { Time::ZERO } else { now() };
            (result, dropped, at)
        });
        if tell.told {
            self.reported.send_replace(());
        }
        for dropped in dropped {
            self.events.dropped(dropped, at);
        }
        result
    }

    /// Looks at what belongs to `name`.
    pub fn look<R>(&self, name: &str, look: impl FnOnce(&Shard) -> R) -> R {
        look(&self.slot(name).state.read().shard)
    }

    /// Whether there was such a session, as far as is known: a copy is held, or was, and nobody has said since that there is none.
    pub fn has_met(&self, name: &Arc<str>) -> bool {
        self.look(name, |shard| self.has_met_in(shard, name))
    }

    /// The same, for whoever has the name's shard already.
    pub fn has_met_in(&self, shard: &Shard, name: &Arc<str>) -> bool {
        shard.has_met(name) || self.events.has_departed(name)
    }

    /// An eviction came in. Whether the copy that it means lives on, by an own write.
    pub fn evict(&self, name: &str, eviction: Barrier) -> bool {
        self.signal(name, |shard, tell| shard.evict(name, eviction, tell));
        // Its copy may have gone before.
        if eviction.mark.fate == Fate::Gone {
            self.events.gone(&name.into(), eviction.mark.uid);
        }
        self.look(name, |shard| shard.outlives(name, eviction.mark))
    }

    /// A barrier came in: when this returns, nothing older than its state is served.
    pub fn barrier(&self, name: &str, barrier: Barrier) {
        self.signal(name, |shard, tell| shard.barrier(name, barrier, tell));
    }

    fn signal(&self, name: &str, take: impl FnOnce(&mut Shard, &mut Tell<'_>) -> Option<Dropped>) {
        let suspended = self.change(name, |state, tell, _| {
            let before = state.shard.is_suspended(name);
            let dropped = take(&mut state.shard, tell);
            (!before && state.shard.is_suspended(name), dropped)
        });
        if suspended {
            self.events.disturbed(name);
        }
    }

    /// All knowledge is void.
    pub fn reset(&self) {
        for slot in &self.slots {
            self.change_slot(slot, |state, tell, _| ((), state.shard.reset(tell)));
        }
    }

    /// A heartbeat was answered.
    pub fn grant(&self, stream: StreamId, length: Duration, grant: Grant) {
        for slot in &self.slots {
            self.write(slot, |state| {
                if !self.broken.load(Ordering::SeqCst) {
                    state.shard.grant(stream, length, grant, now());
                }
            });
        }
    }

    /// A stream's lease ends now.
    pub fn revoke(&self, stream: StreamId) {
        for slot in &self.slots {
            self.write(slot, |state| state.shard.revoke(stream));
        }
    }

    /// All leases end now.
    pub fn revoke_all(&self) {
        for slot in &self.slots {
            self.write(slot, |state| state.shard.revoke_all());
        }
    }

    /// How long leases are.
    pub fn set_lease_length(&self, length: Duration) {
        for slot in &self.slots {
            self.write(slot, |state| state.shard.set_lease_length(length));
        }
    }

    /// How long leases are: zero before anybody told.
    pub fn lease_length(&self) -> Duration {
        self.slots.first().map_or(Duration::ZERO, |slot| slot.state.read().shard.lease_length())
    }

    /// When the last lease ends; `None` if none is in force.
    pub fn leased_until(&self) -> Option<Time> {
        self.slots.first()?.state.read().shard.leased_until(now())
    }

    /// Opens the outbox of a stream. Returns up to which sequence number the inventory must tell.
    pub fn open(&self, stream: StreamId) -> u64 {
        self.reports.lock().open(stream)
    }

    /// Closes the outbox of a stream.
    pub fn close(&self, stream: StreamId) {
        self.reports.lock().close(stream);
    }

    /// Changes when there are new reports.
    pub fn reported(&self) -> watch::Receiver<()> {
        self.reported.subscribe()
    }

    /// Takes reports for a stream, see [`Reports::take`].
    pub fn take_reports(&self, stream: StreamId, most: usize) -> (Vec<(Arc<str>, Report)>, u64) {
        self.reports.lock().take(stream, most)
    }

    /// Whether reports wait for a stream.
    pub fn has_reports(&self, stream: StreamId) -> bool {
        self.reports.lock().waiting(stream) > 0
    }

    /// How many parts an inventory has.
    pub fn parts(&self) -> usize {
        self.slots.len()
    }

    /// A part of the inventory: copies with a sequence number up to `through`.
    pub fn inventory(&self, part: usize, through: u64) -> Vec<(Arc<str>, Holding)> {
        let Some(slot) = self.slots.get(part) else {
            return Vec::new();
        };
        let state = slot.state.read();
        let holdings = state.shard.inventory(through);
        holdings.map(|(name, holding)| (name.clone(), holding)).collect()
    }

    /// Sessions that were used at or after `since`, those among them whose copies are gone. One may come twice.
    pub fn used_since(&self, since: Time) -> Vec<(Arc<str>, Uid, Time)> {
        let mut used = self.events.departed_since(since);
        for slot in &self.slots {
            let state = slot.state.read();
            used.extend(state.shard.used_since(since).map(|(name, uid, at)| (name.clone(), uid, at)));
        }
        used
    }

    /// So many copies, each with whether it may be served now: any of them.
    pub fn held(&self, most: usize) -> Vec<(Session, bool)> {
        let mut held = Vec::new();
        for slot in &self.slots {
            let State { shard, .. } = &*slot.state.read();
            let room = most.saturating_sub(held.len());
            held.extend(shard.names().take(room).filter_map(|name| {
                let session = Session::new(shard.peek(name)?.clone(), Origin::Cache);
                Some((session, shard.is_servable(name, now())))
            }));
        }
        held
    }

    /// How many copies there are, and how many of them have a timeout.
    pub fn counts(&self) -> (usize, usize) {
        self.slots.iter().fold((0, 0), |(all, timed), slot| {
            let state = slot.state.read();
            (all + state.shard.len(), timed + state.shard.timed())
        })
    }

    /// Keeps a pod-local value beside the copy that `of` is. False if that is not held any more.
    pub fn set_local(&self, of: &Session, key: &str, value: &str) -> bool {
        let name = of.name();
        self.change(name, |state, tell, _| (state.shard.set_local(name, of.copy(), key, value, tell), None))
    }

    /// The pod-local values beside the copy that `of` is.
    pub fn local(&self, of: &Session) -> Option<Arc<LocalValues>> {
        self.look(of.name(), |shard| shard.local(of.name(), of.copy()).cloned())
    }

    /// Copies, the bytes that they take, and hits so far.
    pub fn totals(&self) -> (usize, usize, u64) {
        self.slots.iter().fold((0, 0, 0), |(entries, bytes, hits), slot| {
            let state = slot.state.read();
            let hits = hits + slot.hits.load(Ordering::Relaxed);
            (entries + state.shard.len(), bytes + state.shard.bytes(), hits)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;
    use crate::core::cache::Facts;
    use crate::core::digest::{Digest, Metadata};
    use crate::core::fields::Fields;
    use crate::core::session::ResourceVersion;
    use crate::core::signal::Mark;

    fn copy(name: &str, bytes: usize) -> Arc<Copy> {
        let metadata = Metadata::from([("k".into(), "v".repeat(bytes))]);
        Arc::new(Copy {
            name: name.into(),
            uid: Uid::from_u128(1),
            generation: 1,
            resource_version: ResourceVersion(1),
            digest: Digest::of(&metadata),
            metadata: Fields::of(&metadata),
            facts: Facts::default(),
        })
    }

    #[test]
    fn what_clients_had_is_remembered_also_of_the_largest_sessions() {
        let config = CacheConfig::new("ns", "pod");
        let limits = Limits { entries: config.entries, bytes: config.bytes };
        let store = Store::new(limits, Habits { uses_renew: false, remember_given: true }, 1);
        assert!(store.parts() > 1);
        let copies = (0..8).map(|n| copy(&format!("large-{n}"), 1 << 20));
        let copies: Vec<_> = copies.chain((0..64).map(|n| copy(&format!("small-{n}"), 10))).collect();
        for copy in &copies {
            // It has been dropped meanwhile.
            store.change(&copy.name, |state, _, now| (state.shard.given(&copy.name, copy, now), None));
        }
        for copy in &copies {
            assert_eq!(store.look(&copy.name, |shard| shard.base(&copy.name, now())).as_ref(), Some(copy));
        }
    }

    #[test]
    fn after_a_change_that_panicked_there_is_no_lease() {
        let store = Store::new(Limits { entries: 100_000, bytes: 1 << 30 }, Habits::default(), 1);
        assert!(store.parts() > 1);
        let (stream, length) = (StreamId(1), Duration::from_mins(1));
        let granted = || {
            let grant = Grant { sent: now(), age: Duration::ZERO, covers: 9 };
            store.grant(stream, length, grant);
            store.slots.iter().filter(|slot| slot.state.read().shard.leased_until(now()).is_some()).count()
        };
        assert_eq!(granted(), store.parts());
        let change = || store.change("a", |_, _, _| -> ((), Option<Dropped>) { panic!("half done") });
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(change)).unwrap_err();
        assert!(store.slots.iter().all(|slot| slot.state.read().shard.leased_until(now()).is_none()));
        assert_eq!(granted(), 0);
    }

    #[test]
    fn who_is_shown_nothing_new_lets_others_read() {
        let habits = Habits { uses_renew: false, remember_given: true };
        let store = Store::new(Limits { entries: 10, bytes: 1 << 20 }, habits, 1);
        let had = copy("s", 10);
        let metadata = Metadata::from([("k".into(), "v".repeat(10)), ("more".into(), String::new())]);
        let now_is = Copy { digest: Digest::of(&metadata), metadata: Fields::of(&metadata), ..Copy::clone(&had) };
        let [had, now_is] = [had, Arc::new(now_is)].map(|copy| Session::new(copy, Origin::Restored));
        store.given(&had);
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            let told = store.look("s", |_| {
                threads.spawn(|| {
                    store.shown(&now_is, &["k"]);
                    done.send(())
                });
                waits.recv_timeout(Duration::from_secs(10))
            });
            told.expect("it waits for nobody");
        });
        let base = |store: &Store| store.look("s", |shard| shard.base("s", now())).unwrap().digest;
        assert_eq!(base(&store), had.digest());
        store.shown(&now_is, &["more"]);
        assert_eq!(base(&store), now_is.digest());
    }

    #[test]
    fn uses_of_sessions_that_are_gone_are_not_told() {
        let store = Store::new(Limits { entries: 10, bytes: 1 << 20 }, Habits::default(), 1);
        let uids = [1, 2].map(Uid::from_u128);
        for uid in uids {
            store.events.departed("s".into(), uid, now());
        }
        let told = || store.used_since(Time::ZERO).into_iter().map(|(_, uid, _)| uid).collect::<Vec<_>>();
        assert_eq!(told(), uids);
        let state = |fate| Mark { uid: uids[0], fate, resource_version: ResourceVersion(9) };
        store.evict("s", Barrier { mark: state(Fate::Stale { below: 9 }), digest: None });
        assert_eq!(told(), uids);
        store.evict("s", Barrier { mark: state(Fate::Gone), digest: None });
        assert_eq!(told(), uids[1..]);
    }
}
