//! What the leader must know of each session beyond what is compared. Every replica keeps it, so that whoever comes to
//! lead knows what is left to be done.
//!
//! * [`standing`]: a session's status as it stands.
//! * [`progress`]: how far the pods are with specs that the status does not speak of yet.
//! * [`intake`]: what the watch and the core tell it.
//! * [`terminating`]: sessions that are being deleted.
//! * [`uses`]: which sessions were used, and which are over; [`renewals`]: uses that wait for whoever leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hashbrown::HashMap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use super::clock::now;
use super::object::{Marker, Read};
use crate::core::expiry::{Expiry, Hearing, WallTime};
use crate::core::replica::{Late, Settled};
use crate::core::server_clock::ServerClock;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::time::Time;

mod intake;
pub mod progress;
pub mod renewals;
pub mod standing;
mod terminating;
mod uses;

pub use intake::Listing;
use progress::{Due, Progress};
use renewals::Renewals;
pub use renewals::Turn;
use standing::Standing;
pub use terminating::Changes;
use terminating::TerminatingSessions;

/// Replicas that one connects to. If there are more, confirmations wait for the leases to end, and nothing expires.
const MOST_REPLICAS: usize = 16;

/// Hears of settled changes, at once and without waiting.
pub trait Settlements: Send + Sync {
    /// A change is settled.
    fn settled(&self, settled: &Settled);

    /// Some pods are late to acknowledge a change.
    fn late(&self, _late: &Late) {}
}

/// The ledger.
pub struct Ledger {
    state: Mutex<State>,
    leading: AtomicBool,
    wakers: Wakers,
    settlements: Box<dyn Settlements>,
}

/// Notified when there is something to do for the leader.
#[derive(Debug, Default)]
pub struct Wakers {
    /// A status may have to be written.
    pub status: Notify,
    /// A session with a finalizer of ours is being deleted or is gone, or a replica went.
    pub finalizers: Notify,
    /// A replica came or went.
    pub markers: Notify,
}

impl Wakers {
    fn all(&self) {
        self.status.notify_one();
        self.finalizers.notify_one();
        self.markers.notify_one();
    }
}

#[derive(Debug)]
struct State {
    sessions: HashMap<SessionKey, Session>,
    terminating: TerminatingSessions,
    markers: BTreeMap<SessionKey, Marker>,
    progress: Progress,
    expiry: Expiry,
    hearing: Hearing,
    renewals: Renewals,
    server: ServerClock,
}

/// What is kept of each session.
#[derive(Clone, Debug)]
pub struct Session {
    /// The object.
    pub uid: Uid,
    /// Its generation.
    pub generation: u64,
    /// Its resourceVersion.
    pub resource_version: ResourceVersion,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Its status; `None` if it has none.
    pub standing: Option<Standing>,
}

impl Session {
    fn is_current(&self) -> bool {
        self.terminating || self.standing.as_ref().is_some_and(|standing| standing.is_current(self.generation))
    }
}

/// How many entries of each kind there are, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// Sessions whose status is behind.
    pub behind: usize,
    /// Sessions whose deletion is being confirmed.
    pub terminating: usize,
    /// Sessions with a timeout.
    pub timeouts: usize,
    /// Uses that wait for whoever leads.
    pub renewals: usize,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// The clock of this machine, which may show anything.
