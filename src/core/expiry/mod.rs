//! Which sessions have outlived their timeouts.
//!
//! A session is idle only if its use would have been heard (see [`hearing`]): never because the controller restarted or
//! changed its leader. Deadlines are kept in order and are looked at when they come, so that sessions that nothing
//! happens to cost nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use hashbrown::HashMap;

use super::patience::Patience;
use super::session::{SessionKey, Uid};
use super::time::Time;

pub mod hearing;
pub mod questions;

pub use hearing::{Heard, Hearing};
pub use questions::Questions;

/// A wall clock: time since 1970. Only for what the API server's clock began (see [`super::server_clock`]), and never to order events.
pub type WallTime = Duration;

/// Clocks of two API servers of a cluster are assumed to differ by no more than this.
const SKEW: Duration = Duration::from_secs(1);
/// A session that was found to be over is looked at again after this, if it is still there; then after twice as long each time.
const RETRY: Duration = Duration::from_secs(5);
/// The API server's clock is known to a few seconds.
const FUTURE: Duration = Duration::from_mins(1);
/// The last use is persisted no more often than this, and than twice in an idle timeout.
const PERSIST_AT_MOST: Duration = Duration::from_mins(1);

/// How long a session may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The object.
    pub uid: Uid,
    /// It may go unused for so long.
    pub idle: Option<Duration>,
    /// It may live until then.
    pub ends: Option<WallTime>,
    /// What an agent wrote that had no controller to tell of a use. Only that it changes counts.
    pub renewed_at: Option<u64>,
    /// Its last use as it was persisted, by the clock of whoever led then.
    pub persisted: Option<WallTime>,
}

impl Limits {
    /// Its last use as it was persisted. What is well in the future was written while some clock was wrong, and says nothing.
    fn persisted(&self, wall: WallTime) -> Option<WallTime> {
        self.persisted.filter(|used| *used <= wall + FUTURE)
    }
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expired {
    /// Nobody has used it for its idle timeout.
    Idle,
    /// It is older than its maximum lifetime.
    Lifetime,
}

/// A use that is to be persisted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// The session.
    pub key: SessionKey,
    /// The object.
    pub uid: Uid,
    /// When it was used.
    pub used: WallTime,
}

#[derive(Debug)]
struct Session {
    limits: Limits,
    /// The last use that was heard of, or when the session was first seen.
    used: Time,
    /// Its place among the idle.
    idle_at: Option<Time>,
    /// Its place among those that end.
    ends_at: Option<WallTime>,
    /// Its place among those whose use is to be persisted.
    persist_at: Option<Time>,
    /// Its use need not be persisted again before this.
    persisted_until: Time,
    /// For how long it is left alone when it is found to be over the next time.
    patience: Patience,
}

impl Session {
    /// When it can be idle at the earliest, as far as is known; `None`: it is. Uses are told within `renewal`.
    fn idle_from(&self, heard: Heard, renewal: Duration, now: Time, wall: WallTime) -> Option<Time> {
        let idle = self.limits.idle.unwrap_or(Duration::MAX);
        let over = self.used.max(heard.since) + idle + renewal;
        if over > heard.through {
            return Some(over);
        }
        let persisted = self.limits.persisted(wall).map_or(Duration::ZERO, |used| (used + idle).saturating_sub(wall));
        (!persisted.is_zero()).then(|| now + persisted)
    }
}

/// The sessions that have timeouts.
#[derive(Debug)]
pub struct Expiry {
    /// How long an agent may keep a use to itself.
    renewal: Duration,
    sessions: HashMap<SessionKey, Session>,
    idle: BTreeSet<(Time, SessionKey)>,
    ends: BTreeSet<(WallTime, SessionKey)>,
    persist: BTreeSet<(Time, SessionKey)>,
}

impl Expiry {
    /// No sessions yet. Agents report uses every `renewal`.
    pub fn new(renewal: Duration) -> Self {
        Self {
            renewal,
            sessions: HashMap::new(),
            idle: BTreeSet::new(),
            ends: BTreeSet::new(),
            persist: BTreeSet::new(),
        }
    }

    /// A session as the watch shows it. `now` counts as a use of one that is new here.
    pub fn observed(&mut self, key: &SessionKey, limits: Limits, now: Time, wall: WallTime) {
        if limits.idle.is_none() && limits.ends.is_none() {
            return self.removed(key);
        }
        let mut used = now;
        let mut persisted_until = limits.idle.map_or(now, |idle| now + persist_interval(idle));
        if let Some(known) = self.sessions.get(key) {
            if known.limits == limits {
                return;
            }
            if known.limits.uid == limits.uid {
                // Whoever sets another timeout means it to run from now on, and the use that goes with it is still on its way. Who can
                // tell nobody of a use writes it.
                let same = (known.limits.idle, known.limits.renewed_at) == (limits.idle, limits.renewed_at);
                used = if same { known.used } else { now };
                persisted_until = known.persisted_until;
            }
        }
        if let (Some(idle), Some(persisted)) = (limits.idle, limits.persisted(wall)) {
            persisted_until = persisted_until.max(now + (persisted + persist_interval(idle)).saturating_sub(wall));
        }
        let pending = self.sessions.get(key).is_some_and(|s| s.limits.uid == limits.uid && s.persist_at.is_some());
        self.removed(key);
        let mut session = Session {
            limits,
            used,
            idle_at: None,
            ends_at: None,
            persist_at: None,
            persisted_until,
            patience: Patience::default(),
        };
        if let Some(idle) = limits.idle {
            let at = used + idle + self.renewal;
            session.idle_at = Some(at);
            self.idle.insert((at, key.clone()));
            if pending {
                session.persist_at = Some(persisted_until);
                self.persist.insert((persisted_until, key.clone()));
            }
        }
        if let Some(ends) = limits.ends {
            session.ends_at = Some(ends + SKEW);
            self.ends.insert((ends + SKEW, key.clone()));
        }
        self.sessions.insert(key.clone(), session);
    }

