//! Says in the log that requests to the API server fail, and that they work again: once, not with each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::store::now;
use crate::core::rate::Lines;

/// How long it is not said again, whatever happens.
const QUIET: Duration = Duration::from_secs(30);

/// Requests of one kind.
#[derive(Debug)]
pub(super) struct Trouble {
    /// What they are, as the log says it.
    what: &'static str,
    failing: AtomicBool,
    lines: Mutex<Lines>,
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

impl Trouble {
    fn of(what: &'static str) -> Self {
        Self { what, failing: AtomicBool::new(false), lines: Mutex::new(Lines::new(1, QUIET)) }
    }

    /// One has failed for `reason`, which has no value in it.
    pub fn failed(&self, reason: &str) {
        let Some(unsaid) = self.lines.lock().next(now()) else {
            return;
        };
        self.failing.store(true, Ordering::Relaxed);
        warn!(what = self.what, reason, failures = unsaid + 1, "requests to the API server fail");
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
    use crate::core::time::Time;

    #[test]
    fn it_is_told_at_once_and_then_now_and_then() {
        let mut lines = Lines::new(1, QUIET);
        let mut failed = |now| lines.next(now).map(|unsaid| unsaid + 1);
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        assert_eq!(failed(at(1)), Some(1));
        for second in 2..31 {
            assert_eq!(failed(at(second)), None, "after {second} s");
        }
        assert_eq!(failed(at(31)), Some(30));
        assert_eq!(failed(at(1_000)), Some(1));
    }
}
