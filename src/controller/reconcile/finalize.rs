//! Lets go of deleted sessions that carry the finalizer `vmcp.dev/confirm-eviction`, when no pod can serve them any
//! more (I4). Which these are is what [`crate::core::finalizing`] says.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use hashbrown::HashMap;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::told::Told;
use crate::api::{FINALIZER_CONFIRM_EVICTION, VmcpSession};
use crate::controller::clock::{now, sleep_until};
use crate::controller::election::{FIELD_MANAGER, LeadershipGuard};
use crate::controller::ledger::Ledger;
use crate::controller::peers::{Answer, Links};
use crate::controller::shared::{Shared, StreamGuard};
use crate::core::finalizing::{Finalizing, Outcome, Registered, Request, Why};
use crate::core::lease::with_drift;
use crate::core::replica::{Outgoing, ScopeId};
use crate::core::session_ref::SessionRef;
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// Calls to the API server at once.
const CALLS: usize = 8;
const DEADLINE: Duration = Duration::from_secs(5);
/// How often whoever does not lead looks whether it does.
const NOT_LEADING: Duration = Duration::from_secs(1);

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

/// Calls under way, each with its session. Their answer is whether that was let go of.
type Calls = FuturesUnordered<futures::future::BoxFuture<'static, (SessionRef, Result<bool, ApiError>)>>;

impl Finalizer {
    /// Works until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let stream = self.shared.open_stream();
        let mut finalizing = Finalizing::new(self.own.clone());
        let (mut calls, mut told) = (Calls::new(), Told::default());
        loop {
            // Whoever does not lead any more may lead again without being told: a renewal was just late.
            let wake = if self.guard.is_leader() {
                self.look(&stream, &mut finalizing, &calls)
            } else {
                Some(now() + NOT_LEADING)
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.ledger.wakers().finalizers.notified() => {}
                () = stream.woken.notified() => {
                    while let Some(outgoing) = self.shared.with(|replica, _| replica.drain(stream.id, 1)) {
                        if let Outgoing::Confirmed(confirmed) = outgoing {
                            finalizing.confirmed(confirmed.request, self.own.clone(), confirmed.registered);
                        }
                    }
                }
                Some(answer) = self.answers.recv() => {
                    self.answered(&mut finalizing, answer);
                    while let Ok(answer) = self.answers.try_recv() {
                        self.answered(&mut finalizing, answer);
                    }
                }
                Some((session, answer)) = calls.next() => {
                    finalizing.ended(&session, outcome(&session, answer, &mut told), now());
                }
                () = sleep_until(wake.unwrap_or_default()), if wake.is_some() => {}
            }
        }
        // Calls under way are finished, each within its deadline.
        while calls.next().await.is_some() {}
        Ok(())
    }

    /// Takes up what is to be done. Returns when to look again.
    fn look(&self, stream: &StreamGuard, finalizing: &mut Finalizing, calls: &Calls) -> Option<Time> {
        let changes = self.ledger.take_terminating();
        if changes.anew {
            finalizing.clear();
        }
        for (key, terminating) in changes.sessions {
            match terminating {
                Some(terminating) => finalizing.terminating(&key, terminating),
                None => finalizing.gone(&key),
            }
        }
        let registrations = self.registrations();
        let registered =
            |namespace: &str| registrations.get(&None).or_else(|| registrations.get(&Some(namespace.into())));
        let tasks = finalizing.look(now(), CALLS.saturating_sub(calls.len()), registered);
        for request in tasks.ask {
            let Request { number, key, barrier } = &request;
            // If it is refused, there are too many: the leases end instead.
            let _ = self.shared.with(|replica, now| replica.confirm(stream.id, *number, key.clone(), *barrier, now));
            for replica in self.links.open() {
                self.links.ask(&replica, *number, key, barrier);
            }
        }
        for (session, why) in tasks.let_go {
            calls.push(let_go(self.client.clone(), self.guard.clone(), session, why).boxed());
        }
        tasks.wake
    }

    /// Who matters for the sessions of each namespace that is watched, or of all, as this replica's watch shows it. Not those of which
    /// the watch shows nothing that counts: somebody may be registered whose leases are longer.
    fn registrations(&self) -> HashMap<Option<Arc<str>>, Registered> {
        self.shared.with(|replica, now| {
            let known = |scope: &ScopeId| replica.has_sessions(*scope) && replica.knows_registered(*scope, now);
            let of = |scope| Registered {
                longest: with_drift(replica.longest_lease_in(scope)),
                replicas: replica.registered(replica.registry_of(scope)).keys().cloned().collect(),
            };
            let scopes = replica.scopes().filter(|(scope, _)| known(scope));
            scopes.map(|(scope, namespace)| (namespace.cloned(), of(scope))).collect()
        })
    }

    fn answered(&self, finalizing: &mut Finalizing, answer: Answer) {
        match answer {
            Answer::Confirmed { replica, number, registered } => finalizing.confirmed(number, replica, registered),
            Answer::Opened { replica } => {
                for Request { number, key, barrier } in finalizing.requests() {
                    self.links.ask(&replica, number, &key, &barrier);
                }
            }
        }
    }
}

/// Removes our finalizer, and no other. Whatever happened, the watch shows whether there is anything left to do.
async fn let_go(
    client: Client,
    guard: LeadershipGuard,
    session: SessionRef,
    why: Why,
) -> (SessionRef, Result<bool, ApiError>) {
    let why = match why {
        Why::Confirmed => "all replicas have confirmed",
        Why::LeasesEnded => "the last lease has ended",
    };
    let answer = try_let_go(client, &guard, &session).await;
    if matches!(answer, Ok(true)) {
        info!(%session, uid = %session.uid, reason = why, "deletion confirmed");
    }
    (session, answer)
}

fn outcome(session: &SessionRef, answer: Result<bool, ApiError>, told: &mut Told) -> Outcome {
    let namespace = session.key.namespace();
    let error = match answer {
        Ok(true) => {
            if told.over(namespace) {
                info!(%namespace, "finalizers are removed again");
            }
            return Outcome::LetGo;
        }
        Ok(false) => return Outcome::Nothing,
        Err(error) if error.kind() == ApiErrorKind::Conflict => return Outcome::Nothing,
        Err(error) => error,
    };
    if told.failed(namespace, &error, Instant::now()) {
        warn!(%session, %error, "cannot remove the finalizer, perhaps of others neither; trying again");
    } else {
        debug!(%session, %error, "cannot remove the finalizer; trying again");
    }
    if error.kind().passes() { Outcome::Unanswered } else { Outcome::Refused }
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
    use crate::core::session::{SessionKey, Uid};

    #[test]
    fn who_does_not_answer_has_not_refused() {
        let session = SessionRef { key: SessionKey::new("a", "s"), uid: Uid::from_u128(1) };
        let of = |answer| outcome(&session, answer, &mut Told::default());
        assert_eq!((of(Ok(true)), of(Ok(false))), (Outcome::LetGo, Outcome::Nothing));
        assert_eq!(of(Err(ApiError::timeout(DEADLINE))), Outcome::Unanswered);
        for (code, expected) in [(403, Outcome::Refused), (409, Outcome::Nothing), (503, Outcome::Unanswered)] {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            assert_eq!(of(Err(ApiError::from_status(&status))), expected, "{code}");
        }
    }
}
