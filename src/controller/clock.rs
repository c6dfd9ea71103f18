//! The clock that decisions are given: monotonic, and counting suspended time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::core::time::Time;

/// Now. Every decision about leases must read it at the moment of the decision.
pub fn now() -> Time {
    let spec = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(spec.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(spec.tv_nsec).unwrap_or_default();
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Sleeps until `until` has come. The runtime's timers do not count suspended time, so it looks again once a second.
pub async fn sleep_until(until: Time) {
    loop {
        let left = until.saturating_since(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}
