//! Which object a key means.
//!
//! A key is a prefix and the session's id. An id that can be the name of an object is one. Any other id becomes `x--` and a
//! hash of it, and so does one that begins like a hashed name; the object keeps the id in an annotation. Where ids must not
//! be seen by those who list, log or audit objects, every id becomes `h--` and a hash under a secret key. No two ids share a
//! name, and all agents with the same settings agree.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::is_object_name;
use crate::runtime::small_file;

/// Annotation in which an object keeps the id that its name does not show.
pub const ANNOTATION_SESSION_ID: &str = "vmcp.dev/session-id";

/// The longest id, in bytes.
pub const MAX_ID: usize = 512;
/// The longest prefix of keys, in bytes.
pub const MAX_PREFIX: usize = 256;

/// Names that are hashes of ids.
const HASHED: &[u8] = b"x--";
/// Names that are keyed hashes of ids.
const KEYED: &[u8] = b"h--";
/// Characters of such a name: SHA-256 in base32.
const HASHED_LENGTH: usize = 3 + 52;

/// Lengths of a hash key, in bytes.
const MIN_HASH_KEY: usize = 16;
const MAX_HASH_KEY: usize = 4_096;

/// Why no session can have a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// It does not begin with the prefix.
    #[error("no session can have this key: keys of sessions begin with '{prefix}' (--key-prefix)")]
    Prefix {
        /// What would be right.
        prefix: String,
    },
    /// The prefix is all of it.
    #[error("no session can have this key: after the prefix comes the id of the session")]
    Empty,
    /// The id is too long.
    #[error("no session can have this key: an id may have {MAX_ID} bytes at most")]
    TooLong,
}

/// The secret key of `--hash-session-ids` cannot be used.
#[derive(Debug, Error)]
pub enum HashKeyError {
    /// The file could not be read.
    #[error("cannot read the key for --hash-session-ids from {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no good key.
    #[error(
        "the key for --hash-session-ids must have {MIN_HASH_KEY} to {MAX_HASH_KEY} bytes: `openssl rand -hex 32` makes one"
    )]
    Length,
}

/// The secret under which ids are hashed to names.
#[derive(Clone)]
pub struct HashKey(Hmac<Sha256>);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

impl HashKey {
    /// Reads the key from a file. White space around it does not count, so that agents agree whoever wrote the file.
    pub fn read(file: &Path) -> Result<Self, HashKeyError> {
        // Some spare room for white space.
        match small_file::read(file, 2 * MAX_HASH_KEY as u64) {
            Ok(bytes) => Self::new(bytes.trim_ascii()),
            Err(long) if long.kind() == ErrorKind::FileTooLarge => Err(HashKeyError::Length),
            Err(source) => Err(HashKeyError::Unreadable { path: file.to_owned(), source }),
        }
    }

    /// The key with these bytes.
    pub fn new(key: &[u8]) -> Result<Self, HashKeyError> {
        if !(MIN_HASH_KEY..=MAX_HASH_KEY).contains(&key.len()) {
            return Err(HashKeyError::Length);
        }
        Hmac::new_from_slice(key).map(Self).map_err(|_| HashKeyError::Length)
    }
}

/// The name of an object, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// The id itself.
    Id(&'a str),
    /// A hash of the id.
    Hash([u8; HASHED_LENGTH]),
}

impl Name<'_> {
    /// The name.
    #[inline]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(id) => id,
            // Base32 is ASCII.
            Self::Hash(name) => std::str::from_utf8(name).unwrap_or_default(),
        }
    }
}

/// Maps keys to names.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    hash_key: Option<HashKey>,
}

impl Keys {
    /// Keys that begin with `prefix`; ids are hashed under `hash_key`, if there is one.
    pub fn new(prefix: String, hash_key: Option<HashKey>) -> Self {
        Self { prefix, hash_key }
    }