fn wall() -> WallTime {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// An instant of the API server's clock.
pub fn since_epoch(at: Timestamp) -> WallTime {
    at.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or_default()
}

impl Ledger {
    /// The ledger of the replica `own`. Leases have the length `lease`, and uses are reported every `renewal`.
    pub fn new(own: &str, lease: Duration, renewal: Duration, settlements: Box<dyn Settlements>) -> Self {
        let state = State {
            sessions: HashMap::new(),
            terminating: TerminatingSessions::default(),
            markers: BTreeMap::new(),
            progress: Progress::new(lease),
            expiry: Expiry::new(renewal),
            hearing: Hearing::new(own.into(), now()),
            renewals: Renewals::default(),
            server: ServerClock::default(),
        };
        Self { state: Mutex::new(state), leading: AtomicBool::new(false), wakers: Wakers::default(), settlements }
    }

    /// For whoever works on what it tells.
    pub const fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// An object was added or modified.
    pub fn observed(&self, read: &Read) {
        let key = &read.object.key;
        if let Some(terms) = &read.terms {
            let mut state = self.state.lock();
            state.observed(key, terms);
            drop(state);
            if terms.terminating && terms.confirm_eviction {
                self.wakers.finalizers.notify_one();
            }
        }
        if let Some(marker) = &read.marker {
            let mut state = self.state.lock();
            if state.markers.insert(key.clone(), marker.clone()).as_ref() != Some(marker) {
                state.registered();
                self.wakers.markers.notify_one();
            }
        }
    }

    /// An object was deleted. The replica knows of it by now, as it does of a list: who is woken finds it so.
    pub fn removed(&self, key: &SessionKey) {
        let mut state = self.state.lock();
        state.sessions.remove(key);
        state.progress.forget(key);
        state.expiry.removed(key);
        state.renewals.forget(key);
        if state.terminating.remove(key) {
            self.wakers.finalizers.notify_one();
        }
        if state.markers.remove(key).is_some() {
            state.registered();
            self.wakers.markers.notify_one();
            // Nobody needs to wait for its confirmations any more.
            self.wakers.finalizers.notify_one();
        }
    }

    /// A whole list of the objects in `namespace` (all of them if `None`) takes the place of what was known.
    pub fn relisted(&self, namespace: Option<&str>, listing: Listing) {
        let Listing { objects, sessions: listed } = listing;
        let mut state = self.state.lock();
        let State { sessions, terminating, markers, progress, expiry, .. } = &mut *state;
        let elsewhere = |key: &SessionKey| namespace.is_some_and(|n| **key.namespace() != *n);
        sessions.retain(|key, _| elsewhere(key) || listed.contains(key));
        terminating.retain(|key| elsewhere(key) || listed.contains(key));
        progress.retain(|key| elsewhere(key) || listed.contains(key));
        expiry.retain(|key| elsewhere(key) || listed.contains(key));
        markers.retain(|key, _| elsewhere(key));
        for (key, terms, marker) in objects {
            if let Some(terms) = terms {
                state.observed(&key, &terms);
            }
            if let Some(marker) = marker {
                state.markers.insert(key, marker);
            }
        }
        state.registered();
        state.progress.look_at_all(now());
        drop(state);
        self.wakers.all();
    }

    /// This replica has begun to lead, or leads no more.
    pub fn lead(&self, leading: bool) {
        let mut state = self.state.lock();
        self.leading.store(leading, Ordering::Release);
        let now = now();
        state.hearing.restart(now);
        state.renewals.restart();
        state.terminating.follow(leading);
        if leading {
            state.progress.begin(now);
        }
        drop(state);
        self.wakers.all();
    }

    /// The API server has answered a write at `answered`, and says that it carried it out at `shown` by its own clock. How far this
    /// machine's clock is from that.
    pub fn server_time(&self, shown: WallTime, answered: Time) -> Duration {
        let mut state = self.state.lock();
        // However long it took: one that is read late is only behind, and the next write shows it anew.
        state.server.read(shown, answered, Duration::ZERO);
        state.server.off_by(answered, wall())
    }

    /// How far this machine's clock is from the API server's. Zero before the first answer.
    pub fn clock_off_by(&self) -> Duration {
        self.state.lock().server.off_by(now(), wall())
    }

    /// The time for what must not be dated ahead: by whichever is behind, the API server's clock or this machine's. By the latter
    /// alone before the first answer.
    pub fn prudent_time(&self) -> WallTime {
        let wall = wall();
        self.state.lock().server.past(now(), wall).unwrap_or(wall)
    }

    /// The next session of whose pods something can be said, with what its status says.
    pub fn next_due(&self) -> Option<(Due, Session)> {
        let mut state = self.state.lock();
        let now = now();
        loop {
            let due = state.progress.next(now)?;
            let session = state.sessions.get(&due.key);
            let matching = session.filter(|s| s.uid == due.uid && s.generation == due.generation && !s.is_current());
            if let Some(session) = matching {
                let session = session.clone();
                return Some((due, session));
            }
            let known = state.sessions.get(&due.key);
            debug!(
                session = %due.key, generation = due.generation, known = known.map(|s| s.generation),
                current = known.map(Session::is_current), "the status cannot be said yet"
            );
            // The core may know more than was told here yet, when a list comes in.
            state.progress.withdrawn(&due.key);
        }
    }

    /// When a status may come to be due by the passing of time alone.
    pub fn next_look(&self) -> Option<Time> {
        self.state.lock().progress.next_look()
    }

    /// Looks through all sessions for a status that is behind though nobody works on it.
    pub fn sweep(&self) {
        let now = now();
        let mut state = self.state.lock();
        let State { sessions, progress, .. } = &mut *state;
        for (key, session) in sessions.iter().filter(|(_, session)| !session.is_current()) {
            progress.behind(key, session.uid, session.generation, now);
        }
    }

    /// A session as it is known.
    pub fn session(&self, key: &SessionKey) -> Option<Session> {
        self.state.lock().sessions.get(key).cloned()
    }

    /// Which sessions with our finalizer have begun or ceased to be deleted since this was called last, while this replica leads.
    pub fn take_terminating(&self) -> Changes {
        self.state.lock().terminating.take()
    }

    /// Names and addresses of the registered replicas, of as many as one connects to.
    pub fn replicas(&self) -> BTreeMap<Arc<str>, String> {
        let state = self.state.lock();
        state.markers.values().take(MOST_REPLICAS).map(|m| (m.replica.as_str().into(), m.address.clone())).collect()
    }

    /// How many entries of each kind there are.
    pub fn depths(&self) -> Depths {
        let state = self.state.lock();
        Depths {
            behind: state.progress.len(),
            terminating: state.terminating.len(),
            timeouts: state.expiry.len(),
            renewals: state.renewals.len(),
        }
    }
}

#[cfg(test)]
mod tests;
