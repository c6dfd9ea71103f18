//! What a pod caches of a session.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::facts::Facts;
use crate::core::digest::Digest;
use crate::core::fields::Fields;
use crate::core::session::{ResourceVersion, Uid};
use crate::core::time::Time;

/// A copy of a session: the `spec.metadata` that it was restored from, and which state of which object that was.
#[derive(Clone, PartialEq, Eq)]
pub struct Copy {
    /// The session's name. It is here so that a hit hands out one reference, not two.
    pub name: Arc<str>,
    /// The object's uid.
    pub uid: Uid,
    /// The newest generation that is known to have this metadata.
    pub generation: u64,
    /// A resourceVersion at which the object was in this state.
    pub resource_version: ResourceVersion,
    /// Digest of the metadata.
    pub digest: Digest,
    /// The metadata.
    pub metadata: Fields,
    /// What else was read with it. No part of what is compared.
    pub facts: Facts,
}

impl fmt::Debug for Copy {
    /// Shows everything but values (I6).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copy")
            .field("name", &self.name)
            .field("uid", &self.uid)
            .field("generation", &self.generation)
            .field("resource_version", &self.resource_version.0)
            .field("digest", &self.digest)
            .field("keys", &self.metadata)
            .field("facts", &self.facts)
            .finish()
    }
}

impl Copy {
    /// The same state with other metadata.
    #[must_use]
    pub fn with(&self, metadata: Fields, digest: Digest) -> Self {
        Self { name: self.name.clone(), metadata, digest, facts: self.facts.clone(), ..*self }
    }

    /// Bytes of memory that the copy takes, roughly and rather more than less.
    pub(super) fn footprint(&self) -> usize {
        /// Entry, table slots, what is told to replicas, reference counts and allocator overhead.
        const PER_COPY: usize = 800;
        PER_COPY + self.name.len() + self.metadata.footprint() + self.facts.annotations.footprint()
    }
}

/// A session as the API server answered it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its state.
    pub copy: Copy,
    /// Whether it has a deletionTimestamp. It then counts as not found.
    pub terminating: bool,
}

/// The API server's answer to a consistent GET.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The object.
    Found(Observed),
    /// There is none of that name.
    NotFound,
}

/// Values that are true only inside this pod, kept beside a copy. Never compared, never written to the object.
pub type LocalValues = BTreeMap<String, String>;

/// Shows the names of values, and none of these (I6).
pub(crate) struct NamesOnly<'a, V>(pub &'a BTreeMap<String, V>);

impl<V> fmt::Debug for NamesOnly<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a copy was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The metadata changed.
    Stale,
    /// The object was deleted, is being deleted, or was replaced by another one of its name.
    Gone,
    /// An own write's answer held somebody else's change.
    Foreign,
    /// Room was needed for another copy.
    Capacity,
    /// The replicas' knowledge was void (etcd was restored from a backup).
    Reset,
}

impl DropReason {
    /// The reason in one lower-case word, for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Gone => "gone",
            Self::Foreign => "foreign",
            Self::Capacity => "capacity",
            Self::Reset => "reset",
        }
    }
}

/// A copy that was dropped.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// What was dropped.
    pub copy: Arc<Copy>,
    /// Why.
    pub reason: DropReason,
    /// When its session was used last, as far as its idle timeout goes, or it was replaced; zero if it was not.
    pub used: Time,
}
