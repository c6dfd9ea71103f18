//! What replicas tell agents about a session, and which answers of the API server that outdates.

use super::digest::Digest;
use super::rules::Rule;
use super::session::{ResourceVersion, Uid};

/// What became of the copies of one uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Copies of a generation below this one differ from the truth.
    Stale {
        /// The first generation that is not stale.
        below: u64,
    },
    /// The object is deleted or being deleted, or another one took its name. A delete does not raise the generation,
    /// so this concerns copies of every generation.
    Gone,
}

/// A piece of knowledge about a session: at `resource_version`, this was the fate of `uid`.
///
/// As an eviction it drops copies of that uid. As a fence on a request in flight it tells whether the answer is
/// provably not older than the knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The object that it speaks of.
    pub uid: Uid,
    /// What became of it.
    pub fate: Fate,
    /// A state of the whole collection at which that was so.
    pub resource_version: ResourceVersion,
}

impl Mark {
    /// Whether a copy of `uid` at `generation` must be dropped. Copies of other uids never are.
    pub fn drops(&self, uid: Uid, generation: u64) -> bool {
        self.uid == uid
            && match self.fate {
                Fate::Stale { below } => generation < below,
                Fate::Gone => true,
            }
    }

    /// Whether a copy of `uid` that has been there [since](crate::core::cache::Holding::since) this generation lives on in spite of
    /// this eviction: an own write has taken the stale state's place, or is about to.
    pub fn is_outlived_by(&self, uid: Uid, since: u64) -> bool {
        matches!(self.fate, Fate::Stale { .. }) && self.drops(uid, since)
    }

    /// Copies of `uid` below this generation are outdated: all that there can be, unless it is known to live.
    pub fn outdates(&self, uid: Uid) -> u64 {
        match self.fate {
            Fate::Stale { below } if self.uid == uid => below,
            _ => u64::MAX,
        }
    }

    /// Whether an object that was read is provably not older than this knowledge.
    pub fn accepts(&self, uid: Uid, generation: u64, resource_version: ResourceVersion) -> bool {
        if uid == self.uid { !self.drops(uid, generation) } else { resource_version >= self.resource_version }
    }

    /// What accepts nothing that is read, and drops no copy.
    pub const NOTHING_COUNTS: Self =
        Self { uid: Uid::from_u128(0), fate: Fate::Gone, resource_version: ResourceVersion(u64::MAX) };

    /// The later of two pieces of knowledge about one name, or [`Self::NOTHING_COUNTS`] where nobody can tell which that is.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let resource_version = self.resource_version.max(other.resource_version);
        if self.uid == other.uid && Rule::GoneOutranks.on() {
            // States of one uid are ordered by what became of it. Their resourceVersions do not order them: who deletes
            // is not told that of the deletion, and marks it with one at which the object lived.
            let fate = match (self.fate, other.fate) {
                (Fate::Stale { below: one }, Fate::Stale { below: two }) => Fate::Stale { below: one.max(two) },
                _ => Fate::Gone,
            };
            return Self { fate, resource_version, ..self };
        }
        // The same goes for two uids: that one is gone was marked too early to be compared with what is said of another one.
        if (self.fate == Fate::Gone || other.fate == Fate::Gone) && Rule::GoneOutranks.on() {
            return Self::NOTHING_COUNTS;
        }
        if other.resource_version > self.resource_version { other } else { self }
    }
}

/// A committed state, and what a copy that equals it looks like. An eviction says that a copy of an older state was
/// reported; a barrier, that the agent must make sure that it serves nothing older at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Barrier {
    /// The state: `Stale { below }` means that the object lives and has generation `below`.
    pub mark: Mark,
    /// Digest of the metadata at that state, if the object lives. A copy that equals it stays (I2).
    pub digest: Option<Digest>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uid = Uid::from_u128(1);
    const B: Uid = Uid::from_u128(2);

    fn mark(uid: Uid, fate: Fate, rv: u64) -> Mark {
        Mark { uid, fate, resource_version: ResourceVersion(rv) }
    }

    #[test]
    fn stale_drops_older_generations_of_that_uid_only() {
        let m = mark(A, Fate::Stale { below: 3 }, 10);
        assert!(m.drops(A, 2));
        assert!(!m.drops(A, 3));
        assert!(!m.drops(B, 1));
    }

    #[test]
    fn what_was_there_before_and_still_is_outlives_what_is_stale_and_not_what_is_gone() {
        let stale = mark(A, Fate::Stale { below: 3 }, 10);
        assert!(stale.is_outlived_by(A, 2));
        assert!(!stale.is_outlived_by(A, 3), "it was restored afterwards");
        assert!(!stale.is_outlived_by(B, 2));
        assert!(!mark(A, Fate::Gone, 10).is_outlived_by(A, 2));
    }

    #[test]
    fn gone_drops_every_generation_of_that_uid_only() {
        let m = mark(A, Fate::Gone, 10);
        assert!(m.drops(A, u64::MAX));
        assert!(!m.drops(B, 1));
    }

    #[test]
    fn an_answer_counts_only_if_it_is_provably_not_older() {
        let m = mark(A, Fate::Stale { below: 3 }, 10);
        assert!(m.accepts(A, 3, ResourceVersion(9)), "one uid: by generation");
        assert!(!m.accepts(A, 2, ResourceVersion(11)));
        assert!(m.accepts(B, 1, ResourceVersion(10)), "another uid: by resourceVersion");
        assert!(!m.accepts(B, 9, ResourceVersion(9)));
        assert!(!mark(A, Fate::Gone, 10).accepts(A, 9, ResourceVersion(99)));
    }

    #[test]
    fn the_later_knowledge_wins_in_either_order() {
        let old = mark(A, Fate::Stale { below: 3 }, 10);
        let new = mark(A, Fate::Gone, 12);
        assert_eq!(old.max(new), new);
        assert_eq!(new.max(old), new);
        let (one, two) = (mark(A, Fate::Stale { below: 3 }, 10), mark(B, Fate::Stale { below: 1 }, 20));
        assert_eq!((one.max(two), two.max(one)), (two, two));
    }

    #[test]
    fn what_is_said_of_another_uid_does_not_bring_back_what_is_gone() {
        // It was deleted at 12; who deleted it knew only that it lived at 10.
        let gone = mark(A, Fate::Gone, 10);
        for other in [mark(B, Fate::Stale { below: 1 }, 11), mark(B, Fate::Gone, 11)] {
            for both in [gone.max(other), other.max(gone), gone.max(other).max(gone), other.max(gone.max(other))] {
                assert!(!both.accepts(A, 1, ResourceVersion(11)), "{both:?}");
            }
        }
    }

    #[test]
    fn gone_wins_though_its_resource_version_is_only_a_lower_bound() {
        let gone = mark(A, Fate::Gone, 10);
        let changed = mark(A, Fate::Stale { below: 4 }, 15);
        for both in [gone.max(changed), changed.max(gone)] {
            assert!(!both.accepts(A, 4, ResourceVersion(15)));
            assert!(both.accepts(B, 1, ResourceVersion(16)), "a successor is newer");
        }
    }
}
