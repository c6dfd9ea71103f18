//! Which entry was used least recently, without any work on a hit beyond storing the time of use, and with nothing to
//! keep while there is room.
//!
//! Only when room is needed are all entries looked through. Those of them that were used least recently, a part, are kept
//! in their order, and are the next to go; one that is used meanwhile is passed over. All others were used after these, or
//! came after these: what is found is exactly the least recently used entry.

use std::sync::Arc;

use crate::core::time::Time;

/// This part of all entries is kept in order: for each that goes or is passed over, so many are looked at.
const PART: usize = 8;

/// The entries that go next.
#[derive(Debug, Default)]
pub struct Recency {
    /// The first one last, each with the use that was known when all were looked through.
    next: Vec<(Time, Arc<str>)>,
}

impl Recency {
    /// The least recently used entry. `last_use` tells when an entry was used last, if there is such a one, and `all` does
    /// so for all that there are.
    pub fn pop<'a, All: Iterator<Item = (Time, &'a Arc<str>)>>(
        &mut self,
        last_use: impl Fn(&str) -> Option<Time>,
        all: impl Fn() -> All,
    ) -> Option<Arc<str>> {
        loop {
            while let Some((known, name)) = self.next.pop() {
                if last_use(&name).is_some_and(|used| used <= known) {
                    return Some(name);
                }
            }
            self.next = least_recent(all().collect());
            if self.next.is_empty() {
                return None;
            }
        }
    }
}

/// The part of `all` that was used least recently, from the latest to the earliest.
fn least_recent(mut all: Vec<(Time, &Arc<str>)>) -> Vec<(Time, Arc<str>)> {
    let part = all.len().div_ceil(PART);
    if part < all.len() {
        all.select_nth_unstable(part);
        all.truncate(part);
    }
    all.sort_unstable();
    all.into_iter().rev().map(|(used, name)| (used, name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// `None` makes room; else the entry of that number is used, or comes.
        #[test]
        fn what_is_popped_is_exactly_the_least_recently_used(
            steps in proptest::collection::vec(proptest::option::weighted(0.7, 0usize..40), 1..200),
        ) {
            let mut recency = Recency::default();
            let mut last: BTreeMap<Arc<str>, Time> = BTreeMap::new();
            for (at, step) in steps.into_iter().enumerate() {
                if let Some(used) = step {
                    last.insert(format!("s{used}").into(), Time::from_nanos(at as u64));
                    continue;
                }
                let expected = last.iter().min_by_key(|(_, used)| **used).map(|(name, _)| name.clone());
                let all = || last.iter().map(|(name, used)| (*used, name));
                let popped = recency.pop(|name| last.get(name).copied(), all);
                prop_assert_eq!(&popped, &expected);
                if let Some(name) = popped {
                    last.remove(&name);
                }
            }
        }
    }

    #[test]
    fn not_all_are_looked_through_each_time() {
        let names: Vec<Arc<str>> = (0..1_000).map(|n| format!("s{n}").into()).collect();
        let (mut recency, looks, mut gone) = (Recency::default(), std::cell::Cell::new(0), 0);
        while gone < 100 {
            let left = &names[gone..];
            let used = |name: &str| Time::from_nanos(name[1..].parse().unwrap());
            let all = || {
                looks.set(looks.get() + 1);
                left.iter().map(|name| (used(name), name))
            };
            assert_eq!(recency.pop(|name| Some(used(name)), all).as_ref(), Some(&names[gone]));
            gone += 1;
        }
        assert_eq!(looks.get(), 1);
    }
}
