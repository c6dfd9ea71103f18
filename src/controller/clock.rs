//! Waiting on the clock that counts suspended time.

use std::time::Duration;

use crate::controller::shared::now;
use crate::core::time::Time;

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
