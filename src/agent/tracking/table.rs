//! Who has read which key, without I/O: what Redis calls the tracking table.
//!
//! It is bounded as Redis bounds it: when there are too many keys, some are forgotten, and whoever had read them is told
//! that they changed. A client can only be told too much, never too little.

use std::sync::Arc;

use hashbrown::HashMap;

use super::options::{Mode, Options};
use crate::agent::server::ClientId;
use crate::core::time::Time;

/// Clients that have read a key, on average, that the table has room for.
const READERS_PER_KEY: usize = 4;

/// No instant at all.
const NEVER: Time = Time::from_nanos(u64::MAX);

/// Somebody who is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient {
    /// The client that tracks.
    pub client: ClientId,
    /// The connection that is told instead of its own.
    pub redirect: Option<ClientId>,
}

/// A key that was forgotten because there were too many, and who is to be told.
pub type Forgotten = (Arc<[u8]>, Vec<Recipient>);

/// A key of which the cover must be looked at, and when it must.
pub type Due = (Arc<[u8]>, Time);

#[derive(Debug)]
struct Slot {
    key: Arc<[u8]>,
    /// Sorted. Some may be gone by now.
    readers: Vec<ClientId>,
    /// When it must be looked at whether the copy is still covered by a lease.
    until: Time,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    max_keys: usize,
    clients: HashMap<ClientId, Options>,
    /// Those of `clients` that track by prefix.
    broadcasting: Vec<ClientId>,
    index: HashMap<Arc<[u8]>, usize>,
    slots: Vec<Slot>,
    /// Readers of all slots together.
    readers: usize,
    /// Commands that may write, by key.
    writing: HashMap<Arc<[u8]>, Vec<Writing>>,
    dice: u64,
}

/// A command that may write a key is being carried out.
#[derive(Debug)]
struct Writing {
    client: ClientId,
    /// Its write may have taken effect before it was answered.
    disturbed: bool,
    /// Somebody else has changed the session since it began, perhaps after its write.
    outdated: bool,
    /// Those who track by prefix, and were told then.
    told: Vec<ClientId>,
}

