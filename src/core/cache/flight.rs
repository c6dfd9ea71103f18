//! Requests to the API server that are in flight for one session.

use std::sync::Arc;

use super::copy::Copy;
use crate::core::lease::Provisional;
use crate::core::rules::Rule;
use crate::core::signal::Mark;

/// Identifies a restore or a write in flight. Never used again within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlightId(pub(super) u64);

/// A GET, not yet sent or in flight.
#[derive(Clone, Debug)]
pub(super) struct Restore {
    pub id: FlightId,
    /// The cover of what it finds; `None` until it is sent.
    pub sent: Option<Provisional>,
    /// The copy that was held when it was sent: whatever it reads is later.
    pub held: Option<Arc<Copy>>,
    /// The latest knowledge that came in while it was in flight.
    pub fence: Option<Mark>,
}

/// An own create or patch in flight.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub id: FlightId,
    pub sent: Provisional,
    pub fence: Option<Mark>,
    /// Another one, of metadata and of unknown outcome, was in flight beside it, and may have come after this one; or etcd was
    /// restored meanwhile.
    pub overwritten: bool,
}

/// Everything that is in flight for one session.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    /// At most two: one that is sent, and one that waits for those who came too late for it.
    pub restores: Vec<Restore>,
    pub writes: Vec<Write>,
}

impl InFlight {
    /// Marks whatever is in flight: an answer counts from now on only if it is provably not older than `mark`.
    pub fn fence(&mut self, mark: Mark) {
        let max = |fence: &mut Option<Mark>| *fence = Some(fence.map_or(mark, |f| f.max(mark)));
        if Rule::FenceRestores.on() {
            // What is not sent yet will read a state that is newer anyhow.
            for restore in self.restores.iter_mut().filter(|r| r.sent.is_some()) {
                max(&mut restore.fence);
            }
        }
        if Rule::FenceWrites.on() {
            for write in &mut self.writes {
                max(&mut write.fence);
            }
        }
    }

    /// No answer to what is in flight counts: it may be older than what nobody knows, perhaps `of_metadata`.
    pub fn void(&mut self, of_metadata: bool) {
        for restore in self.restores.iter_mut().filter(|r| r.sent.is_some()) {
            restore.fence = Some(Mark::NOTHING_COUNTS);
        }
        for write in &mut self.writes {
            write.fence = Some(Mark::NOTHING_COUNTS);
            write.overwritten |= of_metadata;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.restores.is_empty() && self.writes.is_empty()
    }
}
