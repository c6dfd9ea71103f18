//! What a connection may take, and what happens when it takes more.

use std::time::Duration;

use super::handle::{ClientHandle, Phase};
use super::mailbox::Ended;
use crate::resp;

/// Bounds of each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of its requests.
    pub request: resp::Limits,
    /// Bytes that may wait for it to read them. Also [`super::Room::output`].
    pub output: usize,
    /// How long it may take to finish a request that it has begun, however slowly it goes on.
    pub half_request: Duration,
    /// How long it may take to read the replies it has asked for.
    pub stalled: Duration,
    /// How long it may ask for nothing; zero for ever. Those who listen are exempt, as in Redis.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: resp::Limits::default(),
            output: 32 << 20,
            half_request: Duration::from_secs(30),
            stalled: Duration::from_secs(30),
            idle: Duration::from_hours(1),
        }
    }
}

/// A connection that is quiet for so long gives its buffers back.
const QUIET: Duration = Duration::from_secs(2);
/// How often connections are looked at, at least and at most.
const TICK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    Quiet,
    End(Ended),
}

impl Limits {
    /// How often to look at the connections.
    pub(super) fn tick(&self) -> Duration {
        let shortest = [self.half_request, self.stalled, self.idle].into_iter().filter(|limit| !limit.is_zero()).min();
        shortest.map_or(TICK.1, |shortest| (shortest / 4).clamp(TICK.0, TICK.1))
    }

    /// What to do about a connection, at `now` in milliseconds of the server's clock.
    pub(super) fn judge(&self, handle: &ClientHandle, now: u64) -> Verdict {
        let (phase, since) = handle.phase();
        let listens = handle.subscriptions() != (0, 0);
        self.judge_phase(phase, Duration::from_millis(now.saturating_sub(since)), listens, handle.buffers() > 0)
    }

    fn judge_phase(&self, phase: Phase, age: Duration, listens: bool, buffers: bool) -> Verdict {
        let over = |limit: Duration| !limit.is_zero() && age > limit;
        match phase {
            Phase::HalfRequest if over(self.half_request) => Verdict::End(Ended::HalfRequest),
            Phase::Stalled if over(self.stalled) => Verdict::End(Ended::Stalled),
            Phase::Idle if over(self.idle) && !listens => Verdict::End(Ended::Idle),
            Phase::Idle if buffers && age >= QUIET => Verdict::Quiet,
            _ => Verdict::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        request: resp::Limits { frame: 1, args: 1 },
        output: 1,
        half_request: Duration::from_secs(30),
        stalled: Duration::from_secs(20),
        idle: Duration::from_secs(100),
    };

    fn judge(phase: Phase, seconds: u64) -> Verdict {
        LIMITS.judge_phase(phase, Duration::from_secs(seconds), false, false)
    }

    #[test]
    fn each_phase_has_its_limit() {
        for (phase, seconds, ended) in [
            (Phase::HalfRequest, 30, Ended::HalfRequest),
            (Phase::Stalled, 20, Ended::Stalled),
            (Phase::Idle, 100, Ended::Idle),
        ] {
            assert_eq!(judge(phase, seconds), Verdict::Fine);
            assert_eq!(judge(phase, seconds + 1), Verdict::End(ended));
        }
        assert_eq!(judge(Phase::Busy, 1_000_000), Verdict::Fine);
    }

    #[test]
    fn who_listens_is_not_idle() {
        assert_eq!(LIMITS.judge_phase(Phase::Idle, Duration::from_secs(101), true, false), Verdict::Fine);
    }

    #[test]
    fn zero_is_for_ever() {
        let limits = Limits { idle: Duration::ZERO, ..LIMITS };
        assert_eq!(limits.judge_phase(Phase::Idle, Duration::MAX, false, false), Verdict::Fine);
        assert_eq!(limits.tick(), TICK.1);
    }

    #[test]
    fn the_quiet_give_their_buffers_back() {
        assert_eq!(LIMITS.judge_phase(Phase::Idle, QUIET, false, true), Verdict::Quiet);
        assert_eq!(LIMITS.judge_phase(Phase::Idle, QUIET, true, true), Verdict::Quiet);
        assert_eq!(LIMITS.judge_phase(Phase::Idle, QUIET / 2, false, true), Verdict::Fine);
    }

    #[test]
    fn short_limits_are_looked_at_often() {
        let limits = Limits { idle: Duration::from_millis(100), ..LIMITS };
        assert_eq!(limits.tick(), Duration::from_millis(25));
        let limits = Limits { idle: Duration::from_millis(1), ..LIMITS };
        assert_eq!(limits.tick(), TICK.0);
    }
}
