//! Which session is meant: by name for people, by uid for certainty.

use std::fmt;

use super::session::{SessionKey, Uid};

/// One session object. A successor of the same name has another uid, and is another session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionRef {
    /// Namespace and name.
    pub key: SessionKey,
    /// `metadata.uid`.
    pub uid: Uid,
}

impl fmt::Display for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}
