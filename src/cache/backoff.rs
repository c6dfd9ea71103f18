//! Pauses between attempts that fail.

use std::time::Duration;

use rand::Rng;

/// The first pause, on average.
const FIRST: Duration = Duration::from_millis(100);
/// What lasted so long was no failure: the next pause is a first one.
const HEALTHY: Duration = Duration::from_secs(10);

/// Pauses that grow from one failure to the next, each drawn at random so that many agents do not come back at once.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub fn new(most: Duration) -> Self {
        Self { next: FIRST.min(most), most }
    }

    /// The pause after something that lasted for `lasted` and then failed.
    pub fn pause(&mut self, lasted: Duration) -> Duration {
        if lasted >= HEALTHY {
            self.next = FIRST.min(self.most);
        }
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_bound_and_begin_anew_after_a_healthy_time() {
        let most = Duration::from_millis(300);
        let mut backoff = Backoff::new(most);
        let mut pause = |lasted| backoff.pause(Duration::from_secs(lasted));
        assert!(pause(0) <= FIRST);
        assert!(pause(1) >= FIRST);
        for _ in 0..9 {
            let pause = pause(9);
            assert!(pause >= most / 2 && pause <= most, "{pause:?}");
        }
        assert!(pause(10) <= FIRST);
    }
}
