//! Calls to the API server. Each takes effect at one moment between send and answer, on the newest state.

use super::network::Pace;
use super::world::{Body, Map, observed, with_value};
use super::{Event, Process, Sim};
use crate::core::cache::{Answer, FlightId, Observed};
use crate::core::digest::Digest;
use crate::core::replica::{Link, Object};
use crate::core::time::Time;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    Get {
        name: usize,
        flight: FlightId,
    },
    Patch {
        name: usize,
        flight: FlightId,
        uid: u64,
        key: usize,
        value: usize,
        wrote: Digest,
        everywhere: bool,
    },
    Create {
        name: usize,
        flight: FlightId,
        map: Map,
        everywhere: bool,
    },
    Delete {
        name: usize,
        uid: u64,
        finalizer: bool,
        /// A resourceVersion at which it was alive.
        alive: u64,
        everywhere: bool,
    },
    List {
        back: u64,
        /// How often it had been found that all must be listed.
        doubts: u64,
    },
    Marker {
        record: usize,
        link: Link,
        /// What it tells of the replica's leases.
        lease: u64,
        sent: Time,
        seen: u64,
    },
    Look {
        record: usize,
        sent: Time,
    },
    Remove {
        marker: usize,
        rv: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Outcome {
    Pending,
    /// It is an error, and nothing was done.
    Failed,
    /// The call or the answer is lost. Whatever was done was done when this was the latest resourceVersion, or before.
    Lost(u64),
    Read(Answer),
    Written(Observed),
    Deleted,
    Listed(Vec<Object>, u64),
    Marked(u64),
    /// The marker is not as it was thought to be.
    Otherwise,
    /// The marker, if it is there: its number and its resourceVersion.
    Looked(Option<(u64, u64)>),
}

/// A call under way.
pub struct Call {
    pub caller: Process,
    pub request: Request,
    pub outcome: Outcome,
}

/// How the API server treats a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub effect: Pace,
    pub answer: Pace,
    /// The next answers that are lost.
    pub lose: u8,
}

impl Access {
    pub const GOOD: Self = Self { effect: Pace::Fast, answer: Pace::Fast, lose: 0 };
}

impl Sim {
    pub fn call(&mut self, caller: Process, request: Request) {
        let access = *self.access(caller);
        let id = self.calls.len();
        let bits = self.bits(&[5, id as u64]);
        self.calls.push(Call { caller, request, outcome: Outcome::Pending });
        let at = self.now.saturating_add(access.effect.delay(bits));
        self.schedule(at, Event::Effect(id));
    }

    fn access(&mut self, caller: Process) -> &mut Access {
        match caller {
            Process::Agent(at, _) => &mut self.agents[at].access,
            Process::Replica(at, _) => &mut self.replicas[at].access,
            Process::Server => unreachable!("the server calls nobody"),
        }
    }

    /// The call takes effect, unless it is lost on the way; the answer may be lost, too.
    pub fn effect(&mut self, id: usize) {
        let (caller, request) = (self.calls[id].caller, self.calls[id].request.clone());
        let bits = self.bits(&[6, id as u64]);
        let access = self.access(caller);
        let lost = access.lose > 0;
        access.lose = access.lose.saturating_sub(1);
        let answer = access.answer;
        let by = match caller {
            Process::Agent(at, life) if !lost => Some((at, life)),
            _ => None,
        };
        // A connection may be cut at once, or a time limit pass.
        let delay = if lost { 1 + (bits >> 8) % super::LEASE } else { answer.delay(bits) };
        let before = self.world.rv();
        if !lost || bits.is_multiple_of(2) {
            let outcome = self.execute(&request, by);
            self.calls[id].outcome = outcome;
        }
        if lost {
            self.calls[id].outcome = Outcome::Lost(self.world.rv());
        }
        self.tell(|| format!("api: {caller:?} {request:?}{}", if lost { " LOST" } else { "" }));
        self.committed(before);
        self.schedule(self.now.saturating_add(delay), Event::Answered(id));
    }

    /// The caller hears what came of it.
    pub fn answered(&mut self, id: usize) {
        let call = &mut self.calls[id];
        let (caller, request) = (call.caller, call.request.clone());
        let outcome = std::mem::replace(&mut call.outcome, Outcome::Pending);
        let (Process::Agent(at, _) | Process::Replica(at, _)) = caller else {
            return;
        };
        match request {
            Request::Get { name, flight } => self.get_answered(at, name, flight, outcome),
            Request::Patch { .. } | Request::Create { .. } => {
                self.write_answered(at, &request, outcome);
            }
            Request::Delete { .. } => self.delete_answered(at, &request, &outcome),
            Request::List { doubts, .. } => self.listed(at, doubts, outcome),
            Request::Marker { link, sent, seen, .. } => self.marker_answered(at, link, sent, seen, &outcome),
            Request::Look { sent, .. } => self.marker_looked_at(at, sent, &outcome),
            Request::Remove { .. } => {}
        }
    }

    fn execute(&mut self, request: &Request, by: Option<(usize, u32)>) -> Outcome {
        let (world, now) = (&mut self.world, self.now);
        let is = |body: Option<Body>, uid: u64| body.is_some_and(|b| b.uid == uid);
        match *request {
            Request::Get { name, .. } => Outcome::Read(world.read(name)),
            Request::Patch { name, uid, key, value, .. } => {
                if !is(world.body(name), uid) {
                    return Outcome::Failed;
                }
                let map = world.body(name).map_or(0, |b| b.map);
                world.write(name, with_value(map, key, value), now, by);
                Self::written(&self.world, name)
            }
            Request::Create { name, map, .. } => match world.create(name, map, now, by) {
                Some(_) => Self::written(&self.world, name),
                None => Outcome::Failed,
            },
            Request::Delete { name, uid, finalizer, .. } => {
                if !is(world.body(name), uid) {
                    return Outcome::Failed;
                }
                world.delete(name, finalizer, now);
                Outcome::Deleted
            }
            Request::List { back, .. } => {
                let rv = world.rv().saturating_sub(back).max(1);
                Outcome::Listed(world.list(rv), rv)
            }
            Request::Marker { record, link, lease, .. } => {
                let written = world.mark(record, link.after.map(|after| after.0), (link.beat, lease), now);
                written.map_or(Outcome::Otherwise, Outcome::Marked)
            }
            Request::Look { record, .. } => {
                let rv = world.records[record].last().rv;
                Outcome::Looked(world.body(record).map(|body| (body.beat, rv)))
            }
            Request::Remove { marker, rv } => {
                if world.records[marker].last().rv == rv {
                    world.delete(marker, false, now);
                }
                Outcome::Deleted
            }
        }
    }

    fn written(world: &super::world::World, name: usize) -> Outcome {
        let record = &world.records[name];
        let state = record.last();
        state.body.map_or(Outcome::Failed, |body| Outcome::Written(observed(record.key.name(), &body, state.rv)))
    }
}
