//! The writes of a replica's marker, one after the other, and what they tell of etcd.

use super::api::{Outcome, Request};
use super::{Event, Process, Sim, fifth, ticks};
use crate::core::replica::{Chain, Found, Link};
use crate::core::session::ResourceVersion;
use crate::core::time::Time;

/// How the writes go.
#[derive(Default)]
pub struct Writing {
    chain: Chain,
    /// When the call was sent that is waited for.
    call: Option<Time>,
    /// The last write may have been carried out without an answer.
    unknown: bool,
}

impl Writing {
    /// The call that was sent then was answered. False if it was given up before.
    fn answered(&mut self, sent: Time) -> bool {
        self.call.take_if(|call| *call == sent).is_some()
    }
}

impl Sim {
    /// It is time for the next write.
    pub fn write_marker(&mut self, at: usize) {
        let now = self.replica_now(at);
        let replica = &mut self.replicas[at];
        if replica.stopping {
            return;
        }
        let (life, lease, writing) = (replica.life, replica.lease, &mut replica.writing);
        let waits = writing.call.is_some_and(|sent| now.saturating_since(sent) < ticks(lease) * 2 / 5);
        if !waits {
            // What hangs is given up.
            writing.unknown |= writing.call.take().is_some();
            if writing.unknown {
                self.look_at_marker(at);
            } else {
                self.put_marker(at);
            }
        }
        let pause = fifth(lease, self.bits(&[14, at as u64, self.now]));
        self.schedule(self.now + pause, Event::Marker(at, life));
    }

    fn put_marker(&mut self, at: usize) {
        let sent = self.replica_now(at);
        let replica = &mut self.replicas[at];
        let (record, link, seen) =
            (replica.marker, replica.writing.chain.link(), replica.core.position(replica.scope).0);
        let lease = replica.lease;
        replica.writing.call = Some(sent);
        self.call_marker(at, Request::Marker { record, link, lease, sent, seen });
    }

    fn look_at_marker(&mut self, at: usize) {
        let sent = self.replica_now(at);
        let replica = &mut self.replicas[at];
        let record = replica.marker;
        replica.writing.call = Some(sent);
        self.call_marker(at, Request::Look { record, sent });
    }

    fn call_marker(&mut self, at: usize, request: Request) {
        let caller = Process::Replica(at, self.replicas[at].life);
        self.call(caller, request);
    }

    pub fn marker_answered(&mut self, at: usize, link: Link, sent: Time, seen: u64, outcome: &Outcome) {
        let now = self.replica_now(at);
        let replica = &mut self.replicas[at];
        if !replica.writing.answered(sent) {
            return;
        }
        let rv = match *outcome {
            Outcome::Marked(rv) => ResourceVersion(rv),
            Outcome::Otherwise => return self.look_at_marker(at),
            _ => {
                replica.writing.unknown = true;
                return;
            }
        };
        let found = replica.writing.chain.answered(link, sent, rv, ticks(replica.lease));
        self.marker_found(at, found);
        let replica = &mut self.replicas[at];
        if let Err(error) = replica.core.marker_answered(replica.scope, sent, ResourceVersion(seen), rv, now) {
            replica.core.void();
            if !self.checks.restored {
                self.breaks("marker", || error.to_string());
            }
            self.list(at);
        }
        self.after(at);
    }

    pub fn marker_looked_at(&mut self, at: usize, sent: Time, outcome: &Outcome) {
        let writing = &mut self.replicas[at].writing;
        if !writing.answered(sent) {
            return;
        }
        let Outcome::Looked(marker) = *outcome else {
            writing.unknown = true;
            return;
        };
        writing.unknown = false;
        let found = writing.chain.found(marker.map(|(beat, rv)| (Some(beat), ResourceVersion(rv))));
        self.marker_found(at, found);
        if !self.replicas[at].stopping {
            self.put_marker(at);
        }
    }

    fn marker_found(&mut self, at: usize, found: Found) {
        let replica = &mut self.replicas[at];
        let void = replica.core.marker_found(replica.scope, found);
        if void && !self.checks.restored {
            return self.breaks("marker", || format!("replica {at} takes etcd for restored"));
        }
        if !matches!(found, Found::Ahead | Found::NotYet) {
            self.tell(|| format!("replica {at} found its marker: {found:?}"));
            self.list(at);
            self.after(at);
        }
    }
}
