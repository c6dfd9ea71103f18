//! Signals of the replicas: evictions and barriers.

use super::Shard;
use crate::core::cache::copy::{DropReason, Dropped};
use crate::core::cache::reports::Reporter;
use crate::core::rules::Rule;
use crate::core::signal::{Barrier, Fate, Mark};

impl Shard {
    /// An eviction came in, from whatever source. What is in flight is marked; a copy that it means is dropped, unless
    /// it equals the state that the eviction speaks of.
    pub fn evict(&mut self, name: &str, state: Barrier, reporter: &mut impl Reporter) -> Option<Dropped> {
        let mark = match state.mark.fate {
            Fate::Gone if !Rule::GoneByUid.on() => Mark { fate: Fate::Stale { below: 0 }, ..state.mark },
            _ => state.mark,
        };
        if let Some(flights) = self.flights.get_mut(name) {
            flights.fence(mark);
        }
        let entry = self.entries.get_mut(name)?;
        if !mark.drops(entry.copy.uid, entry.copy.generation) && Rule::CompareGeneration.on() {
            return None;
        }
        match mark.fate {
            Fate::Stale { below } if entry.equals(state) => {
                // A later state than the one that made it unservable equals it.
                entry.suspended = entry.suspended.filter(|outdated| outdated.get() > below);
                None
            }
            Fate::Stale { below } => self.outdated(name, below, reporter),
            Fate::Gone => self.drop_copy(name, DropReason::Gone, reporter),
        }
    }

    /// Whether the copy that an eviction means was not dropped for it: an own write has taken its place, or decides on it.
    pub fn outlives(&self, name: &str, mark: Mark) -> bool {
        self.entries.get(name).is_some_and(|entry| mark.is_outlived_by(entry.copy.uid, entry.carried.since))
    }

    /// A barrier came in: when this returns, nothing older than its state is served. A copy that equals it stays as it is: who
    /// speaks of the state is another pod, which may say anything, so a copy that is not served is not served again for that.
    pub fn barrier(&mut self, name: &str, state: Barrier, reporter: &mut impl Reporter) -> Option<Dropped> {
        let mark = state.mark;
        if let Some(flights) = self.flights.get_mut(name) {
            flights.fence(mark);
        }
        let entry = self.entries.get_mut(name)?;
        let copy = &entry.copy;
        if mark.accepts(copy.uid, copy.generation, copy.resource_version) {
            return None;
        }
        match mark.fate {
            Fate::Stale { .. } if entry.equals(state) => None,
            Fate::Stale { below } if entry.copy.uid == mark.uid => self.outdated(name, below, reporter),
            _ => self.drop_copy(name, DropReason::Gone, reporter),
        }
    }
}
