//! Sessions that were used and of which no copy is held any more: their last use must still be told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::session::Uid;
use crate::core::time::Time;

/// The last use of each. Bounded: when there is no room, what was used least recently is forgotten.
#[derive(Debug)]
pub struct Departed {
    most: usize,
    by_session: BTreeMap<(Arc<str>, Uid), Time>,
    by_use: BTreeSet<(Time, Arc<str>, Uid)>,
}

impl Departed {
    /// Room for so many.
    pub fn with_room(most: usize) -> Self {
        Self { most, by_session: BTreeMap::new(), by_use: BTreeSet::new() }
    }

    /// A session was used of which no copy is held.
    pub fn add(&mut self, name: Arc<str>, uid: Uid, used: Time) {
        let latest = self.by_session.entry((name.clone(), uid)).or_insert(Time::ZERO);
        if used <= *latest {
            return;
        }
        let before = std::mem::replace(latest, used);
        self.by_use.remove(&(before, name.clone(), uid));
        self.by_use.insert((used, name, uid));
        if self.by_session.len() > self.most
            && let Some((_, name, uid)) = self.by_use.pop_first()
        {
            self.by_session.remove(&(name, uid));
        }
    }

    /// The session with this uid is gone: there is nothing to tell of it.
    pub fn gone(&mut self, name: &Arc<str>, uid: Uid) {
        if let Some((session, used)) = self.by_session.remove_entry(&(name.clone(), uid)) {
            self.by_use.remove(&(used, session.0, uid));
        }
    }

    /// There is no session of this name.
    pub fn absent(&mut self, name: &Arc<str>) {
        let uids: Vec<Uid> = self.of(name).collect();
        for uid in uids {
            self.gone(name, uid);
        }
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &Arc<str>) -> bool {
        self.of(name).next().is_some()
    }

    fn of(&self, name: &Arc<str>) -> impl Iterator<Item = Uid> {
        let any = (name.clone(), Uid::from_u128(0))..=(name.clone(), Uid::from_u128(u128::MAX));
        self.by_session.range(any).map(|((_, uid), _)| *uid)
    }

    /// Those that were used at or after `since`.
    pub fn since(&self, since: Time) -> impl Iterator<Item = (Arc<str>, Uid, Time)> {
        let from = (since, Arc::from(""), Uid::from_u128(0));
        self.by_use.range(from..).map(|(used, name, uid)| (name.clone(), *uid, *used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uid = Uid::from_u128(1);
    const B: Uid = Uid::from_u128(2);

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn told(departed: &Departed, since: u64) -> Vec<(String, Uid, Time)> {
        departed.since(at(since)).map(|(name, uid, used)| (name.to_string(), uid, used)).collect()
    }

    #[test]
    fn the_latest_use_is_told_once() {
        let mut departed = Departed::with_room(10);
        for (uid, used) in [(A, 5), (A, 9), (A, 7), (B, 6)] {
            departed.add("s".into(), uid, at(used));
        }
        assert_eq!(told(&departed, 0), [("s".to_owned(), B, at(6)), ("s".to_owned(), A, at(9))]);
        assert_eq!(told(&departed, 9), [("s".to_owned(), A, at(9))]);
        assert_eq!(told(&departed, 10), []);
    }

    #[test]
    fn nothing_is_told_of_what_is_gone() {
        let mut departed = Departed::with_room(10);
        for (name, uid) in [("s", A), ("s", B), ("s2", A)] {
            departed.add(name.into(), uid, at(5));
        }
        departed.gone(&"s".into(), A);
        assert_eq!(told(&departed, 0), [("s".to_owned(), B, at(5)), ("s2".to_owned(), A, at(5))]);
        departed.absent(&"s".into());
        assert_eq!(told(&departed, 0), [("s2".to_owned(), A, at(5))]);
        assert!(departed.has(&"s2".into()) && !departed.has(&"s".into()));
        departed.absent(&"s2".into());
        assert!(departed.by_session.is_empty() && departed.by_use.is_empty());
    }

    #[test]
    fn what_was_used_least_recently_is_forgotten_and_nothing_grows() {
        let mut departed = Departed::with_room(3);
        for second in 1..1_000 {
            departed.add(format!("s{}", second % 7).into(), A, at(second));
            assert!(departed.by_session.len() <= 3 && departed.by_session.len() == departed.by_use.len());
        }
        assert_eq!(
            told(&departed, 0).iter().map(|(_, _, used)| *used).collect::<Vec<_>>(),
            [at(997), at(998), at(999)]
        );
    }
}
