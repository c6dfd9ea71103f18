//! What a copy knows of its object besides the metadata.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::core::fields::Fields;

/// What was read of the object together with the metadata. It is no part of what is compared, and no change of it evicts a
/// copy: whoever needs it as it is now asks the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `spec.idleTimeoutSeconds`.
    pub idle_timeout_seconds: Option<u32>,
    /// When the object was created, in milliseconds since 1970 by the API server's clock.
    pub created: u64,
    /// `status.lastRenewTime`, in milliseconds since 1970: the session may have been used since.
    pub last_renewed: Option<NonZeroU64>,
    /// The annotations that the cache was told to keep.
    pub annotations: Annotations,
}

impl Facts {
    /// Whether the session has an idle timeout.
    pub fn has_timeout(&self) -> bool {
        self.idle_timeout_seconds.is_some()
    }
}

/// A few annotations. Cloning them is cheap, and clones take no memory.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Annotations(Option<Arc<Fields>>);

impl Annotations {
    /// The value of the annotation `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.as_ref()?.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|fields| fields.iter())
    }

    /// Bytes that they take, roughly.
    pub(super) fn footprint(&self) -> usize {
        self.0.as_ref().map_or(0, |fields| fields.footprint() + 48)
    }
}

impl FromIterator<(Arc<str>, Box<str>)> for Annotations {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Box<str>)>>(annotations: T) -> Self {
        let annotations =
            annotations.into_iter().map(|(name, value)| (name.to_string(), value.into_string())).collect();
        let fields = Fields::of(&annotations);
        Self((!fields.is_empty()).then(|| Arc::new(fields)))
    }
}

impl fmt::Debug for Annotations {
    /// Shows names only: a value may be a session's id, which is as good as a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// Keeps one allocation for annotations that many sessions have alike.
#[derive(Debug, Default)]
pub struct CommonAnnotations(HashSet<Annotations>);

impl CommonAnnotations {
    /// So many are kept at most; then it starts anew.
    const CAPACITY: usize = 64;
    /// Longer values tell sessions apart, and may be secret: they are gone with their sessions.
    const LONGEST: usize = 8;

    /// The shared ones that equal these, if they can be common.
    pub fn share(&mut self, annotations: Annotations) -> Annotations {
        if annotations.0.is_none() || annotations.iter().any(|(_, value)| value.len() > Self::LONGEST) {
            return annotations;
        }
        if let Some(known) = self.0.get(&annotations) {
            return known.clone();
        }
        if self.0.len() >= Self::CAPACITY {
            self.0.clear();
        }
        self.0.insert(annotations.clone());
        annotations
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

    #[test]
    fn what_many_sessions_have_is_kept_once_and_what_one_has_is_not() {
        let mut common = CommonAnnotations::default();
        let mut share = |value: &str| common.share([("a".into(), value.into())].into_iter().collect());
        let is_same = |a: &Annotations, b: &Annotations| Arc::ptr_eq(a.0.as_ref().unwrap(), b.0.as_ref().unwrap());
        let (one, other, again) = (share("string"), share("hash"), share("string"));
        assert!(is_same(&one, &again) && one != other);
        assert!(!is_same(&share("1700000000000"), &share("1700000000000")));
        for n in 0..1_000 {
            share(&n.to_string());
        }
        assert!(common.0.len() <= CommonAnnotations::CAPACITY);
        assert_eq!(common.share(Annotations::default()), Annotations::default());
    }
}
