//! Work that waits for nobody, beside others who wait for the same worker.

use std::time::{Duration, Instant};

/// How long work that waits for nobody may hold a worker, which others wait for.
const TURN: Duration = Duration::from_millis(1);

/// Since when a worker is held.
#[derive(Debug)]
pub struct Turn(Instant);

impl Turn {
    /// It begins now.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Lets others go first, if it was long enough.
    pub async fn give_way(&mut self) {
        if self.0.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
