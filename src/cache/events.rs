//! What happens in the cache: for subscribers, logs, and counters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::core::cache::{Departed, DropReason, Dropped};
use crate::core::rate::Lines;
use crate::core::session::Uid;
use crate::core::time::Time;

/// A copy was dropped. Whatever a client made from it is out of date.
#[derive(Clone, Debug)]
pub struct Eviction {
    /// The session's name.
    pub name: Arc<str>,
    /// The uid of the copy.
    pub uid: Uid,
    /// The generation of the copy.
    pub generation: u64,
    /// Why it was dropped.
    pub reason: DropReason,
    /// Whether the session is gone because this cache deletes it on behalf of its user (see
    /// [`Cache::deleting`](super::Cache::deleting)).
    pub own: bool,
    /// When, on the machine's clock since boot (`CLOCK_BOOTTIME`).
    pub at: Time,
}

/// What a [`Subscription`] brings.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A copy was dropped.
    Evicted(Eviction),
    /// So many evictions were missed, because they were not read in time. Whoever keeps state by session asks anew.
    Missed(u64),
}

/// Evictions from the moment of the subscription on.
#[derive(Debug)]
pub struct Subscription {
    evictions: broadcast::Receiver<Eviction>,
    ended: CancellationToken,
}

impl Subscription {
    /// Waits for the next event; `None` when the cache has ended ([`Cache::shutdown`](super::Cache::shutdown), or the last handle
    /// is gone) and all that happened before has been told. No event is lost if the wait is given up.
    pub async fn next(&mut self) -> Option<Event> {
        let next = tokio::select! {
            biased;
            next = self.evictions.recv() => next,
            () = self.ended.cancelled() => return None,
        };
        match next {
            Ok(eviction) => Some(Event::Evicted(eviction)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Sessions of which no copy is held, and whose last use is still told to the controller.
const DEPARTED: usize = 65_536;

/// Lines in the log at once, and when there may be one more: a reset evicts everything.
const LINES: (u32, Duration) = (1_000, Duration::from_millis(10));

/// All reasons, in the order of the counters.
const REASONS: [DropReason; 5] =
    [DropReason::Stale, DropReason::Gone, DropReason::Foreign, DropReason::Capacity, DropReason::Reset];

/// Counters of what is not a hit. Hits are counted where they happen.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub validated: AtomicU64,
    pub restored: AtomicU64,
    pub not_found: AtomicU64,
    pub overloaded: AtomicU64,
    pub unavailable: AtomicU64,
    pub written: AtomicU64,
    pub declined: AtomicU64,
    pub write_errors: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Tells everybody of evictions.
#[derive(Debug)]
pub(super) struct Events {
    evictions: broadcast::Sender<Eviction>,
    by_reason: [AtomicU64; REASONS.len()],
    departed: Mutex<Departed>,
    observer: OnceLock<Observer>,
    lines: Mutex<Lines>,
    /// Sessions that are being deleted on behalf of the user, and how many times.
    deleting: Mutex<HashMap<Arc<str>, usize>>,
}

/// Is told at once of copies that are not evicted, and not what clients were given any more either.
struct Observer(Box<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer(..)")
    }
}

impl Events {
    pub fn new(backlog: usize) -> Self {
        Self {
            evictions: broadcast::Sender::new(backlog),
            by_reason: Default::default(),
            departed: Mutex::new(Departed::with_room(DEPARTED)),
            observer: OnceLock::new(),
            lines: Mutex::new(Lines::new(LINES.0, LINES.1)),
            deleting: Mutex::default(),
        }
    }

    /// Evictions from now on, until the cache has `ended`.
    pub fn subscribe(&self, ended: CancellationToken) -> Subscription {
        Subscription { evictions: self.evictions.subscribe(), ended }
    }

    /// Sets who is told by [`Self::disturbed`]. False if somebody is told already.
    pub fn observe(&self, observer: impl Fn(&str) + Send + Sync + 'static) -> bool {
        self.observer.set(Observer(Box::new(observer))).is_ok()
    }

    /// The copy of `name` was replaced by an own write, or waits for the outcome of one. Call it without holding a lock.
    pub fn disturbed(&self, name: &str) {
        if let Some(Observer(observer)) = self.observer.get() {
            observer(name);
        }
    }

    /// A copy was dropped at `at`. Call it without holding a lock: it logs.
    pub fn dropped(&self, dropped: Dropped, at: Time) {
        let Dropped { copy, reason, used } = dropped;
        let name = copy.name.clone();
        let (uid, generation) = (copy.uid, copy.generation);
        if let Some(counter) = REASONS.iter().position(|r| *r == reason) {
            count(&self.by_reason[counter]);
        }
        if reason == DropReason::Gone {
            self.gone(&name, uid);
        } else if used > Time::ZERO {
            self.departed(name.clone(), uid, used);
        }
        if reason == DropReason::Capacity {
            // Nothing changed, and a cache that is too small would fill the log.
            debug!(session = %name, %uid, generation, "made room");
        } else if let Some(unsaid) = self.next_line(at) {
            if unsaid > 0 {
                info!(evictions = unsaid, "too many evictions at once: these have no lines of their own");
            }
            info!(session = %name, %uid, generation, reason = reason.as_str(), "evicted");
        }
        // Nobody may have subscribed.
        let own = reason == DropReason::Gone && self.deleting.lock().contains_key(&name);
        let _ = self.evictions.send(Eviction { name, uid, generation, reason, own, at });
    }

    /// Whether there may be a line, and how many had none since the last one.
    fn next_line(&self, now: Time) -> Option<u64> {
        self.lines.lock().next(now)
    }

    /// The session is deleted on behalf of the user, until [`Self::deleted`].
    pub fn deleting(&self, name: Arc<str>) {
        *self.deleting.lock().entry(name).or_default() += 1;
    }

    /// That deletion has ended.
    pub fn deleted(&self, name: &str) {
        let mut deleting = self.deleting.lock();
        if let Some(count) = deleting.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                deleting.remove(name);
            }
        }
    }

    /// A session was used of which no copy is held.
    pub fn departed(&self, name: Arc<str>, uid: Uid, used: Time) {
        self.departed.lock().add(name, uid, used);
    }

    /// The session with this uid is gone. To tell of its use would name a stranger to the controller.
    pub fn gone(&self, name: &Arc<str>, uid: Uid) {
        self.departed.lock().gone(name, uid);
    }

    /// There is no session of this name.
    pub fn absent(&self, name: &Arc<str>) {
        self.departed.lock().absent(name);
    }

    /// Whether a session of this name was used of which no copy is held.
    pub fn has_departed(&self, name: &Arc<str>) -> bool {
        self.departed.lock().has(name)
    }

    /// Dropped copies that were used at or after `since`.
    pub fn departed_since(&self, since: Time) -> Vec<(Arc<str>, Uid, Time)> {
        self.departed.lock().since(since).collect()
    }

    /// Evictions so far, by reason.
    pub fn by_reason(&self) -> Vec<(DropReason, u64)> {
        let counts = self.by_reason.iter().map(|c| c.load(Ordering::Relaxed));
        REASONS.into_iter().zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_evictions_are_bounded_and_those_that_were_not_are_counted() {
        let (events, at) = (Events::new(1), Time::from_nanos(1));
        assert!((0..LINES.0).all(|_| events.next_line(at) == Some(0)));
        assert!((0..99_000).all(|_| events.next_line(at).is_none()));
        assert_eq!(events.next_line(at + LINES.1), Some(99_000));
    }
}
