//! What the leader must know of each session beyond what is compared. Every replica keeps it, so that whoever comes to
//! lead knows what is left to be done.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{debug, info};

use super::object::{Marker, Read, Terms};
use super::shared::Witness;
use crate::core::replica::{Fact, Settled};
use crate::core::session::{SessionKey, Uid};

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionKey, Terms>,
    markers: BTreeMap<SessionKey, Marker>,
}

impl Ledger {
    /// An object was added or modified.
    pub fn observed(&self, read: &Read) {
        let mut state = self.state.lock();
        if let Some(terms) = &read.terms {
            state.sessions.insert(read.object.key.clone(), terms.clone());
        }
        if let Some(marker) = &read.marker {
            state.markers.insert(read.object.key.clone(), marker.clone());
        }
    }

    /// An object was deleted.
    pub fn removed(&self, key: &SessionKey) {
        let mut state = self.state.lock();
        state.sessions.remove(key);
        state.markers.remove(key);
    }

    /// A whole list of the objects in `namespace` (all of them if `None`) takes the place of what was known.
    pub fn relisted(&self, namespace: Option<&str>, objects: Vec<(SessionKey, Option<Terms>, Option<Marker>)>) {
        let mut state = self.state.lock();
        let elsewhere = |key: &SessionKey| namespace.is_some_and(|n| **key.namespace() != *n);
        state.sessions.retain(|key, _| elsewhere(key));
        state.markers.retain(|key, _| elsewhere(key));
        for (key, terms, marker) in objects {
            if let Some(terms) = terms {
                state.sessions.insert(key.clone(), terms);
            }
            if let Some(marker) = marker {
                state.markers.insert(key, marker);
            }
        }
    }

    /// A client of a pod used the session so long ago.
    pub fn renewed(&self, _key: &SessionKey, _uid: Uid, _idle: Duration) {}

    /// Takes at most `most` of the sessions that were renewed, with how long ago they were used.
    pub fn take_renewed(&self, _most: usize) -> Vec<(SessionKey, Uid, Duration)> {
        Vec::new()
    }
}

impl Witness for Ledger {
    fn witness(&self, facts: Vec<Fact>) {
        for fact in facts {
            match fact {
                Fact::Changed { key, uid, generation, .. } => debug!(session = %key, %uid, generation, "changed"),
                Fact::Removed { key } => debug!(session = %key, "removed"),
                Fact::Settled(settled) => log_eviction(&settled),
            }
        }
    }
}

/// One line for each eviction.
fn log_eviction(settled: &Settled) {
    let Settled { key, uid, generation, changed_keys, pods, silent, took, .. } = settled;
    if pods.is_empty() {
        return;
    }
    info!(
        session = %key,
        %uid,
        generation = generation.unwrap_or_default(),
        gone = generation.is_none(),
        changed_keys = changed_keys.join(","),
        pods = pods.join(","),
        silent = silent.join(","),
        micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "evicted"
    );
}
