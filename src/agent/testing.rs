//! An agent in this process, beside an API server that is a map: for tests of what commands do to sessions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::DATE;
use http::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::Agent;
use super::command::{self, Client, ServerSettings};
use super::pubsub::PubSub;
use super::server::{Address, Clients, Flow, Room};
use super::sessions::{Sessions, SessionsConfig};
use super::tracking::Tracking;
use crate::cache::{CacheConfig, Visibility};
use crate::resp::{Reply, Request as Command};

/// Bytes that clients may take in tests that are not about it.
const PLENTY: usize = 1 << 30;

/// What an API server does with writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// It carries them out, and says so.
    #[default]
    Answered,
    /// It carries them out, and answers with an error that leaves open whether it did.
    Unanswered,
    /// So it does with the next one, and refuses everything after it.
    LastUnanswered,
}

#[derive(Default)]
struct Objects {
    by_name: BTreeMap<String, Value>,
    version: u64,
    writes: Writes,
    down: bool,
    /// How far its clock is behind that of the agent.
    behind: Duration,
}

/// Somebody who is called before each request, with its method and the object's name.
type Meddler = Box<dyn FnMut(&Method, &str) + Send>;

/// An API server with the sessions of one namespace.
#[derive(Clone, Default)]
pub struct FakeApi {
    objects: Arc<Mutex<Objects>>,
    meddler: Arc<Mutex<Option<Meddler>>>,
    door: Arc<tokio::sync::Mutex<()>>,
    /// Requests that have come to the door.
    come: tokio::sync::watch::Sender<usize>,
}

fn status(code: StatusCode, reason: &str, name: &str) -> (StatusCode, Value) {
    let details = json!({"name": name, "kind": "vmcpsessions", "group": "vmcp.dev"});
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code.as_u16(), "details": details});
    (code, status)
}

/// How something is refused for the object of this name.
type Refusal = fn(&str) -> (StatusCode, Value);

fn conflict(name: &str) -> (StatusCode, Value) {
    status(StatusCode::CONFLICT, "Conflict", name)
}

/// A precondition of a delete. Only the message tells it from a conflict.
fn another_uid_deleted(name: &str) -> (StatusCode, Value) {
    let (code, mut status) = conflict(name);
    status["message"] = json!("the UID in the precondition (a) does not match the UID in record (b)");
    (code, status)
}

