//! Which copies each replica must still be told of.
//!
//! Every new copy takes the next sequence number of its agent. A stream sends what is waiting in the order of these
//! numbers, so that one number tells the replica's progress: a lease covers the copies up to it. What waits is keyed by
//! session, so that a slow replica costs at most one report for each session.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::core::digest::Digest;
use crate::core::lease::StreamId;
use crate::core::session::{ResourceVersion, Uid};

/// What a replica is told of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holding {
    /// The object's uid.
    pub uid: Uid,
    /// Its generation when it was read.
    pub generation: u64,
    /// Digest of the metadata.
    pub digest: Digest,
    /// The resourceVersion that was read.
    pub resource_version: ResourceVersion,
    /// The generation that the copy was restored at. Own writes and validations have carried it on to what it is: it was not dropped
    /// meanwhile.
    pub since: u64,
}

/// News about one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The agent holds this copy, and no other of that name.
    Held(Holding),
    /// The agent holds no copy of that name.
    Released,
}

/// Takes reports of a shard. Several shards share one.
pub trait Reporter {
    /// A new copy is held. Returns its sequence number.
    fn held(&mut self, name: &Arc<str>, holding: Holding) -> u64;
    /// No copy is held any more.
    fn released(&mut self, name: &Arc<str>);
}

#[derive(Debug, Default)]
struct Outbox {
    waiting: BTreeMap<u64, (Arc<str>, Report)>,
    by_name: HashMap<Arc<str>, u64>,
}

/// The reports of one agent, with an outbox for each of its streams.
#[derive(Debug, Default)]
pub struct Reports {
    last: u64,
    outboxes: HashMap<StreamId, Outbox>,
}

impl Reports {
    /// Opens the outbox of a new stream. Returns the highest sequence number that the inventory must cover: copies
    /// up to it are not in the outbox, later ones are.
    pub fn open(&mut self, stream: StreamId) -> u64 {
        self.outboxes.insert(stream, Outbox::default());
        self.last
    }

    /// Forgets a stream.
    pub fn close(&mut self, stream: StreamId) {
        self.outboxes.remove(&stream);
    }

    /// Takes at most `most` reports for `stream`, in order, and the sequence number up to which everything is told
    /// once they are.
    pub fn take(&mut self, stream: StreamId, most: usize) -> (Vec<(Arc<str>, Report)>, u64) {
        let Some(outbox) = self.outboxes.get_mut(&stream) else {
            return (Vec::new(), 0);
        };
        let mut taken = Vec::new();
        let mut through = self.last;
        while let Some(first) = outbox.waiting.first_entry() {
            if taken.len() == most {
                through = first.key() - 1;
                break;
            }
            let (name, report) = first.remove();
            outbox.by_name.remove(&name);
            taken.push((name, report));
        }
        (taken, through)
    }

    /// Reports that wait for `stream`.
    pub fn waiting(&self, stream: StreamId) -> usize {
        self.outboxes.get(&stream).map_or(0, |o| o.waiting.len())
    }

    fn push(&mut self, name: &Arc<str>, report: Report) -> u64 {
        self.last += 1;
        for outbox in self.outboxes.values_mut() {
            if let Some(older) = outbox.by_name.insert(name.clone(), self.last) {
                outbox.waiting.remove(&older);
            }
            outbox.waiting.insert(self.last, (name.clone(), report));
        }
        self.last
    }
}

impl Reporter for Reports {
    fn held(&mut self, name: &Arc<str>, holding: Holding) -> u64 {
        self.push(name, Report::Held(holding))
    }

    fn released(&mut self, name: &Arc<str>) {
        self.push(name, Report::Released);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::digest::Metadata;

    fn holding(generation: u64) -> Holding {
        Holding {
            uid: Uid::from_u128(1),
            generation,
            digest: Digest::of(&Metadata::new()),
            resource_version: ResourceVersion(generation),
            since: generation,
        }
    }

    #[test]
    fn what_waits_is_a_set_keyed_by_session() {
        let (mut reports, s) = (Reports::default(), StreamId(1));
        assert_eq!(reports.open(s), 0);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for generation in 1..100 {
            reports.held(&a, holding(generation));
        }
        reports.held(&b, holding(1));
        assert_eq!(reports.waiting(s), 2);
        assert_eq!(reports.take(s, 1), (vec![(a.clone(), Report::Held(holding(99)))], 99));
        reports.released(&b);
        assert_eq!(reports.take(s, 9), (vec![(b, Report::Released)], 101));
        assert_eq!(reports.take(s, 9), (vec![], 101), "nothing waits: everything is told");
    }

    #[test]
    fn a_new_stream_starts_at_its_inventory() {
        let mut reports = Reports::default();
        let a: Arc<str> = "a".into();
        reports.held(&a, holding(1));
        assert_eq!(reports.open(StreamId(1)), 1);
        assert_eq!(reports.waiting(StreamId(1)), 0);
        assert_eq!(reports.held(&a, holding(2)), 2);
        assert_eq!(reports.waiting(StreamId(1)), 1);
    }
}
