//! When a copy was used last, and whether a client has it: one number, so that a hit stores both at once.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::time::Time;

/// The last use. The lowest bit of the nanoseconds says whether the copy was given to a client since it came.
#[derive(Debug)]
pub(super) struct Used(AtomicU64);

const GIVEN: u64 = 1;

impl Used {
    /// A copy that came at `now`, and that no client has yet.
    pub fn new(now: Time) -> Self {
        Self(AtomicU64::new(now.as_nanos() & !GIVEN))
    }

    /// A client is given the copy.
    #[inline]
    pub fn given(&self, now: Time) {
        self.0.store(now.as_nanos() | GIVEN, Ordering::Relaxed);
    }

    /// It was of use, but no client was given it.
    pub fn touched(&self, now: Time) {
        // A hit at the same time may win or lose by a moment, but not its mark.
        let touch = |known: u64| Some((now.as_nanos() & !GIVEN) | (known & GIVEN));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, touch);
    }

    /// What the client last wrote or was given is not this copy any more.
    pub fn not_given(&self) {
        self.0.fetch_and(!GIVEN, Ordering::Relaxed);
    }

    /// When it was used last.
    pub fn last(&self) -> Time {
        Time::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Whether a client has it.
    pub fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed) & GIVEN == GIVEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stays_whatever_the_time() {
        let at = Time::from_nanos;
        let used = Used::new(at(7));
        assert!(!used.is_given());
        used.given(at(10));
        assert!(used.is_given() && used.last() >= at(10));
        used.touched(at(21));
        assert!(used.is_given() && used.last() >= at(20));
        used.not_given();
        used.touched(at(31));
        assert!(!used.is_given());
    }
}
