//! Writes the status of sessions: only what differs, only while leading, a few calls at a time, the latest wins.

use std::convert::Infallible;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::controller::clock::now;
use crate::controller::election::LeadershipGuard;
use crate::controller::pump::{self, Source};
use crate::controller::remedy::Remedy;
use crate::core::coalesce::{Backoff, Coalesce, CoalescingQueue, Offered, Taken};
use crate::core::session::ResourceVersion;
use crate::core::session_ref::SessionRef;
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind};

mod kube_sink;
mod patch;
mod recent;

pub use kube_sink::KubeStatus;
pub use patch::StatusPatch;
use recent::Recent;

/// The writer of the controller.
pub type SessionStatusWriter = StatusWriter<SessionRef, StatusPatch, KubeStatus>;

/// A status that shall be written.
pub trait StatusPayload: Coalesce + Clone + Send + Sync {
    /// The status as the watch shows it.
    type Status: ?Sized;

    /// Takes note of what is there: `current`, with `sent` written to it. Says whether writing `self` would change that.
    fn prepare(&mut self, current: &Self::Status, sent: Option<&Self>) -> bool;
}

/// Where statuses are written to.
pub trait StatusSink<K, P>: Send + Sync {
    /// Writes one, within a deadline. The answer is the version that it made, if that is known.
    fn patch(&self, key: &K, payload: &P) -> impl Future<Output = Result<Option<ResourceVersion>, ApiError>> + Send;
}

/// Bounds of the writer.
#[derive(Clone, Copy, Debug)]
pub struct StatusLimits {
    /// At most so many objects wait or are being written.
    pub capacity: usize,
    /// At most so many calls at a time.
    pub calls: usize,
    /// How long a failed write of one object waits.
    pub backoff: Backoff,
    /// How long all wait when the server is away, so that not every object finds that out by itself.
    pub pause: Backoff,
    /// How often a write is tried that was refused for a reason that may pass.
    pub attempts: u32,
}

impl Default for StatusLimits {
    fn default() -> Self {
        Self {
            capacity: 65_536,
            calls: 8,
            backoff: Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(30) },
            pause: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) },
            attempts: 8,
        }
    }
}

/// The object as the one who offers a status has seen it.
#[derive(Debug)]
pub struct Seen<'a, S: ?Sized> {
    /// Its status.
    pub status: &'a S,
    /// Its resourceVersion.
    pub resource_version: ResourceVersion,
}

/// A handle for offering statuses; clones share one queue. Somebody must await [`Self::run`].
#[derive(Debug)]
pub struct StatusWriter<K, P, S> {
    shared: Arc<Shared<K, P, S>>,
}

impl<K, P, S> Clone for StatusWriter<K, P, S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<K, P, S> {
    sink: S,
    guard: LeadershipGuard,
    limits: StatusLimits,
    state: Mutex<State<K, P>>,
    wake: Notify,
    counts: Counts,
}

#[derive(Debug)]
struct State<K, P> {
    queue: CoalescingQueue<K, P>,
    recent: Recent<K, P>,
    /// How often in a row no call came through, and until when nothing is tried.
    away: u32,
    paused_until: Time,
}

