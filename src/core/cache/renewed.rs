//! When a session's idle timeout was begun anew by a client of this pod.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::time::Time;

/// A renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When, on this machine's clock: what replicas are told is how long ago that is.
    pub at: Time,
    /// When, in milliseconds since 1970: what clients are told.
    pub wall: u64,
}

/// The latest renewal of a copy's session, stored by requests that share the shard.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    at: AtomicU64,
    wall: AtomicU64,
}

impl Renewed {
    pub fn new(renewal: Option<Renewal>) -> Self {
        let renewal = renewal.unwrap_or(Renewal { at: Time::ZERO, wall: 0 });
        Self { at: AtomicU64::new(renewal.at.as_nanos()), wall: AtomicU64::new(renewal.wall) }
    }

    /// The session is renewed. Two at once may leave the instants of either: they are the same for all that matters.
    pub fn set(&self, renewal: Renewal) {
        self.wall.store(renewal.wall, Ordering::Relaxed);
        self.at.store(renewal.at.as_nanos(), Ordering::Relaxed);
    }

    /// The latest renewal, if there was one.
    pub fn get(&self) -> Option<Renewal> {
        let at = Time::from_nanos(self.at.load(Ordering::Relaxed));
        (at > Time::ZERO).then(|| Renewal { at, wall: self.wall.load(Ordering::Relaxed) })
    }
}
