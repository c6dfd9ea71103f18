//! What a copy knows of its object besides the metadata.

use std::fmt;
use std::sync::Arc;

/// What was read of the object together with the metadata. It is no part of what is compared, and no change of it evicts a
/// copy: whoever needs it as it is now asks the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `spec.idleTimeoutSeconds`.
    pub idle_timeout_seconds: Option<u32>,
    /// When the object was created, in milliseconds since 1970 by the API server's clock.
    pub created: u64,
    /// `status.lastRenewTime`, in milliseconds since 1970: the session may have been used since.
    pub last_renewed: Option<u64>,
    /// The annotations that the cache was told to keep.
    pub annotations: Annotations,
}

impl Facts {
    /// Whether the session has an idle timeout.
    pub fn has_timeout(&self) -> bool {
        self.idle_timeout_seconds.is_some()
    }
}

/// A few annotations. Their names are shared by all copies.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Annotations(Box<[(Arc<str>, Box<str>)]>);

impl Annotations {
    /// The value of the annotation `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    /// Bytes that they take, roughly.
    pub(super) fn footprint(&self) -> usize {
        self.0.iter().map(|(_, value)| value.len() + 48).sum()
    }
}

impl FromIterator<(Arc<str>, Box<str>)> for Annotations {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Box<str>)>>(annotations: T) -> Self {
        Self(annotations.into_iter().collect())
    }
}

impl fmt::Debug for Annotations {
    /// Shows names only: a value may be a session's id, which is as good as a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_found_by_name_and_shown_without_values() {
        let kept: Annotations = [("a".into(), "1".into()), ("b".into(), "secret".into())].into_iter().collect();
        assert_eq!((kept.get("b"), kept.get("c")), (Some("secret"), None));
        assert_eq!(format!("{kept:?}"), r#"{"a", "b"}"#);
    }
}
