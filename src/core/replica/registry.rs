//! Which collection says which replicas there are.
//!
//! A registration must not be forged: whoever is registered is connected to, and waited for. Where all namespaces are
//! watched, it is the marker in the operator's own namespace. Where some are chosen, each replica has a marker in each of
//! them, which proves the watch, but whoever may write sessions there may write one too. So those register nobody, and the
//! operator's namespace is a collection of its own.
//!
//! Two watches have no common order, and whoever is asked for a confirmation knows the registrations only as of its last
//! proof for them, which is younger than a lease (else it does not answer). So a replica grants its first lease from a
//! proof that it began a whole lease after it was registered: whoever did not know of it then has answered before that, and
//! the proof shows what was confirmed. And its leases end in time for both proofs, so that a registration that stands
//! still is known to be that of a replica without leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::scope::{Registration, Scope};
use super::{Config, Replica, ScopeId};
use crate::core::lease::with_drift;
use crate::core::time::Time;

impl Replica {
    /// A replica that watches these namespaces, or all of them if none is named. Replicas are registered in `registry`: if
    /// that is none of the chosen ones, it has a scope of its own, in which there are markers only.
    pub fn with_registry(config: Config, namespaces: &[Arc<str>], registry: &Arc<str>) -> Self {
        let mut replica = Self::new(config, namespaces);
        if namespaces.is_empty() {
            return replica;
        }
        let at = namespaces.iter().position(|n| n == registry).unwrap_or_else(|| {
            replica.scopes.push(Scope::of_markers(registry.clone()));
            namespaces.len()
        });
        replica.registry = Some(ScopeId(at));
        replica
    }

    /// Whether there are sessions in this scope; otherwise there are only markers.
    pub fn has_sessions(&self, scope: ScopeId) -> bool {
        self.scopes[scope.0].has_sessions()
    }

    /// The scope whose markers are the registrations of the replicas that matter for `scope`.
    pub fn registry_of(&self, scope: ScopeId) -> ScopeId {
        self.registry.unwrap_or(scope)
    }

    /// The replicas that matter for `scope`, as the watch shows them, by name.
    pub(super) fn registered_for(&self, scope: ScopeId) -> &BTreeMap<Arc<str>, Registration> {
        self.registered(self.registry_of(scope))
    }

    /// Whether the registrations that matter for `scope` are known well enough to tell whoever asks for a confirmation, or to wait
    /// for their leases.
    pub fn knows_registered(&self, scope: ScopeId, now: Time) -> bool {
        let registry = self.registry_of(scope);
        if self.must_list(registry) {
            return false;
        }
        registry == scope || self.age_of(registry, now).is_some_and(|age| age < self.config.lease)
    }

    /// Every replica is known that was registered by then, if any time is known.
    pub fn registered_through(&self) -> Option<Time> {
        // Where each collection has its own, there is one collection.
        let registry = self.registry.unwrap_or(ScopeId(0));
        self.scopes[registry.0].proven()
    }

    /// The marker in the registry is there, as the answer to a write of it shows.
    pub fn is_registered_since(&mut self, scope: ScopeId, now: Time) {
        if self.registry == Some(scope) {
            self.registered_since.get_or_insert(now);
        }
    }

    /// The marker in the registry is not there: no lease is granted before it is again.
    pub fn is_not_registered(&mut self, scope: ScopeId) {
        if self.registry == Some(scope) {
            self.registered_since = None;
        }
    }

    /// How old that is what a lease for `scope` may rest on; `None` if there is nothing yet.
    pub(super) fn age_for_lease(&self, scope: ScopeId, now: Time) -> Option<Duration> {
        let age = self.age_of(scope, now)?;
        let registry = self.registry_of(scope);
        if registry == scope {
            return Some(age);
        }
        let known_by_all = self.registered_since? + with_drift(self.longest_lease_in(scope));
        self.scopes[scope.0].proven_after(known_by_all).then_some(age.max(self.age_of(registry, now)?))
    }
}
