//! Token buckets on time given from outside.

use std::hash::Hash;
use std::time::Duration;

use hashbrown::HashMap;

use super::time::Time;

/// Lets `burst` through at once, and one more each `interval` after that.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    interval: Duration,
    /// How far ahead of time the bucket may be drawn.
    ahead: Duration,
    /// When the bucket will be full again.
    full_at: Time,
}

impl TokenBucket {
    /// A full bucket. A burst of zero counts as one, or nothing would ever pass.
    pub fn new(burst: u32, interval: Duration) -> Self {
        let ahead = interval.saturating_mul(burst.max(1) - 1);
        Self { interval, ahead, full_at: Time::default() }
    }

    /// When the next token is there: `now`, or later.
    pub fn ready_at(&self, now: Time) -> Time {
        let wait = self.full_at.saturating_since(now).saturating_sub(self.ahead);
        now + wait
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Time) -> bool {
        let ready = self.ready_at(now) == now;
        if ready {
            self.full_at = self.full_at.max(now) + self.interval;
        }
        ready
    }

    /// Takes the next token there will be, and says when that is: `now`, or later.
    pub fn reserve(&mut self, now: Time) -> Time {
        let ready = self.ready_at(now);
        self.full_at = self.full_at.max(now) + self.interval;
        ready
    }

    /// Takes the next token if it is there within `patience`, and says how long to wait before it may be used. Otherwise `None`, and
    /// no token is taken.
    pub fn take_within(&mut self, now: Time, patience: Duration) -> Option<Duration> {
        let wait = self.ready_at(now).saturating_since(now);
        (wait <= patience).then(|| self.reserve(now).saturating_since(now))
    }

    /// Gives a token back that was taken and not used.
    pub fn give_back(&mut self) {
        self.full_at = Time::ZERO + self.full_at.saturating_since(Time::ZERO + self.interval);
    }

    /// Whether the bucket is full, and so no different from a new one.
    pub fn is_full(&self, now: Time) -> bool {
        self.full_at <= now
    }
}

/// Which lines of a log are written when there may be too many.
#[derive(Debug)]
pub struct Lines {
    bucket: TokenBucket,
    unsaid: u64,
}

impl Lines {
    /// So many at once, and one more each `interval` after that.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { bucket: TokenBucket::new(burst, interval), unsaid: 0 }
    }

    /// Whether there may be a line now and, if so, how many there were not since the last one.
    pub fn next(&mut self, now: Time) -> Option<u64> {
        if self.bucket.take(now) {
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid += 1;
        None
    }
}

/// A bucket for each key, for so many keys at once.
#[derive(Debug)]
pub struct Buckets<K> {
    burst: u32,
    interval: Duration,
    most: usize,
    by_key: HashMap<K, TokenBucket>,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// No buckets yet; each will let so much through, as in [`TokenBucket::new`].
    pub fn new(burst: u32, interval: Duration, most: usize) -> Self {
        Self { burst, interval, most: most.max(1), by_key: HashMap::new() }
    }

    /// The bucket of `key`. If there are too many, those are forgotten that are full, since a new one is no different; and all, if
    /// none is. Whoever must not be exceeded then needs a bucket for all keys together.
    pub fn of(&mut self, key: &K, now: Time) -> &mut TokenBucket {
        if self.by_key.len() >= self.most && !self.by_key.contains_key(key) {
            self.by_key.retain(|_, bucket| !bucket.is_full(now));
            if self.by_key.len() >= self.most {
                self.by_key.clear();
            }
        }
        let Self { burst, interval, .. } = *self;
        self.by_key.entry(key.clone()).or_insert_with(|| TokenBucket::new(burst, interval))
    }

    /// When the next token of `key` is there.
    pub fn ready_at(&self, key: &K, now: Time) -> Time {
        self.by_key.get(key).map_or(now, |bucket| bucket.ready_at(now))
    }

