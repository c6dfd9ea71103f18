//! What a write is asked to do.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::core::cache::copy::NamesOnly;
use crate::core::digest::Metadata;

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// When it is committed. Other pods drop their copies milliseconds later.
    #[default]
    Committed,
    /// When no pod can serve the older state any more: whoever reads anywhere after the answer reads what was written, or
    /// something newer. Milliseconds, or one lease if a replica or a pod cannot be reached. Of metadata: what else is
    /// changed is in no copy that a pod would drop ([`Cache::patch`](super::Cache::patch)).
    Everywhere,
}

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// When the write is answered.
    pub visibility: Visibility,
}

impl WriteOptions {
    /// Answered when no pod can serve the older state any more.
    pub const EVERYWHERE: Self = Self { visibility: Visibility::Everywhere };
}

/// What a new session has besides its metadata.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// `spec.server`. Default: that of the cache's settings.
    pub server: Option<String>,
    /// The session is deleted when it has not been used for so long (whole seconds).
    pub idle_timeout: Option<Duration>,
    /// The session is deleted so long after its creation (whole seconds).
    pub max_lifetime: Option<Duration>,
    /// Annotations of the object.
    pub annotations: BTreeMap<String, String>,
    /// When the write is answered.
    pub visibility: Visibility,
}

impl fmt::Debug for CreateOptions {
    /// Shows the names of annotations only: a value may be a session's id, which is as good as a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateOptions")
            .field("server", &self.server)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_lifetime", &self.max_lifetime)
            .field("annotations", &NamesOnly(&self.annotations))
            .field("visibility", &self.visibility)
            .finish()
    }
}

/// What a write does to the idle timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleTimeout {
    /// Leaves it.
    #[default]
    Keep,
    /// Removes it.
    Clear,
    /// Sets it (whole seconds).
    Set(Duration),
}

/// What a client knows of the metadata that it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// All of it.
    #[default]
    All,
    /// Of what it had not seen before, only what is sent, and these fields.
    Only(Vec<String>),
}

/// What [`Cache::patch`](super::Cache::patch) changes, all in one write.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The metadata as it is to be; `None` leaves it. Only the difference from the base is sent.
    pub metadata: Option<Metadata>,
    /// What of `metadata` its client knows then, besides what it had before ([`Cache::base`](super::Cache::base)).
    pub known: Known,
    /// The idle timeout.
    pub idle_timeout: IdleTimeout,
    /// Annotations that are set, or removed.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Whether to write only if the object has not changed at all since the base was read (its resourceVersion), and to fail
    /// with [`WriteError::Changed`](super::WriteError::Changed) else.
    pub only_if_unchanged: bool,
    /// Whether copies of an older state are outdated even if their metadata is the same. Copies know an idle timeout or an
    /// annotation as of their last GET, since no change of these evicts them; where others decide from what their copies say
    /// of it, they must be told. Needs [`Visibility::Everywhere`].
    pub outdates_equal: bool,
    /// Whether that is told though the object is taken to have it already, since others may not know
    /// ([`Cache::is_unsettled`](super::Cache::is_unsettled)).
    pub repeats: bool,
    /// Whether it only says that the session was used: then what copies tell is right also if nobody knows whether it was done.
    pub renews: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_values() {
        let annotations = BTreeMap::from([("example.com/id".into(), "canary".into())]);
        let shown = format!("{:?}", CreateOptions { annotations, ..CreateOptions::default() });
        assert!(shown.contains("example.com/id") && !shown.contains("canary"), "{shown}");
    }
}
