//! Waiting on the clock that counts suspended time.

use std::time::Duration;

use crate::core::time::Time;
use crate::runtime::clock::boottime_nanos;

/// Now, on the clock that leases are measured on. Decisions about leases read it at the moment of the decision.
pub fn now() -> Time {
    Time::from_nanos(boottime_nanos())
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
