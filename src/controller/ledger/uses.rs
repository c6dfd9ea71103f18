//! Uses of sessions: agents and other replicas tell of them, whoever leads is told which sessions are over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::renewals::{Taken, Turn};
use super::{Ledger, State, wall};
use crate::controller::clock::now;
use crate::core::expiry::{Expired, Persist};
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::session_ref::SessionRef;
use crate::core::tally::Full;
use crate::core::time::Time;

impl Ledger {
    /// A client of a pod used the session so long ago.
    ///
    /// # Errors
    ///
    /// The session is not known, and no more such uses of its namespace can be kept.
    pub fn renewed(&self, key: &SessionKey, uid: Uid, idle: Duration) -> Result<(), Full> {
        let used = Time::ZERO + now().saturating_since(Time::ZERO + idle);
        let mut state = self.state.lock();
        state.expiry.used(key, uid, used);
        if self.leading.load(Ordering::Acquire) {
            return Ok(());
        }
        let (known, sessions) = (state.sessions.contains_key(key), state.sessions.len());
        state.renewals.add(key, uid, used, known, sessions)
    }

    /// Whoever leads begins to take what is renewed, and whoever did before takes nothing more.
    pub fn begin_taking(&self) -> Turn {
        self.state.lock().renewals.begin()
    }

    /// Takes the sessions that were renewed, with how long ago they were used; the first time all of which a use is known, since what
    /// was taken before may be lost. `None` if it is not this one's turn any more.
    pub fn take_renewed(&self, turn: Turn) -> Option<Vec<(SessionKey, Uid, Duration)>> {
        if self.leading.load(Ordering::Acquire) {
            return None;
        }
        let now = now();
        let mut state = self.state.lock();
        let Taken { mut uses, first } = state.renewals.take(turn)?;
        if first {
            uses.extend(state.expiry.uses());
        }
        drop(state);
        Some(uses.into_iter().map(|(key, uid, used)| (key, uid, now.saturating_since(used))).collect())
    }

    /// A stream to another replica was opened.
    pub fn peer_opened(&self, replica: &str) {
        self.state.lock().hearing.opened(replica.into(), now());
    }

    /// Another replica handed over what it had heard. If no more of it follows, that is all that it had heard by `through`.
    pub fn peer_renewed(&self, replica: &str, used: Vec<(SessionKey, Uid, Duration)>, through: Option<Time>) {
        let now = now();
        let mut state = self.state.lock();
        for (key, uid, idle) in used {
            let at = Time::ZERO + now.saturating_since(Time::ZERO + idle);
            state.expiry.used(&key, uid, at);
        }
        if let Some(through) = through {
            state.hearing.handed_over(replica, through);
        }
    }

    /// A stream to another replica is over.
    pub fn peer_closed(&self, replica: &str) {
        self.state.lock().hearing.closed(replica);
    }

    /// Sessions that are over, at most `most`: by the API server's clock and by this machine's. None before the former
    /// is known, and none is idle before it is known who was `registered` until some time.
    pub fn expired(&self, registered: Option<Time>, most: usize) -> Vec<(SessionRef, ResourceVersion, Expired)> {
        let now = now();
        let mut state = self.state.lock();
        let Some(wall) = state.server.past(now, wall()) else {
            return Vec::new();
        };
        let State { sessions, expiry, hearing, .. } = &mut *state;
        let heard = registered.and_then(|registered| hearing.heard(registered));
        let expired = expiry.expired(heard, now, wall, most);
        let known = |(key, uid, why)| {
            let session = sessions.get(&key).filter(|s| s.uid == uid && !s.terminating)?;
            Some((SessionRef { key, uid }, session.resource_version, why))
        };
        expired.into_iter().filter_map(known).collect()
    }

    /// Whether a session that was [given out](Self::expired) as idle is so still.
    pub fn is_idle(&self, session: &SessionRef, registered: Option<Time>) -> bool {
        let now = now();
        let state = self.state.lock();
        let heard = registered.and_then(|registered| state.hearing.heard(registered));
        let wall = state.server.now(now);
        wall.is_some_and(|wall| state.expiry.is_idle(&session.key, session.uid, heard, now, wall))
    }

    /// Uses that are to be persisted, at most `most`. None before the API server's clock is known.
    pub fn to_persist(&self, most: usize) -> Vec<Persist> {
        let now = now();
        let mut state = self.state.lock();
        let Some(wall) = state.server.now(now) else {
            return Vec::new();
        };
        state.expiry.to_persist(now, wall, most)
    }
}
