//! Lets go of deleted sessions that carry the finalizer `vmcp.dev/confirm-eviction`, when no pod can serve them any
//! more (I4).
//!
//! That is so when every replica has confirmed it that is registered, or when the last lease has ended that was granted before
//! the deletion.
//! So no object hangs for longer than a lease, whoever is dead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{FINALIZER_CONFIRM_EVICTION, VmcpSession};
use crate::controller::clock::{now, sleep_until};
use crate::controller::leader::{FIELD_MANAGER, LeadershipGuard};
use crate::controller::ledger::{Ledger, Terminating};
use crate::controller::peers::{Answer, Links};
use crate::controller::reconcile::turns;
use crate::controller::shared::{Shared, StreamGuard};
use crate::core::lease::with_drift;
use crate::core::replica::Outgoing;
use crate::core::session::SessionKey;
use crate::core::session_ref::SessionRef;
use crate::core::signal::{Barrier, Fate, Mark};
use crate::core::tally::{Bounds, Tally};
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// Confirmations under way at once, and what a namespace may have of them. More wait, and are let go after a lease.
const CONFIRMATIONS: Bounds = Bounds { all: 1_024, per_pod: usize::MAX };
/// Calls to the API server at once.
const CALLS: usize = 8;
const DEADLINE: Duration = Duration::from_secs(5);
/// How soon what went wrong is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Lets go of deleted sessions.
pub struct Finalizer {
    /// Which sessions these are.
    pub ledger: Arc<Ledger>,
    /// The agents of this replica.
    pub shared: Arc<Shared>,
    /// The other replicas.
    pub links: Arc<Links>,
    /// What these answer.
    pub answers: mpsc::Receiver<Answer>,
    /// The API server.
    pub client: Client,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
    /// Name of this replica.
    pub own: Arc<str>,
}

/// Whose confirmation is needed, and whose is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Quorum {
    /// As the first answer has it: the replicas that were registered when the deletion was committed.
    needed: Option<BTreeSet<Arc<str>>>,
    confirmed: BTreeSet<Arc<str>>,
}

impl Quorum {
    fn confirmed(&mut self, replica: Arc<str>, registered: Vec<Arc<str>>) {
        self.needed.get_or_insert_with(|| registered.into_iter().collect());
        self.confirmed.insert(replica);
    }

    /// Whether all have confirmed, this replica (`own`) among them in any case.
    ///
    /// Those that are not registered any more need not: a marker goes when the last lease of its replica has ended, and
    /// whoever registers after that knows of the deletion. `is_registered` speaks for this replica's own watch, which shows
    /// the deletion once this replica has confirmed. One that does not even see itself there has seen nothing.
    fn is_complete(&self, own: &str, is_registered: impl Fn(&str) -> bool) -> bool {
        let Some(needed) = self.needed.as_ref().filter(|_| self.confirmed.contains(own)) else {
            return false;
        };
        let mut missing = needed.difference(&self.confirmed).peekable();
        missing.peek().is_none() || is_registered(own) && missing.all(|replica| !is_registered(replica))
    }
}

/// The replicas that matter for the sessions of a namespace.
struct Registered {
    replicas: BTreeSet<Arc<str>>,
    longest_lease: Duration,
}

#[derive(Debug)]
enum Stage {
    /// Replicas are asked.
    Asked(Quorum),
    /// The API server is asked to let go.
    LettingGo,
    /// That went wrong, or the watch does not show it yet.
    Again(Time),
}

#[derive(Debug)]
struct Work {
    number: u64,
    terminating: Terminating,
    stage: Stage,
}

type Calls = FuturesUnordered<futures::future::BoxFuture<'static, SessionKey>>;