    /// A session is gone, or is being deleted.
    pub fn removed(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.remove(key) else {
            return;
        };
        if let Some(at) = session.idle_at {
            self.idle.remove(&(at, key.clone()));
        }
        if let Some(at) = session.ends_at {
            self.ends.remove(&(at, key.clone()));
        }
        if let Some(at) = session.persist_at {
            self.persist.remove(&(at, key.clone()));
        }
    }

    /// Forgets the sessions for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&SessionKey) -> bool) {
        let gone: Vec<SessionKey> = self.sessions.keys().filter(|key| !keep(key)).cloned().collect();
        for key in gone {
            self.removed(&key);
        }
    }

    /// A session was used at `used`.
    pub fn used(&mut self, key: &SessionKey, uid: Uid, used: Time) {
        let Some(session) = self.sessions.get_mut(key).filter(|s| s.limits.uid == uid) else {
            return;
        };
        // Its place among the idle stays: it is looked at when that comes.
        session.used = session.used.max(used);
        if session.limits.idle.is_some() && session.persist_at.is_none() {
            let at = session.persisted_until;
            session.persist_at = Some(at);
            self.persist.insert((at, key.clone()));
        }
    }

    /// Sessions that are over, at most `most`. Each is given out again after a while if it is not removed by then.
    /// Without anything `heard`, none is idle.
    pub fn expired(
        &mut self,
        heard: Option<Heard>,
        now: Time,
        wall: WallTime,
        most: usize,
    ) -> Vec<(SessionKey, Uid, Expired)> {
        let mut expired = Vec::new();
        // Something is left for those that are idle: there may be many that cannot be deleted.
        while expired.len() < most.div_ceil(2)
            && let Some(first) = self.ends.first()
            && first.0 <= wall
        {
            let Some((_, key)) = self.ends.pop_first() else {
                break;
            };
            if let Some(session) = self.sessions.get_mut(&key) {
                expired.push((key.clone(), session.limits.uid, Expired::Lifetime));
                let again = wall + session.patience.pause(RETRY);
                session.ends_at = Some(again);
                self.ends.insert((again, key));
            }
        }
        let Some(heard) = heard else {
            return expired;
        };
        while expired.len() < most
            && let Some(first) = self.idle.first()
            && first.0 <= heard.through
        {
            let Some((_, key)) = self.idle.pop_first() else {
                break;
            };
            let Some(session) = self.sessions.get_mut(&key) else {
                continue;
            };
            let again = session.idle_from(heard, self.renewal, now, wall).unwrap_or_else(|| {
                expired.push((key.clone(), session.limits.uid, Expired::Idle));
                now + session.patience.pause(RETRY)
            });
            session.idle_at = Some(again);
            self.idle.insert((again, key));
        }
        expired
    }

    /// Whether the session is idle still: it may have been used since [`Self::expired`] gave it out.
    pub fn is_idle(&self, key: &SessionKey, uid: Uid, heard: Option<Heard>, now: Time, wall: WallTime) -> bool {
        let session = self.sessions.get(key).filter(|session| session.limits.uid == uid);
        session.zip(heard).is_some_and(|(session, heard)| session.idle_from(heard, self.renewal, now, wall).is_none())
    }

    /// Uses that are to be persisted, at most `most`.
    pub fn to_persist(&mut self, now: Time, wall: WallTime, most: usize) -> Vec<Persist> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some(first) = self.persist.first()
            && first.0 <= now
        {
            let Some((_, key)) = self.persist.pop_first() else {
                break;
            };
            let Some(session) = self.sessions.get_mut(&key) else {
                continue;
            };
            session.persist_at = None;
            session.persisted_until = now + persist_interval(session.limits.idle.unwrap_or_default());
            let used = wall.saturating_sub(now.saturating_since(session.used));
            due.push(Persist { uid: session.limits.uid, used, key });
        }
        due
    }

    /// The last use of each session that may expire unused, or when it was first seen: for a leader that hears of them anew.
    pub fn uses(&self) -> impl Iterator<Item = (SessionKey, Uid, Time)> {
        let idle = self.sessions.iter().filter(|(_, session)| session.limits.idle.is_some());
        idle.map(|(key, session)| (key.clone(), session.limits.uid, session.used))
    }

    /// How many sessions have timeouts.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

fn persist_interval(idle: Duration) -> Duration {
    (idle / 2).max(PERSIST_AT_MOST)
}

#[cfg(test)]
mod tests;
