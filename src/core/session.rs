//! What identifies a session and orders its states.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use hashbrown::Equivalent;
use thiserror::Error;

/// The uid of a Kubernetes object. The API server makes them as UUIDs; 128 bits are kept instead of 36 characters,
/// since there is one for each copy of each session; as bytes, which need no room between them and what stands before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

/// A uid that is not a UUID in its usual 36-character form.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a uid: expected a UUID such as 123e4567-e89b-12d3-a456-426614174000")]
pub struct InvalidUid;

impl Uid {
    /// The uid with these 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    /// The uid with these bytes, most significant first.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidUid> {
        bytes.try_into().map(Self).map_err(|_| InvalidUid)
    }

    /// The 16 bytes of the uid, most significant first.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for Uid {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        let mut bits = 0u128;
        if text.len() != 36 {
            return Err(InvalidUid);
        }
        for (at, byte) in text.bytes().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(InvalidUid);
                }
                continue;
            }
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                // An upper-case UUID would name the same bits as another string; the API server makes none.
                _ => return Err(InvalidUid),
            };
            bits = bits << 4 | u128::from(digit);
        }
        Ok(Self::from_u128(bits))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = u128::from_be_bytes(self.0);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            b >> 96,
            b >> 80 & 0xffff,
            b >> 64 & 0xffff,
            b >> 48 & 0xffff,
            b & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A resourceVersion, comparable as a number (guaranteed since Kubernetes 1.35). It orders states of different
/// uids and of absence; states of one uid are ordered by their generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(pub u64);

/// A resourceVersion that is not a decimal number.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("resourceVersion is not a number: this Kubernetes is older than 1.35, or a proxy rewrites it")]
pub struct InvalidResourceVersion;

impl FromStr for ResourceVersion {
    type Err = InvalidResourceVersion;

    fn from_str(text: &str) -> Result<Self, InvalidResourceVersion> {
        text.parse().map(Self).map_err(|_| InvalidResourceVersion)
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Namespace and name of a session. Cloning it is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey(Arc<KeyParts>);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct KeyParts {
    namespace: Arc<str>,
    name: Box<str>,
}

impl SessionKey {
    /// The key of the session `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Box<str>>) -> Self {
        Self(Arc::new(KeyParts { namespace: namespace.into(), name: name.into() }))
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.0.namespace
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn as_ref(&self) -> SessionKeyRef<'_> {
        SessionKeyRef { namespace: &self.0.namespace, name: &self.0.name }
    }
}

impl Hash for SessionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.name)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A [`SessionKey`] to look something up by, without making one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKeyRef<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
}

impl Equivalent<SessionKey> for SessionKeyRef<'_> {
    fn equivalent(&self, key: &SessionKey) -> bool {
        *self == key.as_ref()
    }
}

/// Keeps one allocation for each distinct string: namespaces and metadata keys repeat in every session.
#[derive(Debug, Default)]
pub struct Interner(hashbrown::HashSet<Arc<str>>);

impl Interner {
    /// Strings that are kept at most. A cluster in which every session has keys of its own must not grow the
    /// table for ever: when it is full, strings that nobody uses are dropped, and then it starts anew.
    pub const CAPACITY: usize = 65_536;

    /// The shared string equal to `text`.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        if self.0.len() >= Self::CAPACITY {
            self.0.retain(|s| Arc::strong_count(s) > 1);
            if self.0.len() >= Self::CAPACITY {
                self.0.clear();
            }
        }
        let text: Arc<str> = text.into();
        self.0.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_round_trips_and_refuses_other_text() {
        let text = "0189ab00-0000-4000-8000-00000000beef";
        let uid: Uid = text.parse().unwrap();
        assert_eq!(uid.to_string(), text);
        assert_eq!(Uid::from_bytes(&uid.to_bytes()), Ok(uid));
        for bad in [
            "",
            "0189ab00-0000-4000-8000-00000000beeF",
            "0189ab00x0000-4000-8000-00000000beef",
            "0189ab00-0000-4000-8000-00000000bee",
            "0189ab00-0000-4000-8000-00000000beé",
        ] {
            assert_eq!(bad.parse::<Uid>(), Err(InvalidUid), "{bad}");
        }
    }

    #[test]
    fn a_key_is_found_by_its_parts() {
        let mut map = hashbrown::HashMap::new();
        map.insert(SessionKey::new("a", "b"), 1);
        let at = |namespace, name| map.get(&SessionKeyRef { namespace, name }).copied();
        assert_eq!(at("a", "b"), Some(1));
        assert_eq!(at("ab", ""), None);
    }

    #[test]
    fn the_interner_shares_and_stays_bounded() {
        let mut interner = Interner::default();
        let one = interner.intern("k");
        assert!(Arc::ptr_eq(&one, &interner.intern("k")));
        for n in 0..2 * Interner::CAPACITY {
            interner.intern(&n.to_string());
        }
        assert!(interner.0.len() <= Interner::CAPACITY);
        assert!(Arc::ptr_eq(&one, &interner.intern("k")), "strings in use stay");
    }
}
