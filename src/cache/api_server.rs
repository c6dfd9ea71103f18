//! Calls to the API server, each with a deadline, and what their answers mean.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::core::response::reason;
use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use super::config::CacheConfig;
use super::date;
use super::events::count;
use super::refusals::{Refusals, Verb};
use crate::api::{self, LABEL_REPLICA, VmcpSession, VmcpSessionSpec};
use crate::core::cache::{Annotations, Answer, CommonAnnotations, Copy, Facts, Observed};
use crate::core::digest::Digest;
use crate::core::fields::Fields;
use crate::core::server_clock::ServerClock;
use crate::core::session::{ResourceVersion, Uid};
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// Why a call brought no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum CallError {
    /// The API server refused, or did not answer.
    #[error("{0}")]
    Api(ApiError),
    /// The API server refuses for lack of a right, and may only not know of it yet.
    #[error("{0}")]
    NotYet(ApiError),
    /// There is no object of that name.
    #[error("not found")]
    NotFound,
    /// The API server knows no sessions at all (now): that says nothing about one of them.
    #[error("the API server does not serve VmcpSession objects: is its definition installed?")]
    NotServed,
    /// What was answered cannot be the state of a session.
    #[error("the API server's answer is not a session: {0}")]
    NotASession(String),
}

impl CallError {
    /// Whether a write that ended like this may have been committed all the same.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Api(error) | Self::NotYet(error) => error.outcome_unknown(),
            Self::NotFound | Self::NotServed => false,
            Self::NotASession(_) => true,
        }
    }

    /// How long the API server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) | Self::NotYet(error) => error.retry_after(),
            _ => None,
        }
    }

    pub fn kind(&self) -> Option<ApiErrorKind> {
        match self {
            Self::Api(error) | Self::NotYet(error) => Some(error.kind()),
            _ => None,
        }
    }
}

/// The annotations that are kept with copies.
#[derive(Default)]
struct Kept {
    names: Vec<Arc<str>>,
    common: Mutex<CommonAnnotations>,
}

impl Kept {
    fn new(names: Vec<Arc<str>>) -> Self {
        Self { names, ..Self::default() }
    }

    fn of(&self, mut annotations: BTreeMap<String, String>) -> Annotations {
        let annotation = |name: &Arc<str>| Some((name.clone(), annotations.remove(&**name)?.into_boxed_str()));
        let kept = self.names.iter().filter_map(annotation).collect();
        self.common.lock().share(kept)
    }
}

/// The sessions of one namespace at the API server.
pub(super) struct ApiServer {
    api: Api<VmcpSession>,
    field_manager: String,
    kept: Kept,
    deadline: Duration,
    calls: AtomicU64,
    refusals: Refusals,
    clock: Arc<Mutex<ServerClock>>,
}

impl ApiServer {
    pub fn new(client: kube::Client, config: &CacheConfig) -> Self {
        let clock = Arc::default();
        Self {
            api: Api::namespaced(date::noting(client, Arc::clone(&clock)), &config.namespace),
            field_manager: config.field_manager.clone(),
            kept: Kept::new(config.annotations.clone()),
            deadline: config.call_deadline,
            calls: AtomicU64::new(0),
            refusals: Refusals::default(),
            clock,
        }
    }

    /// Its clock, as its last answer shows it.
    pub fn clock(&self) -> ServerClock {
        *self.clock.lock()
    }

    /// Requests that were sent so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// A consistent GET: without a resourceVersion, so that no API server may answer from what it happens to have.
    pub async fn get(&self, name: &str) -> Result<Answer, CallError> {
        match self.call(Verb::Get, name, self.api.get(name)).await {
            // A replica's marker is no session, though it may stand among them.
            Ok(object) if is_marker(&object) => Ok(Answer::NotFound),
            Ok(object) => observed(object, &self.kept).map(Answer::Found),
            Err(CallError::NotFound) => Ok(Answer::NotFound),
            Err(error) => Err(error),
        }
    }

    /// Creates a session.
    pub async fn create(
        &self,
        name: &str,
        spec: VmcpSessionSpec,
        annotations: BTreeMap<String, String>,
    ) -> Result<Observed, CallError> {
        let params = PostParams { field_manager: Some(self.field_manager.clone()), ..PostParams::default() };
        let mut object = VmcpSession::new(name, spec);
        object.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        observed(self.call(Verb::Create, name, self.api.create(&params, &object)).await?, &self.kept)
    }

    /// Applies a JSON merge patch.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<Observed, CallError> {
        let params = PatchParams { field_manager: Some(self.field_manager.clone()), ..PatchParams::default() };
        observed(self.call(Verb::Patch, name, self.api.patch(name, &params, &Patch::Merge(patch))).await?, &self.kept)
    }

    /// Deletes the session with this uid, at this resourceVersion if one is given. If finalizers hold it, its state with the
    /// deletionTimestamp is returned.
    pub async fn delete(
        &self,
        name: &str,
        uid: Uid,
        only_at: Option<ResourceVersion>,
    ) -> Result<Option<Observed>, CallError> {
        let resource_version = only_at.map(|at| at.to_string());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_string()), resource_version }),
            ..DeleteParams::default()
        };
        match self.call(Verb::Delete, name, self.api.delete(name, &params)).await?.left() {
            Some(object) => observed(object, &self.kept).map(Some),
            None => Ok(None),
        }
    }

    /// Makes a call, and tells a missing object from an API server that serves no such objects.
    async fn call<T>(
        &self,
        verb: Verb,
        name: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        count(&self.calls);
        let told = async {
            match call.await {
                Ok(answer) => Ok(Some(answer)),
                Err(kube::Error::Api(status)) if is_missing_object(&status, name) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let answer = deadline(self.deadline, told).await;
        let may_pass = self.refusals.answered(verb, answer.as_ref().err().map(ApiError::kind), Instant::now());
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(CallError::NotFound),
            Err(error) if error.kind() == ApiErrorKind::NotFound => Err(CallError::NotServed),
            Err(error) if may_pass => Err(CallError::NotYet(error)),
            Err(error) => Err(CallError::Api(error)),
        }
    }
}

