//! Restores: GETs that bring copies, or find that they are still right.

use std::sync::Arc;

use super::{Carried, Join, Restored, Shard, dropped, older};
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
        match self.find(name, now) {
            Some(copy) => Join::Serve(copy.clone()),
            None => self.join_anew(name),
        }
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
        flights.restores.push(Restore { id, sent: None, held: None, fence: None });
        Join::Lead(id)
    }

    /// The GET `id` is sent now.
    pub fn restore_sent(&mut self, name: &str, id: FlightId, now: Time) {
        let cover = self.leases.provisional(self.lease_length, now);
        let held = self.entries.get(name).map(|entry| entry.copy.clone());
        if let Some(flight) = self.restore_mut(name, id) {
            flight.sent = Some(cover);
            flight.held = held;
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
        let (fence, held, mut cover) = (flight.fence, flight.held.take(), flight.sent.unwrap_or(Provisional::NONE));
        if !Rule::CoverFromSend.on() {
            cover = self.leases.provisional(self.lease_length, now);
        }
        // What was held already when it was sent is not later, whatever the numbers say: etcd was restored from a backup.
        let same = |copy: &&Arc<Copy>| held.as_ref().is_some_and(|held| Arc::ptr_eq(held, copy));
        let came = self.entries.get(name).map(|entry| &entry.copy).filter(|copy| !same(copy));
        if !answer_counts(&answer, fence, came) {
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
                let before = entry.footprint();
                self.timed =
                    self.timed + usize::from(found.facts.has_timeout()) - usize::from(entry.copy.facts.has_timeout());
                entry.copy = Arc::new(Copy { name: entry.copy.name.clone(), ..found });
                // Its annotations may have grown.
                self.bytes = self.bytes - before + entry.footprint();
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
        let carried = Carried::anew(&found);
        let (copy, replaced) = self.adopt(name, found, cover, carried, now, reporter);
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

/// Whether an answer is provably not older than what came in while it was under way: marks, and a copy.
fn answer_counts(answer: &Answer, fence: Option<Mark>, came: Option<&Arc<Copy>>) -> bool {
    match answer {
        Answer::NotFound => fence.is_none() || !Rule::MarkedAbsence.on(),
        Answer::Found(Observed { copy, terminating }) => {
            let fenced = fence.is_some_and(|f| {
                // An object that is being deleted is just what "gone" speaks of.
                let agrees = *terminating && f.uid == copy.uid && f.fate == Fate::Gone;
                !agrees && !f.accepts(copy.uid, copy.generation, copy.resource_version)
            });
            !fenced && !came.is_some_and(|came| older(copy, came) && Rule::NeverGoBack.on())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cache::facts::Facts;
    use crate::core::cache::reports::Reports;
    use crate::core::cache::shard::Limits;
    use crate::core::digest::{Digest, Metadata};
    use crate::core::fields::Fields;
    use crate::core::session::{ResourceVersion, Uid};

    const NOW: Time = Time::from_nanos(1);

    fn state(generation: u64) -> Answer {
        let metadata = Metadata::from([("k".into(), generation.to_string())]);
        let copy = Copy {
            name: "s".into(),
            uid: Uid::from_u128(1),
            generation,
            resource_version: ResourceVersion(generation),
            digest: Digest::of(&metadata),
            metadata: Fields::of(&metadata),
            facts: Facts::default(),
        };
        Answer::Found(Observed { copy, terminating: false })
    }

    fn sent(shard: &mut Shard) -> FlightId {
        let Join::Lead(id) = shard.join_anew("s") else { panic!("nobody else asks") };
        shard.restore_sent("s", id, NOW);
        id
    }

    fn served(shard: &mut Shard, id: FlightId, answer: Answer) -> Option<u64> {
        match shard.restore_answered("s", id, answer, NOW, &mut Reports::default()) {
            Restored::Serve { copy, .. } => Some(copy.generation),
            Restored::NotFound { .. } => panic!("it was found"),
            Restored::AskAgain => None,
        }
    }

    #[test]
    fn an_older_answer_does_not_replace_what_came_after_it_was_asked_for() {
        let mut shard = Shard::new(Limits { entries: 10, bytes: 1 << 20 });
        let first = sent(&mut shard);
        // Those who came too late for the first.
        let second = sent(&mut shard);
        assert_eq!(served(&mut shard, second, state(5)), Some(5));
        assert_eq!(served(&mut shard, first, state(3)), None);
    }

    /// No replica need be there to say so: each later read proves it.
    #[test]
    fn after_a_restore_of_etcd_the_older_state_is_what_there_is() {
        let mut shard = Shard::new(Limits { entries: 10, bytes: 1 << 20 });
        for (answer, expected) in [(5, Some(5)), (3, Some(3)), (4, Some(4))] {
            let id = sent(&mut shard);
            assert_eq!(served(&mut shard, id, state(answer)), expected);
        }
    }
}
