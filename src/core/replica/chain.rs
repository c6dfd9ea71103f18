//! The writes of one marker as a chain: each names the state that the one before it left.
//!
//! An etcd that is restored from a backup forgets, and what is written afterwards takes the same resourceVersions again. Once
//! they have passed what was seen before, no number tells: a watch that is resumed shows what is new, never what was lost. The
//! marker does tell, since it counts: after a restore it is gone, or says less than what was acknowledged. Only a backup that
//! is younger than the last acknowledged marker goes unnoticed so.

use crate::core::session::ResourceVersion;

/// A write of the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which the marker bears. Later ones are greater.
    pub beat: u64,
    /// The state that it is written upon, and no other; `None` if the marker is created.
    pub after: Option<ResourceVersion>,
}

/// How a marker was found that is not as the last acknowledged write left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// With nothing that was acknowledged missing: a write without an answer was carried out, or somebody else has touched it.
    Ahead,
    /// Not at all, and it never was for sure.
    NotYet,
    /// Not at all, though it was: removed, or not in the backup.
    Removed,
    /// Older than what was acknowledged.
    Behind,
}

/// What is known of the writes of one marker.
#[derive(Debug, Default)]
pub struct Chain {
    last: Option<ResourceVersion>,
    sent: u64,
    acknowledged: Option<u64>,
}

impl Chain {
    /// The next write.
    pub fn next(&mut self) -> Link {
        self.sent += 1;
        Link { beat: self.sent, after: self.last }
    }

    /// Whether the marker is known to be there.
    pub fn is_known(&self) -> bool {
        self.last.is_some()
    }

    /// The write was answered with this resourceVersion.
    pub fn answered(&mut self, link: Link, resource_version: ResourceVersion) {
        self.last = Some(resource_version);
        self.acknowledged = self.acknowledged.max(Some(link.beat));
    }

    /// A consistent read has shown the marker: what it says and its resourceVersion, if it is there. The next write is upon this.
    pub fn found(&mut self, marker: Option<(u64, ResourceVersion)>) -> Found {
        let acknowledged = self.acknowledged;
        let beat = marker.map(|(beat, _)| beat);
        self.last = marker.map(|(_, resource_version)| resource_version);
        self.acknowledged = beat;
        match (beat, acknowledged) {
            (None, None) => Found::NotYet,
            (None, Some(_)) => Found::Removed,
            (Some(beat), Some(acknowledged)) if beat < acknowledged => Found::Behind,
            (Some(_), _) => Found::Ahead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(number: u64) -> ResourceVersion {
        ResourceVersion(number)
    }

    /// A chain of which two writes are acknowledged.
    fn chain() -> Chain {
        let mut chain = Chain::default();
        for resource_version in [at(10), at(20)] {
            let link = chain.next();
            chain.answered(link, resource_version);
        }
        chain
    }

    #[test]
    fn each_write_names_the_one_before() {
        let mut chain = Chain::default();
        let first = chain.next();
        assert_eq!(first, Link { beat: 1, after: None });
        chain.answered(first, at(10));
        assert_eq!(chain.next(), Link { beat: 2, after: Some(at(10)) });
        assert_eq!(chain.next(), Link { beat: 3, after: Some(at(10)) }, "the one between was not answered");
    }

    #[test]
    fn a_write_without_an_answer_is_no_step_back() {
        let mut chain = chain();
        let lost = chain.next();
        assert_eq!(chain.found(Some((lost.beat, at(30)))), Found::Ahead);
        assert_eq!(chain.next(), Link { beat: lost.beat + 1, after: Some(at(30)) });
        let mut created = Chain::default();
        let lost = created.next();
        assert_eq!(created.found(None), Found::NotYet);
        assert_eq!(created.found(Some((lost.beat, at(30)))), Found::Ahead);
    }

    #[test]
    fn somebody_elses_touch_is_no_step_back() {
        assert_eq!(chain().found(Some((2, at(99)))), Found::Ahead);
    }

    #[test]
    fn what_says_less_than_was_acknowledged_is_of_a_backup_however_new_it_looks() {
        let mut chain = chain();
        assert_eq!(chain.found(Some((1, at(99)))), Found::Behind);
        assert_eq!(chain.found(Some((1, at(99)))), Found::Ahead, "told once");
        assert_eq!(chain.next().after, Some(at(99)));
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_was_removed() {
        let mut chain = chain();
        assert_eq!(chain.found(None), Found::Removed);
        assert!(!chain.is_known());
        assert_eq!(chain.next().after, None);
    }
}
