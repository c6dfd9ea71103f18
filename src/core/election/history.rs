//! What happens to replicas and their calls in one simulated history, and which rule is broken in it.

use super::{Rule, Timings};

/// One tick of true time.
pub const TICK_MS: u64 = 250;

/// How one call fares, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    pub to: u16,
    pub back: u16,
    pub lose_request: bool,
    pub lose_answer: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum FaultKind {
    Pause(u16),
    Partition(u16),
    Crash { down_for: u16 },
    Stop,
    Delete,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: u16,
    pub replica: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Debug)]
pub struct History {
    pub timings: Vec<Timings>,
    /// Parts per thousand of true time.
    pub rates: Vec<u64>,
    /// A wall clock that stands still: renewals that change nothing.
    pub frozen: bool,
    pub nets: Vec<Net>,
    pub faults: Vec<Fault>,
    pub ticks: u16,
}

/// Rules that are kept by whoever drives the election, and can be broken there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    /// A rule inside [`Election`].
    Inside(Rule),
    /// Leadership counts from the answer instead of from the sending.
    CountFromTheAnswer,
    /// Another's lease is watched from the sending of the GET instead of from its answer.
    WatchFromTheSending,
    /// The PUT does not name the version it replaces.
    PutWithoutVersion,
    /// Leadership lasts until somebody says otherwise.
    LeadUntilTold,
    /// The leader counts on its lease until the very end of it, and a bit longer.
    DeadlineBeyondTheLease,
}
