//! What a client is given.

use std::sync::Arc;

use crate::core::cache::{Copy, Facts};
use crate::core::digest::Digest;
use crate::core::fields::Fields;
use crate::core::session::{ResourceVersion, Uid};

/// Where a session came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// The cache had it, covered by a lease: nobody was asked.
    Cache,
    /// The cache had it, and the API server confirmed it.
    Validated,
    /// It was read from the API server.
    Restored,
    /// It is the answer to a write.
    Written,
}

impl Origin {
    /// The origin in one lower-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Validated => "validated",
            Self::Restored => "restored",
            Self::Written => "written",
        }
    }
}

/// A state of a session. It does not change; ask the cache again for a later one. Cloning it is cheap.
///
/// Its `Debug` output shows keys and no values.
#[derive(Clone, Debug)]
pub struct Session {
    copy: Arc<Copy>,
    origin: Origin,
}

impl Session {
    pub(super) fn new(copy: Arc<Copy>, origin: Origin) -> Self {
        Self { copy, origin }
    }

    pub(super) fn copy(&self) -> &Arc<Copy> {
        &self.copy
    }

    /// What else was read of the object. No change of it evicts a copy, so it may be out of date.
    pub fn facts(&self) -> &Facts {
        &self.copy.facts
    }

    /// The session's name.
    pub fn name(&self) -> &str {
        &self.copy.name
    }

    /// The object's uid. Another session of the same name has another one.
    pub fn uid(&self) -> Uid {
        self.copy.uid
    }

    /// The newest generation that is known to have this metadata.
    pub fn generation(&self) -> u64 {
        self.copy.generation
    }

    /// A resourceVersion at which the session was so.
    pub fn resource_version(&self) -> ResourceVersion {
        self.copy.resource_version
    }

    /// Digest of the metadata.
    pub fn digest(&self) -> Digest {
        self.copy.digest
    }

    /// `spec.metadata`. To change it, take a [map](Fields::to_map) of it.
    pub fn metadata(&self) -> &Fields {
        &self.copy.metadata
    }

    /// The value of a key of the metadata.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.copy.metadata.get(key)
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}
