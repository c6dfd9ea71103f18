//! The replica's state, shared by everything that feeds it and reads from it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clock::now;
use crate::core::lease::StreamId;
use crate::core::replica::{Fact, Replica};
use crate::core::time::Time;

/// Takes note of what happens in the replica, at once and without waiting.
pub trait Witness: Send + Sync {
    /// These things happened, in this order.
    fn witness(&self, facts: Vec<Fact>);
}

/// The one place where the replica's core is changed.
pub struct Shared {
    replica: Mutex<Replica>,
    streams: Mutex<HashMap<StreamId, (Arc<Notify>, CancellationToken)>>,
    last_stream: AtomicU32,
    witness: Arc<dyn Witness>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Shares `replica`; `witness` hears of what happens in it.
    pub fn new(replica: Replica, witness: Arc<dyn Witness>) -> Self {
        Self { replica: Mutex::new(replica), streams: Mutex::default(), last_stream: AtomicU32::new(0), witness }
    }

    /// Changes or reads the replica, then wakes the streams that have something to send.
    ///
    /// The clock is read after the lock is taken: whatever led here has happened before.
    pub fn with<T>(&self, change: impl FnOnce(&mut Replica, Time) -> T) -> T {
        let (result, woken, facts) = {
            let mut replica = self.replica.lock();
            let result = change(&mut replica, now());
            (result, replica.take_woken().collect::<Vec<_>>(), replica.take_facts())
        };
        if !woken.is_empty() {
            let streams = self.streams.lock();
            for (notify, _) in woken.iter().filter_map(|id| streams.get(id)) {
                notify.notify_one();
            }
        }
        if !facts.is_empty() {
            self.witness.witness(facts);
        }
        result
    }

    /// A new stream, which is woken when something waits to be sent on it. It ends when the guard is dropped.
    pub fn open_stream(self: &Arc<Self>) -> StreamGuard {
        let id = StreamId(self.last_stream.fetch_add(1, Ordering::Relaxed) + 1);
        let (woken, end) = (Arc::new(Notify::new()), CancellationToken::new());
        self.streams.lock().insert(id, (woken.clone(), end.clone()));
        StreamGuard { id, woken, end, shared: self.clone() }
    }

    /// Asks whoever serves the stream to end it.
    pub fn end_stream(&self, id: StreamId) {
        if let Some((_, end)) = self.streams.lock().get(&id) {
            end.cancel();
        }
    }
}

/// A stream for as long as it is open.
#[derive(Debug)]
pub struct StreamGuard {
    /// Its id.
    pub id: StreamId,
    /// Notified when something waits to be sent.
    pub woken: Arc<Notify>,
    /// Cancelled when the stream must end.
    pub end: CancellationToken,
    shared: Arc<Shared>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.shared.streams.lock().remove(&self.id);
        self.shared.with(|replica, now| replica.stream_closed(self.id, now));
    }
}
