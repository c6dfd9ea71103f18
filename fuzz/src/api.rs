//! An API server that is a map: what a request comes to depends on nothing but the requests before it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use vmcp_session::api::MAX_TIMEOUT_SECONDS;
use vmcp_session::cache::is_object_name;

/// Whatever is to be done to this object, the answer is that it may have been done.
const FAILING: &str = "failing";

#[derive(Default)]
struct Objects {
    by_name: BTreeMap<String, Value>,
    version: u64,
}

/// The sessions of one namespace.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<Objects>>);

fn status(code: StatusCode, reason: &str, name: &str) -> (StatusCode, Value) {
    let details = json!({"name": name, "kind": "vmcpsessions", "group": "vmcp.dev"});
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code.as_u16(), "details": details});
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
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

impl Objects {
    fn create(&mut self, name: &str, mut object: Value) -> Value {
        // Nothing is like in an earlier life.
        object["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.version + 1));
        object["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
        self.put(name, object)
    }

    fn put(&mut self, name: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.by_name.get(name);
        let generation = before.map_or(0, |before| before["metadata"]["generation"].as_u64().unwrap_or_default());
        let moved = before.is_none_or(|before| before["spec"] != object["spec"]);
        object["metadata"]["generation"] = json!(generation + u64::from(moved));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.by_name.insert(name.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, name: &str, body: &Value) -> (StatusCode, Value) {
        let missing = || status(StatusCode::NOT_FOUND, "NotFound", name);
        if name == FAILING && *method != Method::GET {
            return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", name);
        }
        match (method, self.by_name.get(name).cloned()) {
            (&Method::POST, None) => (StatusCode::CREATED, self.create(name, body.clone())),
            (&Method::POST, Some(_)) => status(StatusCode::CONFLICT, "AlreadyExists", name),
            (_, None) => missing(),
            (&Method::GET, Some(object)) => (StatusCode::OK, object),
            (method, Some(mut object)) => {
                let wanted = if *method == Method::DELETE { &body["preconditions"] } else { &body["metadata"] };
                let differs = |key: &str| !wanted[key].is_null() && wanted[key] != object["metadata"][key];
                if differs("uid") {
                    let (code, mut status) = status(StatusCode::CONFLICT, "Conflict", name);
                    status["message"] = json!("Precondition failed: UID in precondition is not the UID in object meta");
                    return (code, status);
                }
                if differs("resourceVersion") {
                    return status(StatusCode::CONFLICT, "Conflict", name);
                }
                if *method == Method::DELETE {
                    self.by_name.remove(name);
                    return (StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
                }
                merge(&mut object, body);
                (StatusCode::OK, self.put(name, object))
            }
        }
    }
}

impl Api {
    /// Somebody who asks it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.expect("a body");
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let last = parts.uri.path().rsplit('/').next().unwrap_or_default();
                let name = if parts.method == Method::POST { body["metadata"]["name"].as_str() } else { Some(last) };
                let (code, answer) = api.objects().answer(&parts.method, name.unwrap_or_default(), &body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).expect("a response"))
            }
        });
        kube::Client::new(service, "fuzz")
    }

    /// There are these sessions, and no others: one with a timeout, one without, and one that cannot be written.
    pub fn begin(&self) {
        let mut objects = self.objects();
        objects.by_name.clear();
        for (name, spec) in [
            ("1", json!({"metadata": {"a": "1", "n": "7", "text": "\u{fc} \"x\"\n"}, "idleTimeoutSeconds": 1800})),
            ("2", json!({"metadata": {}})),
            (FAILING, json!({"metadata": {"a": "1"}})),
        ] {
            objects.create(name, json!({"metadata": {"name": name}, "spec": spec}));
        }
    }

    /// All that was written is what a real one would have taken.
    pub fn check(&self) {
        for (name, object) in &self.objects().by_name {
            let (metadata, timeout) = (&object["spec"]["metadata"], &object["spec"]["idleTimeoutSeconds"]);
            assert!(is_object_name(name), "no object has this name");
            assert!(metadata.as_object().is_none_or(|all| all.values().all(Value::is_string)), "not a map of strings");
            let timeout = timeout.as_u64().or(timeout.is_null().then_some(1));
            assert!(timeout.is_some_and(|timeout| (1..=MAX_TIMEOUT_SECONDS.into()).contains(&timeout)), "no timeout");
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
