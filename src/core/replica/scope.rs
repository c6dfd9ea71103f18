//! How far a watch is, and how fresh that is proven to be.
//!
//! A replica writes a marker into each collection that it watches, again and again, and waits to see it come through
//! its own watch: everything that was committed before the marker was SENT has then been compared. An event alone
//! proves nothing, since an API server may deliver old ones late.
//!
//! The marker is at the same time the replica's registration: who sees it knows whom to ask for a confirmation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::chain::Found;
use super::{AgentId, Replica};
use crate::core::rules::Rule;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::signal::{Barrier, Fate, Mark};
use crate::core::time::Time;

/// Identifies a watched collection: all namespaces, or one of those that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub(super) usize);

/// A marker's answer contradicts what the watch has shown.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the API server went back in time: a write was answered with resourceVersion {answered}, but {seen} had been seen before it was sent"
)]
pub struct ProofError {
    /// The resourceVersion of the write.
    pub answered: ResourceVersion,
    /// The watch's position when it was sent.
    pub seen: ResourceVersion,
}

/// A replica's registration: the object that is its marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The marker's namespace. An object of the same name in another one has nothing to do with it.
    pub namespace: Arc<str>,
    /// The marker's uid.
    pub uid: Uid,
    /// Its last write that the watch has shown.
    pub resource_version: ResourceVersion,
    /// How long the replica's leases are.
    pub lease: Duration,
}

/// A watched collection.
#[derive(Debug)]
pub(super) struct Scope {
    namespace: Option<Arc<str>>,
    /// There are markers only, and no sessions.
    only_markers: bool,
    /// Everything up to here has been shown and compared.
    pub position: ResourceVersion,
    /// What the watch shows does not count before everything was listed.
    must_list: bool,
    /// How often that was found.
    doubts: u64,
    /// A marker was acknowledged, and is not known to be gone.
    marked: bool,
    /// The API server has refused the marker since the last proof.
    refused: bool,
    proven: Option<Time>,
    /// It was told since that nothing proves it.
    told: bool,
    /// Markers that have been answered and not yet been seen: when they were sent, by their resourceVersion.
    unproven: BTreeMap<ResourceVersion, Time>,
    pub registered: BTreeMap<Arc<str>, Registration>,
    /// Holdings that are newer than the watch, by the resourceVersion at which they can be compared.
    pub waiting: BTreeSet<(ResourceVersion, AgentId, SessionKey)>,
}

