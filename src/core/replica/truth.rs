//! Objects come in from the watch; holdings are compared with them.

use std::time::Duration;

use hashbrown::HashSet as FastSet;
use thiserror::Error;

use super::compare::{Verdict, compare};
use super::rounds::Rounds;
use super::scope::Registration;
use super::{AgentId, Entry, Replica, ScopeId, Truth};
use crate::core::digest::Summary;
use crate::core::rules::Rule;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::time::Time;

/// An object as a list or a watch shows it.
#[derive(Clone, Debug)]
pub struct Object {
    /// Namespace and name.
    pub key: SessionKey,
    /// Its uid.
    pub uid: Uid,
    /// Its `metadata.generation`.
    pub generation: u64,
    /// Its resourceVersion.
    pub resource_version: ResourceVersion,
    /// Whether it has a deletionTimestamp.
    pub terminating: bool,
    /// What it is.
    pub kind: Kind,
}

/// What an object of the watched collection is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A session.
    Session(Summary),
    /// The marker of a replica, which bears the replica's name.
    Marker {
        /// How long the replica's leases are, if it says so: else they are as long as everybody's.
        lease: Option<Duration>,
    },
    /// What looks like a marker where none counts: it is no session, and registers nobody.
    Neither,
}

/// All objects there are, with what takes long to make ready: a replica that takes them does nothing else meanwhile.
#[derive(Debug)]
pub struct List {
    objects: Vec<Object>,
    keys: FastSet<SessionKey>,
}

impl From<Vec<Object>> for List {
    fn from(objects: Vec<Object>) -> Self {
        Self { keys: objects.iter().map(|object| object.key.clone()).collect(), objects }
    }
}

/// A list that is older than what was seen before it: a stale API server answered. It was not taken.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a list at resourceVersion {listed} is older than what the watch had shown ({seen}): its API server is stale")]
pub struct StaleList {
    /// The list's resourceVersion.
    pub listed: ResourceVersion,
    /// The position before it.
    pub seen: ResourceVersion,
}

impl Replica {
    /// An object was added or modified. What the watch has passed already is ignored.
    pub fn apply(&mut self, scope: ScopeId, object: Object, now: Time) {
        let resource_version = object.resource_version;
        if self.must_list(scope) {
            return;
        }
        if resource_version <= self.position(scope) && Rule::DiscardStaleList.on() {
            return;
        }
        self.put(scope, object, now);
        self.advance(scope, resource_version, now);
    }

    /// An object was deleted; `resource_version` is that of its deletion.
    pub fn delete(&mut self, scope: ScopeId, key: &SessionKey, resource_version: ResourceVersion, now: Time) {
        if resource_version <= self.position(scope) || self.must_list(scope) {
            return;
        }
        self.remove(scope, key, resource_version, now);
        self.advance(scope, resource_version, now);
    }

    /// The watch is complete up to `position`, though no object changed (a bookmark).
    pub fn bookmark(&mut self, scope: ScopeId, position: ResourceVersion, now: Time) {
        if !self.must_list(scope) {
            self.advance(scope, position.max(self.position(scope)), now);
        }
    }

    /// A whole list at `position` takes the place of everything that was known of `scope`.
    pub fn relist(
        &mut self,
        scope: ScopeId,
        list: impl Into<List>,
        position: ResourceVersion,
        now: Time,
    ) -> Result<(), StaleList> {
        let seen = self.position(scope);
        if position < seen && Rule::DiscardStaleList.on() {
            return Err(StaleList { listed: position, seen });
        }
        self.scopes[scope.0].listed();
        let List { objects, keys: listed } = list.into();
        let watched = &mut self.scopes[scope.0];
        watched
            .registered
            .retain(|name, registration| listed.contains(&SessionKey::new(registration.namespace.clone(), &**name)));
        let gone: Vec<SessionKey> = self
            .entries
            .iter()
            .filter(|(key, entry)| entry.truth.is_some() && watched.contains(key.namespace()) && !listed.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.remove(scope, &key, position, now);
        }
        for object in objects {
            self.put(scope, object, now);
        }
        self.advance(scope, position, now);
        Ok(())
    }

    /// Etcd was restored from a backup: nothing that was known counts any more. Every agent is told to drop every
    /// copy and lease; what they report from then on is compared anew.
    ///
    /// A watch that goes on tells of changes only. Whoever took these for all there is would find every other session gone,
    /// and be proven right by the next marker. So nothing counts before the next list.
    pub fn void(&mut self) {
        for scope in &mut self.scopes {
            scope.void();
        }
        for entry in self.entries.values_mut() {
            entry.truth = None;
        }
        self.registered_since = None;
        // What waits for pods is cleared, and they will not acknowledge it.
        self.rounds = Rounds::default();
        self.sessions = 0;
        self.entries.retain(|_, e| !e.holders.is_empty());
        self.reset_agents();
    }

