//! Restores: GETs that bring copies, or find that they are still right.

use std::sync::Arc;

use super::{Join, Restored, Shard, dropped, older};
use crate::core::cache::copy::{Answer, Copy, DropReason, Observed};
use crate::core::cache::flight::{FlightId, Restore};
use crate::core::cache::reports::Reporter;
use crate::core::lease::Provisional;
use crate::core::rules::Rule;
use crate::core::signal::{Fate, Mark};
use crate::core::time::Time;

impl Shard {
    /// A request wants `name`, and [`Self::get`] found nothing to serve.
    pub fn join(&mut self, name: &str, now: Time) -> Join {
        if let Some(entry) = self.entries.get(name).filter(|entry| self.servable(entry, now)) {
            entry.used.touched(now);
            return Join::Serve(entry.copy.clone());
        }
        self.join_anew(name)
    }

    /// A request wants `name` as it is now, whatever is held: also what no signal tells of.
    pub fn join_anew(&mut self, name: &str) -> Join {
        self.last_flight += 1;
        let id = FlightId(self.last_flight);
        let flights = match self.flights.get_mut(name) {
            Some(flights) => flights,
            None => self.flights.entry(name.into()).or_default(),
        };
        // A GET that was sent before this request came may have read what was already changed when it came.
        let open = |r: &&Restore| r.sent.is_none() || !Rule::NoLateJoin.on();
        if let Some(waiting) = flights.restores.iter().find(open) {
            return Join::Follow(waiting.id);
        }
        flights.restores.push(Restore { id, sent: None, fence: None });
        Join::Lead(id)
    }

    /// The GET `id` is sent now.
    pub fn restore_sent(&mut self, name: &str, id: FlightId, now: Time) {
        let cover = self.leases.provisional(self.lease_length, now);
        if let Some(flight) = self.restore_mut(name, id) {
            flight.sent = Some(cover);
            flight.fence = None;
        }
    }

    /// The GET `id` was answered. Unless it must be sent again, it is over.
    pub fn restore_answered(
        &mut self,
        name: &str,
        id: FlightId,
        answer: Answer,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Restored {
        let Some(flight) = self.restore_mut(name, id) else {
            return Restored::AskAgain;
        };
        let (fence, mut cover) = (flight.fence, flight.sent.unwrap_or(Provisional::NONE));
        if !Rule::CoverFromSend.on() {
            cover = self.leases.provisional(self.lease_length, now);
        }
        let known = self.entries.get(name).map(|e| &e.copy);
        if !answer_counts(&answer, fence, known) {
            if let Some(flight) = self.restore_mut(name, id) {
                flight.sent = None;
            }
            return Restored::AskAgain;
        }
        self.restore_over(name, id);
        match answer {
            Answer::Found(observed) if !(observed.terminating && Rule::TerminatingIsGone.on()) => {
                self.restored(name, observed.copy, cover, now, reporter)
            }
            _ => {
                let dropped = self.drop_copy(name, DropReason::Gone, reporter);
                // Also if no copy was held.
                self.formers.forget(name);
                Restored::NotFound { dropped }
            }
        }
    }

    /// The GET `id` will not be answered: it failed, or nobody waits for it any more.
    pub fn restore_failed(&mut self, name: &str, id: FlightId) {
        self.restore_over(name, id);
    }

    fn restored(
        &mut self,
        name: &str,
        found: Copy,
        cover: Provisional,
        now: Time,
        reporter: &mut impl Reporter,
    ) -> Restored {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.copy.uid == found.uid
            && entry.copy.digest == found.digest
        {
            // The object may have changed in what is not compared: whoever names the state that it means needs the latest one.
            let later = found.resource_version > entry.copy.resource_version;
            if (later || entry.copy.generation != found.generation) && Rule::AdoptGeneration.on() {
                let before = entry.copy.footprint();
                entry.copy =
                    Arc::new(Copy { name: entry.copy.name.clone(), metadata: entry.copy.metadata.clone(), ..found });
                // Its annotations may have grown.
                let footprint = entry.footprint - before + entry.copy.footprint();
                self.bytes = self.bytes - entry.footprint + footprint;
                entry.footprint = footprint;
            }
            entry.provisional = cover;
            entry.suspended = None;
            entry.used.touched(now);
            let copy = entry.copy.clone();
            self.make_room(reporter);
            return Restored::Serve { copy, validated: true, dropped: None };
        }
        let reason = match self.entries.get(name) {
            Some(entry) if entry.copy.uid != found.uid => DropReason::Gone,
            _ => DropReason::Stale,
        };
        let used = self.use_by_replacement(now);
        let (copy, replaced) = self.adopt(name, found, cover, None, now, reporter);
        Restored::Serve { copy, validated: false, dropped: replaced.map(|copy| dropped(copy, reason, used)) }
    }

    fn restore_mut(&mut self, name: &str, id: FlightId) -> Option<&mut Restore> {
        self.flights.get_mut(name)?.restores.iter_mut().find(|r| r.id == id)
    }

    fn restore_over(&mut self, name: &str, id: FlightId) {
        if let Some(flights) = self.flights.get_mut(name) {
            flights.restores.retain(|r| r.id != id);
            if flights.is_empty() {
                self.flights.remove(name);
            }
        }
    }
}

/// Whether an answer is provably not older than what came in while it was under way, and than the copy held.
fn answer_counts(answer: &Answer, fence: Option<Mark>, known: Option<&Arc<Copy>>) -> bool {
    match answer {
        Answer::NotFound => fence.is_none() || !Rule::MarkedAbsence.on(),
        Answer::Found(Observed { copy, terminating }) => {
            let fenced = fence.is_some_and(|f| {
                // An object that is being deleted is just what "gone" speaks of.
                let agrees = *terminating && f.uid == copy.uid && f.fate == Fate::Gone;
                !agrees && !f.accepts(copy.uid, copy.generation, copy.resource_version)
            });
            !fenced && !known.is_some_and(|known| older(copy, known) && Rule::NeverGoBack.on())
        }
    }
}