impl Finalizer {
    /// Works until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let stream = self.shared.open_stream();
        let mut works: BTreeMap<SessionKey, Work> = BTreeMap::new();
        let mut calls = Calls::new();
        let mut last_number = 0;
        loop {
            let wake = if self.guard.is_leader() {
                self.look(&stream, &mut works, &mut calls, &mut last_number)
            } else {
                works.clear();
                None
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.ledger.wakers().finalizers.notified() => {}
                () = stream.woken.notified() => {
                    while let Some(outgoing) = self.shared.with(|replica, _| replica.drain(stream.id, 1)) {
                        if let Outgoing::Confirmed(confirmed) = outgoing {
                            confirmed_by(&mut works, confirmed.request, self.own.clone(), confirmed.registered);
                        }
                    }
                }
                Some(answer) = self.answers.recv() => {
                    self.answered(&mut works, answer);
                    while let Ok(answer) = self.answers.try_recv() {
                        self.answered(&mut works, answer);
                    }
                }
                Some(mut key) = calls.next() => {
                    // All that have ended, since each look goes through all sessions.
                    loop {
                        if let Some(work) = works.get_mut(&key) {
                            work.stage = Stage::Again(now() + AGAIN);
                        }
                        match calls.next().now_or_never() {
                            Some(Some(ended)) => key = ended,
                            Some(None) | None => break,
                        }
                    }
                }
                () = sleep_until(wake.unwrap_or_default()), if wake.is_some() => {}
            }
        }
        // Calls under way are finished, each within its deadline.
        while calls.next().await.is_some() {}
        Ok(())
    }

    /// Takes up what is to be done. Returns when to look again.
    fn look(
        &self,
        stream: &StreamGuard,
        works: &mut BTreeMap<SessionKey, Work>,
        calls: &mut Calls,
        last_number: &mut u64,
    ) -> Option<Time> {
        let now = now();
        let terminating: BTreeMap<SessionKey, Terminating> = self.ledger.terminating().into_iter().collect();
        works.retain(|key, work| terminating.get(key).is_some_and(|t| t.uid == work.terminating.uid));
        let registered = self.registered(terminating.keys());
        let mut wake: Option<Time> = None;
        let mut again_at = |at: Time| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        let mut asked = Tally::default();
        for key in works.keys() {
            asked.add(key.namespace(), "");
        }
        let mut ready = Vec::new();
        for (key, terminating) in terminating {
            let Some(registered) = registered.get(key.namespace()) else {
                continue;
            };
            let over = terminating.since + with_drift(registered.longest_lease);
            if now < over {
                again_at(over);
            }
            if !works.contains_key(&key) {
                if now < over && asked.admits(key.namespace(), "", CONFIRMATIONS).is_err() {
                    continue;
                }
                asked.add(key.namespace(), "");
                *last_number += 1;
                let work = Work { number: *last_number, terminating, stage: Stage::Asked(Quorum::default()) };
                if now < over {
                    self.ask(stream, &key, &work);
                }
                works.insert(key.clone(), work);
            }
            let Some(work) = works.get_mut(&key) else {
                continue;
            };
            let is_ready = match &work.stage {
                Stage::Asked(quorum) => {
                    now >= over || quorum.is_complete(&self.own, |name| registered.replicas.contains(name))
                }
                Stage::LettingGo => false,
                Stage::Again(at) => {
                    if now < *at {
                        again_at(*at);
                    }
                    now >= *at
                }
            };
            if is_ready {
                let why = if now >= over { "the last lease has ended" } else { "all replicas have confirmed" };
                ready.push((key, why));
            }
        }
        // Others wait: the end of a call wakes us.
        let free = CALLS.saturating_sub(calls.len());
        let under_way = works.iter().filter(|(_, work)| matches!(work.stage, Stage::LettingGo)).map(|(key, _)| key);
        for (key, why) in turns::next(ready, under_way, free) {
            let Some(work) = works.get_mut(&key) else { continue };
            work.stage = Stage::LettingGo;
            let session = SessionRef { key, uid: work.terminating.uid };
            calls.push(let_go(self.client.clone(), self.guard.clone(), session, why).boxed());
        }
        wake
    }

    /// Who matters for these sessions, by namespace, as this replica's watch shows it. Many sessions may be deleted at once, and the
    /// replica is locked meanwhile: it is asked once for each namespace.
    fn registered<'a>(&self, keys: impl Iterator<Item = &'a SessionKey>) -> HashMap<Arc<str>, Registered> {
        let namespaces: BTreeSet<&Arc<str>> = keys.map(SessionKey::namespace).collect();
        self.shared.with(|replica, _| {
            let of = |namespace: &str| Registered {
                longest_lease: replica.longest_lease(namespace),
                replicas: replica.registered_in(namespace).cloned().collect(),
            };
            namespaces.into_iter().map(|namespace| (namespace.clone(), of(namespace))).collect()
        })
    }

    fn ask(&self, stream: &StreamGuard, key: &SessionKey, work: &Work) {
        let barrier = barrier(&work.terminating);
        // If it is refused, there are too many: the leases end instead.
        let _ = self.shared.with(|replica, now| replica.confirm(stream.id, work.number, key.clone(), barrier, now));
        for replica in self.links.open() {
            self.links.ask(&replica, work.number, key, &barrier);
        }
    }

    fn answered(&self, works: &mut BTreeMap<SessionKey, Work>, answer: Answer) {
        match answer {
            Answer::Confirmed { replica, number, registered } => confirmed_by(works, number, replica, registered),
            Answer::Opened { replica } => {
                for (key, work) in works.iter().filter(|(_, work)| matches!(work.stage, Stage::Asked(_))) {
                    self.links.ask(&replica, work.number, key, &barrier(&work.terminating));
                }
            }
        }
    }
}

