//! The cache lease: how long an agent may serve copies without asking anyone (I1 when signals cannot arrive).
//!
//! After Gray and Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache
//! Consistency" (SOSP 1989), with two changes: a lease is measured on the holder's clock alone, from the moment
//! it asked; and it is shortened by the age of the grantor's own knowledge, since the grantor is itself a cache.

use std::time::Duration;

use super::rules::Rule;
use super::time::Time;

/// Identifies a stream from an agent to a replica. Never used again within a process; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// How much longer than the lease itself somebody else must wait to be sure that it has ended: 1 %, since two
/// machines' clocks are assumed to tick at the same rate to that precision.
pub fn with_drift(lease: Duration) -> Duration {
    lease + lease / 100
}

/// What a replica answered to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// When the heartbeat that is answered was sent, on the agent's own clock.
    pub sent: Time,
    /// How long ago, at most, the replica's watch was proven to be complete.
    pub age: Duration,
    /// Every copy with a sequence number up to this one had been compared.
    pub covers: u64,
}

/// Streams whose leases are kept at most. More replicas than this only mean that some give no cover.
pub const MAX_LEASES: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Lease {
    stream: StreamId,
    until: Time,
    covers: u64,
    /// Provisional cover that ends before this is of a GET that was sent before the lease came to be in force, or came to be
    /// again: what its replica had to say meanwhile was for those who had one.
    carries_from: Time,
}

/// The leases that an agent holds, one for each stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaseTable {
    leases: Vec<Lease>,
    /// The longest that was granted: no provisional cover is longer.
    longest: Duration,
}

/// Cover of a copy whose holding no replica has processed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Provisional {
    until: Time,
    /// The streams whose leases were in force when the GET was sent.
    streams: [StreamId; 4],
}

impl Provisional {
    /// No cover at all.
    pub const NONE: Self = Self { until: Time::ZERO, streams: [StreamId(0); 4] };
}

impl Lease {
    /// Whether it has been in force without a gap since the GET was sent that has this cover.
    fn carries(&self, provisional: &Provisional) -> bool {
        provisional.until >= self.carries_from && provisional.streams.contains(&self.stream)
    }
}

impl LeaseTable {
    /// Takes a lease of `length` that was granted over `stream`. Returns until when it lasts.
    pub fn grant(&mut self, stream: StreamId, length: Duration, grant: Grant, now: Time) -> Time {
        let age = if Rule::LeaseMinusAge.on() { grant.age } else { Duration::ZERO };
        let start = if Rule::LeaseFromSend.on() { grant.sent } else { now };
        let until = start + length.saturating_sub(age);
        self.longest = self.longest.max(length);
        // One that has ended and is granted again is another one: see `carries_from`.
        self.leases.retain(|l| l.until > now || l.stream == stream && !Rule::CoverByLeasesInForce.on());
        if let Some(lease) = self.leases.iter_mut().find(|l| l.stream == stream) {
            // An answer that was overtaken by a later one says nothing new.
            lease.until = lease.until.max(until);
            lease.covers = lease.covers.max(grant.covers);
        } else {
            // Streams that come and go leave leases behind: the one that ends first makes room.
            let first = (0..self.leases.len()).min_by_key(|l| self.leases[*l].until);
            if let Some(first) = first.filter(|_| self.leases.len() >= MAX_LEASES)
                && self.leases[first].until < until
            {
                self.leases.swap_remove(first);
            }
            if self.leases.len() < MAX_LEASES {
                let covers = grant.covers;
                self.leases.push(Lease { stream, until, covers, carries_from: now + self.longest });
            }
        }
        until
    }

    /// Ends the lease of a stream at once.
    pub fn revoke(&mut self, stream: StreamId) {
        self.leases.retain(|l| l.stream != stream);
    }

    /// Ends all leases at once.
    pub fn clear(&mut self) {
        self.leases.clear();
    }

    /// When the last lease ends; `None` if none is in force.
    pub fn in_force_until(&self, now: Time) -> Option<Time> {
        self.leases.iter().map(|l| l.until).filter(|u| *u > now).max()
    }

    /// The cover of a copy whose GET (or own write) is sent now: what is in force now, and no longer than a lease.
    pub fn provisional(&self, length: Duration, now: Time) -> Provisional {
        let mut streams = [StreamId(0); 4];
        let mut in_force = self.leases.iter().filter(|l| l.until > now);
        for slot in &mut streams {
            *slot = in_force.next().map_or(StreamId(0), |l| l.stream);
        }
        Provisional { until: now + length, streams }
    }

    /// Until when a copy with this sequence number and provisional cover may be served, if nothing more is heard; `None` if it
    /// may not be served at `now`.
    pub fn covered_until(&self, sequence: u64, provisional: &Provisional, now: Time) -> Option<Time> {
        let until = |lease: &Lease| {
            if sequence <= lease.covers {
                lease.until
            } else if lease.carries(provisional) {
                lease.until.min(provisional.until)
            } else {
                Time::ZERO
            }
        };
        self.leases.iter().map(until).max().filter(|until| *until > now)
    }