    /// The name of the object of a key.
    #[inline]
    pub fn name<'a>(&self, key: &'a [u8]) -> Result<Name<'a>, KeyError> {
        let id = self.id(key)?;
        if let Some(HashKey(mac)) = &self.hash_key {
            let hash = mac.clone().chain_update(id).finalize().into_bytes();
            return Ok(hashed(KEYED, &hash));
        }
        match std::str::from_utf8(id) {
            Ok(text) if is_object_name(text) && !is_reserved(id) => Ok(Name::Id(text)),
            _ => Ok(hashed(HASHED, &Sha256::digest(id))),
        }
    }

    /// What the object of a key keeps of its id: nothing if its name shows it, or if nothing is to show it.
    pub fn annotation(&self, key: &[u8]) -> Option<String> {
        let (id, name) = (self.id(key).ok()?, self.name(key).ok()?);
        if self.hash_key.is_some() || matches!(name, Name::Id(_)) {
            return None;
        }
        let text = std::str::from_utf8(id).ok().filter(|text| !text.chars().any(char::is_control));
        Some(text.map_or_else(|| BASE64URL_NOPAD.encode(id), str::to_owned))
    }

    /// The key of the object `name`, as far as that and its annotation tell.
    pub fn key(&self, name: &str, annotation: Option<&str>) -> Option<Vec<u8>> {
        if self.hash_key.is_some() {
            return None;
        }
        if !is_reserved(name.as_bytes()) {
            return Some(self.with_prefix(name.as_bytes()));
        }
        // The annotation is the id, or its base64url: the name tells which, and whether it is right at all.
        let annotation = annotation.filter(|text| text.len() <= 2 * MAX_ID)?;
        let decoded = BASE64URL_NOPAD.decode(annotation.as_bytes()).ok();
        let ids = [Some(annotation.as_bytes().to_vec()), decoded];
        let keys = ids.into_iter().flatten().map(|id| self.with_prefix(&id));
        keys.into_iter().find(|key| self.name(key).is_ok_and(|known| known.as_str() == name))
    }

    fn with_prefix(&self, id: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), id].concat()
    }

    #[inline]
    fn id<'a>(&self, key: &'a [u8]) -> Result<&'a [u8], KeyError> {
        let prefix = || KeyError::Prefix { prefix: self.prefix.clone() };
        let id = key.strip_prefix(self.prefix.as_bytes()).ok_or_else(prefix)?;
        match id.len() {
            0 => Err(KeyError::Empty),
            1..=MAX_ID => Ok(id),
            _ => Err(KeyError::TooLong),
        }
    }
}

/// Whether a name begins as those do that are hashes.
fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(HASHED) || name.starts_with(KEYED)
}

