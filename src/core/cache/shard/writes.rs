//! Own writes: the answer becomes the copy, unless something newer is known.

use std::sync::Arc;

use super::{Carried, Shard, Written, dropped, older};
use crate::core::cache::copy::{DropReason, Dropped, Observed};
use crate::core::cache::flight::{FlightId, Write};
use crate::core::cache::reports::Reporter;
use crate::core::digest::Digest;
use crate::core::rules::Rule;
use crate::core::signal::{Fate, Mark};
use crate::core::time::Time;

impl Shard {
    /// An own create or patch of `name` is sent now.
    pub fn write_sent(&mut self, name: &str, now: Time) -> FlightId {
        self.last_flight += 1;
        let id = FlightId(self.last_flight);
        let sent = self.leases.provisional(self.lease_length, now);
        self.flights.entry_ref(name).or_default().writes.push(Write { id, sent, fence: None, overwritten: false });
        id
    }

    /// The write `id` was answered with the object as it is now. `wrote` is the digest of the map that the client
    /// meant to write: another one means that somebody else's change is in the answer.
    pub fn write_answered(
        &mut self,
        name: &str,
        id: FlightId,
        observed: Observed,
        wrote: Digest,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Written {
        let Some(flight) = self.write_over(name, id) else {
            return Written { session: Some(Arc::new(observed.copy)), dropped: None, overwritten: false };
        };
        let (found, overwritten) = (observed.copy, flight.overwritten);
        let mark = Mark {
            uid: found.uid,
            fate: if observed.terminating { Fate::Gone } else { Fate::Stale { below: found.generation } },
            resource_version: found.resource_version,
        };
        if let Some(flights) = self.flights.get_mut(name).filter(|_| Rule::WritesMark.on()) {
            flights.fence(mark);
        }
        if observed.terminating {
            let holds = self.entries.get(name).is_some_and(|e| e.copy.uid == found.uid);
            let waited = self.is_suspended(name) && !self.writes_in_flight(name);
            let dropped = if holds || waited { self.drop_copy(name, DropReason::Gone, reporter) } else { None };
            return Written { session: None, dropped, overwritten };
        }
        let known = self.entries.get(name).map(|e| &e.copy);
        // What was held already is news to nobody, whoever wrote it.
        let held = known.is_some_and(|k| k.uid == found.uid && k.digest == found.digest);
        let foreign = found.digest != wrote && !held;
        let newer_known = known.is_some_and(|k| older(&found, k));
        let fenced = flight.fence.is_some_and(|f| !f.accepts(found.uid, found.generation, found.resource_version));
        if newer_known || fenced {
            // A copy that is servable has outlived, or was read after, whatever outdates the answer. But one that is
            // older than the own write is older than the truth.
            let outdated = known.is_some_and(|k| older(k, &found)) || self.is_suspended(name);
            let dropped = if !outdated {
                None
            } else if self.writes_in_flight(name) {
                let below = flight.fence.map_or(0, |f| f.outdates(found.uid));
                self.suspend(name, below);
                None
            } else {
                self.drop_copy(name, DropReason::Stale, reporter)
            };
            return Written { session: Some(Arc::new(found)), dropped, overwritten };
        }
        let mut cover = flight.sent;
        if !Rule::CoverFromSend.on() {
            cover = self.leases.provisional(self.lease_length, now);
        }
        let same_uid = known.is_some_and(|k| k.uid == found.uid);
        let carried = self.entries.get(name).filter(|_| same_uid && !foreign).map(|e| e.carried.clone());
        let carried = carried.unwrap_or_else(|| Carried::anew(&found));
        let (copy, replaced) = self.adopt(name, found, cover, carried, now, reporter);
        let used = self.use_by_replacement(now);
        let reason = if same_uid { DropReason::Foreign } else { DropReason::Gone };
        Written {
            session: Some(copy),
            dropped: replaced.filter(|_| foreign || !same_uid).map(|c| dropped(c, reason, used)),
            overwritten,
        }
    }

    /// The write `id` was refused. A copy that waited for the outcome is dropped.
    pub fn write_failed(&mut self, name: &str, id: FlightId, reporter: &mut impl Reporter) -> Option<Dropped> {
        self.write_over(name, id);
        if self.is_suspended(name) && !self.writes_in_flight(name) {
            return self.drop_copy(name, DropReason::Stale, reporter);
        }
        None
    }

    /// Nobody knows whether the write `id` was done. The copy is dropped: if nothing else, its timeout may be another one. What is
    /// in flight beside it does not become the copy, since it may be older than the write. After one `of_metadata`, what clients
    /// last had is forgotten: the next of them who overwrites the session takes the difference from what it is then. From what
    /// it had been, to write that once more would be no difference.
    pub fn write_unknown(
        &mut self,
        name: &str,
        id: FlightId,
        of_metadata: bool,
        reporter: &mut impl Reporter,
    ) -> Option<Dropped> {
        self.write_over(name, id);
        if let Some(flights) = self.flights.get_mut(name).filter(|_| Rule::UnknownVoids.on()) {
            flights.void(of_metadata);
        }
        let dropped = self.drop_copy(name, DropReason::Stale, reporter);
        if of_metadata {
            self.formers.forget(name);
        }
        dropped
    }

    fn write_over(&mut self, name: &str, id: FlightId) -> Option<Write> {
        let flights = self.flights.get_mut(name)?;
        let at = flights.writes.iter().position(|w| w.id == id)?;
        let write = flights.writes.swap_remove(at);
        if flights.is_empty() {
            self.flights.remove(name);
        }
        Some(write)
    }
}
