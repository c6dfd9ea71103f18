//! The confirmations that are under way, by what they are looked for.
//!
//! Agents are sent barriers from here, each up to where it has been sent already. So one that does not read, of the thousands that
//! there may be, takes no room for what waits for it, and what is over waits for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap as FastMap;

use super::SignalId;
use super::confirm::Confirmation;
use crate::core::session::ResourceVersion;

/// All that are under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    all: BTreeMap<SignalId, Confirmation>,
    /// Those of each namespace, the oldest first.
    of_namespace: FastMap<Arc<str>, Vec<SignalId>>,
    /// Those for which no agent is waited for any more, by the state that the watch is to show.
    acknowledged: BTreeSet<(ResourceVersion, SignalId)>,
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

    /// Changes one.
    pub fn change(&mut self, signal: SignalId, change: impl FnOnce(&mut Confirmation)) {
        if let Some(confirmation) = self.all.get_mut(&signal) {
            changed(&mut self.acknowledged, signal, confirmation, change);
        }
    }

    /// Changes all of them.
    pub fn change_all(&mut self, mut change: impl FnMut(SignalId, &mut Confirmation)) {
        for (signal, confirmation) in &mut self.all {
            changed(&mut self.acknowledged, *signal, confirmation, |confirmation| change(*signal, confirmation));
        }
    }

    /// Those for which no agent is waited for any more, and that are about a state up to `position`. No others can be over when the
    /// watch comes to it: there may be thousands that wait for an agent which is slow, and it comes to something else all the time.
    pub fn acknowledged(&self, position: ResourceVersion) -> impl Iterator<Item = (SignalId, &Confirmation)> {
        let reached = self.acknowledged.range(..=(position, SignalId(u64::MAX)));
        reached.filter_map(|(_, signal)| Some((*signal, self.all.get(signal)?)))
    }

    /// One begins. Its signal is later than all before it.
    pub fn insert(&mut self, signal: SignalId, confirmation: Confirmation) {
        self.of_namespace.entry(confirmation.key.namespace().clone()).or_default().push(signal);
        if confirmation.waits_for_nobody() {
            self.acknowledged.insert(confirmation.place(signal));
        }
        self.all.insert(signal, confirmation);
    }

    /// One is over.
    pub fn remove(&mut self, signal: SignalId) -> Option<Confirmation> {
        let confirmation = self.all.remove(&signal)?;
        self.acknowledged.remove(&confirmation.place(signal));
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

/// Changes one, and notes it if that was the last agent that it waited for. Nobody comes to be waited for again.
fn changed(
    acknowledged: &mut BTreeSet<(ResourceVersion, SignalId)>,
    signal: SignalId,
    confirmation: &mut Confirmation,
    change: impl FnOnce(&mut Confirmation),
) {
    let waited = !confirmation.waits_for_nobody();
    change(confirmation);
    if waited && confirmation.waits_for_nobody() {
        acknowledged.insert(confirmation.place(signal));
    }
}
