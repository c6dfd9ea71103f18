//! Leader election over one Lease object: what to do next, and whether this replica leads now.
//!
//! There are never two leaders at once, given clocks that tick at about the same rate, because:
//! - the lease changes hands only by a PUT that names the resourceVersion it replaces, so of two writers one loses;
//! - a lease of another is taken over only after it was seen unchanged for its whole duration, by this replica's own
//!   monotonic clock and from the moment the answer had arrived (no two machines' clocks are compared);
//! - a leader counts from the moment it SENT its last successful renewal, and only for the renew deadline, which is
//!   shorter: it has stopped before anybody else may start, whatever the network does;
//! - that a lease names this replica proves nothing: only the answer to a PUT of its own makes it lead.

use std::time::Duration;

use super::time::Time;

mod timings;

pub use timings::{MAX_LEASE_DURATION, Timings, TimingsError};

/// The lease as an answer of the API server showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// `spec.holderIdentity`; empty if nobody holds it.
    pub holder: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `spec.leaseDurationSeconds`: a holder with other settings may count on more than ours.
    pub duration: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// GET the lease, consistently.
    Read,
    /// POST the lease, naming this replica.
    Create,
    /// PUT the lease, naming this replica, over the holder's version.
    Acquire {
        /// The version that the PUT must name.
        resource_version: String,
    },
    /// PUT the lease again, as its holder.
    Renew {
        /// The version that the PUT must name.
        resource_version: String,
    },
    /// PUT the lease with an empty holder.
    Release {
        /// The version that the PUT must name.
        resource_version: String,
    },
    /// Nothing before this instant.
    Wait {
        /// When to ask again.
        until: Time,
    },
    /// After [`Election::stop`]: the lease is not ours (any more).
    Done,
}

/// What became of a POST or PUT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was stored as this version.
    Stored {
        /// The new `metadata.resourceVersion`.
        resource_version: String,
    },
    /// It was refused, since somebody else was faster or for another reason: nothing was stored by this request.
    NotStored,
    /// No answer in time, or an error. It may have been stored, and may yet be.
    Unknown,
}

/// The rules that tests switch off one at a time, to see that each is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Only the answer to an own PUT makes a leader.
    OwnPutOnly,
    /// Any change of the object starts the count anew.
    ChangeRestartsTheCount,
    /// What the holder wrote as its lease's duration is waited for, if it is longer than ours.
    HoldersDuration,
    /// An answer that shows the version that was there before proves no renewal.
    NewVersionOnly,
    /// A lease that was seen once and is absent now may have a leader still.
    AbsenceIsWaitedOut,
    /// A replica that releases has stopped leading before it sends that.
    StopBeforeRelease,
}

#[derive(Clone, Debug)]
enum View {
    Unknown,
    Absent { since: Time },
    Present { lease: Observed, since: Time },
}

/// One replica's part in the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    timings: Timings,
    view: View,
    /// The longest duration any holder was seen to count on; absence is waited out that long.
    longest_seen: Option<Duration>,
    must_read: bool,
    /// A write of ours may have been stored without our knowing.
    unsure: bool,
    not_before: Time,
    leads_until: Option<Time>,
    stopping: bool,
    #[cfg(test)]
    off: Option<Rule>,
}

impl Election {
    /// A replica that knows nothing yet. No two processes may share an identity.
    pub fn new(identity: String, timings: Timings) -> Self {
        Self {
            identity,
            timings,
            view: View::Unknown,
            longest_seen: None,
            must_read: true,
            unsure: false,
            not_before: Time::default(),
            leads_until: None,
            stopping: false,
            #[cfg(test)]
            off: None,
        }
    }

    /// Who this replica is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The periods in force.
    pub const fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Whether this replica leads at `now`, which must be read from the clock when the question is asked.
    pub fn is_leader(&self, now: Time) -> bool {
        self.leads_until().is_some_and(|end| now < end)
    }

    /// The instant at which leadership ends by itself; it may be past.
    pub fn leads_until(&self) -> Option<Time> {
        if self.stopping && self.holds(Rule::StopBeforeRelease) { None } else { self.leads_until }
    }

    /// Who holds the lease, as far as was seen; `None` also if nobody does.
    pub fn holder(&self) -> Option<&str> {
        match &self.view {
            View::Present { lease, .. } if !lease.holder.is_empty() => Some(&lease.holder),
            _ => None,
        }
    }

    /// What to do at `now`. One thing at a time: its outcome is told before this is asked again.
    pub fn next(&self, now: Time) -> Step {
        if self.stopping {
            return self.next_when_stopping(now);
        }
        if self.must_read {
            return self.at(now, Step::Read);
        }
        match &self.view {
            View::Unknown => self.at(now, Step::Read),
            View::Absent { since } => match self.may_create_at(*since, now) {
                created if now >= created => Step::Create,
                created if now < self.not_before => Step::Wait { until: self.not_before.min(created) },
                _ => Step::Read,
            },
            View::Present { lease, since } => {
                let resource_version = lease.resource_version.clone();
                if lease.holder == self.identity {
                    return self.at(now, Step::Renew { resource_version });
                }
                if lease.holder.is_empty() {
                    return Step::Acquire { resource_version };
                }
                // The PUT itself proves that the lease is unchanged until it is replaced: no need to read again.
                let ends = *since + self.waits_for(lease.duration);
                if now >= ends {
                    Step::Acquire { resource_version }
                } else if now >= self.not_before {
                    Step::Read
                } else {
                    Step::Wait { until: self.not_before.min(ends) }
                }
            }
        }
    }

