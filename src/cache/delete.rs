//! Deletes.

use std::sync::Arc;

use futures::future::{join, join_all};
use tokio::time::{Instant, sleep};

use super::api_server::CallError;
use super::error::WriteError;
use super::options::Visibility;
use super::shared::Shared;
use super::unconfirmed::{Deletion, Open};
use super::write::{PAUSE, gone};
use crate::core::cache::Answer;
use crate::core::names::is_object_name;
use crate::core::session::{ResourceVersion, Uid};
use crate::runtime::api_error::ApiErrorKind;

/// How often a deletion is sent, at most.
const ATTEMPTS: u32 = 3;

/// A deletion that was refused.
struct Refused {
    error: WriteError,
    /// A resourceVersion at which the object lived, if any is known.
    alive: Option<ResourceVersion>,
}

impl From<WriteError> for Refused {
    fn from(error: WriteError) -> Self {
        Self { error, alive: None }
    }
}

impl AsRef<WriteError> for Refused {
    fn as_ref(&self) -> &WriteError {
        &self.error
    }
}

impl Shared {
    /// Deletes the session `name` with this uid, which lived at the resourceVersion `alive`, if one is known.
    ///
    /// With [`Visibility::Everywhere`] no pod serves it when this returns, also if it was gone before: whoever repeats a
    /// revocation whose answer was lost must be able to rely on it.
    ///
    /// With `only_at` it is deleted only in this state, and the answer is [`WriteError::Changed`] else.
    pub async fn delete(
        self: &Arc<Self>,
        name: &str,
        uid: Uid,
        alive: Option<ResourceVersion>,
        only_at: Option<ResourceVersion>,
        visibility: Visibility,
    ) -> Result<(), WriteError> {
        if !is_object_name(name) {
            return Err(WriteError::NotFound);
        }
        let name: Arc<str> = name.into();
        let confirms = visibility == Visibility::Everywhere;
        if confirms {
            // From here on this may be given up at any time.
            self.unconfirmed.insert(&name, Deletion { uid, alive });
        }
        let deleted = self.run({
            let name = name.clone();
            async move |shared| shared.delete_now(&name, uid, alive, only_at).await
        });
        let (outcome, alive, answered) = match deleted.await {
            Ok((alive, answered)) => (Ok(()), Some(alive), answered),
            Err(Refused { error, alive }) => (Err(error), alive, Instant::now()),
        };
        if confirms && says_gone(&outcome) {
            self.confirm_gone(&name, Deletion { uid, alive }, answered).await;
        }
        outcome
    }

    /// Confirms what an earlier deletion of `name` may have done, now that the session is known to be gone.
    pub async fn confirm_unconfirmed(&self, name: &str, visibility: Visibility) {
        if visibility == Visibility::Everywhere {
            let (name, now): (Arc<str>, _) = (name.into(), Instant::now());
            let Open { deletions, others } = self.unconfirmed.all(&name);
            let each = deletions.into_iter().map(async |(deletion, is_gone)| {
                if is_gone {
                    self.confirm_gone(&name, deletion, now).await;
                } else {
                    // It was begun after the look-up, and may mean a session that still lives: what is found out here counts for
                    // nobody else.
                    self.confirm(&name, deletion, now).await;
                }
            });
            let others = async {
                if let Some(heard) = others {
                    self.confirmer.leases_over(heard).await;
                }
            };
            join(join_all(each), others).await;
        }
    }

    /// Waits until no pod serves the session, which was known to be gone at `heard`.
    async fn confirm_gone(&self, name: &Arc<str>, Deletion { uid, alive }: Deletion, heard: Instant) {
        // Whoever repeats a deletion need not wait for a whole lease again.
        let earlier = self.unconfirmed.gone(name, uid, heard);
        let alive = alive.max(earlier.and_then(|(deletion, _)| deletion.alive));
        let answered = earlier.map_or(heard, |(_, first)| first.min(heard));
        self.confirm(name, Deletion { uid, alive }, answered).await;
        self.unconfirmed.remove(name, uid);
    }

