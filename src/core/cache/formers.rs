//! What clients of this pod last had of sessions whose copies are gone, or hold something else since.
//!
//! A client that overwrites a whole session means to change what *it* saw. If somebody else has changed the session
//! meanwhile, the difference must be taken from what the client had, not from what the cache would restore now: that
//! would take the other change back (I7).

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::copy::Copy;
use super::renewed::Renewal;

/// The copies that clients last had. Bounded: when there is no room, the oldest is forgotten.
#[derive(Debug, Default)]
pub(super) struct Formers {
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

impl Formers {
    /// Room for so many copies, and so many bytes; none for zero.
    pub fn with_room(most: usize, most_bytes: usize) -> Self {
        Self { most, most_bytes, ..Self::default() }
    }

    /// Whether any are kept at all.
    pub fn enabled(&self) -> bool {
        self.most > 0
    }

    /// A client had this copy last.
    pub fn remember(&mut self, copy: Arc<Copy>, renewal: Option<Renewal>) {
        if !self.enabled() {
            return;
        }
        let name = copy.name.clone();
        self.forget(&name);
        self.last += 1;
        let (number, footprint) = (self.last, copy.footprint());
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

    /// Clients have something newer, or the session is gone.
    pub fn forget(&mut self, name: &str) {
        if let Some(former) = self.by_name.remove(name) {
            self.bytes -= former.footprint;
        }
    }

    /// What clients last had of `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Copy>> {
        self.by_name.get(name).map(|former| &former.copy)
    }

    /// When `name` was renewed last, if that copy was of the same object as `of`.
    pub fn renewal(&self, name: &str, of: &Copy) -> Option<Renewal> {
        self.by_name.get(name).filter(|former| former.copy.uid == of.uid).and_then(|former| former.renewal)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
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
        let mut formers = Formers::with_room(3, 1 << 20);
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
        assert!(formers.get("x").is_none());
        assert!(["y", "z", "w"].into_iter().all(|name| formers.get(name).is_some()));
        formers.remember(copy("large", 1 << 20), None);
        assert_eq!((formers.by_name.len(), formers.bytes), (0, 0), "what is too large for all is not kept");
    }
}