/// A patch may not change the uid.
fn another_uid_patched(name: &str) -> (StatusCode, Value) {
    let (code, mut status) = status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", name);
    status["details"]["causes"] = json!([{"reason": "FieldValueInvalid", "field": "metadata.uid"}]);
    (code, status)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

impl Objects {
    fn put(&mut self, name: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.by_name.get(name);
        let generation = before.map_or(0, |b| b["metadata"]["generation"].as_u64().unwrap());
        let moved = before.is_none_or(|before| before["spec"] != object["spec"]);
        object["metadata"]["generation"] = json!(generation + u64::from(moved));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.by_name.insert(name.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, name: &str, body: &Value) -> (StatusCode, Value) {
        let missing = || status(StatusCode::NOT_FOUND, "NotFound", name);
        if self.down {
            return status(StatusCode::FORBIDDEN, "Forbidden", name);
        }
        if *method == Method::GET {
            return self.by_name.get(name).map_or_else(missing, |object| (StatusCode::OK, object.clone()));
        }
        let before = self.by_name.get(name).cloned();
        let answer = match (method, before) {
            (&Method::POST, None) => {
                let mut object = body.clone();
                object["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.version + 1));
                object["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
                (StatusCode::CREATED, self.put(name, object))
            }
            (&Method::POST, Some(_)) => status(StatusCode::CONFLICT, "AlreadyExists", name),
            (_, None) => missing(),
            (method, Some(mut object)) => {
                let wanted = if *method == Method::DELETE { &body["preconditions"] } else { &body["metadata"] };
                let differs = |key: &str| !wanted[key].is_null() && wanted[key] != object["metadata"][key];
                // In this order, as a real one does.
                let refusals = match *method {
                    Method::DELETE => [("uid", another_uid_deleted as Refusal), ("resourceVersion", conflict)],
                    _ => [("resourceVersion", conflict as Refusal), ("uid", another_uid_patched)],
                };
                if let Some((_, refuse)) = refusals.into_iter().find(|(field, _)| differs(field)) {
                    return refuse(name);
                }
                if *method == Method::DELETE {
                    self.by_name.remove(name);
                    (StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
                } else {
                    merge(&mut object, body);
                    (StatusCode::OK, self.put(name, object))
                }
            }
        };
        match self.writes {
            Writes::Answered => answer,
            Writes::Unanswered | Writes::LastUnanswered => {
                self.down = self.writes == Writes::LastUnanswered;
                status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", name)
            }
        }
    }
}

impl FakeApi {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                api.come.send_modify(|come| *come += 1);
                drop(api.door.lock().await);
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let last = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                let name = if parts.method == Method::POST { body["metadata"]["name"].as_str() } else { Some(&*last) };
                if let Some(meddle) = &mut *api.meddler.lock() {
                    meddle(&parts.method, name.unwrap());
                }
                let (code, answer) = api.objects.lock().answer(&parts.method, name.unwrap(), &body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                let shown = Timestamp::now() - api.objects.lock().behind;
                let shown = DateTimePrinter::new().timestamp_to_rfc9110_string(&shown).unwrap();
                Ok::<_, Infallible>(Response::builder().status(code).header(DATE, shown).body(answer).unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    /// Changes an object as somebody else would.
    pub fn merge(&self, name: &str, patch: &Value) {
        let mut objects = self.objects.lock();
        let mut object = objects.by_name[name].clone();
        merge(&mut object, patch);
        objects.put(name, object);
    }

    /// Creates a session as somebody else would.
    pub fn put(&self, name: &str, metadata: &Value) {
        let object = json!({"metadata": {"name": name}, "spec": {"metadata": metadata}});
        self.objects.lock().answer(&Method::POST, name, &object);
    }

    /// Deletes an object as somebody else would.
    pub fn remove(&self, name: &str) {
        self.objects.lock().by_name.remove(name);
    }

    /// The object of a session.
    pub fn object(&self, name: &str) -> Option<Value> {
        self.objects.lock().by_name.get(name).cloned()
    }

    /// How writes are answered from now on.
    pub fn answers(&self, writes: Writes) {
        self.objects.lock().writes = writes;
    }

    /// All requests wait as long as what is returned lives.
    pub async fn close(&self) -> OwnedMutexGuard<()> {
        let closed = self.door.clone().lock_owned().await;
        self.come.send_replace(0);
        closed
    }

    /// Waits until so many requests wait, since it was closed.
    pub async fn await_waiting(&self, _closed: &OwnedMutexGuard<()>, requests: usize) {
        self.come.subscribe().wait_for(|come| *come >= requests).await.unwrap();
    }

    /// Has `meddle` called before each request: what others do just then.
    pub fn before_each(&self, meddle: impl FnMut(&Method, &str) + Send + 'static) {
        *self.meddler.lock() = Some(Box::new(meddle));
    }

    /// How far its clock is behind that of the agent from now on.
    pub fn is_behind(&self, by: Duration) {
        self.objects.lock().behind = by;
    }

    /// Whether it refuses everything from now on.
    pub fn is_down(&self, down: bool) {
        self.objects.lock().down = down;
    }
}

/// An agent that holds a lease, and its API server.
pub struct Bench {
    pub agent: Arc<Agent>,
    pub api: FakeApi,
    sessions: SessionsConfig,
}

/// Somebody who is connected to it.
pub struct Guest {
    agent: Arc<Agent>,
    pub client: Client,
}

fn sessions() -> SessionsConfig {
    SessionsConfig {
        prefix: String::new(),
        pod_local_keys: Vec::new(),
        hash_key_file: None,
        visibility: Visibility::Committed,
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::showing(Visibility::Committed)
    }

    /// One whose writes are answered when they are visible so far.
    pub fn showing(visibility: Visibility) -> Self {
        Self::at(FakeApi::default(), SessionsConfig { visibility, ..sessions() }, PLENTY)
    }

    /// One whose writes are answered when they are visible everywhere, and where these keys are true only in this pod.
    pub fn with_pod_local_keys(patterns: &[&str]) -> Self {
        let pod_local_keys = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let sessions = SessionsConfig { pod_local_keys, visibility: Visibility::Everywhere, ..sessions() };
        Self::at(FakeApi::default(), sessions, PLENTY)
    }

    /// One whose clients may take so many bytes together, and whose writes are answered when they are visible everywhere.
    pub fn with_clients_memory(memory: usize) -> Self {
        Self::at(FakeApi::default(), SessionsConfig { visibility: Visibility::Everywhere, ..sessions() }, memory)
    }

    /// One of the same namespace.
    pub fn beside(&self) -> Self {
        Self::at(
            self.api.clone(),
            SessionsConfig { visibility: Visibility::Committed, ..self.sessions.clone() },
            PLENTY,
        )
    }

    /// One that hashes ids with the key in this file.
    pub fn hashing(key: &std::path::Path) -> Self {
        Self::at(FakeApi::default(), SessionsConfig { hash_key_file: Some(key.to_owned()), ..sessions() }, PLENTY)
    }

    fn at(api: FakeApi, sessions: SessionsConfig, memory: usize) -> Self {
        let clients = Arc::new(Clients::new(Room { clients: 8, output: 1 << 20, memory }));
        let settings = ServerSettings { output_limit: 1 << 20, ..ServerSettings::default() };
        let agent = Arc::new(Agent {
            sessions: Sessions::connect(api.client(), CacheConfig::new("default", "test"), &sessions).unwrap(),
            commands: command::Server::new(settings),
            tracking: Tracking::new(64, Arc::clone(&clients)),
            clients,
            pubsub: PubSub::default(),
        });
        agent.sessions.cache().lease_for_tests(Duration::from_hours(1));
        Self { agent, api, sessions }
    }

    /// Somebody connects.
    pub fn guest(&self) -> Guest {
        let unix = Address::Unix(Arc::default());
        let handle = self.agent.clients.register(unix.clone(), unix).unwrap();
        Guest { agent: self.agent.clone(), client: Client::new(handle, false) }
    }
}

impl Guest {
    /// Sends a command.
    pub async fn sends(&mut self, args: &[&str]) -> Flow {
        let args = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        command::execute(&self.agent, &mut self.client, Command { args }).await
    }

    /// Sends a command that has one reply, in words without spaces.
    pub async fn asks(&mut self, line: &str) -> Reply {
        let words: Vec<&str> = line.split(' ').collect();
        match self.sends(&words).await {
            Flow::Reply(reply) => reply,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// What was sent to it beside replies.
    pub fn heard(&self) -> String {
        let (handle, mut heard) = (self.client.handle(), BytesMut::new());
        handle.mailbox().take(handle.protocol(), true, &mut heard);
        String::from_utf8(heard.to_vec()).unwrap()
    }
}

/// A string.
pub fn bulk(text: &str) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};

    use super::*;
    use crate::api::VmcpSession;
    use crate::runtime::api_error::{ApiError, ApiErrorKind};

    #[tokio::test]
    async fn another_object_and_another_state_are_refused_as_a_real_api_server_does() {
        let api = FakeApi::default();
        api.put("s", &json!({}));
        let sessions: Api<VmcpSession> = Api::namespaced(api.client(), "default");
        let (other, unseen) = (Some("00000000-0000-4000-8000-000000000009".to_owned()), Some("9".to_owned()));
        for (uid, resource_version, kinds, codes) in [
            (other.clone(), None, [ApiErrorKind::UidMismatch; 2], [422, 409]),
            (None, unseen.clone(), [ApiErrorKind::Conflict; 2], [409, 409]),
            (other, unseen, [ApiErrorKind::Conflict, ApiErrorKind::UidMismatch], [409, 409]),
        ] {
            let mut metadata = json!({});
            for (field, wanted) in [("uid", &uid), ("resourceVersion", &resource_version)] {
                // A null would take the field away.
                metadata.as_object_mut().unwrap().extend(wanted.as_ref().map(|wanted| (field.into(), json!(wanted))));
            }
            let patch = Patch::Merge(json!({"metadata": metadata}));
            let patched = sessions.patch("s", &PatchParams::default(), &patch).await;
            let preconditions = Some(Preconditions { uid, resource_version });
            let deleted = sessions.delete("s", &DeleteParams { preconditions, ..DeleteParams::default() }).await;
            let refused = [ApiError::from(patched.unwrap_err()), ApiError::from(deleted.unwrap_err())];
            assert_eq!(refused.each_ref().map(ApiError::kind), kinds);
            assert_eq!(refused.map(|error| error.code().unwrap()), codes);
        }
    }
}
