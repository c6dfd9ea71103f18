//! The entries of a shard: copies, and what stands beside them, by name.

use std::hash::BuildHasher;
use std::num::NonZeroU64;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::beside::footprint_of;
use super::holding;
use crate::core::cache::copy::{Copy, LocalValues};
use crate::core::cache::renewed::Renewed;
use crate::core::cache::reports::Holding;
use crate::core::cache::used::Used;
use crate::core::lease::Provisional;
use crate::core::rules::Rule;
use crate::core::signal::Barrier;

/// A copy, and what decides about it. What a hit needs comes first and together, so that it touches as few cache lines as
/// can be.
#[repr(C)]
pub(super) struct Entry {
    pub copy: Arc<Copy>,
    /// Its sequence number (see [`super::super::reports`]).
    pub sequence: u64,
    /// Last use, stored by hits that share the shard.
    pub used: Used,
    /// An own write is in flight and an eviction of what is below this generation came: unservable until the write's
    /// answer decides, or an eviction by a state of this generation or a later one that equals the copy.
    pub suspended: Option<NonZeroU64>,
    /// Cover until a replica has processed that number.
    pub provisional: Provisional,
    pub carried: Carried,
    pub renewed: Renewed,
}

/// What an own write leaves as it was, if nobody else's change is in its answer.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub local: Option<Arc<LocalValues>>,
    /// The generation that the copy was restored at.
    pub since: u64,
}

impl Carried {
    /// Nothing: the copy is a new one.
    pub fn anew(copy: &Copy) -> Self {
        Self { local: None, since: copy.generation }
    }
}

impl Entry {
    /// Whether this later state of the same object has the metadata of the copy, which then stays.
    ///
    /// Its generation is not taken over: a state that comes by a signal is hearsay, and must not lift a copy above the
    /// evictions that are still to come.
    pub fn equals(&self, state: Barrier) -> bool {
        self.copy.uid == state.mark.uid && Some(self.copy.digest) == state.digest && Rule::CompareDigest.on()
    }

    /// Bytes of memory that it takes, by estimate.
    pub fn footprint(&self) -> usize {
        self.copy.footprint() + self.carried.local.as_deref().map_or(0, footprint_of)
    }

    /// What replicas are told of it.
    pub fn holding(&self) -> Holding {
        holding(&self.copy, self.carried.since)
    }
}

/// Entries by the names of their copies. A hash table has room that it does not use, often as much as it uses: only
/// references stand in it, and names nowhere but in the copies.
#[derive(Debug)]
pub(super) struct Entries {
    table: HashTable<Box<Entry>>,
    hasher: DefaultHashBuilder,
}

impl Entries {
    pub fn with_hasher(hasher: DefaultHashBuilder) -> Self {
        Self { table: HashTable::new(), hasher }
    }

    #[inline]
    pub fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    #[inline]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.get_hashed(name, self.hash(name))
    }

    /// The same for a name whose [`Self::hash`] is known.
    #[inline]
    pub fn get_hashed(&self, name: &str, hash: u64) -> Option<&Entry> {
        self.table.find(hash, |entry| *entry.copy.name == *name).map(|entry| &**entry)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        let hash = self.hash(name);
        self.table.find_mut(hash, |entry| *entry.copy.name == *name).map(|entry| &mut **entry)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Adds an entry. There must be none of its name.
    pub fn insert(&mut self, entry: Entry) {
        let hash = self.hash(&entry.copy.name);
        self.table.insert_unique(hash, Box::new(entry), |entry| self.hasher.hash_one(&*entry.copy.name));
    }

    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        let hash = self.hash(name);
        let found = self.table.find_entry(hash, |entry| *entry.copy.name == *name).ok()?;
        Some(*found.remove().0)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.table.iter().map(|entry| &**entry)
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one for each session that a pod holds. If it must grow, see what `docs/benchmarks.md` says of memory.
    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 88, "{}", size_of::<Entry>());
    }
}
