//! The truth: what etcd holds, and all it ever held.

use std::sync::OnceLock;

use super::ticks;
use crate::core::cache::{Answer, Copy, Facts, Observed};
use crate::core::digest::{Digest, Metadata, Summarizer, Summary};
use crate::core::fields::Fields;
use crate::core::replica::{Kind, Object};
use crate::core::session::{ResourceVersion, SessionKey, Uid};

/// Namespace of the sessions.
pub const NAMESPACE: &str = "ns";
/// Namespace of the markers.
pub const SYSTEM: &str = "sys";

/// A metadata map of two keys, each absent or with one of three values.
pub type Map = usize;
/// How many maps there are.
pub const MAPS: Map = 16;

/// What is asked of a map again and again, computed once.
pub struct Known {
    pub metadata: Fields,
    pub digest: Digest,
    pub summary: Summary,
}

/// The facts of a map.
pub fn known(map: Map) -> &'static Known {
    static TABLE: OnceLock<Vec<Known>> = OnceLock::new();
    &TABLE.get_or_init(|| {
        let mut summarizer = Summarizer::default();
        (0..MAPS)
            .map(|map| {
                let parts = [("a", map % 4), ("b", map / 4)];
                let metadata: Metadata = parts
                    .iter()
                    .filter(|(_, value)| *value > 0)
                    .map(|(key, value)| ((*key).to_owned(), value.to_string()))
                    .collect();
                Known {
                    digest: Digest::of(&metadata),
                    summary: summarizer.summarize(&metadata),
                    metadata: Fields::of(&metadata),
                }
            })
            .collect()
    })[map]
}

/// The map with this digest.
pub fn map_of(digest: Digest) -> Map {
    (0..MAPS).find(|m| known(*m).digest == digest).unwrap_or(MAPS)
}

/// `map` with the value of one key replaced.
pub fn with_value(map: Map, key: usize, value: usize) -> Map {
    if key == 0 { map / 4 * 4 + value } else { map % 4 + value * 4 }
}

/// An object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub uid: u64,
    pub generation: u64,
    pub map: Map,
    pub terminating: bool,
    /// Of a marker, the number of its last write.
    pub beat: u64,
    /// Of a marker, how long it says that its replica's leases are.
    pub lease: u64,
}

/// The state of a name from `at` on.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub rv: u64,
    pub at: u64,
    pub body: Option<Body>,
    /// The agent (and which life of it) that wrote this and will be told so.
    pub by: Option<(usize, u32)>,
}

impl State {
    /// What a client may be given of this state: a terminating object counts as not found.
    pub fn content(&self) -> Option<(u64, Map)> {
        let body = self.body.filter(|b| !b.terminating)?;
        Some((body.uid, body.map))
    }
}

/// A name, and every state that it was in; after a restore from a backup, also those that are lost.
pub struct Record {
    pub key: SessionKey,
    pub marker: bool,
    pub states: Vec<State>,
}

impl Record {
    pub fn last(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    /// Index of the state at this resourceVersion, of those that are not lost.
    pub fn at_rv(&self, rv: u64) -> usize {
        self.states.iter().rposition(|s| s.rv <= rv).unwrap_or_default()
    }

    /// Index of the first state in which `uid` has at least this generation, or is gone after it was there.
    pub fn reached(&self, uid: u64, generation: u64) -> Option<usize> {
        let born = self.states.iter().position(|s| s.body.is_some_and(|b| b.uid == uid))?;
        (born..self.states.len())
            .find(|i| self.states[*i].body.is_none_or(|b| b.uid != uid || b.generation >= generation))
    }

    /// Index of the state in which `uid` is gone after it was there: the last one, since a backup may have brought it back.
    pub fn gone(&self, uid: u64) -> Option<usize> {
        let lives = |state: &State| state.body.is_some_and(|b| b.uid == uid && !b.terminating);
        (1..self.states.len()).rev().find(|i| lives(&self.states[*i - 1]) && !lives(&self.states[*i]))
    }
}

/// Everything that was ever committed, and is not lost.
pub struct World {
    pub records: Vec<Record>,
    /// For each commit the name and its new state, in the order of resourceVersions, which start at 1.
    pub log: Vec<(usize, State)>,
    uids: u64,
}

impl World {
    /// A world in which each of these sessions exists.
    pub fn new(names: &[&str]) -> Self {
        let mut world = Self { records: Vec::new(), log: Vec::new(), uids: 0 };
        for name in names {
            let at = world.record(NAMESPACE, name, false);
            world.create(at, 1, 0, None);
        }
        world
    }

    pub fn rv(&self) -> u64 {
        self.log.len() as u64
    }

    /// The record of a name, made if there is none.
    pub fn record(&mut self, namespace: &str, name: &str, marker: bool) -> usize {
        let known = self.records.iter().position(|r| r.key.name() == name && &**r.key.namespace() == namespace);
        known.unwrap_or_else(|| {
            self.records.push(Record {
                key: SessionKey::new(namespace, name),
                marker,
                states: vec![State { rv: 0, at: 0, body: None, by: None }],
            });
            self.records.len() - 1
        })
    }

