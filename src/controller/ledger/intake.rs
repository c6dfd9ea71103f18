//! What the watch and the core tell the ledger.

use std::sync::Arc;

use hashbrown::HashSet;
use jiff::Timestamp;
use tracing::debug;

use super::standing::Standing;
use super::{Ledger, Session, State, since_epoch, wall};
use crate::controller::clock::now;
use crate::controller::object::{Marker, Terms};
use crate::controller::shared::Witness;
use crate::core::expiry::Limits;
use crate::core::replica::Fact;
use crate::core::session::SessionKey;

/// A whole list of objects. What takes as long as it has objects is done when it is made, before any lock is taken.
#[derive(Debug)]
pub struct Listing {
    pub(super) objects: Vec<(SessionKey, Option<Terms>, Option<Marker>)>,
    pub(super) sessions: HashSet<SessionKey>,
}

impl From<Vec<(SessionKey, Option<Terms>, Option<Marker>)>> for Listing {
    fn from(objects: Vec<(SessionKey, Option<Terms>, Option<Marker>)>) -> Self {
        let sessions = objects.iter().filter(|(_, terms, _)| terms.is_some()).map(|(key, ..)| key.clone()).collect();
        Self { objects, sessions }
    }
}

impl State {
    pub(super) fn observed(&mut self, key: &SessionKey, terms: &Terms) {
        let now = now();
        let Terms { uid, generation, resource_version, terminating, .. } = *terms;
        let standing = terms.status.as_deref().map(Standing::of);
        let session = Session { uid, generation, resource_version, terminating, standing };
        if session.is_current() {
            self.progress.forget(key);
        }
        if terminating {
            self.expiry.removed(key);
        } else {
            let renewed = terms.status.as_ref().and_then(|status| status.last_renew_time.as_ref());
            let limits = Limits {
                uid,
                idle: terms.idle_timeout,
                ends: terms.max_lifetime.map(|lifetime| since_epoch(terms.created) + lifetime),
                renewed_at: terms.renewed_at,
                persisted: renewed.map(|renewed| since_epoch(renewed.0)),
            };
            let wall = self.server.now(now).unwrap_or_else(wall);
            self.expiry.observed(key, limits, now, wall);
        }
        if terminating && terms.confirm_eviction {
            self.terminating.insert(key, uid, resource_version, now);
        } else {
            self.terminating.remove(key);
        }
        self.sessions.insert(key.clone(), session);
    }

    pub(super) fn registered(&mut self) {
        let replicas = self.markers.values().map(|marker| Arc::from(marker.replica.as_str())).collect();
        self.hearing.registered(replicas, now());
    }
}

impl Witness for Ledger {
    fn witness(&self, facts: Vec<Fact>) {
        let (now, wall) = (now(), Timestamp::now());
        let mut state = self.state.lock();
        for fact in &facts {
            match fact {
                Fact::Changed { key, uid, generation, new, .. } => {
                    debug!(session = %key, %uid, generation, "changed");
                    let current = |s: &Session| s.uid == *uid && s.generation >= *generation && s.is_current();
                    if !state.sessions.get(key).is_some_and(current) {
                        state.progress.changed(key, *uid, *generation, *new, now);
                    }
                }
                Fact::Removed { key } => {
                    debug!(session = %key, "removed");
                    state.progress.forget(key);
                }
                Fact::Late(_) => {}
                Fact::Settled(settled) => state.progress.settled(settled, now, wall),
            }
        }
        drop(state);
        for fact in &facts {
            match fact {
                Fact::Late(late) => self.settlements.late(late),
                Fact::Settled(settled) => self.settlements.settled(settled),
                Fact::Changed { .. } | Fact::Removed { .. } => {}
            }
        }
        // Of a change too: it may come to be due by the passing of time.
        self.wakers.status.notify_one();
    }
}
