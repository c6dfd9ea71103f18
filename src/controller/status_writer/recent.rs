//! What was sent lately, and may not have come back through the watch yet.

use std::collections::VecDeque;
use std::hash::Hash;

use hashbrown::HashMap;

use crate::core::session::ResourceVersion;

/// A patch that has been sent.
#[derive(Debug)]
struct Sent<P> {
    payload: P,
    /// The version that it made; `None` while its answer is awaited.
    version: Option<ResourceVersion>,
    ticket: u64,
}

/// A bounded memory of sent patches. To forget one costs a patch that changes nothing, never a wrong one.
#[derive(Debug)]
pub(super) struct Recent<K, P> {
    capacity: usize,
    sent: HashMap<K, Sent<P>>,
    order: VecDeque<(K, u64)>,
    tickets: u64,
}

impl<K: Clone + Eq + Hash, P> Recent<K, P> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), sent: HashMap::new(), order: VecDeque::new(), tickets: 0 }
    }

    pub(super) fn sending(&mut self, key: &K, payload: P) {
        self.tickets += 1;
        self.sent.insert(key.clone(), Sent { payload, version: None, ticket: self.tickets });
        self.order.push_back((key.clone(), self.tickets));
        while self.order.len() > self.capacity {
            let Some((key, ticket)) = self.order.pop_front() else {
                break;
            };
            if self.sent.get(&key).is_some_and(|sent| sent.ticket == ticket) {
                self.sent.remove(&key);
            }
        }
    }

    /// The patch under way was answered with this version, if the answer named one.
    pub(super) fn stored(&mut self, key: &K, version: Option<ResourceVersion>) {
        match (self.sent.get_mut(key), version) {
            (Some(sent), Some(version)) => sent.version = Some(version),
            _ => self.forget(key),
        }
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.sent.remove(key);
    }

    /// What was sent and is not part of the object as of `seen`.
    pub(super) fn beyond(&mut self, key: &K, seen: ResourceVersion) -> Option<&P> {
        let arrived = self.sent.get(key)?.version.is_some_and(|version| version <= seen);
        if arrived {
            self.sent.remove(key);
        }
        self.sent.get(key).map(|sent| &sent.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(number: u64) -> ResourceVersion {
        ResourceVersion(number)
    }

    #[test]
    fn a_patch_counts_until_its_version_is_seen() {
        let mut recent = Recent::new(10);
        recent.sending(&"a", 1);
        assert_eq!(recent.beyond(&"a", version(99)), Some(&1), "its answer is awaited");
        recent.stored(&"a", Some(version(100)));
        assert_eq!(recent.beyond(&"a", version(99)), Some(&1));
        assert_eq!(recent.beyond(&"a", version(100)), None);
        assert_eq!(recent.beyond(&"a", version(99)), None, "arrived is arrived");
    }

    #[test]
    fn an_answer_without_a_version_is_forgotten() {
        let mut recent = Recent::new(10);
        recent.sending(&"a", 1);
        recent.stored(&"a", None);
        assert_eq!(recent.beyond(&"a", version(0)), None);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut recent = Recent::new(2);
        for (key, payload) in [("a", 1), ("a", 2), ("b", 3), ("c", 4)] {
            recent.sending(&key, payload);
        }
        assert_eq!(recent.beyond(&"a", version(0)), None);
        assert_eq!(recent.beyond(&"b", version(0)), Some(&3));
        assert_eq!(recent.beyond(&"c", version(0)), Some(&4));
        assert_eq!(recent.order.len(), 2);
    }
}