    fn next_when_stopping(&self, now: Time) -> Step {
        let ours = self.holder() == Some(self.identity.as_str());
        match &self.view {
            _ if self.unsure || (ours && self.must_read) => self.at(now, Step::Read),
            View::Present { lease, .. } if ours => Step::Release { resource_version: lease.resource_version.clone() },
            _ => Step::Done,
        }
    }

    fn at(&self, now: Time, step: Step) -> Step {
        if now < self.not_before { Step::Wait { until: self.not_before } } else { step }
    }

    /// At first sight an absent lease is a new installation. Later, somebody deleted it: its holder may not know yet.
    /// The holder itself may put it back at once, since nobody else can have led before it stops.
    fn may_create_at(&self, absent_since: Time, now: Time) -> Time {
        match self.longest_seen {
            Some(seen) if self.holds(Rule::AbsenceIsWaitedOut) && !self.is_leader(now) => {
                absent_since + self.waits_for(seen)
            }
            _ => absent_since,
        }
    }

    fn waits_for(&self, holders: Duration) -> Duration {
        if self.holds(Rule::HoldersDuration) {
            self.timings.lease_duration.max(holders.min(MAX_LEASE_DURATION))
        } else {
            self.timings.lease_duration
        }
    }

    /// A GET was answered, with `None` for "not found"; `now` is when the answer had arrived.
    pub fn observed(&mut self, found: Option<Observed>, now: Time) {
        self.must_read = false;
        self.unsure = false;
        self.not_before = now + self.timings.retry_period;
        let Some(lease) = found else {
            if !matches!(self.view, View::Absent { .. }) {
                self.view = View::Absent { since: now };
            }
            return;
        };
        let seen = lease.duration.min(MAX_LEASE_DURATION);
        self.longest_seen = Some(self.longest_seen.map_or(seen, |longest| longest.max(seen)));
        if lease.holder == self.identity {
            self.not_before = now;
            if !self.holds(Rule::OwnPutOnly) {
                self.leads_until = Some(now + self.timings.renew_deadline);
            }
        } else {
            self.leads_until = None;
        }
        let since = match &self.view {
            View::Present { lease: before, since }
                if before.holder == lease.holder
                    && (before.resource_version == lease.resource_version
                        || !self.holds(Rule::ChangeRestartsTheCount)) =>
            {
                *since
            }
            _ => now,
        };
        self.view = View::Present { lease, since };
    }

    /// A GET failed or was not answered in time.
    pub fn read_failed(&mut self, now: Time) {
        self.must_read = true;
        self.not_before = now + self.pause(now);
    }

    /// A POST or PUT (`step`) that was sent at `sent` ended with `answer` at `now`.
    pub fn wrote(&mut self, step: &Step, sent: Time, answer: Answer, now: Time) {
        let replaced = match step {
            Step::Acquire { resource_version }
            | Step::Renew { resource_version }
            | Step::Release { resource_version } => Some(resource_version.as_str()),
            _ => None,
        };
        match answer {
            // A PUT that changes nothing is answered with the old version: the others saw no renewal.
            Answer::Stored { resource_version }
                if replaced != Some(resource_version.as_str()) || !self.holds(Rule::NewVersionOnly) =>
            {
                let released = matches!(step, Step::Release { .. });
                let holder = if released { String::new() } else { self.identity.clone() };
                let duration = self.timings.lease_duration;
                self.view = View::Present { lease: Observed { holder, resource_version, duration }, since: now };
                self.longest_seen = Some(self.longest_seen.map_or(duration, |longest| longest.max(duration)));
                self.leads_until = if released { None } else { Some(sent + self.timings.renew_deadline) };
                self.not_before = sent + self.timings.retry_period;
            }
            Answer::Stored { .. } | Answer::Unknown => {
                self.unsure = true;
                self.read_failed(now);
            }
            Answer::NotStored => self.read_failed(now),
        }
    }

    /// Stops leading at once and for good. From here on [`Self::next`] only gives the lease back.
    pub fn stop(&mut self, now: Time) {
        self.stopping = true;
        self.not_before = now;
    }

    /// A leader's time runs out, and a stopping process has little: both try again sooner.
    fn pause(&self, now: Time) -> Duration {
        if self.stopping || self.is_leader(now) { self.timings.retry_period / 4 } else { self.timings.retry_period }
    }

    #[cfg(test)]
    fn holds(&self, rule: Rule) -> bool {
        self.off != Some(rule)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)]
    const fn holds(&self, _rule: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod history;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
