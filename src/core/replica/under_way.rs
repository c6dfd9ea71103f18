//! The confirmations that are under way, by what they are looked for.
//!
//! Agents are sent barriers from here, each up to where it has been sent already. So one that does not read, of the thousands that
//! there may be, takes no room for what waits for it, and what is over waits for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap as FastMap;

use super::SignalId;
use super::confirm::Confirmation;

/// All that are under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    all: BTreeMap<SignalId, Confirmation>,
    /// Those of each namespace, the oldest first.
    of_namespace: FastMap<Arc<str>, Vec<SignalId>>,
}

impl UnderWay {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn get(&self, signal: SignalId) -> Option<&Confirmation> {
        self.all.get(&signal)
    }

    pub fn get_mut(&mut self, signal: SignalId) -> Option<&mut Confirmation> {
        self.all.get_mut(&signal)
    }

    pub fn iter(&self) -> impl Iterator<Item = (SignalId, &Confirmation)> {
        self.all.iter().map(|(signal, confirmation)| (*signal, confirmation))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SignalId, &mut Confirmation)> {
        self.all.iter_mut().map(|(signal, confirmation)| (*signal, confirmation))
    }

    /// One begins. Its signal is later than all before it.
    pub fn insert(&mut self, signal: SignalId, confirmation: Confirmation) {
        self.of_namespace.entry(confirmation.key.namespace().clone()).or_default().push(signal);
        self.all.insert(signal, confirmation);
    }

    /// One is over.
    pub fn remove(&mut self, signal: SignalId) -> Option<Confirmation> {
        let confirmation = self.all.remove(&signal)?;
        let namespace = confirmation.key.namespace();
        if let Some(signals) = self.of_namespace.get_mut(namespace) {
            if let Ok(at) = signals.binary_search(&signal) {
                signals.remove(at);
            }
            if signals.is_empty() {
                self.of_namespace.remove(namespace);
            }
        }
        Some(confirmation)
    }

    /// Those of the namespace that are later than `sent`.
    pub fn after(&self, namespace: &str, sent: SignalId) -> &[SignalId] {
        let signals = self.of_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
        &signals[signals.partition_point(|signal| *signal <= sent)..]
    }
}
