//! Says in the log that requests to the API server fail, and that they work again: once, not with each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use crate::core::rate::Lines;
use crate::core::time::Time;

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

    /// One has failed at `now` for `reason`, which has no value in it. Returns how many have, if it was said.
    pub fn failed(&self, reason: &str, now: Time) -> Option<u64> {
        let failures = self.lines.lock().next(now)? + 1;
        self.failing.store(true, Ordering::Relaxed);
        warn!(what = self.what, reason, failures, "requests to the API server fail");
        Some(failures)
    }

    /// One has been answered. Returns whether it was said.
    pub fn worked(&self) -> bool {
        // Nearly always: nothing is written then.
        let said = self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed);
        if said {
            info!(what = self.what, "requests to the API server are answered again");
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn it_is_told_at_once_and_then_now_and_then() {
        let trouble = Trouble::of("reads");
        assert!(!trouble.worked());
        assert_eq!(trouble.failed("why", at(1)), Some(1));
        for second in 2..31 {
            assert_eq!(trouble.failed("why", at(second)), None, "after {second} s");
        }
        assert_eq!(trouble.failed("why", at(31)), Some(30));
        assert_eq!(trouble.failed("why", at(1_000)), Some(1));
    }

    #[test]
    fn that_they_are_answered_again_is_said_once_and_only_after_it_was_said_that_they_fail() {
        let trouble = Trouble::of("reads");
        assert_eq!(trouble.failed("why", at(1)), Some(1));
        assert!(trouble.worked());
        assert!(!trouble.worked());
        assert_eq!(trouble.failed("why", at(2)), None);
        assert!(!trouble.worked(), "nobody was told of that failure");
        assert_eq!(trouble.failed("why", at(40)), Some(2));
        assert!(trouble.worked());
    }
}