    /// Waits until no pod serves the session, if it was gone at `answered`.
    async fn confirm(&self, name: &Arc<str>, Deletion { uid, alive }: Deletion, answered: Instant) {
        match alive {
            Some(alive) => _ = self.confirmer.confirm(name, &gone(uid, alive), answered).await,
            // Nothing tells the replicas how far they must have come: only time will do.
            None => self.confirmer.leases_over(answered).await,
        }
    }

    /// Deletes once. Returns a resourceVersion at which the object lived or was already being deleted.
    async fn delete_now(
        &self,
        name: &str,
        uid: Uid,
        alive: Option<ResourceVersion>,
        only_at: Option<ResourceVersion>,
    ) -> Result<ResourceVersion, Refused> {
        let held = self.store.look(name, |shard| {
            let copy = shard.peek(name).filter(|copy| copy.uid == uid);
            copy.map(|copy| copy.resource_version)
        });
        // A deletion does not tell its own resourceVersion. Replicas compare with one at which the object lived.
        let alive = match alive.max(held) {
            Some(alive) => alive,
            None => self.alive_at(name, uid).await?,
        };
        let outcome = self.attempt_delete(name, uid, only_at).await;
        let later = outcome.as_ref().ok().copied().flatten();
        let alive = later.map_or(alive, |later| later.max(alive));
        let outcome = outcome.map(drop);
        if says_gone(&outcome) {
            self.store.evict(name, gone(uid, alive));
        }
        outcome.map(|()| alive).map_err(|error| Refused { error, alive: Some(alive) })
    }

    /// A resourceVersion at which the session lives.
    async fn alive_at(&self, name: &str, uid: Uid) -> Result<ResourceVersion, WriteError> {
        match self.api.get(name).await {
            Ok(Answer::Found(found)) if found.copy.uid == uid => Ok(found.copy.resource_version),
            Ok(Answer::Found(_)) => Err(WriteError::Replaced),
            Ok(Answer::NotFound) => Err(WriteError::NotFound),
            Err(error) => Err(self.unavailable(&error).into()),
        }
    }