fn confirmed_by(works: &mut BTreeMap<SessionKey, Work>, number: u64, replica: Arc<str>, registered: Vec<Arc<str>>) {
    if let Some(work) = works.values_mut().find(|work| work.number == number)
        && let Stage::Asked(quorum) = &mut work.stage
    {
        quorum.confirmed(replica, registered);
    }
}

fn barrier(terminating: &Terminating) -> Barrier {
    let Terminating { uid, resource_version, .. } = *terminating;
    Barrier { mark: Mark { uid, fate: Fate::Gone, resource_version }, digest: None }
}

/// Removes our finalizer, and no other. Whatever happened, the watch shows whether there is anything left to do.
async fn let_go(client: Client, guard: LeadershipGuard, session: SessionRef, why: &'static str) -> SessionKey {
    match try_let_go(client, &guard, &session).await {
        Ok(true) => info!(%session, uid = %session.uid, reason = why, "deletion confirmed"),
        Ok(false) => {}
        Err(error) if error.kind() == ApiErrorKind::Conflict => {}
        Err(error) => warn!(%session, %error, "cannot remove the finalizer; trying again"),
    }
    session.key
}

async fn try_let_go(client: Client, guard: &LeadershipGuard, session: &SessionRef) -> Result<bool, ApiError> {
    let api: Api<VmcpSession> = Api::namespaced(client, session.key.namespace());
    let name = session.key.name();
    let Some(object) = deadline(DEADLINE, api.get_metadata_opt(name)).await? else {
        return Ok(false);
    };
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != FINALIZER_CONFIRM_EVICTION);
    let uid = session.uid.to_string();
    let ours = object.metadata.uid.as_ref() == Some(&uid) && object.metadata.deletion_timestamp.is_some();
    if !ours || finalizers.len() == object.finalizers().len() || !guard.is_leader() {
        return Ok(false);
    }
    // A list is replaced as a whole, so it must be the one that was read.
    let resource_version = object.metadata.resource_version;
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": resource_version, "finalizers": finalizers}});
    let signed = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match deadline(DEADLINE, api.patch_metadata(name, &signed, &Patch::Merge(patch))).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ApiErrorKind::NotFound | ApiErrorKind::UidMismatch) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn everybody_of_the_first_answer_must_confirm_and_this_replica_in_any_case() {
        let mut quorum = Quorum::default();
        let is_complete = |quorum: &Quorum| quorum.is_complete("own", |_| true);
        assert!(!is_complete(&quorum));
        quorum.confirmed("a".into(), names(&["own", "a", "b"]));
        quorum.confirmed("own".into(), names(&["own"]));
        assert!(!is_complete(&quorum), "b is missing");
        quorum.confirmed("b".into(), names(&["own", "a", "b", "new"]));
        assert!(is_complete(&quorum), "who registered later knows of the deletion");
        let mut quorum = Quorum::default();
        quorum.confirmed("a".into(), names(&["a"]));
        assert!(!is_complete(&quorum));
    }

    #[test]
    fn whoever_is_not_registered_any_more_need_not_confirm() {
        let mut quorum = Quorum::default();
        let among = |registered: &'static [&str]| move |name: &str| registered.contains(&name);
        quorum.confirmed("a".into(), names(&["own", "a", "b", "c"]));
        assert!(!quorum.is_complete("own", among(&["own"])), "this replica's watch may not show the deletion yet");
        quorum.confirmed("own".into(), names(&["own", "a", "b", "c"]));
        assert!(!quorum.is_complete("own", among(&["own", "a", "b"])), "b may have leases");
        assert!(!quorum.is_complete("own", among(&[])), "nothing is known after a restore of etcd");
        assert!(quorum.is_complete("own", among(&["own", "a", "new"])));
    }
}