    /// How many buckets are kept.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let mut bucket = TokenBucket::new(3, Duration::from_secs(1));
        assert!((0..3).all(|_| bucket.take(at(5000))));
        assert!(!bucket.take(at(5000)));
        assert_eq!(bucket.ready_at(at(5000)), at(6000));
        assert!(!bucket.take(at(5999)));
        assert!(bucket.take(at(6000)));
        assert!(!bucket.take(at(6000)));
        assert!(!bucket.is_full(at(8999)));
        assert!(bucket.is_full(at(9000)));
        assert!((0..3).all(|_| bucket.take(at(20_000))));
        assert!(!bucket.take(at(20_000)));
    }

    #[test]
    fn a_burst_of_zero_still_lets_one_through() {
        let mut bucket = TokenBucket::new(0, Duration::from_secs(1));
        assert!(bucket.take(at(0)));
        assert!(!bucket.take(at(0)));
    }

    #[test]
    fn what_is_reserved_is_taken() {
        let mut bucket = TokenBucket::new(2, Duration::from_secs(1));
        let reserved: Vec<Time> = (0..4).map(|_| bucket.reserve(at(5000))).collect();
        assert_eq!(reserved, [at(5000), at(5000), at(6000), at(7000)]);
        assert!(!bucket.take(at(7999)));
        assert!(bucket.take(at(8000)));
    }

    #[test]
    fn whoever_has_patience_waits_for_a_token_and_nobody_else_takes_one() {
        let (half, second) = (Duration::from_millis(500), Duration::from_secs(1));
        let mut bucket = TokenBucket::new(3, half);
        for _ in 0..3 {
            assert_eq!(bucket.take_within(at(5000), second), Some(Duration::ZERO));
        }
        assert_eq!(bucket.take_within(at(5000), second), Some(half));
        assert_eq!(bucket.take_within(at(5000), second), Some(second));
        assert_eq!(bucket.take_within(at(5000), second), None, "too long to wait");
        assert_eq!(bucket.take_within(at(7000), second), Some(Duration::ZERO), "time brings tokens");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_but_never_more_than_the_burst() {
        let mut bucket = TokenBucket::new(1, Duration::from_secs(1));
        assert!(bucket.take(at(5000)) && !bucket.take(at(5000)));
        bucket.give_back();
        bucket.give_back();
        assert!(bucket.take(at(5000)) && !bucket.take(at(5000)));
        TokenBucket::new(1, Duration::from_secs(1)).give_back();
    }

    #[test]
    fn only_buckets_that_are_full_are_forgotten_while_there_are_any() {
        let mut buckets = Buckets::new(2, Duration::from_secs(1), 3);
        for key in ["a", "b", "b", "c"] {
            assert!(buckets.of(&key, at(0)).take(at(0)));
        }
        // At 1 s, those of a and c are full again.
        buckets.of(&"d", at(1000));
        assert_eq!(buckets.len(), 2);
        assert_eq!(buckets.ready_at(&"b", at(0)), at(1000), "it is remembered");
        assert!(buckets.of(&"e", at(1000)).take(at(1000)) && buckets.of(&"d", at(1000)).take(at(1000)));
        buckets.of(&"f", at(1000));
        assert_eq!(buckets.len(), 1, "none is full: all go");
    }

    proptest! {
        /// In any window, no more than the burst and what the window's length brings; and what it calls ready is.
        #[test]
        fn never_more_than_promised(burst in 1_u32..10, steps in prop::collection::vec(0_u64..300, 1..200)) {
            let interval = Duration::from_millis(100);
            let mut bucket = TokenBucket::new(burst, interval);
            let mut now = 0;
            let mut taken: Vec<u64> = Vec::new();
            for step in steps {
                now += step;
                let ready = bucket.ready_at(at(now)) == at(now);
                prop_assert_eq!(bucket.take(at(now)), ready);
                if ready {
                    taken.push(now);
                }
            }
            for (index, from) in taken.iter().enumerate() {
                for (count, to) in taken[index..].iter().enumerate() {
                    prop_assert!((count as u64) < u64::from(burst) + (to - from) / 100);
                }
            }
        }
    }
}
