//! What the API server's clock shows, without asking it.
//!
//! A session's lifetime began at its `creationTimestamp`, which is of the API server's clock. The clock of this machine may be
//! hours ahead of that, and whoever trusted it would delete sessions that have hours to live. So the time is taken from its
//! answers, and goes on from there by the monotonic clock. Of several API servers one may be ahead, too, and
//! whichever has answered last is believed. So for what cannot be taken back, the clocks must agree: it is
//! [past](ServerClock::past) when it is by both. Whichever is behind only makes lifetimes longer.

use std::time::Duration;

use super::expiry::WallTime;
use super::time::Time;

/// An instant is written in whole seconds: the clock may have been up to this much further.
const RESOLUTION: Duration = Duration::from_secs(1);

/// What an answer takes to arrive, and by how much the clocks of two machines differ where nothing is wrong.
const TOLERANCE: Duration = Duration::from_secs(1);

/// The API server's clock, as its last answer shows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerClock {
    reading: Option<(WallTime, Time)>,
}

impl ServerClock {
    /// It was answered at `answered`, with the instant at which that was done in whole seconds. An answer that `took` long says less
    /// than one before that did not: it may have been given at any time meanwhile.
    pub fn read(&mut self, shown: WallTime, answered: Time, took: Duration) {
        if self.reading.is_none() || took <= TOLERANCE {
            self.reading = Some((shown, answered));
        }
    }

    /// The time by the API server's clock, or a little earlier: by up to a second, and by what the last answer took to arrive. `None`
    /// before the first answer.
    pub fn now(&self, now: Time) -> Option<WallTime> {
        self.reading.map(|(shown, answered)| shown + now.saturating_since(answered))
    }

    /// An instant that is past by the API server's clock as well as by that of this machine, which shows `wall`. `None`
    /// before the first answer.
    pub fn past(&self, now: Time, wall: WallTime) -> Option<WallTime> {
        self.now(now).map(|server| server.min(wall))
    }

    /// Whether `instant` is past by the API server's clock, as far as that can be told from its last answer. False before the first.
    pub fn may_be_past(&self, now: Time, instant: WallTime) -> bool {
        self.now(now).is_some_and(|server| instant <= server + RESOLUTION + TOLERANCE)
    }

    /// How far the clock of this machine, which shows `wall`, is certainly from it. Zero before the first answer.
    pub fn off_by(&self, now: Time, wall: WallTime) -> Duration {
        let Some(server) = self.now(now) else {
            return Duration::ZERO;
        };
        // What the last answer took to arrive makes this clock look ahead. Whoever asks leaves room for that.
        server.saturating_sub(wall).max(wall.saturating_sub(server + RESOLUTION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_goes_on_from_the_last_answer() {
        let mut clock = ServerClock::default();
        assert_eq!(clock.now(Time::ZERO + secs(5)), None);
        clock.read(secs(1_000), Time::ZERO + secs(7), secs(0));
        assert_eq!(clock.now(Time::ZERO + secs(7)), Some(secs(1_000)));
        assert_eq!(clock.now(Time::ZERO + secs(9)), Some(secs(1_002)));
        // It was set back.
        clock.read(secs(900), Time::ZERO + secs(10), secs(0));
        assert_eq!(clock.now(Time::ZERO + secs(11)), Some(secs(901)));
    }

    #[test]
    fn an_answer_that_took_long_takes_no_others_place() {
        let (mut clock, second) = (ServerClock::default(), |n| Time::ZERO + secs(n));
        clock.read(secs(1_000), second(5), secs(4));
        assert_eq!(clock.now(second(5)), Some(secs(1_000)), "there is no other");
        clock.read(secs(1_004), second(6), secs(1));
        clock.read(secs(1_006), second(10), secs(3));
        assert_eq!(clock.now(second(10)), Some(secs(1_008)));
    }

    #[test]
    fn one_clock_that_is_ahead_makes_nothing_past() {
        let (mut clock, now) = (ServerClock::default(), Time::ZERO + secs(2));
        assert_eq!(clock.past(now, secs(1_000)), None, "nothing is known");
        for (server, wall, past) in [(1_000, 8_200, 1_005), (8_200, 1_000, 1_000)] {
            clock.read(secs(server), now, secs(0));
            assert_eq!(clock.past(now + secs(5), secs(wall)), Some(secs(past)));
        }
    }

    #[test]
    fn what_may_be_past_is_no_more_than_the_answer_leaves_open() {
        let (mut clock, now) = (ServerClock::default(), Time::ZERO + secs(2));
        assert!(!clock.may_be_past(now, secs(1)), "nothing is known");
        clock.read(secs(1_000), now, secs(0));
        for (instant, past) in [(1, true), (1_002, true), (1_003, false), (1_600, false)] {
            assert_eq!(clock.may_be_past(now, secs(instant)), past, "{instant}");
            assert_eq!(clock.may_be_past(now + secs(10), secs(instant + 10)), past, "{instant}");
        }
    }

    #[test]
    fn whole_seconds_are_no_difference() {
        let mut clock = ServerClock::default();
        let now = Time::ZERO + secs(2);
        assert_eq!(clock.off_by(now, secs(9_000)), Duration::ZERO, "nothing is known");
        clock.read(secs(1_000), now, secs(0));
        let half = Duration::from_millis(500);
        for (wall, off) in [(secs(1_000) + half, Duration::ZERO), (secs(1_061), secs(60)), (secs(940), secs(60))] {
            assert_eq!(clock.off_by(now, wall), off, "{wall:?}");
        }
    }
}
