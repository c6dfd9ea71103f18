//! Pauses between attempts that fail.

use std::time::Duration;

use rand::Rng;

/// Pauses that grow from one failure to the next, each drawn at random so that many do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    most: Duration,
}

impl Backoff {
    /// The first pause is between half of `first` and all of it, each further one twice as long, and none longer than `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        let first = first.min(most);
        Self { first, next: first, most }
    }

    /// It went well: the next pause is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The pause after a failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.most);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_bound_and_begin_anew_after_success() {
        let (first, most) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut backoff = Backoff::new(first, most);
        assert!(backoff.pause() <= first);
        assert!(backoff.pause() >= first);
        for _ in 0..9 {
            let pause = backoff.pause();
            assert!(pause >= most / 2 && pause <= most, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first);
        assert!(Backoff::new(most, first).pause() <= first, "the bound is one for the first too");
    }
}
