//! Answers the API server what to add to a pod. Every replica does: nothing needs to be led for it.
//!
//! Anybody can ask. Nothing that is answered is secret, nothing is remembered, and nothing is looked up for it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
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
/// So many reviews are held at once: of the largest, 64 MiB.
const MOST_HELD: usize = 32;
/// A review takes no longer to come once there is room for it: others wait for that room.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// API servers ask with HTTP/1.1: whoever creates many pods at once causes as many connections.
const MAX_CONNECTIONS: usize = 256;
/// A connection ends when it has carried no answer for that long. API servers end theirs when nothing was asked for 90 s: none must
/// end from here while a question is on its way.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);

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
}

/// The webhook, bound but not served yet: so a bad address is an error at the start.
#[derive(Debug)]
pub struct BoundWebhook {
    listener: TcpListener,
    definition: Definition,
}

impl BoundWebhook {
    /// Binds `address`.
    pub async fn bind(address: Listen, definition: Definition) -> Result<Self, WebhookError> {
        let failed = |source| WebhookError::Bind { address, source };
        Ok(Self { listener: address.bind().await.map_err(failed)?, definition })
    }

    /// Serves until `shutdown`, with TLS.
    pub async fn serve(self, tls: Arc<ServerConfig>, shutdown: CancellationToken) -> Result<(), WebhookError> {
        let router = router(self.definition);
        bounded::serve(TlsListener::new(listener(self.listener), tls), router, &shutdown).await;
        Ok(())
    }
}

/// What accepts those who ask.
fn listener(inner: TcpListener) -> BoundedListener {
    BoundedListener::new(inner, MAX_CONNECTIONS, CONNECTION_TIMEOUT)
}

/// Answers, and what bounds what they take: anybody may ask.
struct Reviewer {
    definition: Definition,
    /// A place for each review that is held. It is taken before any of it is read.
    room: Semaphore,
    /// What is made of a review may take a hundred times its size: one at a time.
    turn: Semaphore,
}

impl Reviewer {
    fn new(definition: Definition) -> Arc<Self> {
        Arc::new(Self { definition, room: Semaphore::new(MOST_HELD), turn: Semaphore::new(1) })
    }
}

fn router(definition: Definition) -> Router {
    let reviewer = Reviewer::new(definition);
    Router::new().route(PATH, post(review)).layer(DefaultBodyLimit::max(MAX_REVIEW)).with_state(reviewer)
}

async fn review(State(reviewer): State<Arc<Reviewer>>, request: Request) -> Response {
    // Neither is ever closed.
    let _room = reviewer.room.acquire().await;
    let body = match timeout(READ_WITHIN, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return rejection.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    let _turn = reviewer.turn.acquire().await;
    match answer(&reviewer.definition, &body) {
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
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use axum::body::Body;
    use futures::future::{join, join_all};
    use futures::stream;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::Instant;
    use tower::ServiceExt;

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

    #[tokio::test(start_paused = true)]
    async fn few_reviews_are_held_and_slow_ones_hold_others_up_for_a_moment() {
        let (begun, router) = (Instant::now(), router(definition()));
        let ask = async |body: Body| {
            let request = Request::post(PATH).body(body).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            (answer.status(), begun.elapsed())
        };
        let slow = || ask(Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()));
        let slow = join_all((0..MOST_HELD).map(|_| slow()));
        let (slow, quick) = join(slow, ask(question("CREATE", "pods").to_string().into())).await;
        assert_eq!(slow, [(StatusCode::REQUEST_TIMEOUT, READ_WITHIN); MOST_HELD]);
        assert_eq!(quick, (StatusCode::OK, READ_WITHIN), "there was room when the slow ones had gone, not before");
    }

    /// What was read waits for its turn, and takes its memory meanwhile.
    #[tokio::test]
    async fn a_review_has_its_place_until_it_is_answered() {
        assert_eq!(MOST_HELD * MAX_REVIEW, 64 << 20);
        let reviewer = Reviewer::new(definition());
        let turn = reviewer.turn.acquire().await.unwrap();
        let request = Request::post(PATH).body(Body::from(question("CREATE", "pods").to_string())).unwrap();
        let mut answer = std::pin::pin!(review(State(reviewer.clone()), request));
        assert!(futures::poll!(&mut answer).is_pending(), "another one has the turn");
        assert_eq!(reviewer.room.available_permits(), MOST_HELD - 1);
        drop(turn);
        assert_eq!(answer.await.status(), StatusCode::OK);
        assert_eq!(reviewer.room.available_permits(), MOST_HELD);
    }

    /// A connection to the webhook, and what it answers to a question with this body.
    async fn asked(stream: &mut TcpStream, body: &str) -> std::io::Result<String> {
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: webhook\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        let mut answer = Vec::new();
        // It ends with the review.
        while !answer.ends_with(b"}}") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// As an API server asks that is asked for many pods at once, and soon again.
    #[tokio::test]
    async fn many_ask_at_once_and_none_is_hung_up_on() {
        let bound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = bound.local_addr().unwrap();
        let (shutdown, router) = (CancellationToken::new(), router(definition()));
        let serving = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { bounded::serve(listener(bound), router, &shutdown).await }
        });
        let opened = (0..256).map(|_| async { TcpStream::connect(address).await.unwrap() });
        let mut streams = join_all(opened).await;
        let question = question("CREATE", "pods").to_string();
        for _ in 0..2 {
            let answers = join_all(streams.iter_mut().map(|stream| asked(stream, &question))).await;
            for answer in answers {
                assert!(answer.unwrap().starts_with("HTTP/1.1 200 OK"));
            }
        }
        shutdown.cancel();
        serving.await.unwrap();
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
