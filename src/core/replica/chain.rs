//! The writes of one marker as a chain: each names the state that the one before it left.
//!
//! An etcd that is restored from a backup forgets, and what is written afterwards takes the same resourceVersions again. Once
//! they have passed what was seen before, no number tells: a watch that is resumed shows what is new, never what was lost. The
//! marker does tell, since it counts: after a restore it is gone, or says less than what was acknowledged. A backup that is younger
//! than the last acknowledged marker goes unnoticed so; if that is long ago, nobody knows what was lost since. Nor does anybody know
//! what was lost before the first one: leases rest on a list that was begun after it.

use std::time::Duration;

use crate::core::rules::Rule;
use crate::core::session::ResourceVersion;
use crate::core::time::Time;

/// A write of the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which the marker bears. Later ones are greater.
    pub beat: u64,
    /// The state that it is written upon, and no other; `None` if the marker is created.
    pub after: Option<ResourceVersion>,
}

/// How a marker was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// With nothing that was acknowledged missing: a write without an answer was carried out, or somebody else has touched it.
    Ahead,
    /// Written, with none before it that was acknowledged: what was listed by then may be of a history that is lost.
    First,
    /// Not at all, and it never was for sure.
    NotYet,
    /// Not at all, though it was: removed, or not in the backup.
    Removed,
    /// Older than what was acknowledged.
    Behind,
    /// As it was left, but so long ago that what was seen since may be lost.
    LongAgo,
}

/// What is known of the writes of one marker.
#[derive(Debug, Default)]
pub struct Chain {
    last: Option<ResourceVersion>,
    sent: u64,
    acknowledged: Option<Acknowledged>,
}

#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    beat: u64,
    sent: Time,
}

impl Chain {
    /// The next write.
    pub fn link(&mut self) -> Link {
        self.sent += 1;
        Link { beat: self.sent, after: self.last }
    }

    /// Whether the marker is known to be there.
    pub fn is_known(&self) -> bool {
        self.last.is_some()
    }

    /// The write that was sent at `sent` was answered with this resourceVersion. What is longer ago than `lease` is long ago.
    pub fn answered(&mut self, link: Link, sent: Time, resource_version: ResourceVersion, lease: Duration) -> Found {
        self.last = Some(resource_version);
        let before = self.acknowledged.replace(Acknowledged { beat: link.beat, sent });
        match before {
            None if Rule::FirstIsDoubted.on() => Found::First,
            Some(before) if sent.saturating_since(before.sent) > lease && Rule::LongAgoIsDoubted.on() => Found::LongAgo,
            _ => Found::Ahead,
        }
    }

    /// A consistent read has shown the marker, if it is there: its number, if it says one, and its resourceVersion. The next write is
    /// upon this.
    pub fn found(&mut self, marker: Option<(Option<u64>, ResourceVersion)>) -> Found {
        self.last = marker.map(|(_, resource_version)| resource_version);
        let Some((beat, _)) = marker else {
            let removed = self.acknowledged.take().is_some() && Rule::RemovedIsDoubted.on();
            return if removed { Found::Removed } else { Found::NotYet };
        };
        // Each write has a number, and so has what is in a backup: where there is none, somebody has taken it away.
        match (beat, &mut self.acknowledged) {
            (Some(beat), Some(acknowledged)) if beat < acknowledged.beat && Rule::BehindIsRestored.on() => {
                acknowledged.beat = beat;
                Found::Behind
            }
            _ => Found::Ahead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(number: u64) -> ResourceVersion {
        ResourceVersion(number)
    }

    const LEASE: Duration = Duration::from_secs(15);

    fn answered(chain: &mut Chain, link: Link, seconds: u64, resource_version: u64) -> Found {
        chain.answered(link, Time::ZERO + Duration::from_secs(seconds), at(resource_version), LEASE)
    }

    /// A chain of which two writes are acknowledged.
    fn chain() -> Chain {
        let mut chain = Chain::default();
        for (seconds, resource_version, found) in [(1, 10, Found::First), (4, 20, Found::Ahead)] {
            let link = chain.link();
            assert_eq!(answered(&mut chain, link, seconds, resource_version), found);
        }
        chain
    }

    #[test]
    fn each_write_names_the_one_before() {
        let mut chain = Chain::default();
        let first = chain.link();
        assert_eq!(first, Link { beat: 1, after: None });
        answered(&mut chain, first, 1, 10);
        assert_eq!(chain.link(), Link { beat: 2, after: Some(at(10)) });
        assert_eq!(chain.link(), Link { beat: 3, after: Some(at(10)) }, "the one between was not answered");
    }

    #[test]
    fn a_write_without_an_answer_is_no_step_back() {
        let mut chain = chain();
        let lost = chain.link();
        assert_eq!(chain.found(Some((Some(lost.beat), at(30)))), Found::Ahead);
        assert_eq!(chain.link(), Link { beat: lost.beat + 1, after: Some(at(30)) });
        let mut created = Chain::default();
        let lost = created.link();
        assert_eq!(created.found(None), Found::NotYet);
        assert_eq!(created.found(Some((Some(lost.beat), at(30)))), Found::Ahead);
        let link = created.link();
        assert_eq!(answered(&mut created, link, 2, 40), Found::First, "nobody knows when the one before was written");
    }

    #[test]
    fn somebody_elses_touch_is_no_step_back() {
        for beat in [Some(2), Some(u64::MAX), None] {
            assert_eq!(chain().found(Some((beat, at(99)))), Found::Ahead, "{beat:?}");
        }
    }

    #[test]
    fn what_says_less_than_was_acknowledged_is_of_a_backup_however_new_it_looks() {
        let mut chain = chain();
        assert_eq!(chain.found(Some((None, at(98)))), Found::Ahead, "it does not say");
        assert_eq!(chain.found(Some((Some(1), at(99)))), Found::Behind);
        assert_eq!(chain.found(Some((Some(1), at(99)))), Found::Ahead, "told once");
        assert_eq!(chain.link().after, Some(at(99)));
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_was_removed() {
        let mut chain = chain();
        assert_eq!(chain.found(None), Found::Removed);
        assert!(!chain.is_known());
        let link = chain.link();
        assert_eq!(link.after, None);
        assert_eq!(answered(&mut chain, link, 7, 40), Found::First, "a list may have been begun between the two");
    }

    #[test]
    fn after_a_long_time_without_an_acknowledged_write_nobody_knows_what_was_lost() {
        let mut chain = chain();
        for (seconds, expected) in [(19, Found::Ahead), (35, Found::LongAgo), (36, Found::Ahead)] {
            let link = chain.link();
            assert_eq!(answered(&mut chain, link, seconds, 20 + seconds), expected, "{seconds}");
        }
    }
}
