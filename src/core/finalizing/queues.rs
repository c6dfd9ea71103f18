//! In which order the sessions of a namespace are taken up.

use std::collections::BTreeSet;

use crate::core::session::SessionKey;
use crate::core::time::Time;

/// The sessions of a namespace, each in the queue of its stage.
#[derive(Debug, Default)]
pub struct Queues {
    /// Those that are unasked or asked, by when they were deleted: a lease later they are ready.
    pub waiting: BTreeSet<(Time, SessionKey)>,
    /// Of these, those that are unasked.
    pub unasked: BTreeSet<(Time, SessionKey)>,
    /// Those that may be let go of, by when.
    pub ready: BTreeSet<(Time, SessionKey)>,
    /// Of those that are ready, these do not wait for their time: the API server works again.
    pub at_once: BTreeSet<(Time, SessionKey)>,
    /// How many calls are under way.
    pub letting_go: usize,
    /// The number of its last turn.
    pub turn: u64,
}

impl Queues {
    /// Whether nothing is being deleted here.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty() && self.at_once.is_empty() && self.letting_go == 0
    }

    /// The next one that is to be let go of by `now`.
    pub fn due(&self, now: Time) -> Option<&(Time, SessionKey)> {
        let by_time = self.ready.first().filter(|(at, _)| *at <= now);
        by_time.into_iter().chain(self.at_once.first()).min()
    }

    /// Takes that one.
    pub fn pop_due(&mut self, now: Time) -> Option<SessionKey> {
        let due = self.due(now)?.clone();
        let _ = self.ready.remove(&due) || self.at_once.remove(&due);
        Some(due.1)
    }

    /// Nobody waits for its time any more.
    pub fn hurry(&mut self) {
        self.at_once.append(&mut self.ready);
    }
}
