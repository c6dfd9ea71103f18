//! How long something is left alone that is tried in vain: longer each time.
//!
//! Nothing is drawn at random, unlike in [`Backoff`](crate::runtime::backoff::Backoff): what decides about it must do the same again in
//! a simulation, and one leader tries for all.

use std::time::Duration;

/// How many times longer than at first it is left alone the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(u32);

impl Patience {
    /// It is never left alone for more than this many times as long as at first.
    pub const MOST: u32 = 64;

    /// The pause after another vain attempt: `first`, then twice as long each time.
    pub fn pause(&mut self, first: Duration) -> Duration {
        let pause = first * self.0;
        self.0 = (self.0 * 2).min(Self::MOST);
        pause
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = (0..9).map(|_| patience.pause(Duration::from_secs(2)).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 128, 128]);
    }
}
