//! Confirmations: that no agent whom this replica may have leased to serves anything older than a committed state.
//!
//! A barrier goes to every agent of the namespace, holder or not, since a GET of its may be in flight. The confirmation
//! waits for those that may have a lease of this replica, connected or not, until they have acknowledged or that lease
//! has ended. It is answered with the replicas that were registered when the state was committed, as this replica's
//! own watch shows them: whoever asked needs the answer of each of these. A replica that registered later learned of
//! the state before it granted its first lease.
//!
//! Who asks may lie, and who is asked may be silent. So a confirmation waits for no agent longer than a lease: what was
//! leased before it has ended then, and every lease since has come after the barrier. And a state that a proof of freshness
//! does not show, though the proof was begun after the request came, was never committed: that request is dropped. One pod
//! and one namespace can have a part of the confirmations under way, and all pods together leave some to the leader.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet as FastSet;
use thiserror::Error;

use super::{AgentId, AgentName, Replica, ScopeId, SignalId};
use crate::core::lease::{StreamId, with_drift};
use crate::core::rate::Buckets;
use crate::core::rules::Rule;
use crate::core::session::{ResourceVersion, SessionKey};
use crate::core::signal::{Barrier, Fate};
use crate::core::tally::Bounds;
use crate::core::time::Time;

/// One part in so many of the confirmations under way is kept for the leader.
const LEADERS_PART: usize = 8;

/// Confirmations that one pod may ask for at once and, after these, one in each interval: more than etcd takes writes from one pod.
/// Who is refused one asks again, or waits for the leases to end. Each is told to all agents of the namespace.
const OF_A_POD: (u32, Duration) = (1_024, Duration::from_micros(250));
/// Pods of which it is known how often they ask: more than can be connected.
const MOST_PODS: usize = 16_384;

/// How often pods ask, by namespace and name.
pub(super) fn rates() -> Buckets<(Arc<str>, AgentName)> {
    Buckets::new(OF_A_POD.0, OF_A_POD.1, MOST_PODS)
}

/// The answer to a confirmation request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The request's own number.
    pub request: u64,
    /// The replicas that were registered when the state was committed.
    pub registered: Vec<Arc<str>>,
}

/// Why a confirmation cannot be had now. Whoever asked asks again, or waits for the leases to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfirmRefused {
    /// Too many are under way, or the pod asks too often.
    #[error("too many confirmations are under way, or asked for")]
    Busy,
    /// The namespace is not watched.
    #[error("the namespace is not watched")]
    NotWatched,
}

#[derive(Debug)]
pub(super) struct Confirmation {
    pub key: SessionKey,
    pub barrier: Barrier,
    scope: ScopeId,
    /// Who asked; `None` if it left.
    origin: Option<StreamId>,
    request: u64,
    waiting: BTreeSet<AgentId>,
    /// Namespace and name of the pod that asked; `None` if it was another replica.
    pod: Option<(Arc<str>, AgentName)>,
    /// When time was first told after the request came.
    since: Option<Time>,
}

impl Confirmation {
    /// Whether no agent is waited for: none any more, or nobody waits for the answer.
    pub fn waits_for_nobody(&self) -> bool {
        self.waiting.is_empty() || self.origin.is_none()
    }

    /// Where it stands among those that wait for the watch.
    pub fn place(&self, signal: SignalId) -> (ResourceVersion, SignalId) {
        (self.barrier.mark.resource_version, signal)
    }
}

impl Replica {
    /// Somebody asks for a confirmation that nobody serves anything older than `barrier`.
    pub fn confirm(
        &mut self,
        origin: StreamId,
        request: u64,
        key: SessionKey,
        barrier: Barrier,
        now: Time,
    ) -> Result<(), ConfirmRefused> {
        let scope = self.scope_of(key.namespace()).ok_or(ConfirmRefused::NotWatched)?;
        let pod = self.pod_of(origin);
        let admitted = self.may_confirm(origin, pod.as_ref());
        if !admitted || pod.as_ref().is_some_and(|pod| !self.asking.of(pod, now).take(now)) {
            return Err(ConfirmRefused::Busy);
        }
        let signal = self.next_signal();
        let mut waiting = BTreeSet::new();
        for id in self.by_namespace.get(key.namespace()).into_iter().flatten() {
            let Some(agent) = self.agents.get(id).filter(|agent| agent.is_told(&key)) else {
                continue;
            };
            // Agents whose lease has ended are dropped from it by the next `poll`.
            if agent.stream().is_some() || Rule::RememberAgents.on() {
                waiting.insert(*id);
            }
            self.woken.extend(agent.stream());
        }
        if let Some((namespace, name)) = &pod {
            self.asked.add(namespace, name);
        }
        let origin = Some(origin);
        let confirmation = Confirmation { key, barrier, scope, origin, request, waiting, pod, since: None };
        self.confirmations.insert(signal, confirmation);
        self.confirm_one(signal, now);
        Ok(())
    }

    fn pod_of(&self, stream: StreamId) -> Option<(Arc<str>, AgentName)> {
        let agent = self.agents.get(self.by_stream.get(&stream)?)?;
        Some((agent.namespace().clone(), agent.name().clone()))
    }

