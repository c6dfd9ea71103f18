//! Keys of sessions whose names do not tell them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

/// The keys that clients of this pod used for sessions with hashed names, the latest ones.
#[derive(Debug)]
pub(super) struct Ids {
    known: Mutex<Known>,
    most: usize,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<Arc<str>, Box<[u8]>>,
    order: VecDeque<Arc<str>>,
}

impl std::fmt::Debug for Known {
    /// A session's id is as good as a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("names", &self.by_name.len()).finish_non_exhaustive()
    }
}

impl Ids {
    pub fn new(most: usize) -> Self {
        Self { known: Mutex::default(), most: most.max(1) }
    }

    /// A client used `key` for the object `name`.
    pub fn remember(&self, name: &str, key: &[u8]) {
        let mut known = self.known.lock();
        if known.by_name.contains_key(name) {
            return;
        }
        if known.by_name.len() >= self.most
            && let Some(oldest) = known.order.pop_front()
        {
            known.by_name.remove(&oldest);
        }
        let name: Arc<str> = name.into();
        known.order.push_back(name.clone());
        known.by_name.insert(name, key.into());
    }

    /// The key of the object `name`.
    pub fn key(&self, name: &str) -> Option<Vec<u8>> {
        self.known.lock().by_name.get(name).map(|key| key.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_known_and_none_is_shown() {
        let ids = Ids::new(2);
        for (name, key) in [("a", b"s:A"), ("b", b"s:B"), ("a", b"s:A"), ("c", b"s:C")] {
            ids.remember(name, key);
        }
        assert_eq!((ids.key("a"), ids.key("b").as_deref()), (None, Some(&b"s:B"[..])));
        assert_eq!(ids.known.lock().order.len(), 2);
        assert!(!format!("{ids:?}").contains("s:B"), "{ids:?}");
    }
}
