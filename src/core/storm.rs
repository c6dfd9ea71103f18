//! Tells when a session is evicted again and again: somebody writes what is true only inside one pod.
//!
//! Each pod that restores such a session makes every other pod's copy differ. Nothing breaks, but nobody is served from
//! memory either, so people are told which keys it is, once in a while.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::notes::MAX_KEYS;
use super::session::Uid;
use super::time::Time;

/// What counts as a storm, and how much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct StormLimits {
    /// So many rounds of eviction
    pub rounds: usize,
    /// within this time are a storm.
    pub window: Duration,
    /// A storm of one session is told at most once in this time.
    pub quiet: Duration,
    /// At most so many sessions are remembered. What is evicted beyond goes unwatched until there is room.
    pub sessions: usize,
}

impl Default for StormLimits {
    fn default() -> Self {
        Self { rounds: 10, window: Duration::from_secs(30), quiet: Duration::from_mins(10), sessions: 4096 }
    }
}

/// A session is being evicted again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storm {
    /// How often,
    pub rounds: u64,
    /// in which time.
    pub took: Duration,
    /// Names of the keys that changed, at most as many as a note names.
    pub keys: Vec<Arc<str>>,
}

#[derive(Debug, Default)]
struct Watched {
    /// The latest rounds; never more than make a storm.
    rounds: VecDeque<Time>,
    keys: BTreeSet<Arc<str>>,
    told: Option<Time>,
}

/// Watches rounds of eviction.
#[derive(Debug)]
pub struct StormDetector {
    limits: StormLimits,
    sessions: HashMap<Uid, Watched>,
    /// When it was last looked for sessions to forget.
    swept: Time,
}

impl StormDetector {
    /// A detector that has seen nothing.
    pub fn new(limits: StormLimits) -> Self {
        Self { limits, sessions: HashMap::new(), swept: Time::ZERO }
    }

    /// A round of eviction of this session has ended. Says whether that makes a storm that is to be told now.
    pub fn evicted(&mut self, uid: Uid, keys: &[Arc<str>], now: Time) -> Option<Storm> {
        if self.sessions.len() >= self.limits.sessions && !self.sessions.contains_key(&uid) && !self.forget(now) {
            return None;
        }
        let StormLimits { rounds: enough, window, quiet, .. } = self.limits;
        let watched = self.sessions.entry(uid).or_default();
        while watched.rounds.front().is_some_and(|first| *first + window < now) {
            watched.rounds.pop_front();
        }
        if watched.rounds.is_empty() {
            watched.keys.clear();
        }
        if watched.rounds.len() >= enough {
            watched.rounds.pop_front();
        }
        watched.rounds.push_back(now);
        for key in keys {
            if watched.keys.len() == MAX_KEYS {
                break;
            }
            watched.keys.insert(key.clone());
        }
        let silent = watched.told.is_some_and(|told| now < told + quiet);
        if watched.rounds.len() < enough || silent {
            return None;
        }
        watched.told = Some(now);
        let first = watched.rounds.front().copied().unwrap_or(now);
        Some(Storm {
            rounds: u64::try_from(watched.rounds.len()).unwrap_or(u64::MAX),
            took: now.saturating_since(first),
            keys: watched.keys.iter().cloned().collect(),
        })
    }

    /// How many sessions are remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Forgets sessions of which nothing was heard for long. Says whether there is room. It looks through all of them,
    /// so not each time that there is none.
    fn forget(&mut self, now: Time) -> bool {
        let StormLimits { window, quiet, sessions, .. } = self.limits;
        if now < self.swept + Duration::from_secs(1) {
            return false;
        }
        self.swept = now;
        self.sessions.retain(|_, watched| {
            let fresh = watched.rounds.back().is_some_and(|last| now <= *last + window);
            fresh || watched.told.is_some_and(|told| now < told + quiet)
        });
        self.sessions.len() < sessions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Uid = Uid::from_u128(1);

    fn at(millis: u64) -> Time {
        Time::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn keys(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn ten_rounds_in_thirty_seconds_are_told_once() {
        let mut detector = StormDetector::new(StormLimits::default());
        for round in 0..9 {
            assert_eq!(detector.evicted(A, &keys(&["b"]), at(round * 1000)), None, "{round}");
        }
        let storm = detector.evicted(A, &keys(&["a"]), at(9000)).unwrap();
        assert_eq!(storm, Storm { rounds: 10, took: Duration::from_secs(9), keys: keys(&["a", "b"]) });
        let told: Vec<u64> =
            (10..1300).filter(|second| detector.evicted(A, &[], at(second * 1000)).is_some()).collect();
        assert_eq!(told, [609, 1209], "again after ten minutes");
    }

    #[test]
    fn slow_changes_are_no_storm() {
        let mut detector = StormDetector::new(StormLimits::default());
        assert!((0..100).all(|round| detector.evicted(A, &keys(&["a"]), at(round * 3400)).is_none()));
        let hasty = (0..9).filter_map(|round| detector.evicted(A, &keys(&["z"]), at(400_000 + round))).count();
        assert_eq!(hasty, 0, "what was long ago does not count");
        let storm = detector.evicted(A, &[], at(400_009)).unwrap();
        assert_eq!(storm.keys, keys(&["z"]), "nor do its keys");
    }

    #[test]
    fn the_memory_is_bounded_and_becomes_free_again() {
        let limits = StormLimits { sessions: 3, ..StormLimits::default() };
        let mut detector = StormDetector::new(limits);
        for uid in 0..10 {
            detector.evicted(Uid::from_u128(uid), &[], at(0));
        }
        assert_eq!(detector.len(), 3);
        detector.evicted(Uid::from_u128(99), &[], at(31_000));
        assert_eq!(detector.len(), 1);
    }

    proptest! {
        /// It is told if and only if enough rounds fit into the window and it was not told lately.
        #[test]
        fn it_is_told_exactly_when_it_is_one(steps in prop::collection::vec(0_u64..12, 1..300)) {
            let limits = StormLimits { quiet: Duration::from_mins(1), ..StormLimits::default() };
            let mut detector = StormDetector::new(limits);
            let (mut now, mut rounds, mut told) = (0, Vec::new(), None::<u64>);
            for step in steps {
                now += step * 500;
                rounds.push(now);
                let many = rounds.iter().filter(|then| now - **then <= 30_000).count() >= limits.rounds;
                let expected = many && told.is_none_or(|told| now >= told + 60_000);
                prop_assert_eq!(detector.evicted(A, &[], at(now)).is_some(), expected);
                if expected {
                    told = Some(now);
                }
            }
        }
    }
}