/// Whether a 404 speaks of the object, not of its type or namespace.
fn is_missing_object(status: &Status, name: &str) -> bool {
    let about_it = |d: &kube::core::response::StatusDetails| d.name == name && d.kind == crate::api::PLURAL;
    status.code == 404 && status.reason == reason::NOT_FOUND && status.details.as_ref().is_some_and(about_it)
}

/// Reads an object of the API server, with those of its annotations that are `kept`.
fn observed(object: VmcpSession, kept: &Kept) -> Result<Observed, CallError> {
    let malformed = |what: &dyn std::fmt::Display| CallError::NotASession(what.to_string());
    let meta = object.metadata;
    let uid: Uid = meta.uid.unwrap_or_default().parse().map_err(|e| malformed(&e))?;
    let resource_version = meta.resource_version.unwrap_or_default();
    let resource_version = resource_version.parse().map_err(|e| malformed(&e))?;
    let generation = meta.generation.and_then(|g| u64::try_from(g).ok());
    let generation = generation.ok_or_else(|| malformed(&"it has no generation"))?;
    let last_renewed = object.status.and_then(|status| status.last_renew_time);
    let facts = Facts {
        idle_timeout_seconds: object.spec.idle_timeout_seconds,
        created: meta.creation_timestamp.map_or(0, |at| millis(&at)),
        last_renewed: last_renewed.and_then(|at| NonZeroU64::new(millis(&at))),
        annotations: kept.of(meta.annotations.unwrap_or_default()),
    };
    let metadata = object.spec.metadata;
    Ok(Observed {
        copy: Copy {
            name: meta.name.unwrap_or_default().into(),
            uid,
            generation,
            resource_version,
            digest: Digest::of(&metadata),
            metadata: Fields::of(&metadata),
            facts,
        },
        terminating: meta.deletion_timestamp.is_some(),
    })
}

/// Whether this is a replica's freshness marker.
fn is_marker(object: &VmcpSession) -> bool {
    let labelled = object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_REPLICA));
    api::is_marker(object.metadata.name.as_deref().unwrap_or_default(), labelled)
}

/// Milliseconds since 1970.
fn millis(at: &Time) -> u64 {
    u64::try_from(at.0.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(details: &Value) -> Status {
        let text = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "",
            "details": details});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_404_of_something_else_is_no_missing_session() {
        let missing = |details| is_missing_object(&status(&details), "s1");
        assert!(missing(json!({"name": "s1", "group": "vmcp.dev", "kind": "vmcpsessions"})));
        assert!(!missing(json!({})), "the type is not served");
        assert!(!missing(json!({"name": "s1", "kind": "namespaces"})));
        assert!(!missing(json!({"name": "s2", "kind": "vmcpsessions"})));
    }

    #[test]
    fn a_label_alone_makes_no_marker() {
        let labelled = |name: &str| {
            let mut object = VmcpSession::new(name, VmcpSessionSpec::default());
            object.metadata.labels = Some(BTreeMap::from([(LABEL_REPLICA.to_owned(), "true".to_owned())]));
            object
        };
        assert!(is_marker(&labelled("replica-a-01")));
        assert!(!is_marker(&labelled("s1")), "a session that somebody has labelled");
        assert!(!is_marker(&VmcpSession::new("replica-a-01", VmcpSessionSpec::default())));
    }

    #[test]
    fn an_object_that_cannot_be_compared_is_refused_without_its_values() {
        let object = |meta: Value| -> Result<Observed, CallError> {
            let object = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": meta,
                "spec": {"metadata": {"k": "canary"}}});
            let kept = Kept::new(vec!["vmcp.dev/form".into(), "vmcp.dev/none".into()]);
            observed(serde_json::from_value(object).unwrap(), &kept)
        };
        let uid = "0189ab00-0000-4000-8000-00000000beef";
        let good = object(json!({"uid": uid, "resourceVersion": "7", "generation": 2})).unwrap();
        assert_eq!((good.copy.generation, good.terminating), (2, false));
        assert!(!format!("{good:?}").contains("canary"));
        assert_eq!(good.copy.facts, Facts::default());
        let annotated = json!({"uid": uid, "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "1970-01-01T00:00:05Z", "annotations": {"vmcp.dev/form": "string", "team": "a"}});
        let facts = object(annotated).unwrap().copy.facts;
        assert_eq!((facts.created, facts.last_renewed), (5_000, None));
        assert_eq!(facts.annotations.get("vmcp.dev/form"), Some("string"));
        assert_eq!(facts.annotations.get("team"), None, "what nobody asked for is not kept");
        for bad in [
            json!({"uid": "x", "resourceVersion": "7", "generation": 2}),
            json!({"uid": uid, "resourceVersion": "x", "generation": 2}),
            json!({"uid": uid, "resourceVersion": "7"}),
        ] {
            let error = object(bad).unwrap_err();
            assert!(error.outcome_unknown(), "a write answered like this was done");
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
    }
}