impl Table {
    /// An empty table for so many keys.
    pub fn new(max_keys: usize) -> Self {
        Self {
            max_keys: max_keys.max(1),
            clients: HashMap::new(),
            broadcasting: Vec::new(),
            index: HashMap::new(),
            slots: Vec::new(),
            readers: 0,
            writing: HashMap::new(),
            dice: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// The client tracks from now on, like this. What it had read before stays registered.
    pub fn enable(&mut self, client: ClientId, options: Options) {
        self.broadcasting.retain(|c| *c != client);
        if matches!(options.mode, Mode::Broadcast { .. }) {
            self.broadcasting.push(client);
        }
        self.clients.insert(client, options);
    }

    /// The client does not track any more, or is gone. What it had read is forgotten bit by bit.
    pub fn disable(&mut self, client: ClientId) {
        self.broadcasting.retain(|c| *c != client);
        self.clients.remove(&client);
        if self.clients.is_empty() {
            self.clear();
        }
    }

    /// The client is about to read the key. Whatever changes from here on is told.
    pub fn reading(&mut self, client: ClientId, key: &[u8]) -> Vec<Forgotten> {
        if !self.clients.contains_key(&client) {
            return Vec::new();
        }
        let at = if let Some(at) = self.index.get(key) {
            *at
        } else {
            let key: Arc<[u8]> = key.into();
            self.index.insert(key.clone(), self.slots.len());
            self.slots.push(Slot { key, readers: Vec::new(), until: NEVER });
            self.slots.len() - 1
        };
        let slot = &mut self.slots[at];
        if let Err(place) = slot.readers.binary_search(&client) {
            slot.readers.insert(place, client);
            self.readers += 1;
        }
        self.make_room(at)
    }

    /// What was read is covered until then, unless leases are renewed meanwhile.
    pub fn read(&mut self, key: &[u8], until: Time) {
        if let Some(at) = self.index.get(key) {
            let slot = &mut self.slots[*at];
            slot.until = slot.until.min(until);
        }
    }

    /// A client begins a command that may write the key; [`Self::done`] must follow.
    pub fn writing(&mut self, client: ClientId, key: &[u8]) {
        let writing = Writing { client, disturbed: false, outdated: false, told: Vec::new() };
        self.writing.entry(key.into()).or_default().push(writing);
    }

    /// What is served of the key is not what it was: some client's write took effect, or waits for its answer. Who is to be
    /// told. A writer that does not want to hear of itself is not among them, and stays registered: it will be told by
    /// [`Self::done`], unless [`Self::wrote`] comes before.
    pub fn disturbed(&mut self, key: &[u8]) -> Vec<Recipient> {
        let mut writing = self.writing.remove(key).unwrap_or_default();
        // If there are several, it may be another one's write.
        let spared = match &writing[..] {
            [Writing { client, .. }] if self.spares(*client) => Some(*client),
            _ => None,
        };
        let kept = spared.filter(|client| self.has_reader(key, *client));
        let recipients = self.forget(key, spared.as_slice());
        if let Some(client) = kept {
            // There is room: it was there before.
            self.reading(client, key);
        }
        for writing in &mut writing {
            writing.disturbed = true;
            writing
                .told
                .extend(recipients.iter().map(|r| r.client).filter(|client| self.broadcasting.contains(client)));
        }
        if !writing.is_empty() {
            self.writing.insert(key.into(), writing);
        }
        recipients
    }

    /// A client has written the key: who is to be told. It is not among them if it asked for that; then it is taken to keep
    /// what it wrote, and [`Self::reading`] and [`Self::read`] are to follow.
    pub fn wrote(&mut self, client: ClientId, key: &[u8]) -> (Vec<Recipient>, bool) {
        let writing = self.writing.get(key).and_then(|all| all.iter().find(|w| w.client == client));
        let outdated = writing.is_some_and(|writing| writing.outdated);
        let spared = self.spares(client) && !outdated;
        let mut recipients = self.forget(key, if spared { std::slice::from_ref(&client) } else { &[] });
        if outdated
            && self.spares(client)
            && let Some(itself) = self.recipient(client, key)
            && !recipients.contains(&itself)
        {
            recipients.push(itself);
        }
        let writing = self.writing.get_mut(key).and_then(|all| all.iter_mut().find(|w| w.client == client));
        if let Some(writing) = writing {
            (writing.disturbed, writing.outdated) = (false, false);
            let told = std::mem::take(&mut writing.told);
            recipients.retain(|recipient| !told.contains(&recipient.client));
        }
        (recipients, spared)
    }

    /// The command that may write the key is over. Whoever did not want to hear of itself is told all the same if its write
    /// may have taken effect and was not answered as done, or if others have changed the session since: it is taken to keep
    /// what it wrote, and may not have been registered when the change was told.
    pub fn done(&mut self, client: ClientId, key: &[u8]) -> Option<Recipient> {
        let all = self.writing.get_mut(key)?;
        let at = all.iter().position(|w| w.client == client)?;
        let Writing { disturbed, outdated, .. } = all.swap_remove(at);
        if all.is_empty() {
            self.writing.remove(key);
        }
        if (disturbed || outdated) && self.spares(client) { self.uncovered(client, key) } else { None }
    }

    fn has_reader(&self, key: &[u8], client: ClientId) -> bool {
        self.index.get(key).is_some_and(|at| self.slots[*at].readers.binary_search(&client).is_ok())
    }

    fn spares(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|options| options.no_loop)
    }

    /// Nobody vouches for what was read of the key any more.
    pub fn stale(&mut self, key: &[u8]) -> Vec<Recipient> {
        for writing in self.writing.get_mut(key).into_iter().flatten() {
            writing.outdated = true;
        }
        self.forget(key, &[])
    }

    /// Only this client cannot rely on what it has read of the key: it never was covered.
    pub fn uncovered(&mut self, client: ClientId, key: &[u8]) -> Option<Recipient> {
        if let Some(at) = self.index.get(key).copied()
            && let Ok(place) = self.slots[at].readers.binary_search(&client)
        {
            self.slots[at].readers.remove(place);
            self.readers -= 1;
            if self.slots[at].readers.is_empty() {
                self.remove(at);
            }
        }
        self.recipient(client, key)
    }

    /// Who tracks the key by prefix.
    pub fn broadcasting(&self, key: &[u8]) -> Vec<Recipient> {
        self.broadcasting.iter().filter_map(|client| self.recipient(*client, key)).collect()
    }

    /// Nobody vouches for anything any more: who is to be told that all keys changed.
    pub fn flush(&mut self) -> Vec<Recipient> {
        self.writing.values_mut().flatten().for_each(|writing| writing.outdated = true);
        self.clear();
        self.clients.iter().map(|(client, options)| Recipient { client: *client, redirect: options.redirect }).collect()
    }

    /// Of a part of the keys, those of which the cover must be looked at by `by`, each with when, and when that is for the next of
    /// the others. There are [`Self::parts`]: look at the last one first, since keys only ever move to the front.
    pub fn due(&self, part: usize, by: Time) -> (Vec<Due>, Time) {
        let from = part.saturating_mul(PART).min(self.slots.len());
        let to = (from + PART).min(self.slots.len());
        let mut next = NEVER;
        let mut due = Vec::new();
        for slot in &self.slots[from..to] {
            if slot.until <= by {
                due.push((slot.key.clone(), slot.until));
            } else {
                next = next.min(slot.until);
            }
        }
        (due, next)
    }

    /// Parts that [`Self::due`] looks at one by one.
    pub fn parts(&self) -> usize {
        self.slots.len().div_ceil(PART)
    }

    /// The cover of the key, which ended at `ends`, goes on until then. If it ends at another instant by now, something else was
    /// read since.
    pub fn extend(&mut self, key: &[u8], ends: Time, until: Time) {
        if let Some(at) = self.index.get(key)
            && self.slots[*at].until == ends
        {
            self.slots[*at].until = until;
        }
    }

    /// Keys that are registered.
    pub fn keys(&self) -> usize {
        self.slots.len()
    }

    /// Readers of all keys together.
    pub fn readers(&self) -> usize {
        self.readers
    }

    /// Clients that track.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Prefixes that clients track by.
    pub fn prefixes(&self) -> usize {
        let count = |client| match self.clients.get(client).map(|o| &o.mode) {
            Some(Mode::Broadcast { prefixes }) => prefixes.len(),
            _ => 0,
        };
        self.broadcasting.iter().map(count).sum()
    }

    /// The client, if it still tracks, and wants to know of this key.
    fn recipient(&self, client: ClientId, key: &[u8]) -> Option<Recipient> {
        let options = self.clients.get(&client)?;
        let wanted = !matches!(options.mode, Mode::Broadcast { .. }) || options.broadcasts(key);
        wanted.then_some(Recipient { client, redirect: options.redirect })
    }

    /// Removes the key, and returns who is to be told: who has read it, and who tracks it by prefix.
    fn forget(&mut self, key: &[u8], spared: &[ClientId]) -> Vec<Recipient> {
        let mut told: Vec<Recipient> =
            self.broadcasting.iter().filter_map(|client| self.recipient(*client, key)).collect();
        if let Some(at) = self.index.get(key).copied() {
            for client in self.remove(at) {
                let by_prefix = |o: &Options| matches!(o.mode, Mode::Broadcast { .. });
                if self.clients.get(&client).is_some_and(|o| !by_prefix(o)) {
                    told.extend(self.recipient(client, key));
                }
            }
        }
        told.retain(|recipient| !spared.contains(&recipient.client));
        told
    }

    fn remove(&mut self, at: usize) -> Vec<ClientId> {
        let slot = self.slots.swap_remove(at);
        self.index.remove(&slot.key);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.key.clone(), at);
        }
        self.readers -= slot.readers.len();
        slot.readers
    }

    /// Forgets keys, but not the one at `kept`, until the table is within its bounds.
    fn make_room(&mut self, kept: usize) -> Vec<Forgotten> {
        let mut forgotten = Vec::new();
        let mut kept = kept;
        while self.slots.len() > 1
            && (self.slots.len() > self.max_keys || self.readers > self.max_keys.saturating_mul(READERS_PER_KEY))
        {
            let mut victim = self.roll(self.slots.len());
            if victim == kept {
                victim = (victim + 1) % self.slots.len();
            }
            let last = self.slots.len() - 1;
            let key = self.slots[victim].key.clone();
            let readers = self.remove(victim);
            if kept == last {
                kept = victim;
            }
            let told = readers.into_iter().filter_map(|client| self.recipient(client, &key)).collect();
            forgotten.push((key, told));
        }
        forgotten
    }

    /// Any number below `sides`. Who is forgotten needs no better chance than this (xorshift).
    fn roll(&mut self, sides: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        usize::try_from(self.dice >> 16).unwrap_or_default() % sides
    }

    fn clear(&mut self) {
        self.index = HashMap::new();
        self.slots = Vec::new();
        self.readers = 0;
    }
}

/// Keys that [`Table::due`] looks at while nobody else can use the table.
const PART: usize = 4_096;

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
