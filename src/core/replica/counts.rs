//! What a replica has done so far, for metrics.

use super::Refusal;
use crate::core::signal::Fate;

/// Sums since the replica started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Copies that were dropped because the session's metadata differ.
    pub stale: u64,
    /// Copies that were dropped because the session is gone.
    pub gone: u64,
    /// Copies that agents were told to drop of sessions that the watch does not show, and has not shown since they were told of.
    pub unknown: u64,
    /// Heartbeats that got a lease.
    pub leases: u64,
    /// Heartbeats that got none, because the watch was never proven to be complete.
    pub unproven: u64,
    /// Heartbeats that got none, because the last proof was too old.
    pub outdated: u64,
    /// Heartbeats that got none, because the replica is stopping.
    pub stopping: u64,
}

impl Counts {
    pub(super) fn evicted(&mut self, fate: Fate) {
        match fate {
            Fate::Stale { .. } => self.stale += 1,
            Fate::Gone => self.gone += 1,
        }
    }

    pub(super) fn heartbeat<T>(&mut self, age: &Result<T, Refusal>) {
        match age {
            Ok(_) => self.leases += 1,
            Err(Refusal::Unproven) => self.unproven += 1,
            Err(Refusal::Outdated) => self.outdated += 1,
            Err(Refusal::Stopping) => self.stopping += 1,
        }
    }
}
