//! The clock that leases are measured on.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` stands still while Linux is suspended, and a lease must not; macOS has no `CLOCK_BOOTTIME`, and
/// there `CLOCK_MONOTONIC` does count suspended time.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Nanoseconds since the machine started, suspended time included. It never goes back.
pub fn boottime_nanos() -> u64 {
    let now = clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    // 584 years fit.
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_forward() {
        let start = boottime_nanos();
        let mut last = start;
        for _ in 0..10_000 {
            let now = boottime_nanos();
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
        assert!(last > start);
    }

    #[test]
    fn it_counts_nanoseconds_since_the_boot() {
        #[allow(clippy::cast_precision_loss)]
        let ours = || boottime_nanos() as f64 / 1e9;
        let before = ours();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = ours();
        let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        // It has two digits after the point.
        assert!(before - 0.02 <= seconds && seconds <= after + 0.02, "{seconds} is not from {before} to {after}");
    }

    #[test]
    fn reading_it_is_cheap_enough_for_every_hit() {
        const READS: u32 = 200_000;
        let start = Instant::now();
        for _ in 0..READS {
            std::hint::black_box(boottime_nanos());
        }
        let each = start.elapsed() / READS;
        println!("one read of the clock: {} ns", each.as_nanos());
        // Far above what it costs (tens of ns), far below a hundred reads per millisecond.
        assert!(each.as_micros() < 10, "{each:?}");
    }
}
