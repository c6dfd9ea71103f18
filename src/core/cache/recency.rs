//! Which entry was used least recently, without any work on a hit beyond storing the time of use.
//!
//! Entries wait in the order of the use that was known when they were queued. Only when room is needed is the first
//! one looked at: if it has been used since, it goes back to where it belongs, and the next one is looked at. What
//! is found is exactly the least recently used entry.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::core::time::Time;

/// The queue. Each entry stands in it exactly once.
#[derive(Debug, Default)]
pub struct Recency {
    queue: BTreeSet<(Time, Arc<str>)>,
}

impl Recency {
    /// Queues an entry by its last use.
    pub fn insert(&mut self, used: Time, name: Arc<str>) {
        self.queue.insert((used, name));
    }

    /// Removes an entry that was queued with `used`.
    pub fn remove(&mut self, used: Time, name: &Arc<str>) {
        self.queue.remove(&(used, name.clone()));
    }

    /// Takes out the least recently used entry. `last_use` tells when an entry was really used last, and is told
    /// where it was queued anew.
    pub fn pop(
        &mut self,
        mut last_use: impl FnMut(&str) -> Time,
        mut requeued: impl FnMut(&str, Time),
    ) -> Option<Arc<str>> {
        loop {
            let (queued, name) = self.queue.pop_first()?;
            let used = last_use(&name);
            if used <= queued {
                return Some(name);
            }
            requeued(&name, used);
            self.queue.insert((used, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_popped_is_exactly_the_least_recently_used(uses in proptest::collection::vec(0usize..6, 1..60), pops in 1usize..6) {
            let mut recency = Recency::default();
            let mut last: HashMap<String, Time> = HashMap::new();
            for (at, use_) in uses.iter().enumerate() {
                let (name, now) = (format!("s{use_}"), Time::from_nanos(at as u64));
                if !last.contains_key(&name) {
                    recency.insert(now, name.as_str().into());
                }
                last.insert(name, now);
            }
            let last = RefCell::new(last);
            for _ in 0..pops {
                let expected = last.borrow().iter().min_by_key(|(_, t)| **t).map(|(n, _)| n.clone());
                let popped = recency.pop(|n| last.borrow()[n], |_, _| ());
                prop_assert_eq!(popped.as_deref().map(str::to_owned), expected.clone());
                if let Some(name) = expected { last.borrow_mut().remove(&name); }
            }
        }
    }
}
