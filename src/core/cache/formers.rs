//! What clients of this pod last had of sessions whose copies are gone, or hold something else since.
//!
//! A client that overwrites a whole session means to change what *it* saw. If somebody else has changed the session
//! meanwhile, the difference must be taken from what the client had, not from what the cache would restore now: that
//! would take the other change back (I7).

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::copy::Copy;
use super::renewed::Renewal;
use super::shard::{Habits, Limits};

/// Of the limits, what clients last had may take this part more.
const PART: usize = 8;

/// The copies that clients last had, of all shards of a cache: clones share them. A shard's part of the room could be less than
/// one session takes. The lock is the innermost one, and a hit does not take it.
#[derive(Clone, Debug, Default)]
pub struct Formers(Option<Arc<Mutex<Known>>>);

impl Formers {
    /// Those of a cache with these limits; none, if its clients keep their copies themselves.
    pub fn of(limits: Limits, habits: Habits) -> Self {
        let room = |limit: usize| (limit / PART).max(1);
        let known = || Arc::new(Mutex::new(Known::with_room(room(limits.entries), room(limits.bytes))));
        Self(habits.remember_given.then(known))
    }

    /// A client had this copy last.
    pub(super) fn remember(&self, copy: Arc<Copy>, renewal: Option<Renewal>) {
        if let Some(known) = &self.0 {
            known.lock().remember(copy, renewal);
        }
    }

    /// Clients have something newer, or the session is gone.
    pub(super) fn forget(&self, name: &str) {
        if let Some(known) = &self.0 {
            known.lock().forget(name);
        }
    }

    /// What clients last had of `name`.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Copy>> {
        self.0.as_ref()?.lock().by_name.get(name).map(|former| former.copy.clone())
    }

    /// Whether clients had `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_some_and(|known| known.lock().by_name.contains_key(name))
    }

    /// When `name` was renewed last, if that copy was of the same object as `of`.
    pub(super) fn renewal(&self, name: &str, of: &Copy) -> Option<Renewal> {
        let known = self.0.as_ref()?.lock();
        known.by_name.get(name).filter(|former| former.copy.uid == of.uid).and_then(|former| former.renewal)
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        if let Some(known) = &self.0 {
            known.lock().clear();
        }
    }
}

/// Bounded: when there is no room, the oldest is forgotten.
#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<Arc<str>, Former>,
    order: VecDeque<(u64, Arc<str>)>,
    last: u64,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

#[derive(Debug)]
struct Former {
    number: u64,
    copy: Arc<Copy>,
    renewal: Option<Renewal>,
    footprint: usize,
}

impl Known {
    /// Room for so many copies, and so many bytes.
    fn with_room(most: usize, most_bytes: usize) -> Self {
        Self { most, most_bytes, ..Self::default() }
    }

    fn remember(&mut self, copy: Arc<Copy>, renewal: Option<Renewal>) {
        let name = copy.name.clone();
        // Also if there is no room: what was had before is no base for what a client writes now.
        self.forget(&name);
        let footprint = copy.footprint();
        if footprint > self.most_bytes {
            return;
        }
        self.last += 1;
        let number = self.last;
        self.bytes += footprint;
        self.by_name.insert(name.clone(), Former { number, copy, renewal, footprint });
        self.order.push_back((number, name));
        while self.by_name.len() > self.most || self.bytes > self.most_bytes {
            let Some((number, name)) = self.order.pop_front() else { break };
            if self.by_name.get(&name).is_some_and(|former| former.number == number) {
                self.forget(&name);
            }
        }
        // Those that were forgotten otherwise leave their places behind.
        if self.order.len() > 2 * self.most + 16 {
            let by_name = &self.by_name;
            self.order.retain(|(number, name)| by_name.get(name).is_some_and(|former| former.number == *number));
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(former) = self.by_name.remove(name) {
            self.bytes -= former.footprint;
        }
    }

    fn clear(&mut self) {
        *self = Self::with_room(self.most, self.most_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cache::facts::Facts;
    use crate::core::digest::{Digest, Metadata};
    use crate::core::fields::Fields;
    use crate::core::session::{ResourceVersion, Uid};

    fn copy(name: &str, bytes: usize) -> Arc<Copy> {
        let metadata = Metadata::from([("k".into(), "v".repeat(bytes))]);
        Arc::new(Copy {
            name: name.into(),
            uid: Uid::from_u128(1),
            generation: 1,
            resource_version: ResourceVersion(1),
            digest: Digest::of(&metadata),
            metadata: Fields::of(&metadata),
            facts: Facts::default(),
        })
    }

    #[test]
    fn the_oldest_go_first_and_nothing_grows() {
        let mut formers = Known::with_room(3, 1 << 20);
        for number in 0..1_000 {
            let name = format!("s{}", number % 7);
            formers.remember(copy(&name, 10), None);
            if number % 3 == 0 {
                formers.forget(&name);
            }
            assert!(formers.by_name.len() <= 3 && formers.order.len() <= 2 * 3 + 16);
        }
        for name in ["x", "y", "z", "w"] {
            formers.remember(copy(name, 10), None);
        }
        assert!(!formers.by_name.contains_key("x"));
        assert!(["y", "z", "w"].into_iter().all(|name| formers.by_name.contains_key(name)));
    }

    #[test]
    fn what_is_larger_than_all_the_room_takes_nothing_along() {
        let mut formers = Known::with_room(3, 1 << 20);
        for name in ["x", "y", "z"] {
            formers.remember(copy(name, 10), None);
        }
        let bytes = formers.bytes;
        formers.remember(copy("large", 1 << 20), None);
        assert_eq!((formers.by_name.len(), formers.bytes), (3, bytes));
        // What a client had before it has no more.
        formers.remember(copy("x", 1 << 20), None);
        assert!(!formers.by_name.contains_key("x") && formers.bytes < bytes);
    }

    #[test]
    fn all_shards_share_the_room() {
        let limits = Limits { entries: 100, bytes: 16 << 20 };
        let formers = Formers::of(limits, Habits { uses_renew: false, remember_given: true });
        let shards = [formers.clone(), formers.clone()];
        shards[0].remember(copy("large", 1 << 20), None);
        shards[1].remember(copy("small", 10), None);
        assert!(formers.get("large").is_some() && formers.get("small").is_some());
        shards[1].clear();
        assert!(formers.get("large").is_none());
        let none = Formers::of(limits, Habits::default());
        none.remember(copy("small", 10), None);
        assert!(none.get("small").is_none());
    }
}
