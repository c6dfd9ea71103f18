//! Says in the log that requests to the API server fail, and that they work again: once, not with each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::store::now;
use crate::core::time::Time;

/// How long it is not said again, whatever happens.
const QUIET: Duration = Duration::from_secs(30);

/// Requests of one kind.
#[derive(Debug)]
pub(super) struct Trouble {
    /// What they are, as the log says it.
    what: &'static str,
    failing: AtomicBool,
    state: Mutex<State>,
}

/// Those of a cache.
#[derive(Debug)]
pub(super) struct Troubles {
    pub reads: Trouble,
    pub writes: Trouble,
}

impl Default for Troubles {
    fn default() -> Self {
        Self { reads: Trouble::of("reads"), writes: Trouble::of("writes") }
    }
}

#[derive(Debug, Default)]
struct State {
    told: Option<Time>,
    failures: u64,
}

impl State {
    /// One more has failed. How many are to be told of, if they are.
    fn failed(&mut self, now: Time) -> Option<u64> {
        self.failures += 1;
        if self.told.is_some_and(|told| now < told + QUIET) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.failures))
    }
}

impl Trouble {
    fn of(what: &'static str) -> Self {
        Self { what, failing: AtomicBool::new(false), state: Mutex::default() }
    }

    /// One has failed for `reason`, which has no value in it.
    pub fn failed(&self, reason: &str) {
        let Some(failures) = self.state.lock().failed(now()) else {
            return;
        };
        self.failing.store(true, Ordering::Relaxed);
        warn!(what = self.what, reason, failures, "requests to the API server fail");
    }

    /// One has been answered.
    pub fn worked(&self) {
        // Nearly always: nothing is written then.
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            info!(what = self.what, "requests to the API server are answered again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_then_now_and_then() {
        let mut state = State::default();
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        assert_eq!(state.failed(at(1)), Some(1));
        for second in 2..31 {
            assert_eq!(state.failed(at(second)), None, "after {second} s");
        }
        assert_eq!(state.failed(at(31)), Some(30));
        assert_eq!(state.failed(at(1_000)), Some(1));
    }
}