    pub fn body(&self, record: usize) -> Option<Body> {
        self.records[record].last().body
    }

    pub fn commit(&mut self, record: usize, body: Option<Body>, at: u64, by: Option<(usize, u32)>) -> u64 {
        let rv = self.rv() + 1;
        let state = State { rv, at, body, by };
        self.records[record].states.push(state);
        self.log.push((record, state));
        rv
    }

    /// Creates an object, if there is none.
    pub fn create(&mut self, record: usize, map: Map, at: u64, by: Option<(usize, u32)>) -> Option<u64> {
        if self.body(record).is_some() {
            return None;
        }
        let body = self.born(map);
        Some(self.commit(record, Some(body), at, by))
    }

    /// Writes a marker upon this state of it (`None`: that it is not there), and no other.
    pub fn mark(&mut self, record: usize, upon: Option<u64>, (beat, lease): (u64, u64), at: u64) -> Option<u64> {
        let is = self.body(record).map(|_| self.records[record].last().rv);
        if is != upon {
            return None;
        }
        let body = self.body(record).unwrap_or_else(|| self.born(0));
        Some(self.commit(record, Some(Body { beat, lease, ..body }), at, None))
    }

    /// Etcd is restored from a backup of the instant `then`: what was committed since is lost, and resourceVersions go on from there.
    /// Tells how many commits are lost.
    pub fn restore(&mut self, then: u64, at: u64) -> usize {
        let kept = self.log.partition_point(|(_, state)| state.at <= then);
        let lost = self.log.len() - kept;
        self.log.truncate(kept);
        for record in self.records.iter_mut().filter(|record| record.last().rv > kept as u64) {
            let restored = record.states[record.at_rv(kept as u64)];
            record.states.push(State { at, by: None, ..restored });
        }
        lost
    }

    fn born(&mut self, map: Map) -> Body {
        self.uids += 1;
        Body { uid: self.uids, generation: 1, map, terminating: false, beat: 0, lease: 0 }
    }

    /// Writes a map; an equal one changes nothing.
    pub fn write(&mut self, record: usize, map: Map, at: u64, by: Option<(usize, u32)>) {
        if let Some(body) = self.body(record).filter(|b| b.map != map) {
            let generation = body.generation + 1;
            let body = Body { generation, map, ..body };
            self.commit(record, Some(body), at, by);
        }
    }

    /// Changes what is not metadata: something else in the spec, or only a label.
    pub fn touch(&mut self, record: usize, spec: bool, at: u64) {
        if let Some(body) = self.body(record) {
            let generation = body.generation + u64::from(spec);
            self.commit(record, Some(Body { generation, ..body }), at, None);
        }
    }

    /// Removes the object; with a finalizer on it, it is only marked.
    pub fn delete(&mut self, record: usize, finalizer: bool, at: u64) {
        match self.body(record) {
            Some(body) if finalizer && !body.terminating => {
                let generation = body.generation + 1;
                let body = Body { terminating: true, generation, ..body };
                self.commit(record, Some(body), at, None);
            }
            Some(_) if !finalizer => {
                self.commit(record, None, at, None);
            }
            _ => {}
        }
    }

    /// What a consistent GET reads now.
    pub fn read(&self, record: usize) -> Answer {
        let record = &self.records[record];
        let state = record.last();
        state.body.map_or(Answer::NotFound, |body| Answer::Found(observed(record.key.name(), &body, state.rv)))
    }

    /// The collection as it was at `rv`.
    pub fn list(&self, rv: u64) -> Vec<Object> {
        self.records.iter().filter_map(|r| object(r, &r.states[r.at_rv(rv)])).collect()
    }
}

/// The object that a watch shows.
pub fn object(record: &Record, state: &State) -> Option<Object> {
    let body = state.body?;
    Some(Object {
        key: record.key.clone(),
        uid: uid(body.uid),
        generation: body.generation,
        resource_version: ResourceVersion(state.rv),
        terminating: body.terminating,
        kind: if record.marker {
            Kind::Marker { lease: Some(ticks(body.lease)) }
        } else {
            Kind::Session(known(body.map).summary.clone())
        },
    })
}

/// What the API server answers of an object.
pub fn observed(name: &str, body: &Body, rv: u64) -> Observed {
    let known = known(body.map);
    Observed {
        copy: Copy {
            name: name.into(),
            uid: uid(body.uid),
            generation: body.generation,
            resource_version: ResourceVersion(rv),
            digest: known.digest,
            metadata: known.metadata.clone(),
            facts: Facts::default(),
        },
        terminating: body.terminating,
    }
}

pub fn uid(n: u64) -> Uid {
    Uid::from_u128(u128::from(n))
}

pub fn number(uid: Uid) -> u64 {
    u128::from_be_bytes(uid.to_bytes()) as u64
}