    /// The session's uid, generation and metadata summary, as the watch shows it, unless it is being deleted.
    pub fn session(&self, key: &SessionKey) -> Option<(Uid, u64, &Summary)> {
        let truth = self.entries.get(key)?.truth.as_deref()?;
        (!truth.terminating).then_some((truth.uid, truth.generation, &truth.summary))
    }

    pub(super) fn truth(&self, key: &SessionKey) -> Option<&Truth> {
        self.entries.get(key)?.truth.as_deref()
    }

    fn put(&mut self, scope: ScopeId, object: Object, now: Time) {
        let Object { key, uid, generation, resource_version, terminating, kind } = object;
        let summary = match kind {
            Kind::Session(summary) => summary,
            Kind::Marker { lease } => {
                let lease = lease.filter(|_| Rule::RegisteredLength.on()).unwrap_or(self.config.lease);
                let registration = Registration { namespace: key.namespace().clone(), uid, resource_version, lease };
                if self.truth(&key).is_some() {
                    self.remove(scope, &key, resource_version, now);
                }
                self.scopes[scope.0].registered.insert(key.name().into(), registration);
                return;
            }
            Kind::Neither => return self.remove(scope, &key, resource_version, now),
        };
        self.scopes[scope.0].unregister(&key);
        let entry = self.entries.entry(key.clone()).or_default();
        let new = Truth { uid, generation, resource_version, terminating, summary };
        let Entry { truth, holders } = entry;
        let old = truth.replace(Box::new(new));
        let holders = holders.clone();
        if old.is_none() {
            self.sessions += 1;
        }
        self.compare_all(&key, &holders, resource_version, now);
        if let Some(new) = self.truth(&key) {
            let new = new.clone();
            self.changed(&key, old.as_deref(), &new, now);
        }
    }

    fn remove(&mut self, scope: ScopeId, key: &SessionKey, position: ResourceVersion, now: Time) {
        self.scopes[scope.0].unregister(key);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let old = entry.truth.take();
        if old.is_some() {
            self.sessions -= 1;
        }
        let holders = entry.holders.clone();
        if holders.is_empty() {
            self.entries.remove(key);
        }
        self.compare_all(key, &holders, position, now);
        self.removed(key, old.as_deref(), now);
    }

    fn compare_all(&mut self, key: &SessionKey, holders: &[AgentId], position: ResourceVersion, now: Time) {
        for agent in holders {
            self.compare_one(key, *agent, position, now);
        }
    }

    /// Compares what `agent` holds of `key` with the truth, and queues an eviction if it must go.
    pub(super) fn compare_one(&mut self, key: &SessionKey, agent: AgentId, position: ResourceVersion, now: Time) {
        let Some(scope) = self.scope_of(key.namespace()) else {
            return;
        };
        self.waits_no_more(scope, agent, key);
        let truth = self.entries.get(key).and_then(|e| e.truth.as_deref());
        let Some(known) = self.agents.get_mut(&agent) else {
            return;
        };
        let Some(held) = known.held_mut(key) else {
            return;
        };
        let watched = &mut self.scopes[scope.0];
        let verdict = if watched.must_list() {
            // What a list will show may be older than what is known now.
            Verdict::Wait(held.holding.resource_version)
        } else {
            compare(held, truth, position)
        };
        match verdict {
            Verdict::Keep => held.shown = true,
            Verdict::Wait(until) => {
                known.wait(key, until);
                watched.waiting.insert((until, agent, key.clone()));
            }
            Verdict::Evict(state) => self.evict(key, agent, state, now),
        }
    }

    fn advance(&mut self, scope: ScopeId, position: ResourceVersion, now: Time) {
        debug_assert!(position >= self.position(scope) || !Rule::DiscardStaleList.on(), "what is older was taken");
        self.scopes[scope.0].advance(position, now);
        let position = self.position(scope);
        while self.scopes[scope.0].waiting.first().is_some_and(|(until, ..)| *until <= position)
            && let Some((_, agent, key)) = self.scopes[scope.0].waiting.pop_first()
        {
            self.waits_no_more(scope, agent, &key);
            if Rule::RecheckWaiting.on() {
                self.compare_one(&key, agent, position, now);
            }
        }
        self.confirm_ready(now);
    }
}
