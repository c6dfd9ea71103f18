//! When two metadata maps are equal: a cryptographic digest over a canonical encoding.
//!
//! This is the only place that looks inside `spec.metadata`, and it knows of no particular key.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::session::Interner;

/// The first byte of every encoding. Another encoding takes another number, so that two versions side by side
/// can only ever find equal maps different, never different maps equal.
pub const ENCODING_VERSION: u8 = 1;

/// `spec.metadata` of a session.
pub type Metadata = BTreeMap<String, String>;

/// Digest of a whole metadata map: SHA-256 over its canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `metadata`.
    pub fn of(metadata: &Metadata) -> Self {
        let mut hash = Sha256::new();
        encode(metadata, |bytes| hash.update(bytes));
        Self(hash.finalize().into())
    }

    /// The digest with these 32 bytes; `None` if there are more or fewer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}…", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Feeds the canonical encoding of `metadata` to `sink`: the version byte; the number of entries; then, sorted by
/// key bytes, each key and each value, every one preceded by its length in bytes. Numbers are 64 bits, big endian.
fn encode(metadata: &Metadata, mut sink: impl FnMut(&[u8])) {
    let length = |bytes: usize| (bytes as u64).to_be_bytes();
    sink(&[ENCODING_VERSION]);
    sink(&length(metadata.len()));
    // A BTreeMap of strings iterates in the order of their bytes, which is what "sorted" means here.
    for (key, value) in metadata {
        for text in [key, value] {
            sink(&length(text.len()));
            sink(text.as_bytes());
        }
    }
}

/// What a replica keeps of a metadata map instead of the map: its digest, and enough to name the keys in which two
/// maps differ. Values cannot be read back from it (I6), and it takes a fraction of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the whole map.
    pub digest: Digest,
    /// Sorted by key. The number is a hash of the value under a secret of this process.
    keys: Box<[(Arc<str>, u64)]>,
}

impl Summary {
    /// Names of the keys that were added, removed or given another value between `self` and `newer`, sorted.
    pub fn changed_keys(&self, newer: &Self) -> Vec<Arc<str>> {
        let (mut old, mut new) = (self.keys.iter().peekable(), newer.keys.iter().peekable());
        let mut changed = Vec::new();
        loop {
            let (name, equal) = match (old.peek(), new.peek()) {
                (None, None) => return changed,
                (Some(o), None) => (o.0.clone(), false),
                (None, Some(n)) => (n.0.clone(), false),
                (Some(o), Some(n)) => (o.0.clone().min(n.0.clone()), o == n),
            };
            if !equal {
                changed.push(name.clone());
            }
            old.next_if(|o| o.0 == name);
            new.next_if(|n| n.0 == name);
        }
    }

    /// Names of all keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.keys.iter().map(|(key, _)| key)
    }
}

/// Makes summaries that share their key names and one secret.
#[derive(Debug, Default)]
pub struct Summarizer {
    names: Interner,
    secret: RandomState,
}

impl Summarizer {
    /// The summary of `metadata`. Only summaries of one summarizer can be compared key by key.
    pub fn summarize(&mut self, metadata: &Metadata) -> Summary {
        Summary {
            digest: Digest::of(metadata),
            keys: metadata.iter().map(|(key, value)| (self.names.intern(key), self.secret.hash_one(value))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(metadata: &Metadata) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(metadata, |part| bytes.extend_from_slice(part));
        bytes
    }

    /// Reads an encoding back. That this is possible for every map shows that no two maps share an encoding.
    fn decoded(bytes: &[u8]) -> Option<Metadata> {
        fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
            let (head, tail) = bytes.split_at_checked(n)?;
            *bytes = tail;
            Some(head)
        }
        fn number(bytes: &mut &[u8]) -> Option<usize> {
            let n = u64::from_be_bytes(take(bytes, 8)?.try_into().ok()?);
            usize::try_from(n).ok()
        }
        fn text(bytes: &mut &[u8]) -> Option<String> {
            let n = number(bytes)?;
            String::from_utf8(take(bytes, n)?.to_vec()).ok()
        }
        let mut bytes = bytes;
        if take(&mut bytes, 1)? != [ENCODING_VERSION] {
            return None;
        }
        let n = number(&mut bytes)?;
        let map = (0..n).map(|_| Some((text(&mut bytes)?, text(&mut bytes)?))).collect::<Option<Metadata>>()?;
        bytes.is_empty().then_some(map)
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        // Few and short strings, so that maps that nearly collide (moved boundaries, swapped parts) do come up.
        proptest::collection::btree_map("[ab\0é]{0,3}", "[ab\0é]{0,3}", 0..4)
    }

    proptest! {
        #[test]
        fn equal_maps_and_only_equal_maps_have_equal_encodings(a in metadata(), b in metadata()) {
            prop_assert_eq!(a == b, encoded(&a) == encoded(&b));
            prop_assert_eq!(a == b, Digest::of(&a) == Digest::of(&b));
        }

        #[test]
        fn an_encoding_can_be_read_back(a in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..8)) {
            prop_assert_eq!(decoded(&encoded(&a)), Some(a));
        }

        #[test]
        fn changed_keys_are_those_that_differ(a in metadata(), b in metadata()) {
            let mut summarizer = Summarizer::default();
            let (sa, sb) = (summarizer.summarize(&a), summarizer.summarize(&b));
            let expected: Vec<String> = a.keys().chain(b.keys()).filter(|k| a.get(*k) != b.get(*k)).cloned()
                .collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let found: Vec<String> = sa.changed_keys(&sb).iter().map(ToString::to_string).collect();
            prop_assert_eq!(found, expected);
        }
    }

    /// Agents of other releases, and in other languages, must compute the same: the encoding is part of the protocol.
    #[test]
    fn the_digest_of_known_maps_stays_what_it_is() {
        let hex =
            |m: &Metadata| Digest::of(m).as_bytes().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let known = Metadata::from([("backend".into(), "weather".into()), ("é".into(), String::new())]);
        assert_eq!(encoded(&Metadata::new()), [1, 0, 0, 0, 0, 0, 0, 0, 0], "version, then no entries");
        assert_eq!(hex(&Metadata::new()), "a536aa3cede6ea3c1f3e0357c3c60e0f216a8c89b853df13b29daa8f85065dfb");
        assert_eq!(hex(&known), "5da61c7c11793a4569cb4d8a9c9c8125939562375aff9255246d724ffe049873");
    }
}