    /// Deletes, again if the outcome is not known: as it names the uid, a deletion can be repeated. If finalizers hold the
    /// object, the resourceVersion at which it began to be deleted is returned.
    async fn attempt_delete(
        &self,
        name: &str,
        uid: Uid,
        only_at: Option<ResourceVersion>,
    ) -> Result<Option<ResourceVersion>, WriteError> {
        let mut unsure = false;
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let error = match self.api.delete(name, uid, only_at).await {
                Ok(held) => return Ok(held.map(|observed| observed.copy.resource_version)),
                // Gone after an attempt whose outcome was not known: by us, as far as anybody can tell.
                Err(error) if unsure && is_gone(&error) => return Ok(None),
                Err(error) => error,
            };
            unsure |= error.outcome_unknown();
            let changed = only_at.is_some() && error.kind() == Some(ApiErrorKind::Conflict);
            let again = error.outcome_unknown() || error.kind() == Some(ApiErrorKind::Conflict);
            if changed || !again || attempt == ATTEMPTS {
                return Err(match self.refused(&error) {
                    // What this attempt was answered says nothing of an earlier one: it may have been done, even if the object is
                    // still there for its finalizers.
                    _ if unsure => WriteError::OutcomeUnknown { reason: error.to_string().into() },
                    _ if changed => WriteError::Changed,
                    error => error,
                });
            }
            attempt += 1;
            sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Whether the outcome means that the object does not exist any more.
fn says_gone(outcome: &Result<(), WriteError>) -> bool {
    matches!(outcome, Ok(()) | Err(WriteError::NotFound | WriteError::Replaced))
}

fn is_gone(error: &CallError) -> bool {
    *error == CallError::NotFound || error.kind() == Some(ApiErrorKind::UidMismatch)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::{Method, StatusCode, header};
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cache::{Cache, CacheConfig, WriteOptions};

    const UID: &str = "00000000-0000-0000-0000-000000000007";

    fn status(code: u16) -> Value {
        let reason = match code {
            404 => "NotFound",
            409 => "Conflict",
            _ => "",
        };
        let outcome = if code == 200 { "Success" } else { "Failure" };
        let details = json!({"name": "s", "kind": "vmcpsessions"});
        json!({"kind": "Status", "status": outcome, "code": code, "reason": reason, "message": "", "details": details})
    }

    /// Deletes a session, only as it was read if it is to be `unchanged`, where the API server answers deletions with these
    /// codes, one after the other. Tells on what condition each was sent, too.
    async fn deleted(unchanged: bool, codes: &'static [u16]) -> (Result<(), WriteError>, Vec<Value>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let (conditions, mut left) = (Arc::new(Mutex::new(Vec::new())), codes.iter().copied());
        let left = Arc::new(Mutex::new(move || left.next()));
        let seen = conditions.clone();
        let answer = async move |method: Method, body: String| {
            let (code, body) = if method == Method::DELETE {
                let sent: Value = serde_json::from_str(&body).unwrap();
                seen.lock().push(sent["preconditions"].clone());
                let code = left.lock()().expect("no further attempt");
                (code, status(code))
            } else {
                let metadata =
                    json!({"namespace": "ns", "name": "s", "uid": UID, "generation": 1, "resourceVersion": "7"});
                let object = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": metadata,
                    "spec": {"metadata": {}}});
                (200, object)
            };
            let code = StatusCode::from_u16(code).unwrap();
            (code, [(header::CONTENT_TYPE, "application/json")], body.to_string())
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        let mut config = kube::Config::new(server.parse().unwrap());
        // As the real client has it.
        config.default_retry = false;
        let client = kube::Client::try_from(config).unwrap();
        let config = CacheConfig { lease_upper_bound: Duration::from_millis(10), ..CacheConfig::new("ns", "pod") };
        let cache = Cache::connect(client, config).unwrap();
        let session = cache.get("s").await.unwrap();
        let outcome = if unchanged {
            cache.delete_unchanged(&session, WriteOptions::EVERYWHERE).await
        } else {
            cache.delete(&session, WriteOptions::EVERYWHERE).await
        };
        let conditions = std::mem::take(&mut *conditions.lock());
        (outcome, conditions)
    }

    #[tokio::test]
    async fn a_deletion_of_just_this_state_is_repeated_as_such_and_only_if_its_outcome_is_not_known() {
        for (codes, done) in [
            (&[500, 200][..], "done"),
            // By the first attempt, as far as anybody can tell.
            (&[500, 404], "done"),
            // The first attempt may have changed it: its finalizers hold it.
            (&[500, 409], "unknown"),
            (&[500, 500, 500], "unknown"),
            (&[409], "changed"),
            (&[404], "not found"),
        ] {
            let (outcome, conditions) = deleted(true, codes).await;
            let told = match &outcome {
                Ok(()) => "done",
                Err(WriteError::OutcomeUnknown { .. }) => "unknown",
                Err(WriteError::Changed) => "changed",
                Err(WriteError::NotFound) => "not found",
                Err(_) => "something else",
            };
            assert_eq!(told, done, "{codes:?}: {outcome:?}");
            assert_eq!(conditions, vec![json!({"uid": UID, "resourceVersion": "7"}); codes.len()], "{codes:?}");
        }
    }

    #[tokio::test]
    async fn a_deletion_of_any_state_is_repeated_when_it_lost_a_race() {
        let (outcome, conditions) = deleted(false, &[409, 500, 200]).await;
        assert_eq!(outcome, Ok(()));
        assert_eq!(conditions, vec![json!({"uid": UID}); 3]);
    }
}
