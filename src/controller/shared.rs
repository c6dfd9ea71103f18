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

/// Takes note of what happens in the replica, at once and without waiting. It must not come back to [`Shared`] meanwhile.
pub trait Witness: Send + Sync {
    /// These things happened, in this order, and after all that was told before.
    fn witness(&self, facts: Vec<Fact>);
}

/// The one place where the replica's core is changed.
pub struct Shared {
    replica: Mutex<Replica>,
    streams: Mutex<HashMap<StreamId, (Arc<Notify>, CancellationToken)>>,
    last_stream: AtomicU32,
    /// What has happened and was not told yet. It is added to while the replica is locked.
    untold: Mutex<Vec<Fact>>,
    /// Told by one thread at a time, so that nothing is overtaken by what happened after it.
    witness: Mutex<Arc<dyn Witness>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Shares `replica`; `witness` hears of what happens in it.
    pub fn new(replica: Replica, witness: Arc<dyn Witness>) -> Self {
        Self {
            replica: Mutex::new(replica),
            streams: Mutex::default(),
            last_stream: AtomicU32::new(0),
            untold: Mutex::default(),
            witness: Mutex::new(witness),
        }
    }

    /// Changes or reads the replica, then wakes the streams that have something to send, then tells what happened.
    ///
    /// The clock is read after the lock is taken: whatever led here has happened before. When this returns, whatever
    /// `change` did was told, by this thread or by another one.
    ///
    /// A panic of `change` would leave half of it behind. The program ends then
    /// ([`fail_fast`](crate::runtime::fail_fast)), while the lock is still held.
    pub fn with<T>(&self, change: impl FnOnce(&mut Replica, Time) -> T) -> T {
        let (result, woken, happened) = {
            let mut replica = self.replica.lock();
            let result = change(&mut replica, now());
            let facts = replica.take_facts();
            let happened = !facts.is_empty();
            if happened {
                self.untold.lock().extend(facts);
            }
            (result, replica.take_woken().collect::<Vec<_>>(), happened)
        };
        if !woken.is_empty() {
            let streams = self.streams.lock();
            for (notify, _) in woken.iter().filter_map(|id| streams.get(id)) {
                notify.notify_one();
            }
        }
        if happened {
            let witness = self.witness.lock();
            let facts = std::mem::take(&mut *self.untold.lock());
            if !facts.is_empty() {
                witness.witness(facts);
            }
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::core::cache::{Holding, Report};
    use crate::core::digest::{Metadata, Summarizer};
    use crate::core::replica::{Config, Hello, InstanceId, Kind, Object, Outgoing};
    use crate::core::session::{ResourceVersion, SessionKey, Uid};

    /// Writes down what it hears.
    #[derive(Default)]
    struct Scribe(Mutex<Vec<&'static str>>);

    impl Witness for Scribe {
        fn witness(&self, facts: Vec<Fact>) {
            self.0.lock().extend(facts.iter().map(|fact| match fact {
                Fact::Changed { .. } => "changed",
                Fact::Removed { .. } => "removed",
                Fact::Late(_) => "late",
                Fact::Settled(_) => "settled",
            }));
        }
    }

    #[test]
    fn what_happens_is_told_in_its_order_whoever_is_held_up() {
        let scribe = Arc::new(Scribe::default());
        let replica = Replica::new(Config::default(), &[]);
        let scope = replica.scopes().next().unwrap().0;
        let shared = Arc::new(Shared::new(replica, scribe.clone()));
        let (key, uid) = (SessionKey::new("ns", "s"), Uid::from_u128(1));
        let mut summarizer = Summarizer::default();
        let mut object = |generation, value: &str| Object {
            key: key.clone(),
            uid,
            generation,
            resource_version: ResourceVersion(generation),
            terminating: false,
            kind: Kind::Session(summarizer.summarize(&Metadata::from([("k".into(), value.into())]))),
        };
        let (old, new) = (object(1, "old"), object(2, "new"));
        let Kind::Session(summary) = &old.kind else { panic!() };
        let held =
            Holding { uid, generation: 1, digest: summary.digest, resource_version: ResourceVersion(1), since: 1 };
        let stream = shared.open_stream();
        shared.with(|replica, now| {
            replica.relist(scope, vec![old], ResourceVersion(1), now).unwrap();
            let hello = Hello { instance: InstanceId(1), namespace: "ns".into(), name: "pod".into() };
            assert_eq!(replica.stream_opened(stream.id, hello, now), None);
            replica.reported(stream.id, vec![(key.clone(), Report::Held(held))], Some(1), now).unwrap();
        });
        scribe.0.lock().clear();

        // Whoever brings the change is held up when it wakes the agent's stream, before it tells of the change.
        let held_up = shared.streams.lock();
        let bringing = thread::spawn({
            let shared = shared.clone();
            move || shared.with(|replica, now| replica.apply(scope, new, now))
        });
        let signal = loop {
            match shared.with(|replica, _| replica.drain(stream.id, 1)) {
                Some(Outgoing::Signals { evictions, .. }) => break evictions[0].1,
                _ => thread::yield_now(),
            }
        };
        // The agent is quicker.
        shared.with(|replica, now| replica.acknowledged(stream.id, &key, signal, false, now));
        drop(held_up);
        bringing.join().unwrap();
        assert_eq!(*scribe.0.lock(), ["changed", "settled"]);
    }
}