    /// Whether a copy with this sequence number and provisional cover may be served at `now`.
    #[inline]
    pub fn covers(&self, sequence: u64, provisional: &Provisional, now: Time) -> bool {
        if !Rule::CoverByLeasesInForce.on() && now < provisional.until {
            return true;
        }
        self.leases.iter().any(|l| {
            now < l.until
                && (sequence <= l.covers
                    || !Rule::CoverBySequence.on()
                    || now < provisional.until && l.carries(provisional))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Duration = Duration::from_secs(15);
    const S: StreamId = StreamId(1);

    fn at(secs: u64) -> Time {
        Time::from_nanos(secs * 1_000_000_000)
    }

    fn grant(sent: u64, age: u64, covers: u64) -> Grant {
        Grant { sent: at(sent), age: Duration::from_secs(age), covers }
    }

    #[test]
    fn a_lease_runs_from_the_send_and_is_shortened_by_age() {
        let mut table = LeaseTable::default();
        assert_eq!(table.grant(S, L, grant(100, 4, 7), at(105)), at(111));
        assert!(table.covers(7, &Provisional::NONE, at(110)));
        assert!(!table.covers(7, &Provisional::NONE, at(111)), "the end is not part of it");
        assert!(!table.covers(8, &Provisional::NONE, at(110)), "a copy reported later is not covered");
    }

    #[test]
    fn knowledge_older_than_a_lease_gives_none() {
        let mut table = LeaseTable::default();
        table.grant(S, L, grant(100, 16, 7), at(100));
        assert_eq!(table.in_force_until(at(100)), None);
    }

    #[test]
    fn leases_of_streams_that_are_gone_make_room() {
        let mut table = LeaseTable::default();
        for stream in 1..=50 {
            let sent = 100 + u64::from(stream) / 10;
            table.grant(StreamId(stream), L, grant(sent, 0, 0), at(105));
        }
        assert_eq!(table.leases.len(), MAX_LEASES);
        assert_eq!(table.in_force_until(at(105)), Some(at(120)));
    }

    #[test]
    fn when_cover_ends_is_known_beforehand() {
        let mut table = LeaseTable::default();
        table.grant(S, L, grant(97, 0, 7), at(97));
        let cover = table.provisional(L, at(98));
        table.grant(S, L, grant(103, 0, 8), at(103));
        table.grant(StreamId(2), L, grant(104, 0, 7), at(104));
        // Both leases cover it; only the first one does; that one carries it for as long as it may; nothing does.
        assert_eq!(table.covered_until(7, &Provisional::NONE, at(105)), Some(at(119)));
        assert_eq!(table.covered_until(8, &Provisional::NONE, at(105)), Some(at(118)));
        assert_eq!(table.covered_until(9, &cover, at(105)), Some(at(113)));
        assert_eq!(table.covered_until(9, &Provisional::NONE, at(105)), None);
        for sequence in 7..=9 {
            for now in 105..=120 {
                let until = table.covered_until(sequence, &cover, at(now));
                assert_eq!(until.is_some(), table.covers(sequence, &cover, at(now)), "{sequence} at {now}");
                assert!(until.is_none_or(|until| !table.covers(sequence, &cover, until)));
            }
        }
    }

    /// While there was none, the replica waited for nobody's acknowledgement.
    #[test]
    fn a_lease_that_had_ended_carries_nothing_that_was_sent_before_it_came_again() {
        for other_in_between in [false, true] {
            let mut table = LeaseTable::default();
            table.grant(S, L, grant(100, 0, 7), at(100));
            let cover = table.provisional(L, at(114));
            if other_in_between {
                table.grant(StreamId(2), L, grant(115, 0, 0), at(116));
            }
            table.grant(S, L, grant(112, 0, 7), at(116));
            assert!(!table.covers(9, &cover, at(117)));
            assert!(table.covers(7, &cover, at(117)), "what has been compared is covered");
            let later = table.provisional(L, at(116));
            assert!(table.covers(9, &later, at(117)));
        }
    }

    #[test]
    fn provisional_cover_ends_with_the_leases_it_rests_on() {
        let mut table = LeaseTable::default();
        table.grant(S, L, grant(100, 0, 0), at(100));
        let cover = table.provisional(L, at(110));
        assert!(table.covers(9, &cover, at(114)));
        assert!(!table.covers(9, &cover, at(116)), "the lease has ended");
        table.grant(S, L, grant(112, 0, 0), at(114));
        assert!(table.covers(9, &cover, at(124)), "a lease that goes on carries it");
        assert!(!table.covers(9, &cover, at(125)), "at most a lease's length after the GET was sent");
        let other = StreamId(2);
        table.revoke(S);
        table.grant(other, L, grant(120, 0, 0), at(120));
        assert!(!table.covers(9, &cover, at(121)), "a stream that was not in force gives no cover");
    }
}
