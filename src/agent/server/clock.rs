//! Time to the accuracy that timeouts need, for the price of reading a number.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Milliseconds since the start, as of the last tick.
#[derive(Debug)]
pub(super) struct CoarseClock {
    start: Instant,
    millis: AtomicU64,
}

impl CoarseClock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    /// What it shows.
    #[inline]
    pub(super) fn millis(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }

    /// Sets it right, and says what it shows then.
    pub(super) fn tick(&self) -> u64 {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(now, Ordering::Relaxed);
        now
    }
}
