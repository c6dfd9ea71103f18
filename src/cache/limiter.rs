//! A token bucket: so many at once, and so many per second on average.

use std::time::Duration;

use crate::core::time::Time;

/// The bucket. Whoever takes a token that is not there yet waits for it; tokens can be given back.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    refilled: Time,
}

impl Bucket {
    pub fn new(per_second: u32, burst: u32, now: Time) -> Self {
        let burst = f64::from(burst);
        Self { tokens: burst, burst, per_second: f64::from(per_second), refilled: now }
    }

    /// Takes a token. Returns how long to wait before it may be used; `None`, and no token is taken, if that would be
    /// longer than `patience`.
    pub fn take(&mut self, now: Time, patience: Duration) -> Option<Duration> {
        let passed = now.saturating_since(self.refilled).as_secs_f64();
        self.refilled = self.refilled.max(now);
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        let missing = (1.0 - self.tokens).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX);
        if wait > patience {
            return None;
        }
        self.tokens -= 1.0;
        Some(wait)
    }

    /// Gives a token back.
    pub fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_burst_then_one_after_the_other_then_nothing() {
        let mut bucket = Bucket::new(2, 3, at(0));
        for _ in 0..3 {
            assert_eq!(bucket.take(at(0), PATIENCE), Some(Duration::ZERO));
        }
        assert_eq!(bucket.take(at(0), PATIENCE), Some(Duration::from_millis(500)));
        assert_eq!(bucket.take(at(0), PATIENCE), Some(Duration::from_secs(1)));
        assert_eq!(bucket.take(at(0), PATIENCE), None, "too long to wait");
        assert_eq!(bucket.take(at(2_000), PATIENCE), Some(Duration::ZERO), "time brings tokens");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_but_never_more_than_the_burst() {
        let mut bucket = Bucket::new(1, 1, at(0));
        assert_eq!(bucket.take(at(0), Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(bucket.take(at(0), Duration::ZERO), None);
        bucket.give_back();
        bucket.give_back();
        assert_eq!(bucket.take(at(0), Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(bucket.take(at(0), Duration::ZERO), None);
    }
}
