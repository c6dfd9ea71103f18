//! Copies that were given up before the watch showed why.

use std::time::Duration;

use hashbrown::HashMap as FastMap;

use super::{AgentName, Truth};
use crate::core::session::{SessionKey, Uid};
use crate::core::time::Time;

/// Pods that gave up a copy before this replica's watch showed why. Kept for a lease at most, and bounded.
#[derive(Debug, Default)]
pub(super) struct MovedOn {
    since: Time,
    pods: FastMap<SessionKey, Vec<(AgentName, Uid)>>,
}

impl MovedOn {
    /// Sessions that are kept at most. Copies that go for want of room are noted too, and must not pile up.
    const MOST: usize = 10_000;

    pub fn note(&mut self, key: &SessionKey, name: AgentName, uid: Uid, now: Time, lease: Duration) {
        if now.saturating_since(self.since) > lease || self.pods.len() >= Self::MOST {
            self.pods.clear();
        }
        if self.pods.is_empty() {
            self.since = now;
        }
        let pods = self.pods.entry(key.clone()).or_default();
        if !pods.iter().any(|(known, _)| *known == name) {
            pods.push((name, uid));
        }
    }

    pub fn take(&mut self, key: &SessionKey, old: Option<&Truth>, now: Time, lease: Duration) -> Vec<AgentName> {
        let pods = self.pods.remove(key).unwrap_or_default();
        let fresh = now.saturating_since(self.since) <= lease;
        let of_old = |uid: Uid| fresh && old.is_some_and(|o| o.uid == uid);
        pods.into_iter().filter(|(_, uid)| of_old(*uid)).map(|(name, _)| name).collect()
    }
}
