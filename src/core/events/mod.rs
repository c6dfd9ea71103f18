//! Which events are written, and when: at most one waits per session and reason, and a bucket limits their rate.
//!
//! No namespace keeps the events of others waiting: each event has its time as if its namespace had all the rate for itself,
//! and the earliest of these times comes first. Where there is one namespace, that changes nothing; one that has many events
//! waits for itself. (Virtual times as of Zhang, "Virtual Clock: A New Traffic Control Algorithm for Packet Switching
//! Networks", ACM SIGCOMM 1990.)

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::coalesce::{Backoff, Coalesce, CoalescingQueue, Offered, Taken};
use super::notes::{NOTE_LIMIT, Note, cut};
use super::rate::{Buckets, TokenBucket};
use super::session::Uid;
use super::session_ref::SessionRef;
use super::time::Time;

/// How many attempts one event is worth. Events tell; they are not records.
const ATTEMPTS: u32 = 3;

/// How many events may wait, and how often they may be written.
#[derive(Clone, Copy, Debug)]
pub struct EventLimits {
    /// At most so many (session, reason) pairs wait; what comes then is dropped and counted.
    pub capacity: usize,
    /// For all sessions together: so many at once,
    pub burst: u32,
    /// and one more after each interval.
    pub interval: Duration,
    /// What its namespace's other events would let wait for longer is dropped and counted.
    pub longest_wait: Duration,
    /// For one session and reason: so many at once,
    pub burst_per_session: u32,
    /// and one more after each interval.
    pub interval_per_session: Duration,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            capacity: 4096,
            burst: 50,
            interval: Duration::from_millis(100),
            // Half of the capacity.
            longest_wait: Duration::from_secs(200),
            burst_per_session: 5,
            interval_per_session: Duration::from_secs(10),
        }
    }
}

/// Notes with the same key are told by one event if they come too fast.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    uid: Uid,
    reason: &'static str,
}

/// An event on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEvent {
    /// The session that it is about.
    pub session: SessionRef,
    /// What it says.
    pub note: Note,
    /// When it happened: microseconds of the wall clock since 1970.
    pub occurred_micros: i64,
    /// How many earlier notes it stands for as well.
    pub merged: u64,
}

impl Coalesce for PendingEvent {
    fn absorb(&mut self, newer: Self) {
        let merged = self.merged.saturating_add(newer.merged).saturating_add(1);
        *self = Self { merged, ..newer };
    }
}

impl PendingEvent {
    /// The note as it is written: within the limit, and saying what it stands for.
    pub fn text(&self) -> String {
        let suffix = match self.merged {
            0 => String::new(),
            1 => " (and 1 earlier note like this)".to_owned(),
            merged => format!(" (and {merged} earlier notes like this)"),
        };
        let text = cut(&self.note.text, NOTE_LIMIT - suffix.len());
        format!("{text}{suffix}")
    }

    /// A name that the same event has at every attempt and no other event has: a repeated create finds its own first.
    pub fn object_name(&self, reporting_instance: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.session.uid.to_bytes());
        for part in [self.note.reason, reporting_instance] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        hash.update(self.occurred_micros.to_be_bytes());
        hash.update(self.merged.to_be_bytes());
        let mut suffix = String::new();
        for byte in hash.finalize().iter().take(8) {
            // Writing to a string cannot fail.
            let _ = write!(suffix, "{byte:02x}");
        }
        // Object names have at most 253 bytes, and each part ends in a letter or digit.
        let base = cut(self.session.key.name(), 253 - 1 - suffix.len()).trim_end_matches(['-', '.']);
        if base.is_empty() { suffix } else { format!("{base}.{suffix}") }
    }
}

/// The events that wait.
#[derive(Debug)]
pub struct EventQueue {
    limits: EventLimits,
    queue: CoalescingQueue<EventKey, PendingEvent>,
    all: TokenBucket,
    namespaces: Buckets<Arc<str>>,
    /// If too many are busy, the limit for all sessions together holds on its own for a while.
    each: Buckets<EventKey>,
}

impl EventQueue {
    /// An empty queue.
    pub fn new(limits: EventLimits) -> Self {
        let backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };
        Self {
            limits,
            queue: CoalescingQueue::new(limits.capacity, backoff),
            all: TokenBucket::new(limits.burst, limits.interval),
            namespaces: Buckets::new(limits.burst, limits.interval, limits.capacity),
            each: Buckets::new(limits.burst_per_session, limits.interval_per_session, limits.capacity),
        }
    }

    /// Adds an event, or lets the one that waits for the same session and reason stand for both.
    pub fn offer(&mut self, event: PendingEvent, now: Time) -> Offered {
        let key = EventKey { uid: event.session.uid, reason: event.note.reason };
        let mut ready_at = self.each.ready_at(&key, now);
        if self.queue.waiting(&key).is_none() {
            match self.turn(event.session.key.namespace(), now) {
                Some(turn) => ready_at = ready_at.max(turn),
                None => return Offered::Full,
            }
        }
        self.queue.insert(key, event, ready_at)
    }

    /// When the namespace has its turn; `None` if it has too many events already.
    fn turn(&mut self, namespace: &Arc<str>, now: Time) -> Option<Time> {
        let bucket = self.namespaces.of(namespace, now);
        (bucket.ready_at(now) <= now + self.limits.longest_wait).then(|| bucket.reserve(now))
    }

    /// Takes the next event that may be written now.
    pub fn take(&mut self, now: Time) -> Option<Taken<EventKey, PendingEvent>> {
        if self.queue.next_ready()? > now || !self.all.take(now) {
            return None;
        }
        let taken = self.queue.take(now)?;
        self.each.of(&taken.key, now).take(now);
        Some(taken)
    }

    /// When [`Self::take`] may give something; it may be past.
    pub fn next_ready(&self, now: Time) -> Option<Time> {
        self.queue.next_ready().map(|ready| ready.max(self.all.ready_at(now)))
    }

    /// The event was written, or never will be.
    pub fn finish(&mut self, key: &EventKey) {
        self.queue.finish(key);
    }

    /// The event could not be written. Says whether it is tried again.
    pub fn retry(&mut self, taken: Taken<EventKey, PendingEvent>, now: Time) -> bool {
        if taken.failures + 1 >= ATTEMPTS {
            self.queue.finish(&taken.key);
            return false;
        }
        self.queue.retry(&taken.key, taken.value, now)
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.queue.clear();
    }

    /// How many events wait or are being written.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests;
