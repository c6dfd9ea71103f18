//! Since when, and up to when, the leader has heard of every use of every session.
//!
//! A leader that has just begun, or that sees a replica come or go, may have missed renewals: what it has not heard proves
//! nothing, and it begins to count anew. A stream that breaks is no reason for that: streams end with the tokens that they
//! were opened with, again and again, and a leader that began anew each time would never find a long timeout to be over. So
//! the first batch on each stream has all uses that its replica knows of, and nothing is missing but what is still to come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::time::Time;

/// A span of time of which every use is known that was reported in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its beginning.
    pub since: Time,
    /// Its end.
    pub through: Time,
}

#[derive(Clone, Copy, Debug)]
struct Ear {
    /// When the first stream to it was opened.
    opened: Time,
    /// By when all uses were told to it that it handed over.
    through: Option<Time>,
}

/// Which replicas the leader hears.
#[derive(Debug)]
pub struct Hearing {
    own: Arc<str>,
    ears: BTreeMap<Arc<str>, Ear>,
    registered: BTreeSet<Arc<str>>,
    since: Time,
}

impl Hearing {
    /// A leader of this name, which has begun at `now` to hear its own agents.
    pub fn new(own: Arc<str>, now: Time) -> Self {
        Self { own, ears: BTreeMap::new(), registered: BTreeSet::new(), since: now }
    }

    /// Nothing that was heard before `now` counts: renewals may have gone to somebody else.
    pub fn restart(&mut self, now: Time) {
        self.ears.clear();
        self.since = now;
    }

    /// A stream to a replica was opened: it hands over all uses that it knows of, and what it hears from now on.
    pub fn opened(&mut self, replica: Arc<str>, now: Time) {
        self.ears.entry(replica).or_insert(Ear { opened: now, through: None });
    }

    /// All that a replica had heard by `through` was handed over: see [`Questions`](super::Questions).
    pub fn handed_over(&mut self, replica: &str, through: Time) {
        if let Some(ear) = self.ears.get_mut(replica) {
            ear.through = ear.through.max(Some(through));
        }
    }

    /// The stream to a replica is over, and is not opened again if the replica is not registered any more.
    pub fn closed(&mut self, replica: &str) {
        if !self.registered.contains(replica) {
            self.ears.remove(replica);
        }
    }

    /// The replicas that are registered. One that went may have heard what nobody will hear any more.
    pub fn registered(&mut self, replicas: BTreeSet<Arc<str>>, now: Time) {
        if !self.registered.is_subset(&replicas) {
            self.since = now;
        }
        self.registered = replicas;
    }

    /// What has been heard without a gap; `None` while some registered replica is not heard. All replicas are known that were
    /// registered by `known`: a later one may have heard what nobody knows of.
    pub fn heard(&self, known: Time) -> Option<Heard> {
        // A leader that does not see itself sees nobody.
        if !self.registered.contains(&self.own) {
            return None;
        }
        let mut heard = Heard { since: self.since, through: known };
        for replica in self.registered.iter().filter(|replica| **replica != self.own) {
            let ear = self.ears.get(replica)?;
            heard.since = heard.since.max(ear.opened);
            heard.through = heard.through.min(ear.through?);
        }
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Time {
        Time::from_nanos(secs * 1_000_000_000)
    }

    fn replicas(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn leader(names: &[&str]) -> Hearing {
        let mut hearing = Hearing::new("own".into(), at(10));
        hearing.registered(replicas(names), at(10));
        hearing
    }

    fn span(since: u64, through: u64) -> Heard {
        Heard { since: at(since), through: at(through) }
    }

    #[test]
    fn alone_it_hears_everything_as_soon_as_it_is_registered() {
        assert_eq!(leader(&[]).heard(at(11)), None);
        assert_eq!(leader(&["own"]).heard(at(11)), Some(span(10, 11)));
    }

    #[test]
    fn every_registered_replica_must_be_heard() {
        let mut hearing = leader(&["own", "a", "b"]);
        hearing.opened("a".into(), at(11));
        hearing.handed_over("a", at(12));
        assert_eq!(hearing.heard(at(13)), None, "b is missing");
        hearing.opened("b".into(), at(14));
        assert_eq!(hearing.heard(at(15)), None, "b has handed over nothing yet");
        hearing.handed_over("b", at(16));
        assert_eq!(hearing.heard(at(17)), Some(span(14, 12)), "through the batch that is oldest");
        hearing.handed_over("a", at(18));
        assert_eq!(hearing.heard(at(19)), Some(span(14, 16)));
    }

    /// Tokens end every hour, and the streams with them.
    #[test]
    fn a_stream_that_breaks_is_no_gap() {
        let mut hearing = leader(&["own", "a"]);
        hearing.opened("a".into(), at(11));
        hearing.handed_over("a", at(12));
        hearing.closed("a");
        assert_eq!(hearing.heard(at(20)), Some(span(11, 12)), "of what came since, nothing is known yet");
        hearing.opened("a".into(), at(21));
        assert_eq!(hearing.heard(at(22)), Some(span(11, 12)));
        hearing.handed_over("a", at(23));
        assert_eq!(hearing.heard(at(24)), Some(span(11, 23)));
    }

    #[test]
    fn whatever_may_lose_renewals_begins_anew() {
        let both = || {
            let mut hearing = leader(&["own", "a"]);
            hearing.opened("a".into(), at(11));
            hearing.handed_over("a", at(12));
            hearing
        };
        let mut hearing = both();
        hearing.closed("a");
        hearing.registered(replicas(&["own"]), at(22));
        assert_eq!(hearing.heard(at(23)), Some(span(22, 23)), "the replica is gone, with what it knew");
        hearing.closed("a");
        assert!(hearing.ears.is_empty(), "nobody comes back under this name");
        let mut hearing = both();
        hearing.restart(at(20));
        assert_eq!(hearing.heard(at(21)), None);
        let mut hearing = both();
        hearing.registered(replicas(&["own", "a", "new"]), at(20));
        assert_eq!(hearing.heard(at(21)), None);
    }
}
