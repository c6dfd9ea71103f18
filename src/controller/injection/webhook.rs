//! Answers the API server what to add to a pod. Every replica does: nothing needs to be led for it.
//!
//! Anybody can ask. Nothing that is answered is secret, nothing is remembered, and nothing is looked up for it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::definition::Definition;
use super::patch::patch;
use crate::runtime::bounded::{self, BoundedListener};
use crate::runtime::listen::Listen;
use crate::runtime::tls::listener::TlsListener;

/// The path that the API server asks at.
pub const PATH: &str = "/pods";
/// A pod has less than etcd takes, which is 1.5 MiB, and in a review there is little beside it.
const MAX_REVIEW: usize = 2 << 20;
/// What is read of a review may take a hundred times its size, and anybody may ask: one at a time.
static TURN: Semaphore = Semaphore::const_new(1);
/// Each API server keeps a connection or two.
const MAX_CONNECTIONS: usize = 32;
/// A connection ends when it has carried no answer for that long. An API server opens another one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The webhook cannot be served.
#[derive(Debug, Error)]
pub enum WebhookError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} for the API server's questions about pods: {source}")]
    Bind {
        /// The address.
        address: Listen,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server ended.
    #[error("answering the API server's questions about pods ended: {0}")]
    Serve(#[source] std::io::Error),
}

/// The webhook, bound but not served yet: so a bad address is an error at the start.
#[derive(Debug)]
pub struct BoundWebhook {
    listener: TcpListener,
    definition: Arc<Definition>,
}

impl BoundWebhook {
    /// Binds `address`.
    pub async fn bind(address: Listen, definition: Definition) -> Result<Self, WebhookError> {
        let failed = |source| WebhookError::Bind { address, source };
        Ok(Self { listener: address.bind().await.map_err(failed)?, definition: Arc::new(definition) })
    }

    /// Serves until `shutdown`, with TLS.
    pub async fn serve(self, tls: Arc<ServerConfig>, shutdown: CancellationToken) -> Result<(), WebhookError> {
        let router = Router::new()
            .route(PATH, post(review))
            .layer(DefaultBodyLimit::max(MAX_REVIEW))
            .with_state(self.definition);
        let listener = BoundedListener::new(self.listener, MAX_CONNECTIONS, CONNECTION_TIMEOUT);
        bounded::serve(TlsListener::new(listener, tls), router, &shutdown).await.map_err(WebhookError::Serve)
    }
}

async fn review(State(definition): State<Arc<Definition>>, body: Bytes) -> Response {
    // It is never closed.
    let _turn = TURN.acquire().await;
    match answer(&definition, &body) {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Err(reason) => {
            // The API server tells whoever creates the pod. Anybody else can cause this too.
            tracing::debug!(%reason, "a question about a pod could not be answered");
            (StatusCode::BAD_REQUEST, reason.to_string()).into_response()
        }
    }
}

#[derive(Debug, Error)]
enum Unanswerable {
    /// The text is not told: it may be of a pod.
    #[error("it is no AdmissionReview in JSON (line {line}, column {column})")]
    NoReview { line: usize, column: usize },
    #[error("it is an AdmissionReview without a request")]
    NoRequest,
    #[error("the patch cannot be written: {0}")]
    Patch(#[from] kube::core::admission::SerializePatchError),
    #[error("the answer cannot be written: {0}")]
    Answer(#[from] serde_json::Error),
}

fn answer(definition: &Definition, body: &[u8]) -> Result<Vec<u8>, Unanswerable> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)
        .map_err(|error| Unanswerable::NoReview { line: error.line(), column: error.column() })?;
    let request: AdmissionRequest<DynamicObject> = review.try_into().map_err(|_| Unanswerable::NoRequest)?;
    let mut response = AdmissionResponse::from(&request);
    let created = request.operation == Operation::Create
        && request.resource.resource == "pods"
        && request.sub_resource.as_deref().is_none_or(str::is_empty);
    if let Some(pod) = request.object.filter(|_| created) {
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let patch = patch(definition, &annotations, &pod.data["spec"]);
        if !patch.is_empty() {
            response = response.with_patch(patch)?;
        }
    }
    Ok(serde_json::to_vec(&response.into_review())?)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn definition() -> Definition {
        Definition::parse(b"container: {name: agent, image: {option: image, default: a}}\nvolumes: []").unwrap()
    }

    fn question(operation: &str, resource: &str) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "1-2-3", "operation": operation, "name": "", "namespace": "a", "userInfo": {}, "dryRun": false,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": resource},
                "object": {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"generateName": "a-", "annotations": {"vmcp.dev/agent-image": "mine"}},
                    "spec": {"containers": [{"name": "secret-name"}], "volumes": []},
                },
            },
        })
    }

    fn answered(question: &Value) -> Value {
        serde_json::from_slice(&answer(&definition(), question.to_string().as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_that_is_created_gets_its_agent() {
        let answer = answered(&question("CREATE", "pods"));
        let response = &answer["response"];
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("1-2-3"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        // The API server takes bytes as a list of numbers, too.
        let patch: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        assert_eq!(patch[0]["value"], json!([{"name": "agent", "image": "mine"}]));
    }

    #[test]
    fn nothing_else_is_changed_or_refused() {
        let mut binding = question("CREATE", "pods");
        binding["request"]["subResource"] = json!("binding");
        for question in [question("UPDATE", "pods"), question("CREATE", "services"), binding] {
            let response = &answered(&question)["response"];
            assert_eq!(response["allowed"], true);
            assert_eq!(response.get("patch"), None);
        }
        let mut without_object = question("DELETE", "pods");
        without_object["request"]["object"] = Value::Null;
        assert_eq!(answered(&without_object)["response"]["allowed"], true);
    }

    #[test]
    fn what_is_no_question_is_told_without_what_was_in_it() {
        let mut wrong = question("CREATE", "pods");
        wrong["request"]["uid"] = json!(["canary"]);
        for text in [wrong.to_string(), "canary".to_owned(), r#"{"canary": 1}"#.to_owned(), String::new()] {
            let error = answer(&definition(), text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("AdmissionReview") && !error.contains("canary"), "{error}");
        }
    }
}
