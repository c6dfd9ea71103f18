//! Sessions with our finalizer that are being deleted, and which of them somebody who follows them has to look at anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::finalizing::Terminating;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::time::Time;

/// The sessions that are being deleted.
#[derive(Debug, Default)]
pub(super) struct TerminatingSessions {
    all: BTreeMap<SessionKey, Terminating>,
    /// Those that came or went since they were taken. Nothing is kept while nobody follows.
    touched: BTreeSet<SessionKey>,
    followed: bool,
    anew: bool,
}

/// What has changed since the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whatever was known before is void.
    pub anew: bool,
    /// Each session as it is now; `None` if it is gone, or is let go of.
    pub sessions: Vec<(SessionKey, Option<Terminating>)>,
}

impl TerminatingSessions {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Somebody follows from now on and knows of none yet, or nobody does any more.
    pub fn follow(&mut self, followed: bool) {
        (self.followed, self.anew) = (followed, true);
        self.touched = if followed { self.all.keys().cloned().collect() } else { BTreeSet::new() };
    }

    /// The session is being deleted, as this replica knows since `now` or before.
    pub fn insert(&mut self, key: &SessionKey, uid: Uid, resource_version: ResourceVersion, now: Time) {
        let same = self.all.get(key).filter(|known| known.uid == uid);
        let since = same.map_or(now, |known| known.since);
        if same.is_none() {
            self.touch(key);
        }
        self.all.insert(key.clone(), Terminating { uid, resource_version, since });
    }

    /// It is gone, or is let go of. Whether it was there.
    pub fn remove(&mut self, key: &SessionKey) -> bool {
        let known = self.all.remove(key).is_some();
        if known {
            self.touch(key);
        }
        known
    }

    /// Forgets those for which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&SessionKey) -> bool) {
        let gone: Vec<SessionKey> = self.all.keys().filter(|key| !keep(key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// What has changed since this was called last.
    pub fn take(&mut self) -> Changes {
        let touched = std::mem::take(&mut self.touched);
        let sessions = touched.into_iter().map(|key| (self.all.get(&key).copied(), key)).map(|(now, key)| (key, now));
        Changes { sessions: sessions.collect(), anew: std::mem::take(&mut self.anew) }
    }

    fn touch(&mut self, key: &SessionKey) {
        if self.followed {
            self.touched.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> SessionKey {
        SessionKey::new("ns", name)
    }

    fn insert(sessions: &mut TerminatingSessions, name: &str, uid: u128, seconds: u64) {
        let now = Time::from_nanos(seconds * 1_000_000_000);
        sessions.insert(&key(name), Uid::from_u128(uid), ResourceVersion(seconds), now);
    }

    /// Names and uids; `None` for what is gone.
    fn taken(sessions: &mut TerminatingSessions) -> (bool, Vec<(String, Option<Uid>)>) {
        let Changes { anew, sessions } = sessions.take();
        let named = |(key, now): (SessionKey, Option<Terminating>)| (key.name().to_owned(), now.map(|now| now.uid));
        (anew, sessions.into_iter().map(named).collect())
    }

    #[test]
    fn who_follows_is_told_what_came_and_went() {
        let mut sessions = TerminatingSessions::default();
        let uid = Uid::from_u128;
        insert(&mut sessions, "a", 1, 1);
        insert(&mut sessions, "b", 2, 1);
        assert!(sessions.touched.is_empty(), "nobody follows");
        sessions.follow(true);
        let both = vec![("a".to_owned(), Some(uid(1))), ("b".to_owned(), Some(uid(2)))];
        assert_eq!(taken(&mut sessions), (true, both));
        // Another write while it is being deleted changes nothing,
        insert(&mut sessions, "a", 1, 5);
        assert_eq!(taken(&mut sessions), (false, vec![]));
        assert_eq!(sessions.all[&key("a")].since, Time::from_nanos(1_000_000_000));
        // and a successor does.
        insert(&mut sessions, "a", 3, 6);
        sessions.retain(|key| key.name() == "a");
        assert!(!sessions.remove(&key("b")));
        assert_eq!(taken(&mut sessions), (false, vec![("a".to_owned(), Some(uid(3))), ("b".to_owned(), None)]));

        sessions.follow(false);
        insert(&mut sessions, "c", 4, 7);
        assert_eq!(taken(&mut sessions), (true, vec![]), "what was known before is void");
        assert_eq!(sessions.len(), 2);
    }
}