    fn may_confirm(&self, origin: StreamId, pod: Option<&(Arc<str>, AgentName)>) -> bool {
        let Bounds { all, per_pod } = self.config.confirmations;
        let unread = self.replies.get(&origin).map_or(0, Vec::len);
        let Some((namespace, name)) = pod else {
            return self.confirmations.len() < all && unread < all;
        };
        let all = all - all / LEADERS_PART;
        let bounds = Bounds { all, per_pod: per_pod.saturating_sub(unread) };
        self.confirmations.len() < all && self.asked.admits(namespace, name, bounds).is_ok()
    }

    pub(super) fn confirm_acknowledged(&mut self, agent: AgentId, signal: SignalId, now: Time) {
        let mut was_last = false;
        self.confirmations.change(signal, |confirmation| {
            was_last = confirmation.waiting.remove(&agent) && confirmation.waiting.is_empty();
        });
        if was_last {
            self.confirm_one(signal, now);
        }
    }

    /// These agents have no lease of this replica any more: nobody needs to wait for them. All at once, since a watch that stands
    /// still ends the leases of all agents together, and leaves all confirmations under way.
    pub(super) fn confirm_forget(&mut self, agents: &FastSet<AgentId>) {
        if agents.is_empty() {
            return;
        }
        self.confirmations.change_all(|_, confirmation| {
            // Many agents may also leave one by one.
            if agents.len() < confirmation.waiting.len() {
                agents.iter().for_each(|agent| _ = confirmation.waiting.remove(agent));
            } else {
                confirmation.waiting.retain(|agent| !agents.contains(agent));
            }
        });
    }

    /// Nobody waits for the answers to this stream's requests any more. Their barriers stay until they are seen.
    pub(super) fn confirmer_left(&mut self, stream: StreamId) {
        self.confirmations.change_all(|_, confirmation| {
            confirmation.origin.take_if(|origin| *origin == stream);
        });
    }

    /// Nobody is waited for longer than a lease, and no state that does not exist.
    pub(super) fn poll_confirmations(&mut self, now: Time) {
        let longest = with_drift(self.config.lease);
        let mut never = Vec::new();
        self.confirmations.change_all(|signal, confirmation| {
            let since = *confirmation.since.get_or_insert(now);
            if since + longest <= now {
                confirmation.waiting.clear();
            }
            if self.scopes[confirmation.scope.0].proven_after(since) {
                never.push(signal);
            }
        });
        self.confirm_ready(now);
        for signal in never {
            if self.confirmations.get(signal).is_some_and(|c| !self.seen(c)) {
                self.confirm_over(signal);
            }
        }
    }

    /// Takes a confirmation out. Whoever was not sent its barrier yet needs it no more than a new stream does.
    fn confirm_over(&mut self, signal: SignalId) -> Option<Confirmation> {
        let confirmation = self.confirmations.remove(signal)?;
        if let Some((namespace, name)) = &confirmation.pod {
            self.asked.remove(namespace, name);
        }
        Some(confirmation)
    }

    /// Answers what is acknowledged by all and shown by the watch.
    pub(super) fn confirm_ready(&mut self, now: Time) {
        if self.confirmations.is_empty() {
            return;
        }
        let furthest = self.scopes.iter().map(|scope| scope.position).max().filter(|_| Rule::ConfirmWhenSeen.on());
        let acknowledged = self.confirmations.acknowledged(furthest.unwrap_or(ResourceVersion(u64::MAX)));
        let mut ready: Vec<_> = acknowledged.filter(|(_, c)| self.is_ready(c, now)).map(|(id, _)| id).collect();
        // As they were asked for.
        ready.sort_unstable();
        for id in ready {
            self.confirm_answer(id);
        }
    }

    /// Answers this one, if it is. An acknowledgement makes no other one ready, of thousands that there may be.
    fn confirm_one(&mut self, signal: SignalId, now: Time) {
        if self.confirmations.get(signal).is_some_and(|c| self.is_ready(c, now)) {
            self.confirm_answer(signal);
        }
    }

    fn is_ready(&self, confirmation: &Confirmation, now: Time) -> bool {
        confirmation.waits_for_nobody() && self.seen(confirmation) && self.knows_registered(confirmation.scope, now)
    }

    fn confirm_answer(&mut self, signal: SignalId) {
        let Some(confirmation) = self.confirm_over(signal) else {
            return;
        };
        let Some(origin) = confirmation.origin else {
            return;
        };
        let registered = self.registered_for(confirmation.scope).keys().cloned().collect();
        let reply = Confirmed { request: confirmation.request, registered };
        self.replies.entry(origin).or_default().push(reply);
        self.wake(Some(origin));
    }

    /// Whether the watch shows the state, or a later one.
    fn seen(&self, confirmation: &Confirmation) -> bool {
        if !Rule::ConfirmWhenSeen.on() {
            return true;
        }
        let mark = confirmation.barrier.mark;
        let reached = self.position(confirmation.scope) >= mark.resource_version;
        let alive = || self.truth(&confirmation.key).is_some_and(|t| t.uid == mark.uid && !t.terminating);
        // The resourceVersion of a deletion is not told to who deletes: what is known is one at which the object lived.
        reached && !(mark.fate == Fate::Gone && alive())
    }
}