impl Scope {
    pub fn new(namespace: Option<Arc<str>>) -> Self {
        Self {
            namespace,
            only_markers: false,
            position: ResourceVersion(0),
            must_list: false,
            doubts: 0,
            marked: false,
            refused: false,
            proven: None,
            told: false,
            unproven: BTreeMap::new(),
            registered: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// A collection that has markers only.
    pub fn of_markers(namespace: Arc<str>) -> Self {
        Self { only_markers: true, ..Self::new(Some(namespace)) }
    }

    pub fn has_sessions(&self) -> bool {
        !self.only_markers
    }

    /// The marker `key` is gone, or is a session now.
    pub fn unregister(&mut self, key: &SessionKey) {
        let known = self.registered.get(key.name());
        if known.is_some_and(|r| r.namespace == *key.namespace()) {
            self.registered.remove(key.name());
        }
    }

    pub fn namespace(&self) -> Option<&Arc<str>> {
        self.namespace.as_ref()
    }

    /// Whether sessions of the namespace are in it.
    pub fn contains(&self, namespace: &str) -> bool {
        self.has_sessions() && self.namespace.as_deref().is_none_or(|n| n == namespace)
    }

    /// Everything up to `position` has been compared.
    pub fn advance(&mut self, position: ResourceVersion, now: Time) {
        self.position = self.position.max(position);
        if self.must_list {
            // A list will tell whether that is so.
            return;
        }
        while let Some(first) = self.unproven.first_entry() {
            if *first.key() > self.position {
                break;
            }
            let sent = first.remove();
            let proven = if Rule::ProofFromSend.on() { sent } else { now };
            self.proven = self.proven.max(Some(proven));
            self.refused = false;
            self.told = false;
        }
    }

    pub fn void(&mut self) {
        let Self { only_markers, doubts, marked, .. } = *self;
        *self = Self { must_list: true, doubts: doubts + 1, only_markers, marked, ..Self::new(self.namespace.take()) };
    }

    /// The watch may have missed something: what it has shown stays, but proves nothing.
    pub fn doubt(&mut self) {
        self.must_list = true;
        self.doubts += 1;
        self.proven = None;
        self.unproven.clear();
    }

    /// A whole list takes the place of what was known.
    pub fn listed(&mut self) {
        self.must_list = false;
    }

    /// Whether only a list can tell how things are.
    pub fn must_list(&self) -> bool {
        self.must_list
    }

    /// Whether a marker that was sent after `then` has come through the watch: whatever was committed until then has been
    /// shown.
    pub fn proven_after(&self, then: Time) -> bool {
        self.proven > Some(then)
    }

    /// When the latest marker was sent that has come through the watch.
    pub fn proven(&self) -> Option<Time> {
        self.proven
    }

    /// How old the knowledge is; `None` if it never was proven.
    pub fn age(&self, now: Time) -> Option<Duration> {
        if !Rule::ProofBeforeLease.on() {
            return Some(Duration::ZERO);
        }
        self.proven.map(|proven| now.saturating_since(proven))
    }
}

impl Replica {
    /// The resourceVersion up to which the watch of `scope` is complete and compared.
    pub fn position(&self, scope: ScopeId) -> ResourceVersion {
        self.scopes[scope.0].position
    }

    /// Whether the watch of `scope` shows nothing that counts until everything is listed again: see [`Self::void`] and
    /// [`Self::marker_found`].
    pub fn must_list(&self, scope: ScopeId) -> bool {
        self.scopes[scope.0].must_list()
    }

    /// How often it was found that `scope` must be listed. A list that was begun before the last time does not count.
    pub fn doubts(&self, scope: ScopeId) -> u64 {
        self.scopes[scope.0].doubts
    }

    /// Whether a list that is begun now may count: a marker was acknowledged, and is not known to be gone.
    pub fn is_marked(&self, scope: ScopeId) -> bool {
        self.scopes[scope.0].marked
    }

    /// Whether the API server refused the marker when it was last written.
    pub fn is_refused(&self, scope: ScopeId) -> bool {
        self.scopes[scope.0].refused
    }

    /// A marker that was sent at `sent`, when the position was `seen`, was answered with `answered`. An error means
    /// that etcd was restored from a backup: all state and all leases are void (see [`Self::void`]).
    pub fn marker_answered(
        &mut self,
        id: ScopeId,
        sent: Time,
        seen: ResourceVersion,
        answered: ResourceVersion,
        now: Time,
    ) -> Result<(), ProofError> {
        if answered < seen {
            return Err(ProofError { answered, seen });
        }
        // A proof as old as a lease gives none. (A watch that is silent for days must not pile them up.)
        let lease = self.config.lease;
        let scope = &mut self.scopes[id.0];
        scope.unproven.retain(|_, sent| now.saturating_since(*sent) < lease);
        scope.unproven.insert(answered, sent);
        scope.advance(scope.position, now);
        self.evict_impossible(id, sent, answered, now);
        Ok(())
    }

    /// The marker of `scope` was found so. Whether that proves that etcd was restored from a backup, so that everything is void (see
    /// [`Self::void`]).
    ///
    /// It proves it in the registry alone: elsewhere, whoever may write sessions may write into the marker, and must not
    /// cost other namespaces all their copies. There, and where the marker was removed (also by whoever leads, who took this replica
    /// for dead), made or not written for long, everything is listed anew before the next lease. A list shows what a watch that is
    /// resumed after a restore does not.
    pub fn marker_found(&mut self, id: ScopeId, found: Found) -> bool {
        match found {
            Found::Ahead | Found::NotYet => false,
            Found::Behind if self.registry_of(id) == id => {
                self.void();
                true
            }
            Found::Behind | Found::First | Found::Removed | Found::LongAgo => {
                let scope = &mut self.scopes[id.0];
                scope.marked = found != Found::Removed;
                scope.doubt();
                self.refuse_heartbeats(id);
                false
            }
        }
    }

    /// Heartbeats that wait for their answers get none: they would have had leases that rest on what is in doubt by now.
    fn refuse_heartbeats(&mut self, id: ScopeId) {
        let rests_on_it = |namespace| self.scope_of(namespace).is_some_and(|of| of == id || self.registry_of(of) == id);
        let namespaces: Vec<Arc<str>> = self.by_namespace.keys().filter(|n| rests_on_it(n)).cloned().collect();
        for agent in namespaces.iter().flat_map(|namespace| &self.by_namespace[namespace]) {
            if let Some(agent) = self.agents.get_mut(agent) {
                agent.forget_heartbeat();
            }
        }
    }

    /// A copy that was reported before a write was sent cannot have been read at a resourceVersion above that of the
    /// write: it is of a history that a restored backup has wiped out. Whoever waited for the watch to reach it would
    /// keep what was reported later without cover for as long.
    fn evict_impossible(&mut self, scope: ScopeId, sent: Time, written: ResourceVersion, now: Time) {
        let above = self.scopes[scope.0].waiting.iter().rev().take_while(|(until, ..)| *until > written);
        let above: Vec<(AgentId, SessionKey)> = above.map(|(_, agent, key)| (*agent, key.clone())).collect();
        for (agent, key) in above {
            let held = self.agents.get_mut(&agent).and_then(|a| a.held_mut(&key));
            if let Some(held) = held.filter(|held| held.reported < sent) {
                let uid = held.holding.uid;
                // It is told, and needs to be looked at no more.
                self.waits_no_more(scope, agent, &key);
                let mark = Mark { uid, fate: Fate::Gone, resource_version: written };
                self.evict(&key, agent, Barrier { mark, digest: None }, now);
            }
        }
    }

    /// How old the knowledge of `scope` is; `None` if it was never proven.
    pub fn age_of(&self, scope: ScopeId, now: Time) -> Option<Duration> {
        self.scopes[scope.0].age(now)
    }

    /// Nothing has proven the watch of `scope` for long. Whether this is the first time since it was proven: people hear of it once.
    pub fn begins_to_be_unproven(&mut self, scope: ScopeId) -> bool {
        !std::mem::replace(&mut self.scopes[scope.0].told, true)
    }

    /// The API server refuses the marker of `scope`: its namespace is full or gone, or nobody has given us the right.
    pub fn marker_refused(&mut self, scope: ScopeId) {
        self.scopes[scope.0].refused = true;
    }

    /// How many scopes there are whose marker has been refused since they were last proven, if they were: nobody gets a lease there.
    pub fn refused(&self, now: Time) -> usize {
        let without = |(at, scope): &(usize, &Scope)| {
            scope.refused && self.age_for_lease(ScopeId(*at), now).is_none_or(|age| age >= self.config.lease)
        };
        self.scopes.iter().enumerate().filter(without).count()
    }

    /// How old the knowledge is that leases rest on, in the least fresh scope; `None` if there is none yet for one. Scopes whose
    /// marker is refused do not count beside others: one namespace that is full or gone must not keep agents from the rest.
    pub fn age(&self, now: Time) -> Option<Duration> {
        let refused = |scope: &Scope| scope.has_sessions() && scope.refused;
        let all = self.scopes.iter().filter(|scope| scope.has_sessions()).all(refused);
        let counting = self.scopes.iter().enumerate().filter(|(_, scope)| all || !refused(scope));
        let ages: Option<Vec<Duration>> = counting.map(|(at, _)| self.age_for_lease(ScopeId(at), now)).collect();
        ages?.into_iter().max()
    }

    /// How long the leases are of those replicas that matter for the sessions of `scope`, the longest of them: while an upgrade
    /// changes the length, they differ.
    pub fn longest_lease_in(&self, scope: ScopeId) -> Duration {
        let registered = self.registered_for(scope).values();
        registered.map(|registration| registration.lease).fold(self.config.lease, Duration::max)
    }

    /// Replicas with a marker in `scope`, as the watch shows them, by name.
    pub fn registered(&self, scope: ScopeId) -> &BTreeMap<Arc<str>, Registration> {
        &self.scopes[scope.0].registered
    }
}
