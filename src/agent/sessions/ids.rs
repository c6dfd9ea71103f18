//! Keys of sessions whose names do not tell them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

/// The keys that clients of this pod used for sessions with hashed names: the latest ones, and those that are used again.
#[derive(Debug)]
pub(super) struct Ids {
    known: RwLock<Known>,
    most: usize,
    most_bytes: usize,
}

/// What an id takes beside its key and its name, by estimate.
const OVERHEAD: usize = 150;

#[derive(Default)]
struct Known {
    by_name: HashMap<Arc<str>, Id>,
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

struct Id {
    key: Box<[u8]>,
    /// Whether it was used since it was queued: then it is not forgotten when its turn comes, but queued anew.
    again: AtomicBool,
}

impl std::fmt::Debug for Known {
    /// A session's id is as good as a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("names", &self.by_name.len()).finish_non_exhaustive()
    }
}

/// Bytes of memory that an id takes.
fn footprint(name: &str, key: &[u8]) -> usize {
    OVERHEAD + name.len() + key.len()
}

impl Known {
    /// Forgets one that was not used for long.
    fn forget_one(&mut self) {
        // Each is passed over once at most: then its mark is gone.
        while let Some(oldest) = self.order.pop_front() {
            let again = self.by_name.get(&oldest).is_some_and(|id| id.again.swap(false, Ordering::Relaxed));
            if !again {
                if let Some(id) = self.by_name.remove(&oldest) {
                    self.bytes -= footprint(&oldest, &id.key);
                }
                return;
            }
            self.order.push_back(oldest);
        }
    }
}

impl Ids {
    /// Room for so many ids, and so many bytes of them.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { known: RwLock::default(), most, most_bytes }
    }

    /// A client used `key` for the object `name`.
    pub fn remember(&self, name: &str, key: &[u8]) {
        if let Some(id) = self.known.read().by_name.get(name) {
            id.again.store(true, Ordering::Relaxed);
            return;
        }
        let mut known = self.known.write();
        if known.by_name.contains_key(name) {
            return;
        }
        known.bytes += footprint(name, key);
        while !known.order.is_empty() && (known.by_name.len() >= self.most || known.bytes > self.most_bytes) {
            known.forget_one();
        }
        let name: Arc<str> = name.into();
        known.order.push_back(name.clone());
        known.by_name.insert(name, Id { key: key.into(), again: AtomicBool::new(false) });
    }

    /// The key of the object `name`.
    pub fn key(&self, name: &str) -> Option<Vec<u8>> {
        self.known.read().by_name.get(name).map(|id| id.key.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::Bench;
    use crate::resp::Reply;

    const PLENTY: usize = 1 << 20;

    #[test]
    fn the_latest_are_known_and_none_is_shown() {
        let ids = Ids::new(2, PLENTY);
        for (name, key) in [("a", b"s:A"), ("b", b"s:B"), ("c", b"s:C")] {
            ids.remember(name, key);
        }
        assert_eq!((ids.key("a"), ids.key("b").as_deref()), (None, Some(&b"s:B"[..])));
        assert_eq!(ids.known.read().order.len(), 2);
        assert!(!format!("{ids:?}").contains("s:B"), "{ids:?}");
    }

    #[test]
    fn what_is_used_again_and_again_is_not_forgotten() {
        let ids = Ids::new(4, PLENTY);
        ids.remember("hot", b"s:hot");
        for n in 0..100 {
            ids.remember("hot", b"s:hot");
            ids.remember(&n.to_string(), b"s:cold");
        }
        assert_eq!(ids.key("hot").as_deref(), Some(&b"s:hot"[..]));
        assert_eq!(ids.known.read().by_name.len(), 4);
        // All of them hot: one must go all the same.
        for name in ["97", "98", "99", "hot", "new"] {
            ids.remember(name, b"s:x");
        }
        assert_eq!(ids.known.read().by_name.len(), 4);
        assert!(ids.key("new").is_some());
    }

    #[test]
    fn long_keys_take_no_more_memory_than_short_ones() {
        let ids = Ids::new(1_000, 10_000);
        for n in 0..100 {
            ids.remember(&n.to_string(), &[b'x'; 500]);
        }
        let bytes = |known: &Known| known.by_name.iter().map(|(name, id)| footprint(name, &id.key)).sum::<usize>();
        let known = ids.known.read();
        assert_eq!((known.by_name.len(), known.bytes), (15, bytes(&known)));
        drop(known);
        // One that is too long all the same is the only one.
        ids.remember("long", &[b'x'; 12_000]);
        assert_eq!(ids.known.read().by_name.len(), 1);
    }

    #[tokio::test]
    async fn whatever_command_a_hashed_session_was_used_by_its_key_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "0123456789abcdef").unwrap();
        let bench = Bench::hashing(&file);
        let mut guest = bench.guest();
        for key in ["a", "b", "c"] {
            guest.asks(&format!("HSET {key} f v")).await;
        }
        // Another agent finds sessions that it did not make.
        let other = bench.beside();
        let mut guest = other.guest();
        for (known, command) in ["EXISTS a", "TTL b", "HSET c g w"].into_iter().enumerate() {
            guest.asks(command).await;
            assert_eq!(guest.asks("DBSIZE").await, Reply::Int(i64::try_from(known).unwrap() + 1), "{command}");
        }
        for command in ["GET a", "GET b", "GET c"] {
            guest.asks(command).await;
        }
        assert_eq!(guest.asks("DBSIZE").await, Reply::Int(3));
    }
}