fn hashed(kind: &[u8], hash: &[u8]) -> Name<'static> {
    let mut name = [0; HASHED_LENGTH];
    let (head, tail) = name.split_at_mut(kind.len());
    head.copy_from_slice(kind);
    BASE32_NOPAD.encode_mut(hash, tail);
    tail.make_ascii_lowercase();
    Name::Hash(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn plain() -> Keys {
        Keys::new("s:".into(), None)
    }

    fn keyed(secret: &[u8]) -> Keys {
        Keys::new("s:".into(), Some(HashKey::new(secret).unwrap()))
    }

    fn name(keys: &Keys, id: &[u8]) -> String {
        keys.name(&[b"s:", id].concat()).unwrap().as_str().to_owned()
    }

    fn id() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[a-c.-]{1,4}".prop_map(String::into_bytes),
            "[xh]--[a-z2-7]{0,3}".prop_map(String::into_bytes),
            "[a-zA-Z0-9+/=_ é-]{1,40}".prop_map(String::into_bytes),
            // Ids that are what an annotation of another one holds.
            proptest::collection::vec(any::<u8>(), 1..20).prop_map(|id| BASE64URL_NOPAD.encode(&id).into_bytes()),
            proptest::collection::vec(any::<u8>(), 1..=MAX_ID),
        ]
    }

    proptest! {
        #[test]
        fn no_two_ids_share_a_name_and_agents_agree(ids in proptest::collection::vec(id(), 2..20)) {
            for (one, other) in [(plain(), plain()), (keyed(b"0123456789abcdef"), keyed(b"0123456789abcdef"))] {
                let mut names: BTreeMap<String, &Vec<u8>> = BTreeMap::new();
                for id in &ids {
                    let name_ = name(&one, id);
                    prop_assert!(is_object_name(&name_), "{name_}");
                    prop_assert_eq!(&name(&other, id), &name_);
                    if let Some(known) = names.insert(name_, id) {
                        prop_assert_eq!(known, id);
                    }
                }
            }
        }

        #[test]
        fn a_name_that_is_itself_used_as_an_id_is_another_session(id in id()) {
            for keys in [plain(), keyed(b"0123456789abcdef")] {
                let own = name(&keys, &id);
                prop_assert!(own.as_bytes() == id || name(&plain(), own.as_bytes()) != own);
            }
        }

        #[test]
        fn an_object_tells_its_key(id in id()) {
            let keys = plain();
            let key = [b"s:", &*id].concat();
            let name = name(&keys, &id);
            let annotation = keys.annotation(&key);
            prop_assert_eq!(annotation.is_none(), name.as_bytes() == id);
            prop_assert_eq!(keys.key(&name, annotation.as_deref()), Some(key));
        }
    }

    #[test]
    fn names_stay_what_they_are() {
        assert_eq!(name(&plain(), b"mcp-session-7f3a"), "mcp-session-7f3a");
        assert_eq!(name(&plain(), b"A"), "x--kwnovuecmtkxsxjzbfyyzxifvpkjk4xij7svleho6mniriep376q");
        let hidden = name(&keyed(b"0123456789abcdef"), b"mcp-session-7f3a");
        assert!(hidden.starts_with("h--") && hidden.len() == HASHED_LENGTH, "{hidden}");
        assert_ne!(hidden, name(&keyed(b"0123456789abcdeg"), b"mcp-session-7f3a"));
        assert_eq!(keyed(b"0123456789abcdef").annotation(b"s:A"), None, "nothing shows the id");
    }

    #[test]
    fn an_annotation_that_does_not_belong_to_the_name_tells_nothing() {
        let keys = plain();
        let name = name(&keys, b"A");
        assert_eq!(keys.key(&name, Some("B")), None);
        assert_eq!(keys.key(&name, None), None);
        assert_eq!(keys.key(&name, Some(&"A".repeat(5_000))), None);
    }

    #[test]
    fn keys_that_no_session_can_have_are_refused_with_the_reason() {
        let keys = plain();
        let text = |key: &[u8]| keys.name(key).unwrap_err().to_string();
        assert!(text(b"other").contains("'s:'"));
        assert!(text(b"s:").contains("id"));
        assert!(text(&[b"s:", &[b'a'; MAX_ID + 1][..]].concat()).contains("512"));
        assert!(keys.name(&[b"s:", &[b'a'; MAX_ID][..]].concat()).is_ok());
    }

    #[test]
    fn a_hash_key_is_read_without_the_white_space_around_it_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let read = Keys::new("s:".into(), Some(HashKey::read(file.path()).unwrap()));
        assert_eq!(name(&read, b"A"), name(&keyed(b"0123456789abcdef"), b"A"));
        assert!(!format!("{read:?}").contains("0123"), "{read:?}");
        std::fs::write(file.path(), "short\n").unwrap();
        assert!(matches!(HashKey::read(file.path()), Err(HashKeyError::Length)));
        let error = HashKey::read(&file.path().with_extension("none")).unwrap_err().to_string();
        assert!(error.contains(".none: No such file"), "{error}");
    }
}