/// How it went so far.
#[derive(Debug, Default)]
struct Counts {
    patched: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    unchanged: AtomicU64,
    full: AtomicU64,
    not_leading: AtomicU64,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl<K, P, S> StatusWriter<K, P, S>
where
    K: Clone + Display + Eq + Hash + Send + Sync,
    P: StatusPayload,
    S: StatusSink<K, P>,
{
    /// A writer to `sink`, which writes only while `guard` says that this replica leads.
    pub fn new(sink: S, guard: LeadershipGuard, limits: StatusLimits) -> Self {
        let state = State {
            queue: CoalescingQueue::new(limits.capacity, limits.backoff),
            recent: Recent::new(limits.capacity.min(4096)),
            away: 0,
            paused_until: Time::default(),
        };
        let shared =
            Shared { sink, guard, limits, state: Mutex::new(state), wake: Notify::new(), counts: Counts::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Says what the status of `key` shall be. Never waits. Returns whether it will be written; `false` means that it
    /// is so already, or that the queue is full (see [`Self::refused`]): offer it again at the next resync.
    pub fn offer(&self, key: K, mut desired: P, seen: &Seen<'_, P::Status>) -> bool {
        let Shared { state, counts, wake, .. } = &*self.shared;
        let mut state = state.lock();
        let sent = state.recent.beyond(&key, seen.resource_version);
        let differs = desired.prepare(seen.status, sent);
        if !differs && state.queue.waiting(&key).is_none() {
            add(&counts.unchanged);
            return false;
        }
        let offered = state.queue.insert(key, desired, now());
        drop(state);
        match offered {
            Offered::Queued => wake.notify_one(),
            Offered::Merged => {}
            Offered::Full => add(&counts.full),
        }
        offered != Offered::Full
    }

    /// The object is gone, and so is its status.
    pub fn forget(&self, key: &K) {
        let mut state = self.shared.state.lock();
        state.queue.remove(key);
        state.recent.forget(key);
    }

    /// Writes what is offered, until `shutdown`. Calls under way are finished, each within its deadline.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        pump::run(&*self.shared, self.shared.limits.calls, &self.shared.wake, &shutdown).await;
        Ok(())
    }

    /// How many objects wait or are being written.
    pub fn depth(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// How many patches were written.
    pub fn patched(&self) -> u64 {
        self.shared.counts.patched.load(Ordering::Relaxed)
    }

    /// How many patches failed; each attempt counts.
    pub fn failed(&self) -> u64 {
        self.shared.counts.failed.load(Ordering::Relaxed)
    }

    /// How many statuses were dropped after they had been refused.
    pub fn given_up(&self) -> u64 {
        self.shared.counts.given_up.load(Ordering::Relaxed)
    }

    /// How many offers would have changed nothing.
    pub fn unchanged(&self) -> u64 {
        self.shared.counts.unchanged.load(Ordering::Relaxed)
    }

    /// How many offers were dropped because the queue was full.
    pub fn refused(&self) -> u64 {
        self.shared.counts.full.load(Ordering::Relaxed)
    }

    /// How many statuses were dropped because this replica did not lead when their turn came.
    pub fn not_leading(&self) -> u64 {
        self.shared.counts.not_leading.load(Ordering::Relaxed)
    }
}

impl<K, P, S> Source for Shared<K, P, S>
where
    K: Clone + Display + Eq + Hash + Send + Sync,
    P: StatusPayload,
    S: StatusSink<K, P>,
{
    type Work = Taken<K, P>;

    fn take(&self, now: Time) -> Option<Self::Work> {
        let mut state = self.state.lock();
        if now < state.paused_until {
            return None;
        }
        let taken = state.queue.take(now)?;
        state.recent.sending(&taken.key, taken.value.clone());
        Some(taken)
    }

    fn next_ready(&self, _now: Time) -> Option<Time> {
        let state = self.state.lock();
        state.queue.next_ready().map(|ready| ready.max(state.paused_until))
    }

    async fn perform(&self, taken: Self::Work) {
        // The last thing before the call: whoever took the work may have waited, and lost the lease meanwhile.
        if !self.guard.is_leader() {
            add(&self.counts.not_leading);
            let mut state = self.state.lock();
            state.recent.forget(&taken.key);
            state.queue.finish(&taken.key);
            return;
        }
        let outcome = self.sink.patch(&taken.key, &taken.value).await;
        let mut state = self.state.lock();
        match outcome {
            Ok(version) => {
                add(&self.counts.patched);
                state.away = 0;
                state.recent.stored(&taken.key, version);
                state.queue.finish(&taken.key);
            }
            Err(error) => {
                add(&self.counts.failed);
                self.failed(&mut state, taken, &error);
            }
        }
    }
}

impl<K, P, S> Shared<K, P, S>
where
    K: Clone + Display + Eq + Hash + Send + Sync,
    P: StatusPayload,
    S: StatusSink<K, P>,
{
    fn failed(&self, state: &mut State<K, P>, taken: Taken<K, P>, error: &ApiError) {
        let Taken { key, value, failures } = taken;
        let at = now();
        state.recent.forget(&key);
        let remedy = Remedy::of(error);
        let again = match remedy {
            Remedy::Retry => {
                // An error of the server itself may be one object's own: some webhook that fails.
                if error.kind() != ApiErrorKind::ServerError {
                    state.away = state.away.saturating_add(1);
                    state.paused_until = at + self.limits.pause.after(state.away);
                }
                state.queue.retry(&key, value, at)
            }
            Remedy::RetryFewTimes if failures + 1 < self.limits.attempts => state.queue.retry(&key, value, at),
            Remedy::Forget => {
                state.queue.remove(&key);
                state.queue.finish(&key);
                return;
            }
            Remedy::RetryFewTimes | Remedy::GiveUp => {
                add(&self.counts.given_up);
                state.queue.finish(&key);
                false
            }
        };
        tracing::warn!(session = %key, %error, again, "could not write a status");
    }
}

#[cfg(test)]
mod tests;
